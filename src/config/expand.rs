//! Replaces `$VAR` and `${VAR}` in a value.
//!
//! Litestream replaces variables in the text of the whole file, before it parses the YAML. walferry replaces
//! them in each value afterwards. So a variable may hold any text, and changes only this value.

/// Reason why a value cannot be expanded.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// This variable is not set.
    Unset(String),
    /// `${` has no end, or no name.
    Malformed,
}

/// Replaces variables. `$$` stands for `$`. A `$` that no name follows stands for itself.
pub(super) fn expand(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, Failure> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let name = if let Some(braced) = rest.strip_prefix('{') {
            let (name, after) = braced.split_once('}').ok_or(Failure::Malformed)?;
            if name.is_empty() || !name.chars().all(is_part_of_name) {
                return Err(Failure::Malformed);
            }
            rest = after;
            name
        } else {
            let end = rest.find(|c| !is_part_of_name(c)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            if name.is_empty() {
                expanded.push('$');
                continue;
            }
            rest = after;
            name
        };
        expanded += &variable(name).ok_or_else(|| Failure::Unset(name.to_string()))?;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn is_part_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, Failure> {
        let odd = ": # { } \" ' \n % $A ${B}";
        expand(text, &|name| match name {
            "A" => Some("a".into()),
            "ODD" => Some(odd.into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced_once() {
        for (text, expected) in [
            ("", ""),
            ("$A", "a"),
            ("x${A}y$A.z", "xaya.z"),
            ("$$A", "$A"),
            ("5$ and $", "5$ and $"),
            ("${EMPTY}", ""),
            ("<${ODD}>", "<: # { } \" ' \n % $A ${B}>"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(expanded("$NOT_THERE"), Err(Failure::Unset("NOT_THERE".into())));
        assert_eq!(expanded("${NOT_THERE}"), Err(Failure::Unset("NOT_THERE".into())));
        for text in ["${", "${}", "${A", "${A-b}", "${A:-b}"] {
            assert_eq!(expanded(text), Err(Failure::Malformed), "{text}");
        }
    }
}

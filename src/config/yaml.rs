//! Parses YAML into a tree in which each value has its line.
//!
//! A crate parses the text into events. `Builder` makes the tree, with anchors and merge keys (`<<`) as Go's
//! YAML reads them. Limits bound the size of the tree.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::mistake::Mistake;

/// Most values of a file. The values of an alias count wherever the alias is used.
const NODES_MAX: usize = 100_000;
/// Deepest nesting.
const DEPTH_MAX: usize = 32;

/// A value and its line.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Line number from 1.
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A text. `plain` is true if the text has no quotes, so that it may mean null.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key, its line and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) value: Node,
    /// True if a merge key brought the entry. A key beside the merge key goes before it.
    merged: bool,
}

impl Node {
    /// True if the value is missing or null.
    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, plain: true } => {
                matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            _ => false,
        }
    }

    /// Describes the value for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Scalar { .. } => "a value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a group of keys",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::Sequence(items) => items.iter().map(Node::size).sum(),
            Value::Mapping(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
        }
    }
}

/// A list or group that the builder is reading.
enum Open {
    Sequence(usize, Vec<Node>, usize),
    /// The third field is the key whose value comes next.
    Mapping(usize, Vec<Entry>, Option<(String, usize)>, usize),
}

/// Parses a file's text. Returns `None` if the text has only comments.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Mistake> {
    // Files from Windows may begin with a byte order mark, which would cause an odd message.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let line = error.marker().line();
            Mistake::at(line, "", syntax(text, line, error.info()))
        })?;
        builder.take(event, span.start.line().max(1))?;
    }
    Ok(builder.root)
}

/// Returns the parser's message, or a clearer message if a tab is the reason.
fn syntax(text: &str, line: usize, info: &str) -> String {
    let indented_by_tab =
        |line: &str| line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    let from = line.saturating_sub(2);
    let tab = text.lines().enumerate().skip(from).take(3).find(|(_, line)| indented_by_tab(line));
    match tab {
        Some((at, _)) => {
            format!("line {} begins with a tab: YAML is indented with spaces only", at + 1)
        }
        None => format!("this is not YAML: {info}"),
    }
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), Mistake> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let why = "a second document begins here; put everything into one";
                    return Err(Mistake::at(line, "", why));
                }
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let Some(node) = node else {
                    return Err(Mistake::at(line, "", "this alias stands for nothing before it"));
                };
                self.count(node.size(), line)?;
                return self.put(node, 0, line);
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, line)?;
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = Value::Scalar { text: text.into_owned(), plain };
                return self.put(Node { line, value }, anchor, line);
            }
            Event::SequenceStart(anchor, _) => {
                self.open(Open::Sequence(line, Vec::new(), anchor))?;
            }
            Event::MappingStart(anchor, _) => {
                self.open(Open::Mapping(line, Vec::new(), None, anchor))?;
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Open::Sequence(line, items, anchor)) => {
                    return self.put(Node { line, value: Value::Sequence(items) }, anchor, line);
                }
                Some(Open::Mapping(line, entries, _, anchor)) => {
                    return self.put(Node { line, value: Value::Mapping(entries) }, anchor, line);
                }
                None => {}
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn open(&mut self, open: Open) -> Result<(), Mistake> {
        let line = match open {
            Open::Sequence(line, ..) | Open::Mapping(line, ..) => line,
        };
        self.count(1, line)?;
        if self.stack.len() >= DEPTH_MAX {
            return Err(Mistake::at(line, "", format!("it is nested deeper than {DEPTH_MAX}")));
        }
        self.stack.push(open);
        Ok(())
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), Mistake> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX {
            return Err(Mistake::at(line, "", format!("it has more than {NODES_MAX} values")));
        }
        Ok(())
    }

    /// Puts a complete value into the list or group that contains it.
    fn put(&mut self, node: Node, anchor: usize, line: usize) -> Result<(), Mistake> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence(_, items, _)) => items.push(node),
            Some(Open::Mapping(_, entries, key, _)) => match key.take() {
                None => match node.value {
                    Value::Scalar { text, .. } => *key = Some((text, line)),
                    _ => return Err(Mistake::at(line, "", "a key must be a word")),
                },
                Some((name, at)) if name == "<<" => merge(entries, node, at)?,
                Some((name, at)) => {
                    let taken = entries.iter().position(|entry| entry.key == name);
                    match taken.and_then(|index| entries.get_mut(index)) {
                        Some(entry) if entry.merged => {
                            *entry = Entry { key: name, line: at, value: node, merged: false };
                        }
                        Some(entry) => {
                            let why = format!("the key is there already, in line {}", entry.line);
                            return Err(Mistake::at(at, &name, why));
                        }
                        None => {
                            entries.push(Entry { key: name, line: at, value: node, merged: false });
                        }
                    }
                }
            },
        }
        Ok(())
    }
}

/// Merges the groups of `<<: *anchor`, or of a list of anchors.
fn merge(entries: &mut Vec<Entry>, from: Node, line: usize) -> Result<(), Mistake> {
    match from.value {
        Value::Mapping(theirs) => {
            for entry in theirs {
                if !entries.iter().any(|known| known.key == entry.key) {
                    entries.push(Entry { merged: true, ..entry });
                }
            }
            Ok(())
        }
        Value::Sequence(all) => all.into_iter().try_for_each(|one| merge(entries, one, line)),
        Value::Scalar { .. } => Err(Mistake::at(line, "<<", "only a group of keys can be merged")),
    }
}

//! Splits hosts of an `s3://` URL as Litestream does: `bucket.region.provider.com`.

/// Parts of such a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) bucket: String,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

/// Hosts of providers, which follow the bucket and a dot. `*` is the region.
const PROVIDERS: [&str; 7] = [
    "s3.*.backblazeb2.com",
    "s3.filebase.com",
    "*.digitaloceanspaces.com",
    "s3.*.scw.cloud",
    "*.linodeobjects.com",
    "s3.*.amazonaws.com",
    "s3.amazonaws.com",
];

/// Splits a host. Returns `None` if the host is only the name of a bucket.
pub(super) fn parse(host: &str) -> Option<Host> {
    let (name, _) = host.split_once(':').unwrap_or((host, ""));
    if let Some(bucket) = name.strip_suffix(".localhost") {
        let server = host.strip_prefix(bucket)?.strip_prefix('.')?;
        let endpoint = Some(format!("http://{server}"));
        return Some(Host { bucket: bucket.to_string(), region: None, endpoint });
    }
    PROVIDERS.iter().find_map(|provider| of_provider(host, provider))
}

fn of_provider(host: &str, provider: &str) -> Option<Host> {
    let labels: Vec<&str> = host.split('.').collect();
    let wanted: Vec<&str> = provider.split('.').collect();
    let at = labels.len().checked_sub(wanted.len()).filter(|at| *at > 0)?;
    let (bucket, server) = labels.split_at(at);
    let fits = wanted.iter().zip(server).all(|(wanted, label)| *wanted == "*" || wanted == label);
    if !fits {
        return None;
    }
    let region = wanted.iter().position(|wanted| *wanted == "*").and_then(|at| server.get(at));
    // AWS needs only the region.
    let endpoint =
        (!provider.ends_with("amazonaws.com")).then(|| format!("https://{}", server.join(".")));
    Some(Host { bucket: bucket.join("."), region: region.map(ToString::to_string), endpoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_litestream_takes_them_apart() {
        for (host, bucket, region, endpoint) in [
            (
                "b.nyc3.digitaloceanspaces.com",
                "b",
                Some("nyc3"),
                Some("https://nyc3.digitaloceanspaces.com"),
            ),
            (
                "a.b.s3.us-west-002.backblazeb2.com",
                "a.b",
                Some("us-west-002"),
                Some("https://s3.us-west-002.backblazeb2.com"),
            ),
            ("b.s3.filebase.com", "b", None, Some("https://s3.filebase.com")),
            ("b.s3.fr-par.scw.cloud", "b", Some("fr-par"), Some("https://s3.fr-par.scw.cloud")),
            ("b.s3.eu-west-1.amazonaws.com", "b", Some("eu-west-1"), None),
            ("b.s3.amazonaws.com", "b", None, None),
            ("b.localhost:9000", "b", None, Some("http://localhost:9000")),
        ] {
            let expected = Host {
                bucket: bucket.into(),
                region: region.map(str::to_string),
                endpoint: endpoint.map(str::to_string),
            };
            assert_eq!(parse(host), Some(expected), "{host}");
        }
        for host in ["bucket", "my.bucket.with.dots", "s3.amazonaws.com", "localhost"] {
            assert_eq!(parse(host), None, "{host}");
        }
    }
}

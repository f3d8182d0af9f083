//! Parses `s3://bucket/path?options` URLs, and checks them before any request to the bucket.

use std::path::PathBuf;

use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};

use super::sse::CustomerKey;
use crate::nearest::nearest;
use crate::store::url::{percent_decode, redacted};
use crate::store::{Access, Error, ErrorKind};

/// Smallest part that S3 takes, in bytes. A smaller setting is raised to this length.
const PART_LEN_MIN: u64 = 5 << 20;
/// Largest part that is accepted, in bytes. A part is held in memory.
const PART_LEN_MAX: u64 = 1 << 30;
/// Most parts that are sent at once.
const CONCURRENCY_MAX: u64 = 64;

/// The option that allows plain http. Only the configuration file may have this option: a URL may come from
/// SQL.
pub(super) const ALLOW_PLAIN_HTTP: &str = "allow-plain-http";
/// The environment variable for the same setting.
pub(super) const ALLOW_PLAIN_HTTP_VARIABLE: &str = "WALFERRY_ALLOW_PLAIN_HTTP";

/// Names of options that an error message may suggest. An option may also be written in camelCase, as in
/// `forcePathStyle`.
const OPTIONS: [&str; 16] = [
    "concurrency",
    "endpoint",
    "force-path-style",
    "part-size",
    "profile",
    "region",
    "require-content-md5",
    "sign-payload",
    "skip-verify",
    "sse",
    "sse-customer-algorithm",
    "sse-customer-key-path",
    "sse-kms-key-id",
    "storage-class",
    "access-key-id",
    "secret-access-key",
];

/// A bucket, a path in it, and the settings for its server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    /// The URL without secrets.
    pub(super) url: String,
    pub(super) bucket: String,
    /// Path of the replica in the bucket, without slashes at its ends.
    pub(super) path: String,
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) profile: Option<String>,
    pub(super) force_path_style: Option<bool>,
    pub(super) storage_class: Option<StorageClass>,
    pub(super) encryption: Option<ServerSideEncryption>,
    pub(super) kms_key_id: Option<String>,
    pub(super) customer_key_path: Option<PathBuf>,
    /// The customer's key itself, if the configuration file contains it.
    pub(super) customer_key: Option<CustomerKey>,
    /// Length of an upload's parts in bytes.
    pub(super) part_len: Option<usize>,
    /// Most parts of a file that are sent at once.
    pub(super) concurrency: usize,
    /// True if requests may go over plain http to another machine.
    pub(super) allow_plain_http: Option<bool>,
}

impl Settings {
    /// Parses a URL. Its options take precedence over those of `access`. `env` looks up an environment
    /// variable.
    pub(super) fn parse(
        url: &str,
        access: &Access,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Settings, Error> {
        let shown = redacted(url);
        let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("{shown}: {why}"));
        let rest = url
            .strip_prefix("s3://")
            .ok_or_else(|| invalid("an S3 replica is written s3://bucket/path".to_string()))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, path) = place.split_once('/').unwrap_or((place, ""));
        // A password may contain a slash; then this is not the bucket.
        if bucket.contains('@') || bucket.contains(':') && rest.contains('@') {
            return Err(invalid(no_secrets("a user and password")));
        }
        if bucket.contains(':') {
            return Err(invalid(
                "a bucket's name has no colon; the server of one that is not AWS goes into an option: \
                 s3://bucket/path?endpoint=http://host:port"
                    .to_string(),
            ));
        }
        if bucket.is_empty() {
            return Err(invalid("the bucket is missing; write s3://bucket/path".to_string()));
        }
        let path = String::from_utf8(percent_decode(path))
            .map_err(|_| invalid("the path is not UTF-8".to_string()))?;
        let path = path.trim_matches('/').to_string();
        if path.is_empty() {
            return Err(invalid(format!(
                "the path is missing: a bucket can hold many replicas, so write \
                 s3://{bucket}/some/path"
            )));
        }
        let mut settings = Settings {
            url: shown.clone(),
            bucket: bucket.to_string(),
            path,
            endpoint: None,
            region: None,
            profile: None,
            force_path_style: None,
            storage_class: None,
            encryption: None,
            kms_key_id: None,
            customer_key_path: None,
            customer_key: None,
            part_len: None,
            concurrency: 4,
            allow_plain_http: None,
        };
        for (name, value) in &access.options {
            settings.set(name, value.clone()).map_err(invalid)?;
        }
        if let Some(key) = &access.customer_key {
            let key = CustomerKey::from_base64(&key.0).ok_or_else(|| {
                invalid("sse-customer-key must be a key of 32 bytes in base64".to_string())
            })?;
            settings.customer_key = Some(key);
        }
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = String::from_utf8(percent_decode(value))
                .map_err(|_| invalid(format!("the value of {name} is not UTF-8")))?;
            if kebab_case(name) == ALLOW_PLAIN_HTTP {
                return Err(invalid(not_in_url(name)));
            }
            settings.set(name, value).map_err(invalid)?;
        }
        if settings.kms_key_id.is_some() && settings.encryption.is_none() {
            settings.encryption = Some(ServerSideEncryption::AwsKms);
        }
        let with_key = settings.customer_key_path.is_some() || settings.customer_key.is_some();
        if with_key && settings.encryption.is_some() {
            return Err(invalid(
                "sse-customer-key-path cannot be combined with sse or sse-kms-key-id: the bucket \
                 encrypts with one key"
                    .to_string(),
            ));
        }
        if settings.endpoint.is_none() {
            let names = [
                "WALFERRY_S3_ENDPOINT",
                "LITESTREAM_S3_ENDPOINT",
                "AWS_ENDPOINT_URL_S3",
                "AWS_ENDPOINT_URL",
            ];
            let found = names.iter().find_map(|name| Some((name, env(name)?)));
            if let Some((name, value)) = found {
                let endpoint =
                    check_endpoint(&value).map_err(|why| invalid(format!("{name}: {why}")))?;
                settings.endpoint = Some(endpoint);
            }
        }
        if settings.allow_plain_http.is_none()
            && let Some(value) = env(ALLOW_PLAIN_HTTP_VARIABLE)
        {
            let allowed = boolean(ALLOW_PLAIN_HTTP_VARIABLE, &value).map_err(invalid)?;
            settings.allow_plain_http = Some(allowed);
        }
        Ok(settings)
    }

    /// Returns the settings that decide how the process reaches a replica. They are equal if two URLs lead
    /// the same way.
    pub(super) fn way(mut self, env: impl Fn(&str) -> Option<String>) -> Settings {
        self.url.clear();
        self.profile = self.profile.or_else(|| env("AWS_PROFILE"));
        let region = || env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION"));
        self.region = self.region.or_else(region);
        self
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let given = !value.is_empty();
        if value.chars().any(char::is_control) {
            return Err(format!("{name} has {NO_CONTROL}"));
        }
        match kebab_case(name).as_str() {
            "access-key-id" | "secret-access-key" | "session-token" | "sse-customer-key" => {
                return Err(no_secrets(name));
            }
            "endpoint" => self.endpoint = Some(check_endpoint(&value)?),
            "region" => self.region = given.then_some(value),
            "profile" => self.profile = given.then_some(value),
            "force-path-style" => self.force_path_style = Some(boolean(name, &value)?),
            "storage-class" => {
                self.storage_class = given.then(|| StorageClass::from(value.as_str()));
            }
            ALLOW_PLAIN_HTTP => self.allow_plain_http = Some(boolean(name, &value)?),
            "sse" => self.encryption = Some(encryption(&value)?),
            "sse-kms-key-id" => self.kms_key_id = given.then_some(value),
            "sse-customer-key-path" => self.customer_key_path = given.then(|| value.into()),
            "sse-customer-algorithm" if value == "AES256" => {}
            "sse-customer-algorithm" => return Err(format!("{name} can only be AES256")),
            "part-size" => self.part_len = Some(part_len(name, &value)?),
            "concurrency" => match value.parse() {
                Ok(number @ 1..=CONCURRENCY_MAX) => self.concurrency = number as usize,
                _ => return Err(format!("{name} is a number from 1 to {CONCURRENCY_MAX}")),
            },
            "skip-verify" if boolean(name, &value)? => {
                return Err("skip-verify is refused: without checking the certificate anybody on \
                            the way could read and replace the backup; add the server's \
                            certificate to the system's, or name it in SSL_CERT_FILE"
                    .to_string());
            }
            // Litestream's options to leave out a protection. walferry's protections are always on: payloads
            // are signed or sent over TLS, and have a CRC32.
            "skip-verify" | "sign-payload" | "require-content-md5" => {
                boolean(name, &value)?;
            }
            unknown => {
                return Err(format!(
                    "the option {name} is not known; the nearest is {}",
                    nearest(unknown, OPTIONS).unwrap_or_default()
                ));
            }
        }
        Ok(())
    }

    /// Returns the folder of a level, with a slash at its end. Like Litestream's, its name has four hex
    /// digits.
    pub(super) fn prefix(&self, level: crate::units::Level) -> String {
        format!("{}/{:04x}/", self.path, level.get())
    }

    /// Returns the key of an object at this path below the replica.
    pub(super) fn object(&self, path: &str) -> String {
        format!("{}/{path}", self.path)
    }
}

const NO_CONTROL: &str = "a line break or another control character, which no request can carry";

fn not_in_url(what: &str) -> String {
    format!(
        "{what} cannot be given in a URL, which SQL may have written; set {ALLOW_PLAIN_HTTP}: true in \
         the configuration file, or {ALLOW_PLAIN_HTTP_VARIABLE}=1"
    )
}

fn no_secrets(what: &str) -> String {
    format!(
        "{what} cannot be given in a URL, which ends up in logs and process lists; set \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or use a profile in \
         ~/.aws; a customer key is read from the file in sse-customer-key-path"
    )
}

/// Turns `forcePathStyle` into `force-path-style`.
pub(crate) fn kebab_case(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        match c {
            'A'..='Z' => {
                kebab.push('-');
                kebab.push(c.to_ascii_lowercase());
            }
            '_' => kebab.push('-'),
            c => kebab.push(c),
        }
    }
    kebab
}

fn check_endpoint(value: &str) -> Result<String, String> {
    if value.chars().any(char::is_control) {
        return Err(format!("it has {NO_CONTROL}"));
    }
    let url = if value.contains("://") { value.to_string() } else { format!("https://{value}") };
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    match host {
        Some(host) if host.contains('@') => Err(no_secrets("a user and password")),
        Some(host) if host.is_empty() || host.starts_with(['/', ':', '?']) => {
            Err("the endpoint has no host; write https://host or http://host:port".to_string())
        }
        Some(_) => Ok(url),
        None => Err(format!("the endpoint {value} must begin with https:// or http://")),
    }
}

fn boolean(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{name} is true or false")),
    }
}

fn encryption(value: &str) -> Result<ServerSideEncryption, String> {
    match value {
        "AES256" => Ok(ServerSideEncryption::Aes256),
        "aws:kms" => Ok(ServerSideEncryption::AwsKms),
        "aws:kms:dsse" => Ok(ServerSideEncryption::AwsKmsDsse),
        _ => Err("sse is AES256, aws:kms or aws:kms:dsse".to_string()),
    }
}

fn part_len(name: &str, value: &str) -> Result<usize, String> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(len @ PART_LEN_MIN..=PART_LEN_MAX) => Ok(len as usize),
        _ => Err(format!("{name} is a size from 5MiB to 1GiB, such as 16MiB")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Settings, String> {
        Settings::parse(url, &Access::default(), |_| None).map_err(|err| {
            assert_eq!(err.kind, ErrorKind::Invalid);
            err.message
        })
    }

    #[test]
    fn options_in_both_spellings() {
        let settings = parse(
            "s3://b/a/b%20c/?endpoint=http%3A%2F%2Fh:1&region=r&forcePathStyle=false\
             &storage-class=STANDARD_IA&sseKmsKeyId=k&part-size=5MB&concurrency=2&profile=p\
             &sign-payload=true&skipVerify=false",
        )
        .unwrap();
        assert_eq!((&*settings.bucket, &*settings.path), ("b", "a/b c"));
        assert_eq!(settings.prefix(crate::units::Level::SNAPSHOT), "a/b c/0009/");
        assert_eq!(settings.endpoint.as_deref(), Some("http://h:1"));
        assert_eq!(settings.region.as_deref(), Some("r"));
        assert_eq!(settings.profile.as_deref(), Some("p"));
        assert_eq!(settings.force_path_style, Some(false));
        assert_eq!(settings.storage_class, Some(StorageClass::StandardIa));
        assert_eq!(settings.encryption, Some(ServerSideEncryption::AwsKms));
        assert_eq!((settings.part_len, settings.concurrency), (Some(5 << 20), 2));
        assert_eq!(parse("s3://b/p?part-size=16MiB").unwrap().part_len, Some(16 << 20));
        assert_eq!(
            parse("s3://b/p?endpoint=h:1").unwrap().endpoint.as_deref(),
            Some("https://h:1")
        );
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_way_out() {
        for (url, word) in [
            ("s3://b", "path is missing"),
            ("s3://b/", "path is missing"),
            ("s3:///p", "bucket is missing"),
            ("s3:b/p", "s3://bucket/path"),
            ("s3://user:hidden@b/p", "AWS_SECRET_ACCESS_KEY"),
            ("s3://user:hid/hidden@b/p", "AWS_SECRET_ACCESS_KEY"),
            ("s3://host:9000/p", "a bucket's name has no colon"),
            ("s3://b/p?secret-access-key=hidden", "AWS_SECRET_ACCESS_KEY"),
            ("s3://b/p?accessKeyId=hidden", "AWS_ACCESS_KEY_ID"),
            ("s3://b/p?sse-customer-key=hidden", "sse-customer-key-path"),
            ("s3://b/p?endpoint=http://u:hidden@h", "AWS_SECRET_ACCESS_KEY"),
            ("s3://b/p?endpoint=ftp://h", "https://"),
            ("s3://b/p?endpoint=http://", "no host"),
            ("s3://b/p?endpoint=http://h%0A", "line break"),
            ("s3://b/p?region=eu-west-1%0D%0A", "line break"),
            ("s3://b/p?sse-kms-key-id=k%00", "control character"),
            ("s3://b/p?skip-verify=true", "SSL_CERT_FILE"),
            ("s3://b/p?regoin=x", "nearest is region"),
            ("s3://b/p?path-style=true", "nearest is force-path-style"),
            ("s3://b/p?force-path-style=perhaps", "true or false"),
            ("s3://b/p?sse=none", "AES256"),
            ("s3://b/p?sse=AES256&sse-customer-key-path=/k", "cannot be combined"),
            ("s3://b/p?part-size=2GiB", "5MiB to 1GiB"),
            ("s3://b/p?part-size=0", "5MiB to 1GiB"),
            ("s3://b/p?part-size=4MB", "5MiB to 1GiB"),
            ("s3://b/p?concurrency=0", "from 1 to"),
        ] {
            let message = parse(url).expect_err(url);
            assert!(message.contains(word), "{url}: {message}");
            assert!(!message.contains("hidden"), "{message}");
        }
    }

    #[test]
    fn the_endpoint_of_the_url_wins_over_the_environment() {
        let env = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://general".to_string()),
            "AWS_ENDPOINT_URL_S3" => Some("http://particular".to_string()),
            _ => None,
        };
        let endpoint =
            |url| Settings::parse(url, &Access::default(), env).unwrap().endpoint.unwrap();
        assert_eq!(endpoint("s3://b/p"), "http://particular");
        assert_eq!(endpoint("s3://b/p?endpoint=http://own"), "http://own");
    }
}

//! The rule for plain http: which requests and secrets may go out without TLS.
//!
//! Without TLS, everyone on the way can read a request, and send it again. So no request goes to another
//! machine over plain http unless a setting allows that, and never with a session token or a customer's key.
//! The endpoint is checked when a store is opened. Each request is checked again before it is sent: an
//! endpoint may also stand in a profile, and credentials come from elsewhere.

use std::fmt;
use std::net::IpAddr;

use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::config::{HttpClient, RuntimeComponents, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;

use super::Credentials;
use super::settings::{ALLOW_PLAIN_HTTP, ALLOW_PLAIN_HTTP_VARIABLE, Settings};

/// Addresses at which a machine or container asks for its own credentials. Requests to them do not leave the
/// host, and these services have no TLS.
const METADATA: [&str; 5] =
    ["169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"];
/// Headers whose values are secrets.
const SECRETS: [(&str, &str); 3] = [
    ("x-amz-security-token", SESSION_TOKEN),
    ("x-amz-server-side-encryption-customer-key", CUSTOMER_KEY),
    ("x-amz-copy-source-server-side-encryption-customer-key", CUSTOMER_KEY),
];
const SESSION_TOKEN: &str = "a session token";
const CUSTOMER_KEY: &str = "a customer's key";

/// Why a request is not sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum InClear {
    /// No request goes to the server of this name over plain http.
    Request(String),
    /// A secret, named first, never goes to this server over plain http.
    Secret(&'static str, String),
}

impl fmt::Display for InClear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InClear::Request(host) => write!(
                f,
                "requests to {host} would go over plain http, where everybody on the way can read and \
                 repeat them: write https:// before its name, or set {ALLOW_PLAIN_HTTP}: true in the \
                 configuration file, or {ALLOW_PLAIN_HTTP_VARIABLE}=1"
            ),
            InClear::Secret(what, host) => write!(
                f,
                "{what} is never sent over plain http, as to {host}: write https:// before its name, \
                 or use credentials without one"
            ),
        }
    }
}

impl std::error::Error for InClear {}

/// Returns an error if the settings name a server to which plain http is not allowed.
pub(super) fn check(settings: &Settings, credentials: Option<&Credentials>) -> Result<(), InClear> {
    let endpoint = settings.endpoint.as_deref().unwrap_or_default();
    let Some(host) = exposed_host(endpoint) else { return Ok(()) };
    let has_token = credentials.is_some_and(|given| given.session_token.is_some());
    if has_token {
        return Err(InClear::Secret(SESSION_TOKEN, host.to_string()));
    }
    if settings.customer_key.is_some() || settings.customer_key_path.is_some() {
        return Err(InClear::Secret(CUSTOMER_KEY, host.to_string()));
    }
    if settings.allow_plain_http == Some(true) {
        return Ok(());
    }
    Err(InClear::Request(host.to_string()))
}

/// Returns the host of a URL of plain http, if the host is another machine.
fn exposed_host(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(host, _)| host),
    };
    (!is_loopback(host) && !METADATA.contains(&host)).then_some(host)
}

/// True if the host is this machine. Of all names, only `localhost` counts: other machines may answer for the
/// rest.
fn is_loopback(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.to_ipv4_mapped().is_some_and(|address| address.is_loopback())
        }
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Returns an HTTP client that refuses requests which must not go over plain http.
pub(super) fn guarded(http: SharedHttpClient, allowed: bool) -> SharedHttpClient {
    SharedHttpClient::new(Guarded { http, allowed })
}

#[derive(Debug)]
struct Guarded<T> {
    http: T,
    allowed: bool,
}

impl HttpClient for Guarded<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let http = self.http.http_connector(settings, components);
        SharedHttpConnector::new(Guarded { http, allowed: self.allowed })
    }
}

impl HttpConnector for Guarded<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        match refusal(&request, self.allowed) {
            None => self.http.call(request),
            Some(why) => HttpConnectorFuture::ready(Err(ConnectorError::user(why.into()))),
        }
    }
}

fn refusal(request: &HttpRequest, allowed: bool) -> Option<InClear> {
    let host = exposed_host(request.uri())?;
    let has = |name: &str| request.headers().get(name).is_some();
    if let Some((_, what)) = SECRETS.iter().find(|(name, _)| has(name)) {
        return Some(InClear::Secret(what, host.to_string()));
    }
    (!allowed).then(|| InClear::Request(host.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aws_sdk_s3::primitives::SdkBody;

    use super::*;
    use crate::store::Access;

    #[test]
    fn plain_http_is_for_this_machine() {
        for here in [
            "http://127.0.0.1:9000",
            "http://127.1.2.3/path",
            "http://localhost:9000",
            "HTTP://LOCALHOST",
            "http://[::1]:9000",
            "http://[::ffff:127.0.0.1]",
            "http://169.254.169.254/latest",
            "http://[fd00:ec2::23]/v1",
            "https://anywhere",
        ] {
            assert_eq!(exposed_host(here), None, "{here}");
        }
        for (elsewhere, host) in [
            ("http://minio:9000", "minio"),
            ("http://127.0.0.1.example.com", "127.0.0.1.example.com"),
            ("http://127.0.0.1@example.com:80/", "example.com"),
            ("http://example.com/127.0.0.1", "example.com"),
            ("http://bucket.localhost", "bucket.localhost"),
            ("http://0.0.0.0:1", "0.0.0.0"),
            ("http://169.254.1.1", "169.254.1.1"),
            ("http://[2001:db8::1]:80", "2001:db8::1"),
            ("hTTp://10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(exposed_host(elsewhere), Some(host), "{elsewhere}");
        }
    }

    #[test]
    fn secrets_are_refused_where_plain_http_is_allowed() {
        let request = |url: &str, header: Option<&'static str>| {
            let mut request = HttpRequest::new(SdkBody::empty());
            request.set_uri(url).unwrap();
            if let Some(header) = header {
                request.headers_mut().insert(header, "x");
            }
            request
        };
        let secret = Some("x-amz-security-token");
        assert_eq!(refusal(&request("http://h/", None), true), None);
        assert_eq!(
            refusal(&request("http://h/", None), false),
            Some(InClear::Request("h".to_string()))
        );
        let refused = refusal(&request("http://h/", secret), true).unwrap();
        assert!(refused.to_string().starts_with("a session token is never sent"), "{refused}");
        assert_eq!(refusal(&request("https://h/", secret), false), None);
        assert_eq!(refusal(&request("http://127.0.0.1/", secret), false), None);
    }

    #[test]
    fn settings_say_whether_plain_http_may_be() {
        let check = |url: &str, options: &[(&str, &str)], variable: Option<&str>| {
            let options = options.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            let access = Access { options: options.collect(), ..Access::default() };
            let env = |name: &str| {
                variable.filter(|_| name == ALLOW_PLAIN_HTTP_VARIABLE).map(str::to_string)
            };
            let settings = Settings::parse(url, &access, env).map_err(|err| err.message)?;
            super::check(&settings, None).map_err(|why| why.to_string())
        };
        let url = "s3://b/p?endpoint=http://h";
        let refused = check(url, &[], None).unwrap_err();
        assert!(refused.contains("plain http") && refused.contains(ALLOW_PLAIN_HTTP), "{refused}");
        assert_eq!(check(url, &[("allow-plain-http", "true")], None), Ok(()));
        assert_eq!(check(url, &[], Some("1")), Ok(()));
        assert!(check(url, &[("allow-plain-http", "false")], Some("1")).is_err());
        assert!(check(url, &[], Some("perhaps")).unwrap_err().contains("is true or false"));
        let with_key = format!("{url}&sse-customer-key-path=/k");
        assert!(check(&with_key, &[], Some("1")).unwrap_err().starts_with("a customer's key"));
        assert_eq!(check("s3://b/p?endpoint=http://localhost", &[], None), Ok(()));
        assert_eq!(check("s3://b/p", &[], None), Ok(()));
        let in_url = check("s3://b/p?allowPlainHttp=true", &[], None).unwrap_err();
        assert!(in_url.contains("cannot be given in a URL"), "{in_url}");
    }
}

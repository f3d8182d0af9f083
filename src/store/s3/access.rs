//! Settings that decide how a server is reached.

use std::ffi::OsString;

use super::Credentials;
use super::settings::Settings;

/// Variables that may hold credentials and region, or say where they are. Replicas that were opened under
/// different values do not share a client.
const ENVIRONMENT: [&str; 15] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "LITESTREAM_ACCESS_KEY_ID",
    "LITESTREAM_SECRET_ACCESS_KEY",
    "HOME",
];

/// The way to reach a server. Replicas with equal values share a client. The type holds secrets, and so has
/// no `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Access {
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) profile: Option<String>,
    pub(super) force_path_style: Option<bool>,
    pub(super) allow_plain_http: bool,
    pub(super) credentials: Option<Credentials>,
    environment: [Option<OsString>; ENVIRONMENT.len()],
}

impl Access {
    /// Returns the way that the settings and the current environment describe.
    pub(super) fn new(settings: &Settings, credentials: Option<Credentials>) -> Access {
        Access {
            endpoint: settings.endpoint.clone(),
            region: settings.region.clone(),
            profile: settings.profile.clone(),
            force_path_style: settings.force_path_style,
            allow_plain_http: settings.allow_plain_http == Some(true),
            credentials,
            environment: ENVIRONMENT.map(crate::environment::variable),
        }
    }
}

//! Settings for reaching a store that the URL of a replica does not contain.

use std::collections::BTreeMap;
use std::fmt;

use super::file::FILE_MODE;
use super::s3::Credentials;

/// Credentials and options of a store from the configuration file. They are no part of a replica's URL or
/// identity, and are written to no file. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Take precedence over those of the environment and of `~/.aws`.
    pub credentials: Option<Credentials>,
    /// Options of the S3 store, such as `region`, or of a folder, by name. Options in an S3 URL take
    /// precedence.
    pub options: BTreeMap<String, String>,
    /// The customer's key for encryption by the server, in base64.
    pub customer_key: Option<Secret>,
}

impl Access {
    /// Returns an access with credentials alone.
    pub fn with(credentials: Option<Credentials>) -> Access {
        Access { credentials, ..Access::default() }
    }

    /// Returns the settings that apply to the replica at a URL or path: the mode for a folder, all others for
    /// a bucket.
    #[must_use]
    pub fn fitting(&self, url: &str) -> Access {
        let is_bucket = url.starts_with("s3:");
        let mut access = if is_bucket { self.clone() } else { Access::default() };
        access.options.remove(FILE_MODE);
        if let Some(mode) = self.options.get(FILE_MODE).filter(|_| !is_bucket) {
            access.options.insert(FILE_MODE.to_string(), mode.clone());
        }
        access
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.options.keys().collect();
        let known = (self.credentials.is_some(), self.customer_key.is_some());
        write!(f, "Access(credentials: {}, customer key: {}, {names:?})", known.0, known.1)
    }
}

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

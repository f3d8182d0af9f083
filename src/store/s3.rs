//! A replica in an S3 bucket.

use super::{Error, ErrorKind};

/// A replica in an S3 bucket.
pub(super) type S3Store = super::file::FileStore;

/// Opens a replica in a bucket.
pub(super) fn open(_url: &str) -> Result<S3Store, Error> {
    Err(Error::new(ErrorKind::Invalid, "s3:// is not supported yet"))
}

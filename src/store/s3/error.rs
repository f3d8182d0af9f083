//! Turns the SDK's errors into walferry's: the caller's possible answer, in words that name the setting.
//!
//! The SDK's error values can hold the server's whole answer, which may quote the request's headers. This
//! module takes only names, codes and messages from them.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::{RequestId, RequestIdExt};

use super::plain::InClear;
use crate::store::{Error, ErrorKind};

/// An operation of S3, and the permission that it needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    name: &'static str,
    action: &'static str,
}

macro_rules! operations {
    ($($constant:ident = $name:literal $action:literal;)*) => {
        $(pub(super) const $constant: Operation = Operation { name: $name, action: $action };)*
    };
}
operations! {
    LIST = "ListObjectsV2" "s3:ListBucket";
    GET = "GetObject" "s3:GetObject (and s3:ListBucket, to tell a missing object apart)";
    PUT = "PutObject" "s3:PutObject";
    CREATE_UPLOAD = "CreateMultipartUpload" "s3:PutObject";
    UPLOAD_PART = "UploadPart" "s3:PutObject";
    COMPLETE_UPLOAD = "CompleteMultipartUpload" "s3:PutObject";
    ABORT_UPLOAD = "AbortMultipartUpload" "s3:AbortMultipartUpload";
    DELETE = "DeleteObject" "s3:DeleteObject";
}

/// The replica and server of a call, for messages.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The replica's URL without secrets.
    pub(super) url: String,
    pub(super) bucket: String,
    /// The server: its URL, or AWS with the region.
    pub(super) server: String,
}

/// Longest pause that is granted to a store. One more request after it does no harm.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

/// The SDK's message, as text.
#[derive(Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

impl Place {
    /// Returns the error of a failed call for `object`, a key or a folder of keys.
    pub(super) fn failed<E>(
        &self,
        operation: Operation,
        object: &str,
        err: &SdkError<E, HttpResponse>,
    ) -> Error
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let (kind, advice) = match err {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let region = answer.raw().headers().get("x-amz-bucket-region");
                self.judge(operation, status, answer.err().code(), answer.err().message(), region)
            }
            SdkError::TimeoutError(_) => {
                (ErrorKind::Unavailable, format!("{} did not answer in time", self.server))
            }
            _ if let Some(why) = in_clear(err) => (ErrorKind::Invalid, why.to_string()),
            _ => match credentials_error(err) {
                Some(CredentialsError::ProviderTimedOut(_)) => (
                    ErrorKind::Unavailable,
                    "the service that gives credentials did not answer in time".to_string(),
                ),
                Some(CredentialsError::InvalidConfiguration(_)) => (
                    ErrorKind::Invalid,
                    "the credentials or the region cannot be used as they are set".to_string(),
                ),
                Some(_) => (
                    ErrorKind::Unauthenticated,
                    "no usable credentials were found; set AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY in the environment of this process, or a profile in \
                     ~/.aws (AWS_PROFILE), or give the machine or container a role"
                        .to_string(),
                ),
                None if matches!(err, SdkError::ConstructionFailure(_)) => (
                    ErrorKind::Invalid,
                    "the request could not be made from these settings".to_string(),
                ),
                None if words(err).contains("invalid peer certificate") => (
                    ErrorKind::Unavailable,
                    format!(
                        "the certificate of {} is not trusted; add its issuer to the system's \
                         certificates or name a file with them in SSL_CERT_FILE",
                        self.server
                    ),
                ),
                None => (
                    ErrorKind::Unavailable,
                    format!("there was no whole answer from {}", self.server),
                ),
            },
        };
        let error = self.error(kind, operation, object, &advice, Some(describe(err)));
        let answer = match err {
            SdkError::ServiceError(answer) => Some(answer.raw()),
            SdkError::ResponseError(answer) => Some(answer.raw()),
            _ => None,
        };
        Error { retry_after: answer.and_then(retry_after), ..error }
    }

    /// Returns an error in walferry's own words.
    pub(super) fn error(
        &self,
        kind: ErrorKind,
        operation: Operation,
        object: &str,
        advice: &str,
        cause: Option<String>,
    ) -> Error {
        Error {
            kind,
            message: format!("{} of {object} in {}: {advice}", operation.name, self.url),
            source: cause.map(|text| Cause(text).into()),
            retry_after: None,
        }
    }

    /// Returns the meaning of an answer that is not a success.
    fn judge(
        &self,
        operation: Operation,
        status: u16,
        code: Option<&str>,
        message: Option<&str>,
        region: Option<&str>,
    ) -> (ErrorKind, String) {
        match (code.unwrap_or_default(), status) {
            ("NoSuchBucket", _) => (
                ErrorKind::NoReplica,
                format!(
                    "bucket {} does not exist at {}; create it or correct the URL",
                    self.bucket, self.server
                ),
            ),
            ("NoSuchUpload", _) => (
                ErrorKind::Unavailable,
                "the upload was removed before it was complete; it has to be sent again"
                    .to_string(),
            ),
            ("NoSuchKey", _) | (_, 404) => (ErrorKind::NotFound, "it does not exist".to_string()),
            ("PreconditionFailed", _) | (_, 412) => {
                (ErrorKind::AlreadyExists, "it exists".to_string())
            }
            ("InvalidRange", _) | (_, 416) => (
                ErrorKind::Other,
                "it ends before the byte where the read was to begin".to_string(),
            ),
            (
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IncorrectEndpoint"
                | "IllegalLocationConstraintException",
                _,
            )
            | (_, 301 | 307 | 308) => {
                let region = region.or_else(|| message.and_then(expected_region));
                let region = region.map_or(String::new(), |region| format!(" {region}"));
                (
                    ErrorKind::Invalid,
                    format!(
                        "bucket {} is in another region than the one asked; set region={} in the \
                         URL or AWS_REGION",
                        self.bucket,
                        if region.is_empty() { "..." } else { region.trim() }
                    ),
                )
            }
            ("RequestTimeTooSkewed", _) => (
                ErrorKind::Unauthenticated,
                "the clock of this machine differs too much from the server's; set it".to_string(),
            ),
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "RequestExpired"
                | "InvalidClientTokenId"
                | "UnrecognizedClientException"
                | "NotSignedUp"
                | "ExpiredTokenException",
                _,
            )
            | (_, 401) => (
                ErrorKind::Unauthenticated,
                format!(
                    "{} does not accept the credentials ({}); check AWS_ACCESS_KEY_ID, \
                     AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile in ~/.aws",
                    self.server,
                    code.unwrap_or("401")
                ),
            ),
            ("AccessDenied" | "AllAccessDisabled" | "AccountProblem", _) | (_, 403) => (
                ErrorKind::Denied,
                format!(
                    "{} does not allow it; the credentials need {} on bucket {}",
                    self.server, operation.action, self.bucket
                ),
            ),
            (
                "SlowDown"
                | "Throttling"
                | "ThrottlingException"
                | "RequestLimitExceeded"
                | "TooManyRequestsException"
                | "RequestThrottled"
                | "BandwidthLimitExceeded",
                _,
            )
            | (_, 429) => (ErrorKind::Throttled, format!("{} asks to slow down", self.server)),
            ("QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded", _)
            | (_, 507) => (ErrorKind::NoSpace, format!("{} has no space left", self.server)),
            ("NotImplemented", _) | (_, 501) => (
                ErrorKind::Invalid,
                format!(
                    "{} does not know this operation or its condition; walferry needs \
                     If-None-Match on writes",
                    self.server
                ),
            ),
            ("ConditionalRequestConflict" | "OperationAborted", _) | (_, 409) => (
                ErrorKind::Unavailable,
                "another request for the same object was under way".to_string(),
            ),
            (
                "BadDigest"
                | "InvalidDigest"
                | "XAmzContentChecksumMismatch"
                | "IncompleteBody"
                | "RequestTimeout",
                _,
            ) => (ErrorKind::Unavailable, "the request arrived damaged or incomplete".to_string()),
            ("InternalError" | "ServiceUnavailable" | "InternalFailure", _) | (_, 500..) => (
                ErrorKind::Unavailable,
                format!("{} could not do it now (HTTP {status})", self.server),
            ),
            (
                "InvalidBucketName"
                | "InvalidStorageClass"
                | "InvalidArgument"
                | "InvalidRequest"
                | "InvalidEncryptionAlgorithmError"
                | "KMS.NotFoundException"
                | "KMS.DisabledException"
                | "MethodNotAllowed",
                _,
            ) => (
                ErrorKind::Invalid,
                format!("{} refuses the settings ({})", self.server, code.unwrap_or_default()),
            ),
            // An error inside a success, or an answer that is not S3's: the call may have taken effect.
            (_, 200..=299) => (
                ErrorKind::Unavailable,
                format!("the answer of {} does not make sense", self.server),
            ),
            (code, status) => {
                (ErrorKind::Other, format!("{} refused it ({code}, HTTP {status})", self.server))
            }
        }
    }
}

/// Returns the pause that a failed answer asks for.
pub(super) fn retry_after(answer: &HttpResponse) -> Option<Duration> {
    if answer.status().is_success() {
        return None;
    }
    let seconds = answer.headers().get("retry-after")?;
    // The header's other form is a date, which stores do not send.
    let seconds = seconds.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Returns the region in "the region 'us-east-1' is wrong; expecting 'eu-west-1'".
fn expected_region(message: &str) -> Option<&str> {
    let (_, after) = message.split_once("expecting '")?;
    Some(after.split_once('\'')?.0)
}

/// Returns the underlying refusal to send something over plain http, if there is one.
fn in_clear<'a>(err: &'a (dyn StdError + 'static)) -> Option<&'a InClear> {
    chain(err).find_map(<dyn StdError>::downcast_ref)
}

/// Returns the underlying credentials error, if there is one.
fn credentials_error<'a>(err: &'a (dyn StdError + 'static)) -> Option<&'a CredentialsError> {
    chain(err).find_map(<dyn StdError>::downcast_ref)
}

fn chain<'a>(
    err: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(err), |&err| err.source())
}

/// Returns the words of the server or the network, without the rest of the answer.
fn describe<E>(err: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    if let SdkError::ServiceError(answer) = err {
        let (raw, meta) = (answer.raw(), answer.err().meta());
        let mut text = format!("HTTP {}", raw.status().as_u16());
        let parts = [meta.code(), meta.message(), meta.request_id(), meta.extended_request_id()];
        for part in parts.into_iter().flatten() {
            text.push_str(", ");
            text.push_str(part);
        }
        if meta.code().is_none() {
            text.push_str(", ");
            text.push_str(&words(answer.err()));
        }
        return text;
    }
    words(err)
}

/// Returns the messages of an error and of all its causes, each once.
pub(super) fn words(err: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for err in chain(err) {
        let words = err.to_string();
        if !text.contains(&words) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&words);
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_what_can_be_done() {
        let place = Place {
            url: "s3://b/p".to_string(),
            bucket: "b".to_string(),
            server: "http://h".to_string(),
        };
        for (status, code, kind, word) in [
            (404, "NoSuchBucket", ErrorKind::NoReplica, "bucket b does not exist at http://h"),
            (404, "NoSuchKey", ErrorKind::NotFound, "not exist"),
            (404, "", ErrorKind::NotFound, "not exist"),
            (412, "PreconditionFailed", ErrorKind::AlreadyExists, "exists"),
            (409, "ConditionalRequestConflict", ErrorKind::Unavailable, "another request"),
            (403, "AccessDenied", ErrorKind::Denied, "s3:PutObject"),
            (403, "SignatureDoesNotMatch", ErrorKind::Unauthenticated, "AWS_SECRET_ACCESS_KEY"),
            (400, "ExpiredToken", ErrorKind::Unauthenticated, "ExpiredToken"),
            (503, "SlowDown", ErrorKind::Throttled, "slow down"),
            (429, "", ErrorKind::Throttled, "slow down"),
            (503, "ServiceUnavailable", ErrorKind::Unavailable, "503"),
            (500, "InternalError", ErrorKind::Unavailable, "500"),
            (501, "NotImplemented", ErrorKind::Invalid, "If-None-Match"),
            (507, "", ErrorKind::NoSpace, "no space"),
            (200, "InternalError", ErrorKind::Unavailable, "not do it now"),
            (200, "", ErrorKind::Unavailable, "not make sense"),
            (416, "InvalidRange", ErrorKind::Other, "ends before"),
            (301, "PermanentRedirect", ErrorKind::Invalid, "region="),
            (400, "InvalidStorageClass", ErrorKind::Invalid, "InvalidStorageClass"),
            (400, "Strange", ErrorKind::Other, "Strange"),
        ] {
            let (got, advice) = place.judge(PUT, status, Some(code), None, None);
            assert_eq!(got, kind, "{status} {code}");
            assert!(advice.contains(word), "{status} {code}: {advice}");
        }
    }

    #[test]
    fn a_wrong_region_is_answered_with_the_right_one() {
        let place =
            Place { url: String::new(), bucket: "b".to_string(), server: "AWS".to_string() };
        let malformed = "the region 'us-east-1' is wrong; expecting 'eu-west-1'";
        for (code, message, header) in [
            ("AuthorizationHeaderMalformed", Some(malformed), None),
            ("PermanentRedirect", None, Some("eu-west-1")),
        ] {
            let (kind, advice) = place.judge(LIST, 400, Some(code), message, header);
            assert_eq!(kind, ErrorKind::Invalid);
            assert!(advice.contains("region=eu-west-1 "), "{advice}");
        }
    }

    #[test]
    fn a_wish_to_be_left_alone_is_read_and_bounded() {
        use aws_sdk_s3::config::http::HttpResponse;
        let wish = |status: u16, value: Option<&'static str>| {
            let status = status.try_into().unwrap();
            let mut answer = HttpResponse::new(status, "".into());
            if let Some(value) = value {
                answer.headers_mut().insert("retry-after", value);
            }
            retry_after(&answer)
        };
        assert_eq!(wish(503, Some("3")), Some(Duration::from_secs(3)));
        assert_eq!(wish(429, Some(" 7 ")), Some(Duration::from_secs(7)));
        assert_eq!(wish(503, Some("999999999999")), Some(RETRY_AFTER_MAX));
        for (status, value) in
            [(503, None), (200, Some("3")), (503, Some("soon")), (503, Some("-1"))]
        {
            assert_eq!(wish(status, value), None, "{status} {value:?}");
        }
    }
}

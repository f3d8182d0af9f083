//! Makes the SDK's clients: sources of credentials and region, timeouts, and limits for the length of
//! answers.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextMut, InterceptorContext,
};
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_s3::config::{ConfigBag, Intercept, Region, RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::tls;
use http_body_util::{LengthLimitError, Limited};

use super::access::Access;
use super::error::retry_after;
use super::names::Names;
use super::{Credentials, plain};
use crate::environment;

/// Longest time for making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for one attempt of a small request.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Slowest line for which a large body gets enough time, in bytes a second.
const SLOWEST_LINE: u64 = 128 << 10;
/// Attempts of a request in all.
const ATTEMPTS: u32 = 3;
/// Time after which an idle connection is dropped, before the server closes it under a request.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

/// Most bytes of an answer without requested data: a success with a short body, or an error.
const ANSWER_MAX: u64 = 1 << 20;
/// Most bytes of a page of a listing: a thousand keys of a kilobyte, each character written as six.
const LIST_PAGE_MAX: u64 = 8 << 20;

/// The region if none is set; servers other than AWS mostly ignore it.
const REGION_OF_LAST_RESORT: &str = "us-east-1";

/// Bundles of the certificates that systems trust, each in one file.
const CERTIFICATES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes the HTTP client that makes the connections. Reads the system's certificates.
pub(super) fn connector() -> SharedHttpClient {
    let builder = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .pool_idle_timeout(IDLE_CONNECTION);
    let builder = match trusted() {
        Some(context) => builder.tls_context(context),
        None => builder,
    };
    builder.build_with_resolver(Names::of_system())
}

/// Returns the system's certificates if SSL_CERT_FILE and SSL_CERT_DIR must be ignored.
fn trusted() -> Option<tls::TlsContext> {
    if !environment::is_ignored() {
        return None;
    }
    let mut store = tls::TrustStore::empty();
    if let Some(bundle) = CERTIFICATES.iter().find_map(|path| std::fs::read(path).ok()) {
        store.add_pem_certificate(bundle);
    }
    tls::TlsContext::builder().with_trust_store(store).build().ok()
}

/// Makes a client. Reads the environment and `~/.aws`. Without a region there, asks the machine's metadata
/// service, unless an endpoint is set.
pub(super) async fn build(settings: &Access, http: SharedHttpClient) -> Client {
    let http = plain::guarded(http, settings.allow_plain_http);
    if environment::is_ignored() {
        return build_without_environment(settings, http);
    }
    let region = region(settings).await;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .region(region.clone())
        .retry_config(retries())
        .timeout_config(timeouts(0))
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().build());
    let credentials = settings.credentials.clone().or_else(|| {
        // A profile in the URL takes precedence over the environment.
        let env = environment::text;
        settings.profile.is_none().then(|| litestream_credentials(env)).flatten()
    });
    if let Some(given) = credentials {
        loader = loader.credentials_provider(provider(given));
    } else if let Some(profile) = &settings.profile {
        let config =
            ProviderConfig::without_region().with_http_client(http).with_region(Some(region));
        loader = loader.profile_name(profile).credentials_provider(
            ProfileFileCredentialsProvider::builder()
                .configure(&config)
                .profile_name(profile)
                .build(),
        );
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let shared = loader.load().await;
    client(settings, &shared)
}

/// Makes a client from the settings alone. Does not look for credentials and region in `~/.aws`, the
/// environment or the machine, because environment variables say where those are.
fn build_without_environment(settings: &Access, http: SharedHttpClient) -> Client {
    let region = settings.region.as_deref().unwrap_or(REGION_OF_LAST_RESORT);
    let mut shared = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .region(Region::new(region.to_string()))
        .retry_config(retries())
        .timeout_config(timeouts(0))
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().build());
    if let Some(given) = settings.credentials.clone() {
        shared = shared.credentials_provider(SharedCredentialsProvider::new(provider(given)));
    }
    if let Some(endpoint) = &settings.endpoint {
        shared = shared.endpoint_url(endpoint);
    }
    client(settings, &shared.build())
}

fn client(settings: &Access, shared: &SdkConfig) -> Client {
    let path_style = settings.force_path_style.unwrap_or_else(|| shared.endpoint_url().is_some());
    let mut config = aws_sdk_s3::config::Builder::from(shared)
        .force_path_style(path_style)
        .retry_classifier(LeftAlone);
    if let (Some(credentials), Some(region)) = (shared.credentials_provider(), shared.region()) {
        let profile = settings.profile.is_some();
        let checked = Checked { credentials, region: region.clone(), profile };
        config = config.credentials_provider(checked);
    }
    Client::from_conf(config.build())
}

/// Checks credentials before the SDK signs with them. The SDK panics if a part cannot stand in a header, as
/// with a line break at the end of a variable.
#[derive(Debug)]
struct Checked {
    credentials: SharedCredentialsProvider,
    region: Region,
    /// True if a profile is named.
    profile: bool,
}

impl ProvideCredentials for Checked {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            // The SDK may use these to ask for the role of a profile.
            for name in ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"].iter().filter(|_| self.profile) {
                if environment::text(name).is_some_and(|text| !can_be_sent(&text)) {
                    return Err(unsendable(name));
                }
            }
            // Asks in a task of its own, which may panic: if a profile's key is for another role, the SDK
            // signs with it at once.
            let provider = self.credentials.clone();
            let asked = tokio::spawn(async move { provider.provide_credentials().await });
            let found = asked.await.map_err(|_| CredentialsError::unhandled(PANICKED))??;
            let parts = [
                ("region", self.region.as_ref()),
                ("access key id", found.access_key_id()),
                ("session token", found.session_token().unwrap_or_default()),
            ];
            match parts.iter().find(|(_, part)| !can_be_sent(part)) {
                None => Ok(found),
                Some((what, _)) => Err(unsendable(&format!("the {what}"))),
            }
        })
    }

    fn fallback_on_interrupt(&self) -> Option<aws_sdk_s3::config::Credentials> {
        self.credentials.fallback_on_interrupt()
    }
}

const PANICKED: &str = "the AWS SDK ended with a panic where it asks for credentials, as it does with a key that has \
    a space or a line break";

fn unsendable(what: &str) -> CredentialsError {
    CredentialsError::invalid_configuration(format!(
        "{what} has a character that no request can carry, such as a space or a line break"
    ))
}

/// True if the text can stand in a header as it is.
fn can_be_sent(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_graphic())
}

fn retries() -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(Duration::from_millis(200))
        .with_max_backoff(Duration::from_secs(2))
}

fn provider(given: Credentials) -> aws_sdk_s3::config::Credentials {
    aws_sdk_s3::config::Credentials::new(
        given.access_key_id,
        given.secret_access_key,
        given.session_token,
        None,
        "walferry",
    )
}

/// Forbids an immediate retry if the store asked for a pause. That pause is longer than those of the SDK and
/// the caller.
#[derive(Debug)]
struct LeftAlone;

impl ClassifyRetry for LeftAlone {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().and_then(retry_after) {
            Some(_) => RetryAction::RetryForbidden,
            None => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "leave the store alone as long as it asks"
    }
}

/// Returns the settings of a request that sends `bytes`, and whose answer has no data.
pub(super) fn sending(bytes: u64) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Config::builder()
        .timeout_config(timeouts(bytes))
        .interceptor(AnswerMax(ANSWER_MAX))
}

/// Returns the settings of a request for a page of a listing.
pub(super) fn listing() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Config::builder().interceptor(AnswerMax(LIST_PAGE_MAX))
}

/// Returns the settings of a request for at most `most` bytes of an object.
pub(super) fn receiving(most: u64) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Config::builder().interceptor(AnswerMax(most))
}

/// Stops reading an answer that is longer than any valid answer. Otherwise a broken or hostile server could
/// fill the process's memory.
#[derive(Debug)]
struct AnswerMax(u64);

impl Intercept for AnswerMax {
    fn name(&self) -> &'static str {
        "take in no more than was asked for"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answer = context.response_mut();
        let most = if answer.status().is_success() { self.0 } else { ANSWER_MAX };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
        *answer.body_mut() = SdkBody::from_body_1_x(Limited::new(body, most));
        Ok(())
    }
}

/// True if reading an answer was stopped because the answer was too long.
pub(super) fn is_too_long(err: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(err);
    while let Some(err) = cause {
        if err.is::<LengthLimitError>() {
            return true;
        }
        cause = err.source();
    }
    false
}

/// Returns the timeouts of a request that moves `bytes`.
fn timeouts(bytes: u64) -> TimeoutConfig {
    let attempt = transfer_time(bytes);
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(attempt)
        .operation_attempt_timeout(attempt)
        .build()
}

/// Returns the longest time for a transfer of `bytes`.
pub(super) fn transfer_time(bytes: u64) -> Duration {
    ATTEMPT_TIMEOUT + Duration::from_secs(bytes / SLOWEST_LINE)
}

/// Returns the number of attempts to receive an answer's body, which the SDK does not repeat.
pub(super) const fn attempts() -> u32 {
    ATTEMPTS
}

/// Returns the region of the settings. Without one, tries the profile and the environment, then the machine.
async fn region(settings: &Access) -> Region {
    if let Some(region) = &settings.region {
        return Region::new(region.clone());
    }
    let mut profile = ProfileFileRegionProvider::builder();
    let environment = EnvironmentVariableRegionProvider::new();
    let chain = match &settings.profile {
        Some(name) => {
            profile = profile.profile_name(name);
            RegionProviderChain::first_try(profile.build()).or_else(environment)
        }
        None => RegionProviderChain::first_try(environment).or_else(profile.build()),
    };
    // With an endpoint, the server is not Amazon's, so Amazon's metadata service is not asked.
    let chain = match &settings.endpoint {
        Some(_) => chain,
        None => chain.or_default_provider(),
    };
    chain.region().await.unwrap_or(Region::new(REGION_OF_LAST_RESORT))
}

/// Returns the credentials from Litestream's variables, if Amazon's are not set.
fn litestream_credentials(env: impl Fn(&str) -> Option<String>) -> Option<Credentials> {
    let given = |name| env(name).filter(|value| !value.is_empty());
    if given("AWS_ACCESS_KEY_ID").is_some() {
        return None;
    }
    Some(Credentials {
        access_key_id: given("LITESTREAM_ACCESS_KEY_ID")?,
        secret_access_key: given("LITESTREAM_SECRET_ACCESS_KEY")?,
        session_token: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn litestreams_credentials_stand_in_for_amazons() {
        let with = |set: &'static [&'static str]| {
            litestream_credentials(move |name| set.contains(&name).then(|| "x".to_string()))
        };
        assert!(with(&["LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY"]).is_some());
        assert!(with(&["LITESTREAM_ACCESS_KEY_ID"]).is_none());
        assert!(
            with(&[
                "AWS_ACCESS_KEY_ID",
                "LITESTREAM_ACCESS_KEY_ID",
                "LITESTREAM_SECRET_ACCESS_KEY"
            ])
            .is_none()
        );
    }

    #[test]
    fn large_bodies_get_more_time() {
        assert_eq!(transfer_time(100), ATTEMPT_TIMEOUT);
        assert_eq!(transfer_time(16 << 20), ATTEMPT_TIMEOUT + Duration::from_secs(128));
    }
}

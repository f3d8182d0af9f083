//! The SDK's client: where it finds credentials and region, how long it waits, and how much it takes
//! in.

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

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one attempt of a small request may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// The slowest line that a large body gets the time for, in bytes a second.
const SLOWEST_LINE: u64 = 128 << 10;
/// How often a request is sent in all.
const ATTEMPTS: u32 = 3;
/// Connections are dropped after this, before the server closes them under a request.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

/// Longest answer that is taken in where the answer is not what was asked for: success without a
/// body to speak of, or an error.
const ANSWER_MAX: u64 = 1 << 20;
/// Longest page of a listing: a thousand keys of a kilobyte, each character written as six.
const LIST_PAGE_MAX: u64 = 8 << 20;

/// The region when nothing names one; servers other than AWS mostly do not care.
const REGION_OF_LAST_RESORT: &str = "us-east-1";

/// Where systems keep the certificates that they trust, in one file.
const CERTIFICATES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes what connections are made with. It reads the system's certificates.
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

/// The system's certificates, where SSL_CERT_FILE and SSL_CERT_DIR are not to be believed.
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

/// Makes a client. Looks at the environment, at `~/.aws`, and, without a region there, asks the
/// machine's metadata service.
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
        // A profile in the URL is not to be outdone by the environment.
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

/// Makes a client of the settings alone. Credentials and region of `~/.aws`, the environment and the
/// machine are not asked for: variables say where they are.
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

/// Credentials that a signature can be made with: the SDK panics where one of its parts cannot stand in
/// a header, as with a line break at the end of a variable.
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
            // A profile for another role may ask for it with these.
            for name in ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"].iter().filter(|_| self.profile) {
                if environment::text(name).is_some_and(|text| !can_be_sent(&text)) {
                    return Err(unsendable(name));
                }
            }
            // In a task of its own: where a profile's key is for another role, the SDK signs with it at once.
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

/// True if it can stand in a header as it is.
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

/// Whoever is asked to come back later is not to repeat the request at once: that wait is longer
/// than the SDK's, and the caller's.
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

/// Settings of a request that moves `bytes` there, and of whose answer only the outcome counts.
pub(super) fn sending(bytes: u64) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Config::builder()
        .timeout_config(timeouts(bytes))
        .interceptor(AnswerMax(ANSWER_MAX))
}

/// Settings of a request for a page of a listing.
pub(super) fn listing() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Config::builder().interceptor(AnswerMax(LIST_PAGE_MAX))
}

/// Settings of a request for at most so many bytes of an object.
pub(super) fn receiving(most: u64) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Config::builder().interceptor(AnswerMax(most))
}

/// Ends the reading of an answer that is longer than what can be meant: a broken or hostile server
/// could fill the memory of the process otherwise.
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

/// Whether an answer was not read to its end because it was longer than it may be.
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

/// Time-outs of a request that moves `bytes`.
fn timeouts(bytes: u64) -> TimeoutConfig {
    let attempt = transfer_time(bytes);
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(attempt)
        .operation_attempt_timeout(attempt)
        .build()
}

/// How long the transfer of `bytes` may take.
pub(super) fn transfer_time(bytes: u64) -> Duration {
    ATTEMPT_TIMEOUT + Duration::from_secs(bytes / SLOWEST_LINE)
}

/// How often the transfer of an answer's body is tried, which the SDK does not repeat.
pub(super) const fn attempts() -> u32 {
    ATTEMPTS
}

/// The region of the URL, else of the profile or environment, else of the machine.
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
    // A server of one's own is not a reason to ask Amazon's metadata service.
    let chain = match &settings.endpoint {
        Some(_) => chain,
        None => chain.or_default_provider(),
    };
    chain.region().await.unwrap_or(Region::new(REGION_OF_LAST_RESORT))
}

/// Litestream's names for the credentials, where Amazon's are not set.
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

//! The CA's home: a Secret, and the `caBundle` of the webhook configuration. Only the waiter writes here.
//!
//! A CA signs nothing before every API server trusts it. So a renewal takes three rounds of [`ensure_ca_and_publish`]:
//!
//! 1. the next CA is written into the Secret beside the current one, then into the `caBundle`;
//! 2. a later round reads the `caBundle` back and finds it there, for [`SETTLING`] at least (API servers learn of a
//!    configuration through a watch);
//! 3. it becomes the current one, with which the webhooks, which watch the Secret, sign new leaves. The old one stays in the
//!    bundle until it expires.
//!
//! A Secret without a usable CA (absent, or somebody emptied it) starts afresh, and nothing else is trusted any more:
//! deleting the Secret is how an operator revokes a key that leaked.

use std::{collections::BTreeMap, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream::select};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration, api::core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    clock,
    kube::{is_conflict, reason, watch_reason},
    metrics::{CertificateKind, Metrics},
    pki::{self, Ca, PkiError},
};
use crate::names::EXCLUDE_FROM_BACKUP_LABEL;

/// Secret key: certificate of the CA that signs, PEM.
pub const CERTIFICATE_KEY: &str = "ca.crt";
/// Secret key: its private key, PEM (PKCS#8).
pub const PRIVATE_KEY_KEY: &str = "ca.key";
/// Secret key: all CA certificates that are to be trusted, PEM.
pub const BUNDLE_KEY: &str = "ca-bundle.crt";
/// Secret key: certificate of the CA that is to sign next, PEM.
pub const NEXT_CERTIFICATE_KEY: &str = "next.crt";
/// Secret key: its private key, PEM (PKCS#8).
pub const NEXT_PRIVATE_KEY_KEY: &str = "next.key";

/// Field manager of the `caBundle`, apart from all others: the chart never owns that field.
pub const FIELD_MANAGER: &str = "reveille-ca";
/// How long a new CA is in the bundle, at least, before it signs.
pub const SETTLING: SignedDuration = SignedDuration::from_secs(60);
/// How often a round is tried again when somebody else writes the Secret at the same time.
const ATTEMPTS: usize = 3;

/// Why the CA is not in place.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No certificate can be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The API server refused.
    #[error("{doing}: {}", reason(cause))]
    Kube {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        cause: Box<kube::Error>,
    },
    /// Somebody else writes the Secret all the time.
    #[error("the Secret with the CA changed {ATTEMPTS} times while it was being written")]
    Contended,
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(kube::Error) -> CaError {
    move |cause| CaError::Kube {
        doing,
        cause: Box::new(cause),
    }
}

/// Where things stand after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaState {
    /// When the CA that signs expires.
    pub expires: Timestamp,
    /// False when there is no webhook configuration to publish in.
    pub published: bool,
    /// True while a next CA waits to take over: call again after [`SETTLING`].
    pub renewing: bool,
}

/// What the Secret holds. Pure.
#[derive(Debug, Default)]
pub struct CaData {
    current: Option<Ca>,
    next: Option<Ca>,
    bundle: String,
}

impl CaData {
    /// Reads the Secret's data. What can't be used counts as absent; the strings say why.
    pub fn read(data: &BTreeMap<String, ByteString>) -> (Self, Vec<String>) {
        let text = |key: &str| data.get(key).and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
        let mut complaints = Vec::new();
        let mut ca = |certificate: &str, key: &str| {
            let (pem, private) = (text(certificate)?, text(key).unwrap_or_default());
            let read = Ca::read(pem, private);
            read.map_err(|error| complaints.push(format!("{certificate}: {error}")))
                .ok()
        };
        let data = Self {
            current: ca(CERTIFICATE_KEY, PRIVATE_KEY_KEY),
            next: ca(NEXT_CERTIFICATE_KEY, NEXT_PRIVATE_KEY_KEY),
            bundle: text(BUNDLE_KEY).unwrap_or_default().to_owned(),
        };
        (data, complaints)
    }

    /// The Secret's data.
    pub fn write(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, text: String| data.insert(key.to_owned(), ByteString(text.into_bytes()));
        for (ca, certificate, key) in [
            (&self.current, CERTIFICATE_KEY, PRIVATE_KEY_KEY),
            (&self.next, NEXT_CERTIFICATE_KEY, NEXT_PRIVATE_KEY_KEY),
        ] {
            if let Some(ca) = ca {
                put(certificate, ca.certificate.clone());
                put(key, ca.key());
            }
        }
        put(BUNDLE_KEY, self.bundle.clone());
        data
    }

    /// All CAs to be trusted, PEM.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// One round: makes what is missing, renews what is old. `trusted` says whether a certificate (PEM) is in the `caBundle` of
    /// every entry of the live configuration.
    pub fn advance(self, trusted: impl Fn(&str) -> bool, now: Timestamp) -> Result<Self, PkiError> {
        let Some(current) = self.current else {
            let current = Ca::generate(now)?;
            let bundle = pki::bundle([current.certificate.as_str()], now);
            return Ok(Self {
                current: Some(current),
                next: None,
                bundle,
            });
        };
        let next = match self.next.filter(|next| !next.validity.renewal_due(now)) {
            Some(next) => Some(next),
            None if current.validity.renewal_due(now) => Some(Ca::generate(now)?),
            None => None,
        };
        let old = current.certificate.clone();
        let (current, next) = match next {
            Some(next)
                if trusted(&next.certificate)
                    && (!current.validity.holds(now) || now.duration_since(next.made_at()) >= SETTLING) =>
            {
                (next, None)
            }
            next => (current, next),
        };
        let upcoming = next.as_ref().map(|next| next.certificate.as_str());
        let texts = [
            Some(current.certificate.as_str()),
            upcoming,
            Some(&old),
            Some(&self.bundle),
        ];
        let bundle = pki::bundle(texts.into_iter().flatten(), now);
        Ok(Self {
            current: Some(current),
            next,
            bundle,
        })
    }

    fn state(&self, published: bool) -> Option<CaState> {
        Some(CaState {
            expires: self.current.as_ref()?.validity.until,
            published,
            renewing: self.next.is_some(),
        })
    }
}

/// One round: sees to it that the Secret holds a CA with life in it, and that each entry of the webhook configuration trusts
/// the CAs of the Secret and no others. Safe to call at any time and from several processes.
pub async fn ensure_ca_and_publish(
    client: &Client,
    namespace: &str,
    secret: &str,
    webhook_configuration: &str,
    now: Timestamp,
) -> Result<CaState, CaError> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let live = configurations
        .get_opt(webhook_configuration)
        .await
        .map_err(failed("reading the webhook configuration"))?;
    let data = ensure_ca(client, namespace, secret, live.as_ref(), now).await?;
    if let Some(live) = &live {
        publish(&configurations, live, data.bundle()).await?;
    }
    data.state(live.is_some()).ok_or(CaError::Contended)
}

async fn ensure_ca(
    client: &Client,
    namespace: &str,
    name: &str,
    live: Option<&MutatingWebhookConfiguration>,
    now: Timestamp,
) -> Result<CaData, CaError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..ATTEMPTS {
        let stored = secrets
            .get_opt(name)
            .await
            .map_err(failed("reading the Secret with the CA"))?;
        let before = stored
            .as_ref()
            .and_then(|secret| secret.data.clone())
            .unwrap_or_default();
        let (data, complaints) = CaData::read(&before);
        for complaint in complaints {
            warn!(secret = name, complaint, "the Secret holds no usable CA here");
        }
        let data = data.advance(|certificate| live.is_some_and(|live| trusts(live, certificate)), now)?;
        let after = merged(&before, data.write());
        if stored.is_some() && after == before {
            return Ok(data);
        }
        let written = match stored {
            None => secrets.create(&PostParams::default(), &new_secret(name, after)).await,
            // With the resourceVersion that was read: a change in between is a conflict.
            Some(mut secret) => {
                secret.data = Some(after);
                secrets.replace(name, &PostParams::default(), &secret).await
            }
        };
        match written {
            Ok(_) => {
                info!(secret = name, "CA written");
                return Ok(data);
            }
            // Somebody else was faster: what they wrote counts.
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(failed("writing the Secret with the CA")(error)),
        }
    }
    Err(CaError::Contended)
}

/// Our keys as they are to be, all others as they are.
fn merged(before: &BTreeMap<String, ByteString>, ours: BTreeMap<String, ByteString>) -> BTreeMap<String, ByteString> {
    let mut data = before.clone();
    data.remove(NEXT_CERTIFICATE_KEY);
    data.remove(NEXT_PRIVATE_KEY_KEY);
    data.extend(ours);
    data
}

fn new_secret(name: &str, data: BTreeMap<String, ByteString>) -> Secret {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([
                label(EXCLUDE_FROM_BACKUP_LABEL, "true"),
                label("app.kubernetes.io/managed-by", "reveille"),
            ])),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

/// Whether every entry's `caBundle` holds this certificate.
fn trusts(live: &MutatingWebhookConfiguration, certificate: &str) -> bool {
    let Ok(wanted) = pki::certificates(certificate.as_bytes()) else {
        return false;
    };
    let mut bundles = live
        .webhooks
        .iter()
        .flatten()
        .map(|entry| &entry.client_config.ca_bundle);
    bundles.all(|bundle| {
        let held = bundle.as_ref().map(|bundle| pki::certificates(&bundle.0));
        held.is_some_and(|held| held.is_ok_and(|held| wanted.iter().all(|one| held.contains(one))))
    })
}

/// Writes the bundle where it is not, by server-side apply: of an entry only its name and this one field become ours.
pub(super) async fn publish(
    configurations: &Api<MutatingWebhookConfiguration>,
    live: &MutatingWebhookConfiguration,
    bundle: &str,
) -> Result<(), CaError> {
    let wanted = ByteString(bundle.as_bytes().to_vec());
    let mut entries = live.webhooks.iter().flatten();
    if entries.all(|entry| entry.client_config.ca_bundle.as_ref() == Some(&wanted)) {
        return Ok(());
    }
    let entries = live.webhooks.iter().flatten();
    let entries: Vec<_> = entries
        .map(|entry| json!({"name": entry.name, "clientConfig": {"caBundle": wanted}}))
        .collect();
    let patch = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        // The uid keeps a configuration that is deleted meanwhile from coming back as a torso.
        "metadata": {"name": live.name_any(), "uid": live.metadata.uid},
        "webhooks": entries,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    configurations
        .patch(&live.name_any(), &params, &Patch::Apply(patch))
        .await
        .map_err(failed("writing the caBundle"))?;
    info!(configuration = live.name_any(), "caBundle written");
    Ok(())
}

/// How often everything is looked at without an occasion: time passes, and a watch may miss something.
const ROUND: Duration = Duration::from_secs(60);
/// The same after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps CA and `caBundle` in place until `end` fires: looks at both whenever one of them changes, and every minute. So a
/// bundle that somebody overwrites, or that a restore of an old configuration brings back, is repaired at once.
pub async fn run_ca_publisher(
    client: Client,
    namespace: String,
    secret: String,
    webhook_configuration: String,
    metrics: Arc<Metrics>,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configuration = watch_object(configurations, &webhook_configuration).default_backoff();
    let changes = select(
        watch_object(secrets, &secret)
            .default_backoff()
            .map(Result::err)
            .boxed(),
        configuration.map(Result::err).boxed(),
    );
    let mut changes = changes.chain(futures::stream::pending());
    let mut missing = false;
    loop {
        let round = ensure_ca_and_publish(&client, &namespace, &secret, &webhook_configuration, clock::now());
        let wait = match round.await {
            Ok(state) => {
                metrics.certificate_expires(CertificateKind::Ca, state.expires);
                if !state.published && !missing {
                    warn!(
                        configuration = webhook_configuration,
                        "the webhook configuration does not exist: nobody calls the webhook"
                    );
                }
                missing = !state.published;
                ROUND
            }
            Err(error) => {
                warn!(%error, "the CA is not in place");
                RETRY
            }
        };
        let timer = tokio::time::sleep(wait);
        let mut timer = pin!(timer);
        loop {
            tokio::select! {
                () = end.cancelled() => return Ok(()),
                () = &mut timer => break,
                Some(change) = changes.next() => match change {
                    None => break,
                    // The watch tries again by itself, with growing pauses.
                    Some(error) => debug!(error = watch_reason(&error), "watching the CA"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! A CA that somebody else makes and that lies in a file: all that is left to do is to publish it as `caBundle`.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    ca_store::{CaError, failed, publish},
    clock,
    kube::watch_reason,
    metrics::{CertificateKind, Metrics},
    pki::{self, PkiError},
};

/// How often the file is read. More often than the webhook reads its certificate: what it serves should be trusted already.
const CHECK: Duration = Duration::from_secs(10);
/// How long an earlier CA is trusted beside its successor: until every webhook serves a certificate of the new one.
const OVERLAP: SignedDuration = SignedDuration::from_mins(10);

/// Why the CA of a file is not published.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{path}: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{path}: {cause}")]
    Pki { path: PathBuf, cause: PkiError },
    #[error("{0}: it holds no certificate that is still valid")]
    Empty(PathBuf),
    #[error(transparent)]
    Publish(#[from] CaError),
}

/// What the file holds and what it held before. Pure.
#[derive(Debug, Default)]
struct Followed {
    current: String,
    earlier: Option<(String, Timestamp)>,
}

impl Followed {
    /// Takes over what another leader has published, or another mode: it may have changed the CA a moment ago.
    fn begin(&mut self, published: String, now: Timestamp) {
        if self.current.is_empty() && self.earlier.is_none() && !published.is_empty() {
            self.earlier = Some((published, now));
        }
    }

    /// Takes over what the file holds now.
    fn read(&mut self, text: String, now: Timestamp) {
        if text != self.current {
            let earlier = std::mem::replace(&mut self.current, text);
            if !earlier.is_empty() {
                self.earlier = Some((earlier, now));
            }
        }
        // A clock that was set back must not keep the old one for ever.
        let over = |since: Timestamp| now < since || now.duration_since(since) >= OVERLAP;
        if self.earlier.as_ref().is_some_and(|(_, since)| over(*since)) {
            self.earlier = None;
        }
    }

    /// All that is to be trusted, PEM.
    fn bundle(&self, now: Timestamp) -> String {
        let earlier = self.earlier.as_ref().map(|(text, _)| text.as_str());
        pki::bundle([self.current.as_str()].into_iter().chain(earlier), now)
    }
}

/// Keeps the `caBundle` as the file says until `end` fires.
pub async fn run_file_publisher(
    client: Client,
    file: PathBuf,
    webhook_configuration: String,
    metrics: Arc<Metrics>,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    let changes = watch_object(configurations.clone(), &webhook_configuration).default_backoff();
    let mut changes = std::pin::pin!(changes.chain(futures::stream::pending()));
    let mut check = tokio::time::interval(CHECK);
    let mut followed = Followed::default();
    loop {
        let round = round(
            &configurations,
            &webhook_configuration,
            &file,
            &mut followed,
            clock::now(),
        );
        match round.await {
            Ok(expires) => metrics.certificate_expires(CertificateKind::Ca, expires),
            Err(error) => warn!(%error, "the CA is not published"),
        }
        loop {
            tokio::select! {
                () = end.cancelled() => return Ok(()),
                _ = check.tick() => break,
                Some(change) = changes.next() => match change {
                    Ok(_) => break,
                    // The watch tries again by itself, with growing pauses.
                    Err(error) => debug!(error = watch_reason(&error), "watching the webhook configuration"),
                },
            }
        }
    }
}

/// One round; says when the first of the published certificates expires.
async fn round(
    configurations: &Api<MutatingWebhookConfiguration>,
    name: &str,
    file: &Path,
    followed: &mut Followed,
    now: Timestamp,
) -> Result<Timestamp, FileError> {
    let path = file.to_owned();
    let text = std::fs::read_to_string(&path).map_err(|cause| FileError::Read { path, cause })?;
    let live = configurations.get_opt(name).await;
    let live = live.map_err(failed("reading the webhook configuration"))?;
    followed.begin(live.as_ref().map(published).unwrap_or_default(), now);
    followed.read(text, now);
    let (bundle, path) = (followed.bundle(now), file.to_owned());
    let expires = expires(&bundle).map_err(|cause| FileError::Pki { path, cause })?;
    let expires = expires.ok_or_else(|| FileError::Empty(file.to_owned()))?;
    if let Some(live) = live {
        publish(configurations, &live, &bundle).await?;
    }
    Ok(expires)
}

/// What the first entry trusts: all have the same.
fn published(live: &MutatingWebhookConfiguration) -> String {
    let entry = live.webhooks.iter().flatten().next();
    let bundle = entry.and_then(|entry| entry.client_config.ca_bundle.as_ref());
    bundle
        .map(|bundle| String::from_utf8_lossy(&bundle.0).into_owned())
        .unwrap_or_default()
}

fn expires(bundle: &str) -> Result<Option<Timestamp>, PkiError> {
    let certificates = pki::certificates(bundle.as_bytes())?;
    let ends: Result<Vec<Timestamp>, PkiError> = certificates
        .iter()
        .map(|certificate| pki::validity(certificate).map(|validity| validity.until))
        .collect();
    Ok(ends?.into_iter().min())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::pki::Ca;

    #[test]
    fn an_earlier_ca_is_trusted_for_a_while_beside_its_successor() {
        let at = |minutes: i64| Timestamp::from_second(1_800_000_000 + minutes * 60).unwrap();
        let ca = || Ca::generate(at(0)).unwrap().certificate;
        let (old, new) = (ca(), ca());
        let mut followed = Followed::default();
        followed.read(old.clone(), at(0));
        assert_eq!(followed.bundle(at(0)), pki::bundle([old.as_str()], at(0)));
        followed.read(new.clone(), at(20));
        let both = pki::bundle([new.as_str(), old.as_str()], at(20));
        assert_eq!(followed.bundle(at(20)), both);
        followed.read(new.clone(), at(29));
        assert_eq!(followed.bundle(at(29)), both);
        followed.read(new.clone(), at(30));
        assert_eq!(followed.bundle(at(30)), pki::bundle([new.as_str()], at(30)));
        // The clock is set back right after a change.
        followed.read(old.clone(), at(31));
        followed.read(old.clone(), at(0));
        assert_eq!(followed.bundle(at(0)), pki::bundle([old.as_str()], at(0)));
    }

    #[test]
    fn what_another_leader_has_published_is_trusted_for_a_while() {
        let at = |minutes: i64| Timestamp::from_second(1_800_000_000 + minutes * 60).unwrap();
        let ca = || Ca::generate(at(0)).unwrap().certificate;
        let (old, new) = (ca(), ca());
        let mut followed = Followed::default();
        followed.begin(format!("{old}{new}"), at(0));
        followed.read(new.clone(), at(0));
        assert_eq!(followed.bundle(at(0)), pki::bundle([new.as_str(), old.as_str()], at(0)));
        // Only at the beginning: what is written later is this leader's own.
        followed.begin(old.clone(), at(5));
        followed.read(new.clone(), at(10));
        assert_eq!(followed.bundle(at(10)), pki::bundle([new.as_str()], at(10)));
        followed.begin(old, at(11));
        followed.read(new.clone(), at(11));
        assert_eq!(followed.bundle(at(11)), pki::bundle([new.as_str()], at(11)));
    }

    #[test]
    fn a_file_without_a_valid_certificate_is_no_ca() {
        assert_eq!(expires("").unwrap(), None);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut followed = Followed::default();
        followed.read("no certificate at all".to_owned(), now);
        assert_eq!(followed.bundle(now), "");
    }
}

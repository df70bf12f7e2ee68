//! The serving certificate: how it comes into being, and how a new one takes over without a dropped connection.

use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::infra::{
    ca_store::{CERTIFICATE_KEY, PRIVATE_KEY_KEY},
    clock,
    health::Gate,
    kube::watch_reason,
    metrics::{CertificateKind, Metrics, Outcome},
    pki::{self, Ca, PkiError, Validity},
};

/// How often the wall clock is compared with the certificate's life; it may have jumped.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// How often certificate files are read. Polling, as a Secret volume changes by swapping a link, which file events miss.
pub const FILE_CHECK: Duration = Duration::from_secs(30);

/// Why there is no certificate to serve.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate can't be made or read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A file can't be read.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// rustls refuses it.
    #[error("the certificate can't be used: {0}")]
    Rustls(rustls::Error),
    /// The Secret lacks a key.
    #[error("the Secret has no text under {0}")]
    Missing(&'static str),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Rustls(error)
    }
}

/// The certificate that is served at the moment. Clones share it.
#[derive(Clone, Default)]
pub struct ServingCertificate {
    current: Arc<ArcSwapOption<CertifiedKey>>,
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCertificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl ServingCertificate {
    /// Serves this certificate from the next handshake on, if it and the key belong together.
    pub fn serve(&self, chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<(), TlsError> {
        let certified = CertifiedKey::new(chain, ring::sign::any_supported_type(key)?);
        certified.keys_match()?;
        self.current.store(Some(Arc::new(certified)));
        Ok(())
    }
}

/// TLS 1.2 and 1.3 over ring, HTTP/1.1 only: the API server asks a Service for nothing else.
pub fn server_config(certificate: ServingCertificate) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // The API server never resumes a session (Go does so only with a cache that it is given): tickets would be made for nobody.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Where a loaded certificate goes, and who is told.
#[derive(Clone, Debug)]
pub struct Target {
    /// What is served.
    pub certificate: ServingCertificate,
    /// Opens with the first certificate.
    pub gate: Gate,
    /// Expiry and reloads.
    pub metrics: Arc<Metrics>,
}

impl Target {
    fn loaded(&self, validity: Validity) {
        self.metrics.certificate_expires(CertificateKind::Leaf, validity.until);
        self.metrics.certificate_reloaded(Outcome::Success);
        self.gate.set(true);
        info!(until = %validity.until, "serving certificate loaded");
    }

    fn failed(&self, error: &TlsError) {
        self.metrics.certificate_reloaded(Outcome::Failure);
        warn!(%error, "the serving certificate stays as it is");
    }
}

/// A leaf of our own, signed in memory with the CA of the Secret.
#[derive(Debug)]
pub struct SelfSigned {
    names: Vec<String>,
    ca: Option<Ca>,
    leaf: Option<Validity>,
}

impl SelfSigned {
    /// For these DNS names.
    pub fn new(names: Vec<String>) -> Self {
        Self {
            names,
            ca: None,
            leaf: None,
        }
    }

    /// Takes the CA over from the Secret; a change makes the present leaf due for renewal.
    pub fn take_ca(&mut self, secret: &Secret) -> Result<(), TlsError> {
        let text = |key: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            let text = bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
            text.ok_or(TlsError::Missing(key))
        };
        let ca = Ca::read(text(CERTIFICATE_KEY)?, text(PRIVATE_KEY_KEY)?)?;
        if self.ca.as_ref().is_none_or(|old| old.certificate != ca.certificate) {
            self.leaf = None;
        }
        self.ca = Some(ca);
        Ok(())
    }

    /// Signs and serves a new leaf if there is need. `Ok(None)`: none, or no CA yet.
    pub fn renew(&mut self, certificate: &ServingCertificate, now: Timestamp) -> Result<Option<Validity>, TlsError> {
        let Some(ca) = &self.ca else { return Ok(None) };
        if self.leaf.is_some_and(|leaf| !leaf.renewal_due(now)) {
            return Ok(None);
        }
        let leaf = ca.sign_leaf(&self.names, now)?;
        certificate.serve(vec![leaf.certificate], &leaf.key)?;
        self.leaf = Some(leaf.validity);
        Ok(Some(leaf.validity))
    }
}

/// Keeps a self-signed leaf fresh until `end` fires: at two thirds of its life, when the CA changes, when the clock jumps.
/// Waits as long as it takes for the Secret to appear.
pub async fn run_self_signed(
    client: Client,
    namespace: String,
    secret: String,
    names: Vec<String>,
    target: Target,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let mut changes = pin!(watch_object(api, &secret).default_backoff());
    let mut check = tokio::time::interval(CLOCK_CHECK);
    let mut own = SelfSigned::new(names);
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            _ = check.tick() => {}
            Some(change) = changes.next() => match change {
                Ok(Some(secret)) => {
                    if let Err(error) = own.take_ca(&secret) {
                        target.failed(&error);
                    }
                }
                // With the last CA, which the API server may still trust, things go on for the time being.
                Ok(None) => info!(secret, "waiting for the Secret with the CA"),
                Err(error) => {
                    let error = watch_reason(&error);
                    warn!(error, secret, "the Secret with the CA can't be watched at the moment");
                }
            },
        }
        match own.renew(&target.certificate, clock::now()) {
            Ok(Some(validity)) => {
                if let Some(ca) = &own.ca {
                    target
                        .metrics
                        .certificate_expires(CertificateKind::Ca, ca.validity.until);
                }
                target.loaded(validity);
            }
            Ok(None) => {}
            Err(error) => target.failed(&error),
        }
    }
}

/// Keeps up with certificate files that somebody else renews, until `end` fires. They are read every `period`, and taken over
/// when their content changes and fits together.
pub async fn run_files(
    certificate: PathBuf,
    key: PathBuf,
    period: Duration,
    target: Target,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let mut check = tokio::time::interval(period);
    let mut served = None;
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            _ = check.tick() => {}
        }
        let files = read_file(&certificate).and_then(|chain| Ok((chain, read_file(&key)?)));
        let result = match files {
            Ok(files) if served.as_ref() == Some(&files) => continue,
            Ok(files) => serve_files(&target.certificate, &files.0, &files.1).inspect(|_| served = Some(files)),
            Err(error) => Err(error),
        };
        match result {
            Ok(validity) => target.loaded(validity),
            Err(error) => target.failed(&error),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let path = path.to_owned();
    std::fs::read(&path).map_err(|cause| TlsError::File { path, cause })
}

/// Serves the certificate chain and key of two PEM texts.
pub fn serve_files(certificate: &ServingCertificate, chain: &[u8], key: &[u8]) -> Result<Validity, TlsError> {
    let chain = pki::certificates(chain)?;
    let leaf = chain
        .first()
        .ok_or_else(|| PkiError::Certificate("the file has none".to_owned()))?;
    let validity = pki::validity(leaf)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| PkiError::Key(error.to_string()))?;
    certificate.serve(chain, &key)?;
    Ok(validity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::ca_store::CaData;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hours * 3600).unwrap()
    }

    fn secret(ca: &CaData) -> Secret {
        Secret {
            data: Some(ca.write()),
            ..Secret::default()
        }
    }

    #[test]
    fn a_leaf_is_renewed_with_age_a_new_ca_and_a_clock_set_back() {
        let serving = ServingCertificate::default();
        let mut own = SelfSigned::new(vec!["reveille.test.svc".to_owned()]);
        assert!(own.renew(&serving, at(0)).unwrap().is_none());
        let ca = CaData::default().advance(|_| false, at(0)).unwrap();
        own.take_ca(&secret(&ca)).unwrap();
        assert!(own.renew(&serving, at(0)).unwrap().is_some());
        assert!(own.renew(&serving, at(4 * 24)).unwrap().is_none());
        assert!(own.renew(&serving, at(5 * 24)).unwrap().is_some());
        assert!(own.renew(&serving, at(0)).unwrap().is_some(), "the clock was set back");
        own.take_ca(&secret(&ca)).unwrap();
        assert!(own.renew(&serving, at(1)).unwrap().is_none(), "the same CA");
        let other = CaData::default().advance(|_| false, at(1)).unwrap();
        own.take_ca(&secret(&other)).unwrap();
        assert!(own.renew(&serving, at(1)).unwrap().is_some());
        assert!(own.take_ca(&Secret::default()).is_err());
        assert!(
            own.renew(&serving, at(2)).unwrap().is_none(),
            "the last CA still counts"
        );
    }
}

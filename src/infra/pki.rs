//! Certificates: making a CA, signing a server's leaf with it, reading both back, and saying when to renew. No I/O, and the
//! time is an argument; only the keys are random.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a CA lives.
pub const CA_LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// How long a leaf lives.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Certificates begin this long before they are made: the API server's clock may be behind, by hours where local time was set as UTC.
pub const BACKDATED: SignedDuration = SignedDuration::from_hours(24);

/// Why a certificate can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Making or signing failed.
    #[error("a certificate can't be made: {0}")]
    Make(rcgen::Error),
    /// The text holds no certificate, or a broken one.
    #[error("the certificate can't be read: {0}")]
    Certificate(String),
    /// The text holds no private key, or a broken one.
    #[error("the private key can't be read: {0}")]
    Key(String),
    /// They do not belong together.
    #[error("the private key is not the certificate's")]
    Mismatch,
    /// The certificate may not sign.
    #[error("the certificate is not that of a CA")]
    NotACa,
    /// A time that no certificate can hold.
    #[error("{0} is no time for a certificate")]
    Time(Timestamp),
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Make(error)
    }
}

/// The first and last moment of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Valid from.
    pub from: Timestamp,
    /// Valid until.
    pub until: Timestamp,
}

impl Validity {
    /// Two thirds of its life are over, or it begins in the future (the clock was set back).
    pub fn renewal_due(&self, now: Timestamp) -> bool {
        now < self.from || now >= self.from + self.until.duration_since(self.from) * 2 / 3
    }

    /// Whether nobody trusts it any more.
    pub fn expired(&self, now: Timestamp) -> bool {
        now >= self.until
    }

    /// Whether it counts at this time.
    pub fn holds(&self, now: Timestamp) -> bool {
        now >= self.from && !self.expired(now)
    }
}

/// A certificate authority with its key.
#[derive(Debug)]
pub struct Ca {
    /// Its certificate, PEM.
    pub certificate: String,
    /// When it counts.
    pub validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate with its key.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When it counts.
    pub validity: Validity,
}

impl Ca {
    /// Makes a CA (ECDSA P-256) that lives for [`CA_LIFE`] from `now`.
    pub fn generate(now: Timestamp) -> Result<Self, PkiError> {
        let validity = Validity {
            from: now - BACKDATED,
            until: now + CA_LIFE,
        };
        let mut params = params(Vec::new(), validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // CAs that overlap have different names, so that no client tries the wrong one.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("reveille-ca-{}", now.as_second()));
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            validity,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads a CA from PEM texts and checks that they belong together.
    pub fn read(certificate: &str, key: &str) -> Result<Self, PkiError> {
        let der =
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| PkiError::Certificate(e.to_string()))?;
        let key = KeyPair::from_pem(key).map_err(|error| PkiError::Key(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| PkiError::Certificate(error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::Mismatch);
        }
        if !parsed.is_ca() {
            return Err(PkiError::NotACa);
        }
        Ok(Self {
            certificate: pem("CERTIFICATE", &der),
            validity: validity(&der)?,
            issuer: Issuer::from_ca_cert_der(&der, key)?,
        })
    }

    /// Its private key, PEM (PKCS#8).
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// When it was made, unless a person made it.
    pub fn made_at(&self) -> Timestamp {
        self.validity.from + BACKDATED
    }

    /// Signs a server certificate for these DNS names and IP addresses. It lives for [`LEAF_LIFE`], but no longer than the CA.
    pub fn sign_leaf(&self, names: &[String], now: Timestamp) -> Result<Leaf, PkiError> {
        let validity = Validity {
            from: now - BACKDATED,
            until: (now + LEAF_LIFE).min(self.validity.until),
        };
        let mut params = params(names.to_vec(), validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        if let Some(name) = names.first().filter(|name| name.len() <= 64) {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(Leaf {
            certificate,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            validity,
        })
    }
}

fn params(names: Vec<String>, validity: Validity) -> Result<CertificateParams, PkiError> {
    // rcgen's times are of another crate; from its epoch on they can be counted without naming that crate.
    let epoch = date_time_ymd(1970, 1, 1);
    let since_epoch = |time: Timestamp| {
        let seconds = u64::try_from(time.as_second()).map_err(|_| PkiError::Time(time))?;
        Ok::<_, PkiError>(std::time::Duration::from_secs(seconds))
    };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.not_before = epoch + since_epoch(validity.from)?;
    params.not_after = epoch + since_epoch(validity.until)?;
    Ok(params)
}

/// The names under which the API server and people in the cluster reach a Service; the API server's first.
pub fn service_names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// When a certificate counts.
pub fn validity(certificate: &CertificateDer) -> Result<Validity, PkiError> {
    let broken = |error: &dyn std::fmt::Display| PkiError::Certificate(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| broken(&error))?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).map_err(|e| broken(&e));
    Ok(Validity {
        from: time(parsed.validity().not_before)?,
        until: time(parsed.validity().not_after)?,
    })
}

/// The certificates of a PEM text, in order; an error if there is a broken one.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::Certificate(error.to_string()))
}

/// A bundle of CA certificates: those of `texts` that can be read and have not expired, each once, in order, as PEM.
pub fn bundle<'a>(texts: impl IntoIterator<Item = &'a str>, now: Timestamp) -> String {
    let mut seen: Vec<CertificateDer<'static>> = Vec::new();
    for certificate in texts
        .into_iter()
        .filter_map(|text| certificates(text.as_bytes()).ok())
        .flatten()
    {
        let alive = validity(&certificate).is_ok_and(|validity| !validity.expired(now));
        if alive && !seen.contains(&certificate) {
            seen.push(certificate);
        }
    }
    seen.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, character) in encoded.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text + &format!("\n-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::danger::ServerCertVerifier as _;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hours * 3600).unwrap()
    }

    #[test]
    fn a_ca_survives_being_written_and_read() {
        let ca = Ca::generate(at(0)).unwrap();
        let read = Ca::read(&ca.certificate, &ca.key()).unwrap();
        assert_eq!((&read.certificate, read.validity), (&ca.certificate, ca.validity));
        assert_eq!(read.made_at(), at(0));
        let other = Ca::generate(at(0)).unwrap();
        assert!(matches!(
            Ca::read(&ca.certificate, &other.key()),
            Err(PkiError::Mismatch)
        ));
        assert!(matches!(Ca::read("", &ca.key()), Err(PkiError::Certificate(_))));
        assert!(matches!(Ca::read(&ca.certificate, "x"), Err(PkiError::Key(_))));
    }

    #[test]
    fn a_leaf_is_verified_against_its_ca_only() {
        let names = service_names("reveille", "backup");
        let (ca, other) = (Ca::generate(at(0)).unwrap(), Ca::generate(at(1)).unwrap());
        // Signed by the CA as read back, verified against the CA as made.
        let leaf = Ca::read(&ca.certificate, &ca.key())
            .unwrap()
            .sign_leaf(&names, at(0))
            .unwrap();
        let verify = |ca: &Ca, name: &str, now: Timestamp| {
            let mut roots = rustls::RootCertStore::empty();
            roots
                .add(certificates(ca.certificate.as_bytes()).unwrap().remove(0))
                .unwrap();
            let provider = rustls::crypto::ring::default_provider().into();
            let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .unwrap();
            let now = rustls::pki_types::UnixTime::since_unix_epoch(now.as_duration().unsigned_abs());
            let name = name.to_owned().try_into().unwrap();
            verifier
                .verify_server_cert(&leaf.certificate, &[], &name, &[], now)
                .is_ok()
        };
        assert!(verify(&ca, "reveille.backup.svc", at(0)));
        assert!(!verify(&ca, "reveille.other.svc", at(0)));
        assert!(!verify(&other, "reveille.backup.svc", at(0)));
        assert!(!verify(&ca, "reveille.backup.svc", at(8 * 24)));
        assert_eq!(validity(&leaf.certificate).unwrap(), leaf.validity);
    }

    #[test]
    fn a_leaf_does_not_outlive_its_ca() {
        let ca = Ca::generate(at(0)).unwrap();
        let leaf = ca.sign_leaf(&["a".to_owned()], at(364 * 24)).unwrap();
        assert_eq!(leaf.validity.until, ca.validity.until);
    }

    #[test]
    fn renewal_at_two_thirds_and_when_the_clock_was_set_back() {
        let validity = Validity {
            from: at(0),
            until: at(300),
        };
        assert!(!validity.renewal_due(at(199)) && validity.renewal_due(at(200)) && validity.renewal_due(at(-1)));
        assert!(!validity.expired(at(299)) && validity.expired(at(300)));
    }

    #[test]
    fn a_bundle_has_each_living_certificate_once() {
        let (old, new) = (Ca::generate(at(0)).unwrap(), Ca::generate(at(300 * 24)).unwrap());
        let both = format!("{}{}", old.certificate, new.certificate);
        let texts = [new.certificate.as_str(), both.as_str(), "garbage"];
        assert_eq!(
            bundle(texts, at(300 * 24)),
            format!("{}{}", new.certificate, old.certificate)
        );
        assert_eq!(bundle(texts, at(366 * 24)), new.certificate);
    }
}

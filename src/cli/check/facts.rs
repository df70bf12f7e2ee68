//! What `reveille check` looks at: plain data, as the API server and the replicas gave it.

use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration, apps::v1::Deployment, coordination::v1::Lease,
};
use serde_json::Value;

use super::rights::Right;
use crate::{api::HookRun, cli::unserved::Unserved, infra::pki::Validity};

/// What could be read; or why not.
pub type Known<T> = Result<T, String>;

/// Everything.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This machine's clock.
    pub now: Timestamp,
    /// The API server's version, `MAJOR.MINOR`.
    pub kubernetes: Known<String>,
    /// The Velero servers of the cluster.
    pub velero: Known<Vec<Velero>>,
    /// Whether Velero's Restores are known to the API server.
    pub restores_exist: Known<bool>,
    /// The HookRun CRD.
    pub crd: Known<Option<Value>>,
    /// Whether Blueprints are known to the API server; none where no actions controller is installed.
    pub blueprints: Known<Option<bool>>,
    /// Reveille's policies.
    pub policies: Known<Vec<Policy>>,
    /// The installations: one, if all is well.
    pub installations: Known<Vec<Installation>>,
    /// All runs.
    pub runs: Known<Vec<HookRun>>,
    /// Restored pods (`namespace/name`) with hooks that nobody has planned.
    pub unplanned: Known<Vec<String>>,
    /// Pods of restored controllers.
    pub unserved: Known<Vec<Unserved>>,
    /// Unfinished Restores (`namespace/name`) that Reveille did not mark although its mode is takeover.
    pub unmarked: Known<Vec<String>>,
}

/// One Velero server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Velero {
    /// Its namespace.
    pub namespace: String,
    /// What it says of itself, or else its image's tag: `v1.18.3`.
    pub version: Option<String>,
    /// Whether a pod of it is ready.
    pub ready: bool,
}

/// One of Reveille's `ValidatingAdmissionPolicies`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// The value of its label `reveille.dev/policy`.
    pub kind: String,
    /// What its binding says: `Deny`, `Warn`, `Audit`. Empty: nothing binds it, so it says nothing.
    pub actions: Vec<String>,
}

/// One installation, found by its webhook configuration.
#[derive(Clone, Debug)]
pub struct Installation {
    /// How the API server reaches the webhook.
    pub configuration: MutatingWebhookConfiguration,
    /// The namespace of its Service.
    pub namespace: String,
    /// The Service.
    pub service: String,
    /// Its Deployment.
    pub deployment: Known<Option<Deployment>>,
    /// The CA that signs and all CAs to be trusted (PEM), from the Secret; `None` where certificates come from elsewhere.
    pub ca: Known<Option<CaSecret>>,
    /// A TLS handshake with each replica, trusting the `caBundle`.
    pub replicas: Known<Vec<Replica>>,
    /// A dry-run Restore; `None` without Velero.
    pub probe: Known<Option<Probe>>,
    /// The waiter's Lease.
    pub lease: Known<Option<Lease>>,
    /// What the waiter's account may do.
    pub rights: Known<Vec<(Right, bool)>>,
    /// What the webhook's may.
    pub webhook_rights: Known<Vec<(Right, bool)>>,
}

/// The public part of the Secret with the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSecret {
    /// The CA that signs, PEM.
    pub current: String,
}

/// One webhook pod.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its name.
    pub pod: String,
    /// The certificate that it serves; an error if the handshake failed.
    pub certificate: Known<Validity>,
}

/// What came back of a dry-run Restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The webhook marked it.
    pub marked: bool,
    /// The API server's clock, in whole seconds.
    pub server_time: Option<Timestamp>,
}

/// The value of an argument `--name=value` of a container of the Deployment.
pub fn argument<'a>(deployment: &'a Deployment, container: &str, name: &str) -> Option<&'a str> {
    arguments(deployment, container, name).into_iter().next()
}

/// All values of an argument that may be given several times.
pub fn arguments<'a>(deployment: &'a Deployment, container: &str, name: &str) -> Vec<&'a str> {
    let containers = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let found = containers.into_iter().flat_map(|spec| &spec.containers);
    let arguments = found
        .filter(|found| found.name == container)
        .flat_map(|found| found.args.iter().flatten());
    arguments
        .filter_map(|argument| argument.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
        .collect()
}

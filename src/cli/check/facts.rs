//! What `reveille check` looks at: plain data, as the API server and the replicas gave it.

use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration, apps::v1::Deployment, coordination::v1::Lease,
};
use serde_json::Value;

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

/// Something that an account must be allowed to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Right {
    /// The API group.
    pub group: &'static str,
    /// The resource, perhaps with a subresource: `pods/exec`.
    pub resource: &'static str,
    /// The verb.
    pub verb: &'static str,
    /// The namespace, if not all.
    pub namespace: Option<String>,
    /// The object, if not all.
    pub name: Option<String>,
}

/// What the waiter can't work without.
pub fn waiter_rights(configuration: &str, namespace: &str, lease: &str, ca_secret: Option<&str>) -> Vec<Right> {
    let cluster = [
        ("velero.io", "restores", &["get", "list", "watch", "patch"][..]),
        ("", "pods", &["get", "list", "watch", "patch"]),
        // Exec is a GET; from Kubernetes 1.35 on it also needs `create`.
        ("", "pods/exec", &["get", "create"]),
        ("", "pods/log", &["get"]),
        ("", "namespaces", &["get"]),
        ("reveille.dev", "hookruns", &["get", "list", "watch", "create"]),
        ("reveille.dev", "hookruns/status", &["update"]),
        ("events.k8s.io", "events", &["create", "patch"]),
    ];
    let right = |group, resource, verb| Right {
        group,
        resource,
        verb,
        namespace: None,
        name: None,
    };
    let mut rights: Vec<Right> = cluster
        .iter()
        .flat_map(|(group, resource, verbs)| verbs.iter().map(move |verb| right(*group, *resource, *verb)))
        .collect();
    let of_release = |group, resource, verb, name: &str| Right {
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        ..right(group, resource, verb)
    };
    rights.extend(["get", "watch", "patch"].map(|verb| of_release("coordination.k8s.io", "leases", verb, lease)));
    if let Some(secret) = ca_secret {
        rights.extend(["get", "watch", "patch"].map(|verb| Right {
            name: Some(configuration.to_owned()),
            ..right("admissionregistration.k8s.io", "mutatingwebhookconfigurations", verb)
        }));
        rights.extend(["get", "watch", "update"].map(|verb| of_release("", "secrets", verb, secret)));
    }
    rights
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

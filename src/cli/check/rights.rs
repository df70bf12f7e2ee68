//! What Reveille's accounts must be allowed to do, told from the arguments of its Deployment. A test compares it with the roles
//! of the chart.

use k8s_openapi::api::apps::v1::Deployment;

use super::facts::{argument, arguments};

/// The group of webhook configurations and policies.
const ADMISSION: &str = "admissionregistration.k8s.io";

/// Something that an account must be allowed to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl Right {
    fn new(group: &'static str, resource: &'static str, verb: &'static str) -> Self {
        Self {
            group,
            resource,
            verb,
            namespace: None,
            name: None,
        }
    }

    fn of(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }
}

/// What an installation is made of, as far as rights depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Reveille's namespace.
    pub namespace: String,
    /// The webhook configuration, where the waiter writes its `caBundle`.
    pub configuration: Option<String>,
    /// The Secret with the CA, where the waiter makes it.
    pub ca_secret: Option<String>,
    /// The waiter's Lease.
    pub lease: String,
    /// The webhook's account.
    pub webhook_account: String,
    /// The `ConfigMap` with the pause of everything.
    pub pause: String,
    /// The admission policies, as they were installed: name and action (empty if it is not known).
    pub policies: Vec<(String, String)>,
    /// Finished runs are deleted.
    pub deletes_runs: bool,
}

impl Layout {
    /// That of the chart's defaults under this name, but for policies.
    pub fn usual(name: &str, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            configuration: Some(name.to_owned()),
            ca_secret: Some(format!("{name}-ca")),
            lease: format!("{name}-waiter"),
            webhook_account: format!("{name}-webhook"),
            pause: format!("{name}-pause"),
            policies: Vec::new(),
            deletes_runs: true,
        }
    }

    /// That of a Deployment; what it does not say is as usual under this name.
    pub fn of(deployment: &Deployment, name: &str, namespace: &str) -> Self {
        let usual = Self::usual(name, namespace);
        let waiter = |argument_name| argument(deployment, "waiter", argument_name).map(str::to_owned);
        let policy = |text: &str| {
            let (name, action) = text.split_once('=').unwrap_or((text, ""));
            (name.to_owned(), action.to_owned())
        };
        Self {
            configuration: waiter("webhook-configuration"),
            ca_secret: waiter("ca-secret"),
            lease: waiter("lease").unwrap_or(usual.lease),
            webhook_account: waiter("webhook-account").unwrap_or(usual.webhook_account),
            pause: waiter("pause-config-map").unwrap_or(usual.pause),
            policies: arguments(deployment, "waiter", "policy")
                .into_iter()
                .map(policy)
                .collect(),
            deletes_runs: waiter("ttl").is_none_or(|ttl| ttl != "0"),
            namespace: usual.namespace,
        }
    }

    /// What the waiter's account, which is the pod's, can't do without.
    pub fn waiter_rights(&self) -> Vec<Right> {
        let everywhere = [
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
        let each = |group, resource, verbs: &'static [&'static str]| {
            verbs.iter().map(move |verb| Right::new(group, resource, verb))
        };
        let mut rights: Vec<Right> = everywhere
            .into_iter()
            .flat_map(|(group, resource, verbs)| each(group, resource, verbs))
            .collect();
        rights.extend(
            self.deletes_runs
                .then(|| Right::new("reveille.dev", "hookruns", "delete")),
        );
        if let Some(name) = &self.configuration {
            let verbs = each(
                ADMISSION,
                "mutatingwebhookconfigurations",
                &["get", "list", "watch", "patch"],
            );
            rights.extend(verbs.map(|right| right.of(name)));
        }
        for (name, _) in &self.policies {
            for resource in ["validatingadmissionpolicies", "validatingadmissionpolicybindings"] {
                rights.push(Right::new(ADMISSION, resource, "get").of(name));
            }
        }
        // The rest is Reveille's own, in its namespace. A `create` can't be narrowed to a name, but that of a token can.
        let mut own = vec![
            Right::new("", "serviceaccounts/token", "create").of(&self.webhook_account),
            Right::new("coordination.k8s.io", "leases", "create"),
        ];
        own.extend(
            each("coordination.k8s.io", "leases", &["get", "list", "watch", "patch"])
                .map(|right| right.of(&self.lease)),
        );
        own.extend(each("", "configmaps", &["list", "watch"]).map(|right| right.of(&self.pause)));
        if let Some(secret) = &self.ca_secret {
            own.push(Right::new("", "secrets", "create"));
            own.extend(each("", "secrets", &["get", "list", "watch", "update"]).map(|right| right.of(secret)));
        }
        rights.extend(own.into_iter().map(|right| right.within(&self.namespace)));
        rights
    }

    /// What the webhook's account can't do without.
    pub fn webhook_rights(&self) -> Vec<Right> {
        let mut rights: Vec<Right> = ["list", "watch"]
            .map(|verb| Right::new("velero.io", "restores", verb))
            .into();
        if let Some(secret) = &self.ca_secret {
            rights.extend(
                ["list", "watch"].map(|verb| Right::new("", "secrets", verb).of(secret).within(&self.namespace)),
            );
        }
        rights
    }

    /// The user name of the webhook's account.
    pub fn webhook_user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.webhook_account)
    }
}

//! Are the chart's admission policies there? What they keep from happening, nobody else does.

use std::{
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{kube::reason, metrics::Metrics};

/// The condition of a run that was taken in while a policy was missing.
pub const POLICY_MISSING: &str = "PolicyMissing";
/// How often they are looked for.
const INTERVAL: Duration = Duration::from_secs(30);

/// The policies that this installation has, and those that are not there.
#[derive(Debug, Default)]
pub struct Policies {
    names: Vec<String>,
    missing: RwLock<Vec<String>>,
}

impl Policies {
    /// Those of these names (`NAME` or `NAME=ACTION`), with a binding of the same name each. They count as there until somebody has
    /// looked.
    pub fn new(policies: Vec<String>) -> Self {
        let name = |policy: String| policy.split('=').next().unwrap_or_default().to_owned();
        let names = policies.into_iter().map(name).collect();
        Self {
            names,
            missing: RwLock::default(),
        }
    }

    /// What a run should say about them, if anything.
    pub fn condition(&self, now: Timestamp) -> Option<Condition> {
        let missing = self.missing.read().unwrap_or_else(PoisonError::into_inner);
        (!missing.is_empty()).then(|| Condition {
            type_: POLICY_MISSING.to_owned(),
            status: "True".to_owned(),
            reason: POLICY_MISSING.to_owned(),
            message: format!(
                "admission policies of the chart are missing: {}; somebody who may not exec may have changed this pod's hooks",
                missing.join(", ")
            ),
            last_transition_time: Time(now),
            observed_generation: None,
        })
    }

    async fn look(&self, client: &Client, metrics: &Metrics) -> Result<(), kube::Error> {
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
        let mut missing = Vec::new();
        for name in &self.names {
            // A policy without a binding does nothing.
            if policies.get_metadata_opt(name).await?.is_none() || bindings.get_metadata_opt(name).await?.is_none() {
                missing.push(name.clone());
            }
        }
        metrics.policies_missing(missing.len());
        let mut before = self.missing.write().unwrap_or_else(PoisonError::into_inner);
        if *before != missing {
            if missing.is_empty() {
                info!("all admission policies of the chart are there");
            } else {
                warn!(?missing, "admission policies of the chart are missing");
            }
            *before = missing;
        }
        Ok(())
    }
}

/// Looks for them until `end` fires.
pub async fn run(
    policies: Arc<Policies>,
    client: Client,
    metrics: Arc<Metrics>,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if let Err(error) = policies.look(&client, &metrics).await {
            warn!(
                error = reason(&error),
                "the admission policies can't be looked for at the moment"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_says_which_policies_are_missing() {
        let policies = Policies::new(vec!["a".to_owned(), "b=Deny".to_owned()]);
        assert!(
            policies.condition(Timestamp::UNIX_EPOCH).is_none(),
            "nobody has looked yet"
        );
        assert_eq!(policies.names, ["a", "b"]);
        *policies.missing.write().unwrap() = vec!["b".to_owned()];
        let condition = policies.condition(Timestamp::UNIX_EPOCH).unwrap();
        assert!(condition.message.contains("missing: b;"), "{}", condition.message);
    }
}

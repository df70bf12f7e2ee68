//! The plan: what is to happen in one restored pod, frozen at admission and written on the pod itself.
//!
//! The pod is the outbox: a hook is queued if and only if its pod exists.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    digest,
    duration::GoDuration,
    hooks::{HookSource, PostHook, Problem, hook::is_false},
};

/// The version of plans and `HookRun`s that this build writes. A newer one waits, with an Event, and is never dropped.
pub const VERSION: u32 = 1;

/// The Restore that a plan belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreRef {
    /// Velero's namespace.
    pub namespace: String,
    /// The Restore's name.
    pub name: String,
    /// The Restore's uid.
    pub uid: String,
}

/// An init container that the plan has placed, or could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedInit {
    /// The Restore spec's name for the hook, or `<from-annotation>`.
    pub name: String,
    /// Where it was written.
    pub source: HookSource,
    /// The container's name in the pod.
    pub container: String,
    /// How long it may take; zero is no limit.
    #[serde(default)]
    pub timeout: GoDuration,
    /// Why it is not in the pod, if so: it is then recorded as Skipped with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// It should be in the pod and is not: the pod was created while the webhook could not be reached.
    #[serde(default, skip_serializing_if = "is_false")]
    pub missed: bool,
}

/// What is to happen in one restored pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// The Restore; none for other restore tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreRef>,
    /// The time of admission.
    #[schemars(with = "String")]
    pub planned_at: Timestamp,
    /// False when the webhook could not tell whether, or by which Restore, the pod is restored: the waiter decides.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub resolved: bool,
    /// Set when the waiter made the plan because the webhook had not seen the pod: the uid of the pod it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_for: Option<String>,
    /// Velero writes this pod's status from the backup, if nothing refuses that: states older than the pod are not its own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub status_restored: bool,
    /// The commands to run, in this order within a container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<PostHook>,
    /// The init containers to watch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init: Vec<PlannedInit>,
    /// Annotations taken off the pod so that Velero does not run them; the waiter puts them back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moved: BTreeMap<String, String>,
    /// What was wrong with what the user wrote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Digest of everything but the time.
    #[serde(default)]
    pub digest: String,
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_true(value: &bool) -> bool {
    *value
}

/// Why the text on a pod is no plan that can be worked on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Written by a newer Reveille.
    #[error("the plan has version {0}; this Reveille knows up to {VERSION}: it waits for a newer one")]
    Newer(u32),
    /// Not ours.
    #[error("the plan can't be read: {0}")]
    Unreadable(String),
}

impl Plan {
    /// A plan in which there is nothing to do.
    pub fn nothing() -> Self {
        Self {
            version: VERSION,
            restore: None,
            planned_at: Timestamp::UNIX_EPOCH,
            resolved: true,
            late_for: None,
            status_restored: false,
            post: Vec::new(),
            init: Vec::new(),
            moved: BTreeMap::new(),
            problems: Vec::new(),
            digest: String::new(),
        }
    }

    /// Reads a plan from the pod's annotation.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let unreadable = |error: serde_json::Error| PlanError::Unreadable(error.to_string());
        let Versioned { version } = serde_json::from_str(text).map_err(unreadable)?;
        if version > VERSION {
            return Err(PlanError::Newer(version));
        }
        serde_json::from_str(text).map_err(unreadable)
    }

    /// The text for the pod's annotation.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// True when there is nothing to run, to watch or to tell.
    pub fn is_empty(&self) -> bool {
        self.post.is_empty() && self.init.is_empty() && self.problems.is_empty() && self.resolved
    }

    /// The plan with its digest filled in.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        let content = serde_json::json!([
            self.restore,
            self.resolved,
            self.post,
            self.init,
            self.moved,
            self.problems
        ]);
        self.digest = digest::hex(&content.to_string(), 8);
        self
    }

    /// Whether `other` asks for the same, whenever it was planned.
    pub fn same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_version_is_named_even_if_the_rest_is_strange() {
        assert_eq!(
            Plan::parse(r#"{"version":2,"post":"changed"}"#),
            Err(PlanError::Newer(2))
        );
        assert!(matches!(Plan::parse("{}"), Err(PlanError::Unreadable(_))));
        assert!(matches!(Plan::parse("not json"), Err(PlanError::Unreadable(_))));
    }

    #[test]
    fn the_digest_ignores_the_time_and_round_trips() {
        let at = |second| {
            Plan {
                version: VERSION,
                restore: None,
                planned_at: Timestamp::from_second(second).unwrap(),
                resolved: true,
                late_for: None,
                status_restored: false,
                post: vec![],
                init: vec![],
                moved: BTreeMap::new(),
                problems: vec![Problem::warning("k", "m")],
                digest: String::new(),
            }
            .sealed()
        };
        assert!(at(1).same_as(&at(2)));
        assert_eq!(Plan::parse(&at(1).to_text().unwrap()), Ok(at(1)));
    }
}

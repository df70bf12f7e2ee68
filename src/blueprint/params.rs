//! What templates of an action can read (Kanister's `TemplateParams`).

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::Value;

use super::{model::Artifacts, subject::Subject};

/// The data of one action's templates. There never is a profile: hooks have none.
#[derive(Clone, Debug)]
pub struct Params {
    /// When the action started. `.Time`, and also what `now` gives, so that a restart renders the same text.
    pub time: Timestamp,
    /// What the action works on.
    pub subject: Subject,
    /// `.Options`.
    pub options: BTreeMap<String, String>,
    /// `.ArtifactsIn`: what preHook handed on.
    pub artifacts_in: Artifacts,
    /// `.Phases`: the phases that were reached.
    pub phases: BTreeMap<String, PhaseParams>,
    /// `.DeferPhase`, once it was reached.
    pub defer_phase: Option<PhaseParams>,
}

/// What templates can read of one phase. Its `Debug` shows names only: values may be secret.
#[derive(Clone, Default)]
pub struct PhaseParams {
    /// What the function gave. Texts, except for the replica count of `ScaleWorkload`.
    pub output: BTreeMap<String, Value>,
    /// The Secrets of its `objects`, by the name they have there.
    pub secrets: BTreeMap<String, Secret>,
    /// The ConfigMaps of its `objects`.
    pub config_maps: BTreeMap<String, ConfigMap>,
}

impl Params {
    /// The params at an action's start.
    pub fn new(time: Timestamp, subject: Subject) -> Self {
        Self {
            time,
            subject,
            options: BTreeMap::new(),
            artifacts_in: Artifacts::new(),
            phases: BTreeMap::new(),
            defer_phase: None,
        }
    }
}

impl fmt::Debug for PhaseParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhaseParams")
            .field("output", &self.output.keys())
            .field("secrets", &self.secrets.keys())
            .field("config_maps", &self.config_maps.keys())
            .finish()
    }
}

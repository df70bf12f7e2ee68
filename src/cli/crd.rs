//! `reveille crd`: the custom resource definitions, from which the chart's files are made.

use kube::CustomResourceExt;

use crate::api::HookRun;

/// The CRDs as YAML.
pub fn yaml() -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&HookRun::crd())?)
}

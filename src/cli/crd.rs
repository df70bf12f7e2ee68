//! `reveille crd`: the custom resource definitions, from which the chart's files are made.

use std::{fs, io::Write, path::PathBuf};

use anyhow::Context;
use clap::Args;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::api::{BackupAction, HookRun, RestoreAction};

/// Prints the custom resource definitions as YAML.
#[derive(Args, Debug)]
pub struct CrdArgs {
    /// Write each into a file of its name in this folder instead.
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &CrdArgs) -> anyhow::Result<()> {
    let all = all()?;
    if let Some(directory) = &args.directory {
        for (name, text) in all {
            let path = directory.join(format!("{name}.yaml"));
            fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        }
        return Ok(());
    }
    let texts: Vec<String> = all.into_iter().map(|(_, text)| text).collect();
    Ok(std::io::stdout().write_all(texts.join("---\n").as_bytes())?)
}

/// Name and YAML of each.
pub fn all() -> anyhow::Result<Vec<(String, String)>> {
    let one = |crd: CustomResourceDefinition| {
        let name = crd.metadata.name.clone().unwrap_or_default();
        anyhow::Ok((name, serde_saphyr::to_string(&crd)?))
    };
    [HookRun::crd(), RestoreAction::crd(), BackupAction::crd()]
        .into_iter()
        .map(one)
        .collect()
}

//! Which Restore or which run is meant by a name on the command line.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use kube::{Client, ResourceExt, api::ListParams};

use crate::{api::HookRun, hooks::restored::RestoreInfo, infra::kube::hook_runs, plan::RestoreRef, waiter::restores};

/// A name, and where to look for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl Name {
    /// From `NAME` or `NAMESPACE/NAME`, and the option `--namespace`.
    pub(super) fn parse(text: &str, namespace: Option<&str>) -> anyhow::Result<Self> {
        let (before, name) = text
            .split_once('/')
            .map_or((None, text), |(namespace, name)| (Some(namespace), name));
        if let (Some(before), Some(namespace)) = (before, namespace)
            && before != namespace
        {
            bail!("{text:?} names namespace {before:?}, but --namespace is {namespace:?}");
        }
        if name.is_empty() || name.contains('/') || before.is_some_and(str::is_empty) {
            bail!("{text:?} is neither NAME nor NAMESPACE/NAME");
        }
        Ok(Self {
            namespace: before.or(namespace).map(str::to_owned),
            name: name.to_owned(),
        })
    }

    fn fits(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A Restore or a run.
#[derive(Args, Debug)]
pub(super) struct TargetArgs {
    /// A Restore or a run (a HookRun, or the pod that it is for), as NAME or NAMESPACE/NAME.
    #[arg(value_name = "RESTORE|RUN")]
    pub(super) name: String,
    /// The namespace, if the name does not say it.
    #[arg(short, long)]
    pub(super) namespace: Option<String>,
    /// What the name is the name of, if there are both.
    #[arg(long, value_enum)]
    pub(super) kind: Option<Kind>,
}

impl TargetArgs {
    pub(super) async fn find(&self, client: &Client) -> anyhow::Result<Target> {
        let name = Name::parse(&self.name, self.namespace.as_deref())?;
        let (restores, runs) = read(client).await?;
        choose(&name, self.kind, restores, runs)
    }
}

/// What a name may be the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// A Velero Restore.
    Restore,
    /// A run, named as its `HookRun` or as its pod.
    Run,
}

/// What is meant.
#[derive(Debug)]
pub(super) enum Target {
    Restore(Box<FoundRestore>),
    Run(Box<HookRun>),
}

/// A Restore and its runs.
#[derive(Debug)]
pub(super) struct FoundRestore {
    pub(super) reference: RestoreRef,
    /// None if only its runs are left.
    pub(super) info: Option<RestoreInfo>,
    pub(super) runs: Vec<HookRun>,
}

/// All Restores and all runs of the cluster.
pub(super) async fn read(client: &Client) -> anyhow::Result<(Vec<RestoreInfo>, Vec<HookRun>)> {
    let restores = restores(client).await?;
    let runs = runs(client, &ListParams::default()).await?;
    Ok((restores, runs))
}

/// All Restores; none where Velero is not installed.
pub(super) async fn restores(client: &Client) -> anyhow::Result<Vec<RestoreInfo>> {
    let all = restores::list(client).await.context("can't list Velero's Restores")?;
    Ok(all.into_iter().map(|(_, info)| info).collect())
}

/// The runs that these parameters select.
pub(super) async fn runs(client: &Client, parameters: &ListParams) -> anyhow::Result<Vec<HookRun>> {
    let mut runs = hook_runs(client, parameters)
        .await
        .context("can't list HookRuns: is Reveille installed?")?;
    for run in &mut runs {
        // Long, and of no use to anybody who asks what became of a hook.
        run.metadata.managed_fields = None;
    }
    Ok(runs)
}

/// Chooses what is meant; an error in words if that is nothing, or not one thing.
pub(super) fn choose(
    name: &Name,
    kind: Option<Kind>,
    restores: Vec<RestoreInfo>,
    runs: Vec<HookRun>,
) -> anyhow::Result<Target> {
    let mut found: Vec<Target> = Vec::new();
    if kind != Some(Kind::Run) {
        let references = restore_references(name, &restores, &runs);
        found.extend(references.into_iter().map(|reference| {
            let belongs = |run: &&HookRun| run.spec.plan.restore.as_ref() == Some(&reference);
            Target::Restore(Box::new(FoundRestore {
                info: restores.iter().find(|info| info.uid == reference.uid).cloned(),
                runs: runs.iter().filter(belongs).cloned().collect(),
                reference,
            }))
        }));
    }
    if kind != Some(Kind::Run) && kind.is_some() {
        return only(name, kind, found);
    }
    let is_meant = |run: &HookRun| {
        let namespace = run.namespace().unwrap_or_default();
        name.fits(&namespace, &run.name_any()) || name.fits(&namespace, &run.spec.pod.name)
    };
    found.extend(runs.into_iter().filter(is_meant).map(|run| Target::Run(Box::new(run))));
    only(name, kind, found)
}

/// The Restores of a name. Runs of one that was deleted count only if no Restore of that name exists.
pub(super) fn restore_references(name: &Name, restores: &[RestoreInfo], runs: &[HookRun]) -> Vec<RestoreRef> {
    let existing: Vec<RestoreRef> = restores
        .iter()
        .filter(|restore| name.fits(&restore.namespace, &restore.name))
        .map(crate::admission::pod::reference)
        .collect();
    if !existing.is_empty() {
        return existing;
    }
    let mut gone: Vec<RestoreRef> = Vec::new();
    for restore in runs.iter().filter_map(|run| run.spec.plan.restore.as_ref()) {
        if name.fits(&restore.namespace, &restore.name) && !gone.contains(restore) {
            gone.push(restore.clone());
        }
    }
    gone
}

fn only(name: &Name, kind: Option<Kind>, mut found: Vec<Target>) -> anyhow::Result<Target> {
    let what = match kind {
        None => "Restore or run",
        Some(Kind::Restore) => "Restore",
        Some(Kind::Run) => "run",
    };
    match (found.pop(), found.is_empty()) {
        (None, _) => bail!("there is no {what} {:?}", name.to_string()),
        (Some(target), true) => Ok(target),
        (Some(last), false) => {
            found.push(last);
            let names: Vec<String> = found.iter().map(ToString::to_string).collect();
            bail!(
                "{:?} can mean any of: {} (write NAMESPACE/NAME, or add --kind)",
                name.to_string(),
                names.join(", ")
            )
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Restore(restore) => {
                let RestoreRef { namespace, name, uid } = &restore.reference;
                write!(f, "Restore {namespace}/{name}")?;
                match restore.info {
                    Some(_) => Ok(()),
                    None => write!(f, " (deleted, uid {uid})"),
                }
            }
            Self::Run(run) => write!(f, "{}", run_name(run)),
        }
    }
}

/// A run as messages name it.
pub(super) fn run_name(run: &HookRun) -> String {
    format!(
        "run {}/{} of pod {}",
        run.namespace().unwrap_or_default(),
        run.name_any(),
        run.spec.pod.name
    )
}

#[cfg(test)]
pub(in crate::cli) mod tests;

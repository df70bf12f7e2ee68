//! `reveille status` and `reveille wait`: what became of each hook and action, and an exit code that tells the result.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use kube::{Client, api::ListParams};
use serde::Serialize;

use super::{
    actions_status,
    output::{self, Output},
    progress::Progress,
    status_table,
    target::{self, Name, restore_references},
    unserved::{self, Unserved},
};
use crate::{
    admission::pod::reference,
    api::HookRun,
    control::Request,
    duration::GoDuration,
    hooks::restored::{RestoreInfo, label_value},
    infra::{clock, kube::clients},
    names::VELERO_RESTORE_LABEL,
    plan::RestoreRef,
    result::{self, Verdict},
    waiter::restores,
};

/// The hooks have ended, and none with onError Fail other than well.
const SUCCEEDED: u8 = 0;
/// A hook with onError Fail did not succeed.
const FAILED: u8 = 1;
/// Not finished.
const PENDING: u8 = 3;

/// How often a restore that is waited for is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many looks in a row may fail while it is waited for: the API server may be away for a while.
const FAILURES: u32 = 120;

/// Shows what became of the hooks of restores, and of actions.
///
/// Exit code: 0 all hooks that count succeeded, 1 a hook with on-error Fail did not, 2 an error, 3 not finished yet.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  reveille status                        # all restores
  reveille status shop --wait --timeout 30m
  reveille status velero/shop -o yaml")]
pub struct StatusArgs {
    /// A Restore, as NAME or NAMESPACE/NAME; without it all runs are shown.
    restore: Option<String>,
    /// The Restore's namespace, if the name does not say it.
    #[arg(short, long, requires = "restore")]
    namespace: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Wait until the restore is finished, hooks included.
    #[arg(long)]
    wait: bool,
    /// With --wait: how long at most, for example 10m.
    #[arg(long, requires = "wait")]
    timeout: Option<GoDuration>,
}

/// Waits until a restore is finished, hooks included, and says in one line how it ended.
///
/// Exit code: 0 all hooks that count succeeded, 1 a hook with on-error Fail did not, 2 an error, 3 not finished in time.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  reveille wait shop && kubectl scale deployment/shop --replicas 3
  reveille wait velero/shop --timeout 30m -o json")]
pub struct WaitArgs {
    /// The Restore, as NAME or NAMESPACE/NAME.
    restore: String,
    /// Its namespace, if the name does not say it.
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// How long at most, for example 10m.
    #[arg(long)]
    timeout: Option<GoDuration>,
}

/// One restore and its runs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RestoreStatus {
    /// The Restore; none for runs of other restore tools.
    pub(super) restore: Option<RestoreRef>,
    /// `status.phase` of the Restore, if it is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) velero_phase: Option<String>,
    /// `Pending`, `Succeeded` or `Failed`.
    pub(super) result: &'static str,
    /// Why, when there is something to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    /// Who has cancelled it, if anybody has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cancelled: Option<Request>,
    /// Who has paused it, if it is paused by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused: Option<Request>,
    /// Its runs, by namespace and name.
    pub(super) runs: Vec<HookRun>,
    /// Pods with hooks that its controllers made by themselves: nobody runs these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) not_served: Vec<Unserved>,
}

/// Runs `reveille status`.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let name = args
        .restore
        .as_deref()
        .map(|text| Name::parse(text, args.namespace.as_deref()))
        .transpose()?;
    let statuses = if args.wait {
        wait_for(&client, name.as_ref(), args.timeout).await?
    } else {
        read(&client, name.as_ref()).await?
    };
    let statuses = with_unserved(&client, statuses, name.is_none()).await;
    let actions = actions_status::read(&client, name.as_ref().map(|name| name.name.as_str())).await?;
    output::print(
        args.output,
        &serde_json::json!({"restores": statuses, "actions": actions}),
        || {
            let now = clock::now();
            status_table::render(&statuses, now) + &actions_status::render(&actions, now)
        },
    )?;
    Ok(ExitCode::from(exit_code(&statuses)))
}

/// Runs `reveille wait`.
pub async fn wait(args: WaitArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let name = Name::parse(&args.restore, args.namespace.as_deref())?;
    let statuses = wait_for(&client, Some(&name), args.timeout).await?;
    output::print(args.output, &serde_json::json!({"restores": statuses}), || {
        statuses
            .iter()
            .map(|status| status_table::title(status) + "\n")
            .collect()
    })?;
    Ok(ExitCode::from(exit_code(&statuses)))
}

/// Looks until nothing is open any more, or the time is over.
async fn wait_for(
    client: &Client,
    name: Option<&Name>,
    limit: Option<GoDuration>,
) -> anyhow::Result<Vec<RestoreStatus>> {
    let stopwatch = clock::Stopwatch::start();
    let limit = limit.and_then(GoDuration::to_std);
    let mut progress = Progress::new();
    let mut statuses = read(client, name).await?;
    let mut failures = 0;
    loop {
        let over = limit.is_some_and(|limit| stopwatch.elapsed() >= limit);
        if exit_code(&statuses) != PENDING || over {
            return Ok(statuses);
        }
        progress.show(&statuses);
        tokio::time::sleep(INTERVAL).await;
        match read(client, name).await {
            Ok(fresh) => (statuses, failures) = (fresh, 0),
            Err(error) if failures >= FAILURES => return Err(error),
            Err(error) => {
                failures += 1;
                progress.say(&format!("{error:#}; it is tried again"));
            }
        }
    }
}

/// Adds the pods that are not served; of all restores, also those without runs, if `all`.
async fn with_unserved(client: &Client, mut statuses: Vec<RestoreStatus>, all: bool) -> Vec<RestoreStatus> {
    let of = |statuses: &[RestoreStatus], uid: &str| {
        let position = statuses
            .iter()
            .position(|status| status.restore.as_ref().is_some_and(|restore| restore.uid == uid));
        position.filter(|_| !uid.is_empty())
    };
    let found = async {
        let restores = target::restores(client).await?;
        let shown = restores
            .iter()
            .filter(|restore| all || of(&statuses, &restore.uid).is_some());
        let found = unserved::read(client, &shown.collect::<Vec<_>>()).await?;
        anyhow::Ok((restores, found))
    };
    let (restores, found) = match found.await {
        Ok(found) => found,
        Err(error) => {
            // Who may only read HookRuns still gets these.
            output::note(&format!("pods that are not served can't be looked for: {error:#}"));
            return statuses;
        }
    };
    for pod in found {
        let index = of(&statuses, &pod.restore).unwrap_or_else(|| {
            statuses.extend(
                restores
                    .iter()
                    .filter(|restore| restore.uid == pod.restore)
                    .map(|restore| RestoreStatus::judge(Some(reference(restore)), Some(restore), 0, Vec::new())),
            );
            statuses.len().saturating_sub(1)
        });
        if let Some(status) = statuses.get_mut(index) {
            status.not_served.push(pod);
        }
    }
    statuses
}

fn exit_code(statuses: &[RestoreStatus]) -> u8 {
    let any = |word: &str| statuses.iter().any(|status| status.result == word);
    match (any("Pending"), any("Failed")) {
        (true, _) => PENDING,
        (false, true) => FAILED,
        (false, false) => SUCCEEDED,
    }
}

/// Reads the runs of one restore, or of all.
async fn read(client: &Client, name: Option<&Name>) -> anyhow::Result<Vec<RestoreStatus>> {
    let parameters = match name {
        Some(name) => ListParams::default().labels(&format!("{VELERO_RESTORE_LABEL}={}", label_value(&name.name))),
        None => ListParams::default(),
    };
    let runs = target::runs(client, &parameters).await?;
    let restores = target::restores(client).await?;
    let mut statuses = Vec::new();
    for (reference, runs) in grouped(name, &restores, runs)? {
        let uid = reference.as_ref().map(|reference| &reference.uid);
        let restore = restores.iter().find(|restore| Some(&restore.uid) == uid);
        let unplanned = match restore {
            Some(restore) => unplanned(client, restore, &runs).await?,
            None => 0,
        };
        statuses.push(RestoreStatus::judge(reference, restore, unplanned, runs));
    }
    Ok(statuses)
}

/// The runs by restore: of the one that is named, or of all that have some.
fn grouped(
    name: Option<&Name>,
    restores: &[RestoreInfo],
    runs: Vec<HookRun>,
) -> anyhow::Result<Vec<(Option<RestoreRef>, Vec<HookRun>)>> {
    let key = |restore: Option<RestoreRef>| restore.map(|r| (r.namespace, r.name, r.uid));
    let mut groups: BTreeMap<_, Vec<HookRun>> = BTreeMap::new();
    if let Some(name) = name {
        let named = restore_references(name, restores, &runs);
        let mut namespaces: Vec<&str> = named.iter().map(|restore| restore.namespace.as_str()).collect();
        namespaces.dedup();
        match namespaces.as_slice() {
            [] => bail!("there is no Restore {:?}, and no HookRun of one", name.to_string()),
            [_] => {}
            several => bail!(
                "there are Restores {:?} in several namespaces: {} (write NAMESPACE/NAME)",
                name.name,
                several.join(", ")
            ),
        }
        // One that is asked for by name is shown even if it has no hooks.
        groups.extend(named.into_iter().map(|restore| (key(Some(restore)), Vec::new())));
    }
    for run in runs {
        let restore = key(run.spec.plan.restore.clone());
        match groups.get_mut(&restore) {
            Some(group) => group.push(run),
            None if name.is_none() => drop(groups.insert(restore, vec![run])),
            None => {}
        }
    }
    let reference = |(namespace, name, uid)| RestoreRef { namespace, name, uid };
    Ok(groups
        .into_iter()
        .map(|(key, runs)| (key.map(reference), runs))
        .collect())
}

impl RestoreStatus {
    fn judge(
        reference: Option<RestoreRef>,
        restore: Option<&RestoreInfo>,
        unplanned: usize,
        runs: Vec<HookRun>,
    ) -> Self {
        let references: Vec<&HookRun> = runs.iter().collect();
        let verdict = match restore {
            Some(restore) => result::judge(restore, unplanned, &references, clock::now()),
            None => result::judge_runs(&references),
        };
        // Whoever reads the Restore next should find what is said here.
        let verdict = match (restore, verdict) {
            (Some(restore), Verdict::Succeeded | Verdict::Failed(_)) if !result::is_written(restore, &references) => {
                Verdict::Pending("the result is being written on the Restore".to_owned())
            }
            (_, verdict) => verdict,
        };
        let message = match &verdict {
            Verdict::Pending(message) | Verdict::Failed(message) => message.clone(),
            Verdict::Succeeded => result::note(restore, &references),
        };
        Self {
            restore: reference,
            velero_phase: restore.map(|restore| restore.phase.clone()),
            result: verdict.word(),
            message,
            cancelled: restore.and_then(|restore| restore.cancel.clone()),
            paused: restore.and_then(|restore| restore.pause.clone()),
            runs,
            not_served: Vec::new(),
        }
    }
}

/// How many planned pods of the restore have no `HookRun` yet.
async fn unplanned(client: &Client, restore: &RestoreInfo, runs: &[HookRun]) -> anyhow::Result<usize> {
    let pods = restores::planned_pods(client, restore)
        .await
        .context("can't list pods")?;
    let uids: Vec<&str> = runs.iter().map(|run| run.spec.pod.uid.as_str()).collect();
    let waiting = pods.iter().filter(|pod| !uids.contains(&pod.identity.uid.as_str()));
    Ok(waiting.count())
}

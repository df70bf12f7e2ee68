//! `reveille status`: what became of each hook, and an exit code that tells the result.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use kube::{Api, Client, api::ListParams};
use serde::Serialize;

use super::{
    status_table,
    unserved::{self, Unserved},
};
use crate::{
    admission::pod::reference,
    api::HookRun,
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

/// How often `--wait` looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows what became of the hooks of restores.
///
/// Exit code: 0 all hooks that count succeeded, 1 a hook with onError Fail did not, 2 an error, 3 not finished yet.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// A Restore, as NAME or NAMESPACE/NAME; without it all runs are shown.
    restore: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Wait until the restore is finished, hooks included.
    #[arg(long)]
    wait: bool,
    /// With --wait: how long at most, for example 10m.
    #[arg(long, requires = "wait")]
    timeout: Option<crate::duration::GoDuration>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
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
    /// Its runs, by namespace and name.
    pub(super) runs: Vec<HookRun>,
    /// Pods with hooks that its controllers made by themselves: nobody runs these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) not_served: Vec<Unserved>,
}

/// Runs the command.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let stopwatch = clock::Stopwatch::start();
    let limit = args.timeout.and_then(crate::duration::GoDuration::to_std);
    let mut progress = Progress::default();
    loop {
        let statuses = read(&client, args.restore.as_deref()).await?;
        let code = exit_code(&statuses);
        let over = limit.is_some_and(|limit| stopwatch.elapsed() >= limit);
        if !args.wait || code != PENDING || over {
            progress.end();
            let statuses = with_unserved(&client, statuses, args.restore.is_none()).await;
            print(&statuses, args.output)?;
            return Ok(ExitCode::from(code));
        }
        progress.show(&statuses);
        tokio::time::sleep(INTERVAL).await;
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
        let restores = restores_of(client).await?;
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
            let _ = writeln!(
                std::io::stderr(),
                "pods that are not served can't be looked for: {error:#}"
            );
            return statuses;
        }
    };
    for pod in found {
        let index = of(&statuses, &pod.restore).unwrap_or_else(|| {
            statuses.extend(
                restores
                    .iter()
                    .filter(|restore| restore.uid == pod.restore)
                    .map(|restore| status(Some(restore), Some(reference(restore)), Vec::new(), 0)),
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
async fn read(client: &Client, wanted: Option<&str>) -> anyhow::Result<Vec<RestoreStatus>> {
    let (namespace, name) = match wanted.map(|text| {
        text.split_once('/')
            .map_or((None, text), |(namespace, name)| (Some(namespace), name))
    }) {
        Some((namespace, name)) => (namespace, Some(name)),
        None => (None, None),
    };
    let parameters = match name {
        Some(name) => ListParams::default().labels(&format!("{VELERO_RESTORE_LABEL}={}", label_value(name))),
        None => ListParams::default(),
    };
    let mut runs = Api::<HookRun>::all(client.clone())
        .list(&parameters)
        .await
        .context("can't list HookRuns: is Reveille installed?")?
        .items;
    for run in &mut runs {
        // Long, and of no use to anybody who asks what became of a hook.
        run.metadata.managed_fields = None;
    }
    let is_wanted = |restore: &RestoreRef| {
        name.is_none_or(|name| restore.name == name) && namespace.is_none_or(|namespace| restore.namespace == namespace)
    };
    let mut groups: BTreeMap<Option<(String, String, String)>, Vec<HookRun>> = BTreeMap::new();
    for run in runs {
        let restore = run.spec.plan.restore.as_ref();
        if restore.map_or(name.is_none(), is_wanted) {
            groups
                .entry(restore.map(|r| (r.namespace.clone(), r.name.clone(), r.uid.clone())))
                .or_default()
                .push(run);
        }
    }
    let restores = restores_of(client).await?;
    // A Restore that is asked for by name is shown even if it has no hooks.
    for restore in restores
        .iter()
        .filter(|restore| name.is_some() && is_wanted(&reference(restore)))
    {
        groups
            .entry(Some((
                restore.namespace.clone(),
                restore.name.clone(),
                restore.uid.clone(),
            )))
            .or_default();
    }
    if let (Some(wanted), true) = (wanted, groups.is_empty()) {
        bail!("there is no Restore {wanted:?}, and no HookRun of one");
    }
    let mut statuses = Vec::new();
    for (key, runs) in groups {
        let restore = key
            .as_ref()
            .and_then(|(_, _, uid)| restores.iter().find(|restore| restore.uid == *uid));
        let unplanned = match restore {
            Some(restore) => unplanned(client, restore, &runs).await?,
            None => 0,
        };
        let reference = key.map(|(namespace, name, uid)| RestoreRef { namespace, name, uid });
        statuses.push(status(restore, reference, runs, unplanned));
    }
    Ok(statuses)
}

/// How a restore stands. `unplanned`: how many of its planned pods have no `HookRun` yet.
fn status(
    restore: Option<&RestoreInfo>,
    reference: Option<RestoreRef>,
    runs: Vec<HookRun>,
    unplanned: usize,
) -> RestoreStatus {
    let references: Vec<&HookRun> = runs.iter().collect();
    let verdict = match restore {
        Some(restore) => result::judge(restore, unplanned, &references, clock::now()),
        None => result::judge_runs(&references),
    };
    // Whoever reads the Restore next should find what is said here.
    let verdict = match (restore, verdict) {
        (Some(restore), Verdict::Succeeded | Verdict::Failed(_)) if restore.result_is_open() => {
            Verdict::Pending("the result is being written on the Restore".to_owned())
        }
        (_, verdict) => verdict,
    };
    let message = match &verdict {
        Verdict::Pending(message) | Verdict::Failed(message) => message.clone(),
        Verdict::Succeeded if runs.is_empty() => "no hooks".to_owned(),
        Verdict::Succeeded => String::new(),
    };
    RestoreStatus {
        restore: reference,
        velero_phase: restore.map(|restore| restore.phase.clone()),
        result: verdict.word(),
        message,
        runs,
        not_served: Vec::new(),
    }
}

/// All Restores; none where Velero is not installed.
async fn restores_of(client: &Client) -> anyhow::Result<Vec<RestoreInfo>> {
    let all = restores::list(client).await.context("can't list Velero's Restores")?;
    Ok(all.into_iter().map(|(_, info)| info).collect())
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

fn print(statuses: &[RestoreStatus], output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Table => status_table::render(statuses, clock::now()),
        Output::Json => serde_json::to_string_pretty(&serde_json::json!({"restores": statuses}))? + "\n",
        Output::Yaml => serde_saphyr::to_string(&serde_json::json!({"restores": statuses}))?,
    };
    // A reader that has gone away (`| head`) is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// The line that `--wait` keeps up to date on a terminal; elsewhere a line for each change.
#[derive(Default)]
struct Progress {
    last: String,
}

impl Progress {
    fn show(&mut self, statuses: &[RestoreStatus]) {
        let line = statuses
            .iter()
            .find(|status| status.result == "Pending")
            .map(|status| status.message.clone())
            .unwrap_or_default();
        if line == self.last {
            return;
        }
        let mut stderr = std::io::stderr();
        let _ = if stderr.is_terminal() {
            write!(
                stderr,
                "\r\x1b[K{}",
                crate::waiter::events::cut(&line.replace('\n', " "), 110)
            )
        } else {
            writeln!(stderr, "{line}")
        };
        self.last = line;
    }

    fn end(&self) {
        let mut stderr = std::io::stderr();
        if !self.last.is_empty() && stderr.is_terminal() {
            let _ = write!(stderr, "\r\x1b[K");
        }
    }
}

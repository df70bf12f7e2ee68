//! Restored pods with one post hook each, held back and released together: once with Velero's own hooks, once with
//! Reveille's, in turn.

use std::{
    collections::HashMap,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Args;
use jiff::Timestamp;
use kube::api::{DynamicObject, ListParams, PostParams};
use reveille::names::{OWNER_ANNOTATION, QUEUE_LABEL, RESULT_ANNOTATION};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    audit::{Audit, Who},
    cluster::{Cluster, eventually, kubectl, pod, program, say},
    figures::{Machine, Requests, Times, Used, save},
    ordinary::{self, Ordinary},
    process::{Meter, Process},
};

/// Arguments of `hooks`.
#[derive(Args)]
pub(crate) struct HooksArgs {
    /// Where the figures go.
    #[arg(long)]
    out: PathBuf,
    /// Restored pods, each with one hook.
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// Pods without hooks.
    #[arg(long, default_value_t = 10_000)]
    ordinary: usize,
    /// How often each is measured.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Within so many seconds all pods become ready.
    #[arg(long, default_value_t = 10)]
    spread: u64,
}

/// Everything of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HooksFigures {
    pub(crate) machine: Machine,
    pub(crate) pods: usize,
    pub(crate) spread: u64,
    pub(crate) rounds: Vec<Round>,
    pub(crate) takeovers: Vec<Takeover>,
    pub(crate) ordinary: Ordinary,
}

/// The waiter's pod is deleted while many runs are pending and hooks become due all the time.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Takeover {
    /// Runs that had not ended when it was deleted.
    pub(crate) pending: usize,
    /// From its deletion to the successor's first call for a command, in milliseconds.
    pub(crate) first_start: f64,
}

/// One restore.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Whose hooks.
    pub(crate) by: By,
    /// From Running to the start of the command, in the pod's own words.
    pub(crate) start: Times,
    /// API requests of the restore and its hooks, by whom.
    pub(crate) velero_requests: Requests,
    pub(crate) reveille_requests: Requests,
    /// Watches that were open while all pods waited.
    pub(crate) velero_watches: Requests,
    pub(crate) reveille_watches: Requests,
    /// What the processes used.
    pub(crate) velero: Used,
    pub(crate) webhook: Used,
    pub(crate) waiter: Used,
}

/// Whose hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum By {
    Velero,
    Reveille,
}

/// The hook itself: appends a line with its name and the time. One write, so that lines of many never mix.
pub(crate) fn stamp(file: &Path, word: &str) -> anyhow::Result<()> {
    let line = format!("{word} {}\n", Timestamp::now());
    let mut file = fs::OpenOptions::new().append(true).create(true).open(file)?;
    Ok(file.write_all(line.as_bytes())?)
}

/// Measures everything about hooks.
pub(crate) async fn run(arguments: HooksArgs) -> anyhow::Result<()> {
    let machine = Machine::look();
    let mut bench = Bench {
        cluster: Cluster::connect().await?,
        stamps: env::temp_dir().join(format!("reveille-bench-{}", std::process::id())),
        pods: arguments.pods,
        spread: Duration::from_secs(arguments.spread),
    };
    bench.prepare().await?;
    let mut rounds = Vec::new();
    for number in 0..arguments.rounds {
        for by in [By::Velero, By::Reveille] {
            say(&format!("round {}, hooks by {by:?}", number + 1));
            rounds.push(bench.round(by, number).await?);
        }
    }
    let mut takeovers = Vec::new();
    for number in 0..arguments.rounds {
        say(&format!("takeover {}", number + 1));
        takeovers.push(bench.takeover(number).await?);
    }
    say(&format!("{} ordinary pods", arguments.ordinary));
    let ordinary = ordinary::measure(&mut bench.cluster, arguments.ordinary).await?;
    fs::remove_file(&bench.stamps).ok();
    let figures = HooksFigures {
        machine,
        pods: arguments.pods,
        spread: arguments.spread,
        rounds,
        takeovers,
        ordinary,
    };
    save(&arguments.out, &figures)
}

struct Bench {
    cluster: Cluster,
    /// Where the hooks leave their traces.
    stamps: PathBuf,
    pods: usize,
    spread: Duration,
}

impl Bench {
    /// The fake node, and a backup of the pods.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        self.cluster.add_fake_node().await?;
        let program = env::current_exe()?;
        let stamps = self.stamps.clone();
        say("the pods, and their backup");
        self.cluster
            .make_pods("bench", self.pods, |name| {
                let command = json!([program, "stamp", stamps, name]).to_string();
                pod(name, json!({"post.hook.restore.velero.io/command": command}))
            })
            .await?;
        let spec = json!({"includedNamespaces": ["bench"], "includedResources": ["pods"], "snapshotVolumes": false});
        self.create("Backup", json!({"name": "bench"}), spec).await?;
        self.reaches("Backup", "bench", |backup| (phase(backup) == "Completed").then_some(()))
            .await?;
        self.cluster.remove_namespace("bench").await
    }

    /// One restore, from a fresh start of everything to its end.
    async fn round(&mut self, by: By, number: usize) -> anyhow::Result<Round> {
        let (count, began) = (self.pods, Timestamp::now());
        fs::write(&self.stamps, "")?;
        self.cluster.hold_pods()?;
        kubectl(&["-n", "velero", "rollout", "restart", "deployment/velero"])?;
        kubectl(&[
            "-n",
            "velero",
            "rollout",
            "status",
            "deployment/velero",
            "--timeout=180s",
        ])?;
        let reveille = match by {
            By::Velero => Installed::default(),
            By::Reveille => install(&self.cluster).await?,
        };
        let mut velero = Meter::start(&[self.cluster.velero().await?])?;
        let mut webhooks = Meter::start(&reveille.webhooks)?;
        let mut waiters = Meter::start(&reveille.waiters)?;

        let namespace = format!("bench-{number}-{by:?}").to_lowercase();
        let restored = Timestamp::now();
        self.restore(&namespace).await?;
        for meter in [&mut velero, &mut webhooks, &mut waiters] {
            meter.all_wait()?;
        }
        let released = Timestamp::now();
        self.cluster.release_pods(self.spread)?;
        self.hooks_have_run(count).await?;
        self.ends_well(&namespace, by)
            .await
            .with_context(|| format!("{by:?}: the restore did not end well"))?;
        let ended = Timestamp::now();

        let audit = Audit::read(&self.cluster.audit_log(), began, ended)?;
        let round = Round {
            by,
            start: self.start_times(&audit, &namespace)?,
            velero_requests: audit.requests(Who::Velero, restored),
            reveille_requests: audit.requests(Who::Reveille, restored),
            velero_watches: audit.open_watches(Who::Velero, released),
            reveille_watches: audit.open_watches(Who::Reveille, released),
            velero: velero.end()?,
            webhook: webhooks.end()?,
            waiter: waiters.end()?,
        };
        say(&format!("{round:?}"));
        self.cluster.remove_namespace(&namespace).await?;
        if by == By::Reveille {
            uninstall()?;
        }
        Ok(round)
    }

    /// Restores the pods, and waits until all of them wait.
    async fn restore(&self, namespace: &str) -> anyhow::Result<()> {
        let spec = json!({"backupName": "bench", "namespaceMapping": {"bench": namespace}});
        self.create("Restore", json!({"name": namespace}), spec).await?;
        self.cluster.pods_are_bound(namespace, self.pods).await?;
        say("all pods wait");
        // Whoever has to take notice of the last ones.
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(())
    }

    async fn hooks_have_run(&self, count: usize) -> anyhow::Result<()> {
        eventually("hooks have run", async || {
            Ok((fs::read_to_string(&self.stamps)?.lines().count() >= count).then_some(()))
        })
        .await
    }

    /// Waits until Velero is done, the hooks' result is written, and no pod carries a plan any more.
    async fn ends_well(&self, namespace: &str, by: By) -> anyhow::Result<()> {
        self.reaches("Restore", namespace, |restore| {
            let annotations = restore.metadata.annotations.as_ref();
            let result = annotations.and_then(|annotations| annotations.get(RESULT_ANNOTATION));
            let succeeded = by == By::Velero || result.is_some_and(|result| result == "Succeeded");
            (phase(restore) == "Completed" && succeeded).then_some(())
        })
        .await?;
        eventually("no pod is queued any more", async || {
            let queued = ListParams::default().labels(QUEUE_LABEL);
            Ok((self.cluster.count_pods(namespace, queued).await? == 0).then_some(()))
        })
        .await
    }

    /// Hooks become due all the time, and the waiter that runs them is told to end.
    async fn takeover(&mut self, number: usize) -> anyhow::Result<Takeover> {
        let began = Timestamp::now();
        fs::write(&self.stamps, "")?;
        self.cluster.hold_pods()?;
        install(&self.cluster).await?;
        let namespace = format!("bench-{number}-takeover");
        self.restore(&namespace).await?;
        // Slowly: most are pending when the waiter ends.
        self.cluster.release_pods(self.spread * 3)?;
        self.hooks_have_run(self.pods / 50 + 1).await?;
        let log = self.cluster.audit_log();
        let so_far = Audit::read(&log, began, Timestamp::now())?;
        let starts = so_far.starts_by_pod();
        let (old, _) = starts
            .iter()
            .max_by_key(|(_, times)| times.last())
            .context("no hook was started")?;
        let pending = self.pods - fs::read_to_string(&self.stamps)?.lines().count();
        let told = Timestamp::now();
        kubectl(&["-n", "reveille", "delete", "pod", old, "--wait=false"])?;
        self.hooks_have_run(self.pods).await?;
        self.ends_well(&namespace, By::Reveille).await?;
        let all = Audit::read(&log, told, Timestamp::now())?;
        let starts = all.starts_by_pod();
        let others = starts.iter().filter(|(pod, _)| *pod != old);
        let first = others
            .filter_map(|(_, times)| times.first())
            .min()
            .context("nobody took over")?;
        let takeover = Takeover {
            pending,
            first_start: first.duration_since(told).as_secs_f64() * 1000.0,
        };
        say(&format!("{takeover:?}"));
        self.cluster.remove_namespace(&namespace).await?;
        uninstall()?;
        Ok(takeover)
    }

    /// From Running, as kwok told the API server, to the command's own first act. Each hook has run exactly once.
    fn start_times(&self, audit: &Audit, namespace: &str) -> anyhow::Result<Times> {
        let running = audit.first_status(namespace);
        let text = fs::read_to_string(&self.stamps)?;
        let mut seen: HashMap<&str, f64> = HashMap::new();
        for line in text.lines() {
            let (name, time) = line.split_once(' ').context("a line is a name and a time")?;
            let time: Timestamp = time.parse()?;
            let up = running
                .get(name)
                .with_context(|| format!("nobody said that {name} runs"))?;
            let milliseconds = time.duration_since(*up).as_secs_f64() * 1000.0;
            ensure!(
                seen.insert(name, milliseconds).is_none(),
                "the hook of {name} ran twice"
            );
        }
        ensure!(seen.len() == self.pods, "{} of {} hooks ran", seen.len(), self.pods);
        Ok(Times::of(seen.into_values().collect()))
    }

    async fn create(&self, kind: &str, metadata: Value, spec: Value) -> anyhow::Result<()> {
        let object = json!({"apiVersion": "velero.io/v1", "kind": kind, "metadata": metadata, "spec": spec});
        let object = serde_json::from_value(object)?;
        self.cluster
            .velero_objects(kind)
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    }

    async fn reaches(&self, kind: &str, name: &str, look: impl Fn(&DynamicObject) -> Option<()>) -> anyhow::Result<()> {
        let api = self.cluster.velero_objects(kind);
        eventually(&format!("the end of {kind} {name}"), async || {
            let object = api.get(name).await?;
            ensure!(
                !phase(&object).ends_with("Failed"),
                "{kind} {name} is {}",
                phase(&object)
            );
            Ok(look(&object))
        })
        .await
    }
}

fn phase(object: &DynamicObject) -> &str {
    let phase = object
        .data
        .get("status")
        .and_then(|status| status.get("phase")?.as_str());
    phase.unwrap_or_default()
}

/// Reveille's processes, one of each kind for each replica.
#[derive(Default)]
pub(crate) struct Installed {
    pub(crate) webhooks: Vec<Process>,
    pub(crate) waiters: Vec<Process>,
}

/// Installs the chart as it comes.
pub(crate) async fn install(cluster: &Cluster) -> anyhow::Result<Installed> {
    let what = ["upgrade", "--install", "reveille", "charts/reveille"];
    let how = [
        "--namespace",
        "reveille",
        "--create-namespace",
        "--wait",
        "--timeout",
        "120s",
    ];
    program("helm", &[&what[..], &how].concat())?;
    webhook_answers(cluster).await?;
    let pods = cluster.pods_of("reveille", "app.kubernetes.io/name=reveille").await?;
    // Past the first lists.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let all = |kind| {
        pods.iter()
            .map(|uid| Process::in_pod(uid, kind))
            .collect::<Result<_, _>>()
    };
    Ok(Installed {
        webhooks: all("webhook")?,
        waiters: all("waiter")?,
    })
}

/// Waits until the API server reaches the webhook: a dry run of a Restore comes back marked.
async fn webhook_answers(cluster: &Cluster) -> anyhow::Result<()> {
    let restore = serde_json::from_value(json!({
        "apiVersion": "velero.io/v1", "kind": "Restore",
        "metadata": {"name": "probe"}, "spec": {"backupName": "none"},
    }))?;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let restores = cluster.velero_objects("Restore");
    eventually("the webhook marks a Restore", async || {
        let annotations = restores.create(&dry_run, &restore).await?.metadata.annotations;
        let marked = annotations.is_some_and(|annotations| annotations.contains_key(OWNER_ANNOTATION));
        Ok(marked.then_some(()))
    })
    .await
}

/// Takes it off again.
pub(crate) fn uninstall() -> anyhow::Result<()> {
    program("helm", &["uninstall", "reveille", "--namespace", "reveille", "--wait"]).map(drop)
}

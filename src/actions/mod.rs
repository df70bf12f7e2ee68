//! The actions controller: Kanister Blueprints as hooks before and after Velero's restores and backups.
//!
//! ```text
//! RestoreAction, BackupAction --> controller --> task (one for each unfinished action)
//!                                              plan       may it run as it is written? (pure)
//!                                              step, end  what next, and what its end means (pure)
//!                                              velero     Velero's objects
//!                                              attempt    Blueprint, subject, params of one try
//!                                              phase      one phase from its claim to the record of its end
//!                                              functions  KubeTask, Wait, KubeExec, KubeOps, ScaleWorkload
//!                                              recorder   the action's status: before and after each step
//! annotation on a Velero object --> policy --> a RestoreAction or BackupAction
//! ```

pub mod action;
pub mod attempt;
pub mod contents;
pub mod controller;
pub mod end;
pub mod functions;
pub mod merge;
pub mod phase;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod recorder;
pub mod step;
pub mod subject;
pub mod task;
pub mod velero;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use clap::{Args, ValueEnum};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::action::PartiallyFailed,
    duration::GoDuration,
    infra::{
        health,
        kube::{Clients, clients},
        lease::{Elector, End, LostLease, ProcessNames, Standing},
        metrics::Metrics,
        shutdown::Shutdown,
    },
    waiter::{
        events::Events,
        output::{OutputArgs, OutputRules},
    },
};
use action::{ActionKind, Limits, MAX_RETRIES};
use controller::Controller;

/// Runs Blueprint actions before and after Velero's restores and backups.
#[derive(Args, Debug)]
pub struct ActionsArgs {
    /// Address for /livez, /readyz and /metrics (plain HTTP).
    #[arg(long, default_value = "127.0.0.1:8082")]
    health_listen: SocketAddr,
    /// The namespace of actions and Blueprints; in others they count for nothing.
    #[arg(long, env = "POD_NAMESPACE", default_value = "reveille")]
    namespace: String,
    /// Velero's namespace.
    #[arg(long, default_value = "velero")]
    velero_namespace: String,
    /// The service account of hook pods in the actions' own namespace that name none. Without it they get the namespace's default.
    #[arg(long)]
    hook_service_account: Option<String>,
    /// Hook pods run as root, whatever the Blueprint says. The override ConfigMap still has the last word.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    force_root_in_kanister_hooks: bool,
    /// Annotations on Velero's objects may ask for hooks.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    policies: bool,
    /// How often a failed preHook or onSuccess is tried again.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_RETRIES)))]
    hook_retries: u32,
    /// How long one try of a hook may take.
    #[arg(long, default_value = "20m", value_parser = GoDuration::positive)]
    hook_timeout: GoDuration,
    /// How long Velero and the post-restore hooks may take.
    #[arg(long, default_value = "24h", value_parser = GoDuration::positive)]
    velero_timeout: GoDuration,
    /// How long a hook's pod may take to start.
    #[arg(long, default_value = "15m", value_parser = GoDuration::positive)]
    pod_start_timeout: GoDuration,
    /// What counts when Velero ends PartiallyFailed.
    #[arg(long, value_enum, default_value_t = PartiallyFailedArg::Failure)]
    partially_failed: PartiallyFailedArg,
    /// How long a running `KubeExec` may take to end after SIGTERM, in seconds; after that its end is not known.
    #[arg(long, default_value_t = 300)]
    drain_seconds: u64,
    /// The Lease by which one of several controllers leads; made here if it is not there.
    #[arg(long, default_value = "reveille-actions")]
    lease: String,
    /// How long the Lease is valid, in seconds: after a crash another controller takes over when this time is over.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=600))]
    lease_seconds: u16,
    #[command(flatten)]
    output: OutputArgs,
    /// This process' pod, for Events and claims.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
    /// Its uid: an earlier process of the same pod is dead.
    #[arg(long, env = "POD_UID", hide = true)]
    pod_uid: Option<String>,
}

/// [`PartiallyFailed`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PartiallyFailedArg {
    /// onFailure
    Failure,
    /// onSuccess
    Success,
}

/// What the flags say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of actions and Blueprints.
    pub namespace: String,
    /// Velero's namespace.
    pub velero_namespace: String,
    /// The service account of hook pods in the own namespace.
    pub service_account: Option<String>,
    /// Hook pods run as root.
    pub force_root: bool,
    /// What an action does not say itself.
    pub limits: Limits,
    /// How long a hook's pod may take to start.
    pub pod_start_timeout: GoDuration,
    /// How long a command may take to end when this process does.
    pub drain: Duration,
    /// What becomes of commands' output.
    pub output: OutputRules,
}

impl Settings {
    fn of(args: &ActionsArgs) -> anyhow::Result<Self> {
        Ok(Self {
            namespace: args.namespace.clone(),
            velero_namespace: args.velero_namespace.clone(),
            service_account: args.hook_service_account.clone(),
            force_root: args.force_root_in_kanister_hooks,
            limits: Limits {
                hook_retries: args.hook_retries,
                hook_timeout: args.hook_timeout,
                velero_timeout: args.velero_timeout,
                partially_failed: match args.partially_failed {
                    PartiallyFailedArg::Failure => PartiallyFailed::Failure,
                    PartiallyFailedArg::Success => PartiallyFailed::Success,
                },
            },
            pod_start_timeout: args.pod_start_timeout,
            drain: Duration::from_secs(args.drain_seconds),
            output: args.output.rules()?,
        })
    }
}

/// What all tasks share.
pub struct Context {
    clients: Clients,
    settings: Settings,
    metrics: Arc<Metrics>,
    /// Whether this process leads; nothing is done without it.
    standing: Arc<Standing>,
    /// Fires when nothing new may be started.
    stop: CancellationToken,
    /// How many commands of `KubeExec` this process has claimed: nobody else can take these over.
    execs: AtomicUsize,
}

/// Runs the controller until SIGTERM, or until another process leads in its place.
pub async fn run(args: ActionsArgs) -> anyhow::Result<()> {
    let settings = Settings::of(&args)?;
    let Settings {
        namespace,
        velero_namespace,
        force_root,
        ..
    } = &settings;
    tracing::info!(namespace, velero_namespace, force_root, "the actions controller starts");
    let clients = clients().await?;
    let shutdown = Shutdown::on_signals()?;
    let readiness = health::Readiness::default();
    let readable = readiness.gate("lease");
    let metrics = Arc::new(Metrics::actions());
    health::start(args.health_listen, readiness, Arc::clone(&metrics), &shutdown).await?;
    let names = ProcessNames::of(args.pod_name.as_deref(), args.pod_uid.as_deref());
    let valid = Duration::from_secs(args.lease_seconds.into());
    let standing = Arc::new(Standing::new(names.process, valid));
    let context = Arc::new(Context {
        clients,
        settings,
        metrics,
        standing,
        stop: shutdown.stopping(),
        execs: AtomicUsize::new(0),
    });
    let life = shutdown.clone();
    shutdown.spawn_foreground("leader", async move {
        // Renewals wait for no other call.
        let lease = context.clients.exec.clone();
        let own = &context.settings.namespace;
        let mut elector = Elector::new(&context.standing, lease, own, &args.lease, names.predecessors);
        if !elector.acquire(&context.stop, || readable.set(true)).await {
            return Ok(());
        }
        context.metrics.leading.set(1);
        let tasks = start(&args, &context, &life);
        let end = elector.keep(&context.stop).await;
        // Nothing new starts from here on, also where it was another process that ended this one's time.
        life.stop();
        context.metrics.leading.set(0);
        tasks.close();
        let running = context.execs.load(Ordering::SeqCst) > 0;
        if end == End::Stopped {
            elector.release(running).await;
        }
        if running {
            elector.finish(tasks.wait()).await;
        }
        tasks.wait().await;
        match end {
            End::Stopped => Ok(()),
            End::Lost(holder) => Err(LostLease(holder)),
        }
    });
    Ok(shutdown.finish(Duration::from_secs(5)).await?)
}

/// Starts what the leader does; gives the tasks of the actions.
fn start(args: &ActionsArgs, context: &Arc<Context>, shutdown: &Shutdown) -> TaskTracker {
    let events = Events::new(context.clients.api.clone(), args.pod_name.clone());
    for kind in ActionKind::ALL.into_iter().filter(|_| args.policies) {
        let policies = policy::run(Arc::clone(context), events.clone(), kind, shutdown.stopping());
        shutdown.spawn_background("policies", policies);
    }
    let tasks = TaskTracker::new();
    let controller = Controller::new(Arc::clone(context), tasks.clone());
    let stopping = shutdown.stopping();
    shutdown.spawn_background("actions", async move {
        tokio::select! {
            () = controller.run() => {}
            () = stopping.cancelled() => {}
        }
        Ok::<_, Infallible>(())
    });
    tasks
}

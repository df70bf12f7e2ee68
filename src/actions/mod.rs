//! The actions controller: Kanister Blueprints as hooks before and after Velero's restores and backups.
//!
//! ```text
//! RestoreAction, BackupAction --> watch --> task (one for each unfinished action)
//!                                              plan       may it run as it is written? (pure)
//!                                              step, end  what next, and what its end means (pure)
//!                                              velero     Velero's objects
//!                                              attempt    Blueprint, subject, params of one try
//!                                              functions  KubeTask, Wait, KubeExec, KubeOps, ScaleWorkload
//!                                              recorder   the action's status: before and after each step
//! annotation on a Velero object --> policy --> a RestoreAction or BackupAction
//! ```

pub mod action;
pub mod attempt;
pub mod contents;
pub mod end;
pub mod functions;
pub mod merge;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod recorder;
pub mod step;
pub mod subject;
pub mod task;
pub mod velero;

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DynamicObject, ListParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::action::PartiallyFailed,
    duration::GoDuration,
    infra::{
        clock, health,
        kube::{Clients, clients, watch_reason},
        metrics::Metrics,
        shutdown::Shutdown,
    },
    waiter::{
        events::Events,
        output::{OutputArgs, OutputRules},
    },
};
use action::{ACTION_LABEL, Action, ActionKind, Limits, MAX_RETRIES, NAMESPACE_LABEL};
use task::Key;

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
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, overrides_with = "policies")]
    policies: bool,
    /// How often a failed preHook or onSuccess is tried again.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_RETRIES)))]
    hook_retries: u32,
    /// How long one try of a hook may take.
    #[arg(long, default_value = "20m", value_parser = positive)]
    hook_timeout: GoDuration,
    /// How long Velero and the post-restore hooks may take.
    #[arg(long, default_value = "24h", value_parser = positive)]
    velero_timeout: GoDuration,
    /// How long a hook's pod may take to start.
    #[arg(long, default_value = "15m", value_parser = positive)]
    pod_start_timeout: GoDuration,
    /// What counts when Velero ends PartiallyFailed.
    #[arg(long, value_enum, default_value_t = PartiallyFailedArg::Failure)]
    partially_failed: PartiallyFailedArg,
    /// How long a running `KubeExec` may take to end after SIGTERM, in seconds; after that its end is not known.
    #[arg(long, default_value_t = 300)]
    drain_seconds: u64,
    #[command(flatten)]
    output: OutputArgs,
    /// This process' pod, for claims.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
}

/// [`PartiallyFailed`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PartiallyFailedArg {
    /// onFailure
    Failure,
    /// onSuccess
    Success,
}

fn positive(text: &str) -> Result<GoDuration, String> {
    let duration: GoDuration = text
        .parse()
        .map_err(|error: crate::duration::ParseDurationError| error.to_string())?;
    if duration.is_zero() || duration.is_negative() {
        return Err("it must be longer than nothing".to_owned());
    }
    Ok(duration)
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

/// What all tasks share.
pub struct Context {
    clients: Clients,
    settings: Settings,
    metrics: Arc<Metrics>,
    /// This process' name in claims.
    process: String,
    /// Fires when nothing new may be started.
    stop: CancellationToken,
}

/// Runs the controller until SIGTERM.
pub async fn run(args: ActionsArgs) -> anyhow::Result<()> {
    let settings = Settings {
        namespace: args.namespace,
        velero_namespace: args.velero_namespace,
        service_account: args.hook_service_account,
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
    };
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
    let gate = readiness.gate("actions");
    let listener = TcpListener::bind(args.health_listen)
        .await
        .with_context(|| format!("can't listen on {}", args.health_listen))?;
    let metrics = Arc::new(Metrics::actions());
    shutdown.spawn_background(
        "health",
        health::serve(
            listener,
            health::router(readiness, Arc::clone(&metrics)),
            shutdown.ended(),
        ),
    );
    let events = Events::new(clients.api.clone(), args.pod_name.clone());
    let context = Arc::new(Context {
        clients,
        settings,
        metrics,
        process: process_name(args.pod_name.as_deref()),
        stop: shutdown.stopping(),
    });
    for kind in ActionKind::ALL.into_iter().filter(|_| args.policies) {
        shutdown.spawn_background(
            "policies",
            policy::run(Arc::clone(&context), events.clone(), kind, shutdown.ended()),
        );
    }
    let tasks = TaskTracker::new();
    let controller = Controller {
        context,
        tasks: tasks.clone(),
        bells: Mutex::default(),
    };
    let ended = shutdown.ended();
    shutdown.spawn_background("actions", async move {
        tokio::select! {
            () = controller.run(|| gate.set(true)) => {}
            () = ended.cancelled() => {}
        }
        Ok::<_, Infallible>(())
    });
    let stopping = shutdown.stopping();
    shutdown.spawn_foreground("tasks", async move {
        stopping.cancelled().await;
        tasks.close();
        tasks.wait().await;
        Ok::<_, Infallible>(())
    });
    Ok(shutdown.finish(Duration::from_secs(5)).await?)
}

/// Starts a task for each action that is not finished.
struct Controller {
    context: Arc<Context>,
    tasks: TaskTracker,
    bells: Mutex<HashMap<Key, Arc<Notify>>>,
}

impl Controller {
    /// Follows both kinds. `on_listed` is called once both have been listed.
    async fn run(&self, on_listed: impl Fn()) {
        let lists = tokio::sync::Semaphore::new(0);
        let known = Mutex::new(HashSet::new());
        let listed = |uids: HashSet<String>| {
            known.lock().unwrap_or_else(PoisonError::into_inner).extend(uids);
            lists.add_permits(1);
        };
        let swept = async {
            let _ = lists.acquire_many(2).await;
            on_listed();
            let known = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.sweep(&known).await;
            std::future::pending::<()>().await;
        };
        tokio::join!(
            self.follow(ActionKind::Restore, &listed),
            self.follow(ActionKind::Backup, &listed),
            swept
        );
    }

    async fn follow(&self, kind: ActionKind, listed: &impl Fn(HashSet<String>)) {
        let Context { clients, settings, .. } = self.context.as_ref();
        let api: Api<DynamicObject> = Api::namespaced_with(clients.api.clone(), &settings.namespace, &kind.resource());
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let (mut uids, mut first) = (HashSet::new(), true);
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => uids.clear(),
                Ok(Event::InitApply(object)) => {
                    uids.extend(object.metadata.uid.clone());
                    self.seen(kind, &object);
                }
                Ok(Event::InitDone) if first => {
                    first = false;
                    listed(std::mem::take(&mut uids));
                }
                Ok(Event::InitDone) => {}
                Ok(Event::Apply(object)) => self.seen(kind, &object),
                Ok(Event::Delete(object)) => self.ring(&key(kind, &object)),
                Err(error) => {
                    let reason = watch_reason(&error);
                    tracing::warn!(
                        kind = kind.word(),
                        reason,
                        "the watch of actions failed; it is made again"
                    );
                }
            }
        }
    }

    fn seen(&self, kind: ActionKind, object: &DynamicObject) {
        let key = key(kind, object);
        let action = match Action::read(kind, object) {
            Ok(action) => action,
            Err(error) => {
                tracing::warn!(action = key.name, error, "an action can't be read; it is left alone");
                return;
            }
        };
        let is_over = action.status.phase.is_final() && action.status.cleaned_up;
        let mut bells = self.lock();
        match bells.get(&key) {
            Some(bell) => bell.notify_one(),
            None if is_over => {}
            None => {
                let bell = Arc::new(Notify::new());
                bells.insert(key.clone(), Arc::clone(&bell));
                self.tasks
                    .spawn(task::drive(Arc::clone(&self.context), key.clone(), bell));
            }
        }
        if is_over {
            // Its task ends by itself, and nothing can happen to it any more.
            bells.remove(&key);
        }
    }

    fn ring(&self, key: &Key) {
        if let Some(bell) = self.lock().remove(key) {
            bell.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Notify>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the pods of actions that were deleted while no controller ran.
    async fn sweep(&self, known: &HashSet<String>) {
        let client = &self.context.clients.api;
        let own = format!("{NAMESPACE_LABEL}={}", self.context.settings.namespace);
        let pods: Api<Pod> = Api::all(client.clone());
        let list = match pods.list_metadata(&ListParams::default().labels(&own)).await {
            Ok(list) => list.items,
            Err(error) => {
                tracing::warn!(%error, "pods of deleted actions could not be looked for");
                return;
            }
        };
        let of = |pod: kube::core::PartialObjectMeta<Pod>| pod.metadata.labels?.remove(ACTION_LABEL);
        let orphans: HashSet<String> = list
            .into_iter()
            .filter_map(of)
            .filter(|uid| !known.contains(uid))
            .collect();
        for uid in orphans {
            // Made after the list, perhaps: such an action has a task of its own.
            if self.lock().keys().any(|key| key.uid == uid) {
                continue;
            }
            match functions::remove_pods(client, &uid, None).await {
                Ok(pods) => tracing::info!(uid, pods, "the pods of a deleted action are removed"),
                Err(error) => tracing::warn!(uid, %error, "the pods of a deleted action could not be removed"),
            }
        }
    }
}

/// A name for this process in claims: a restarted container has the same pod name, and must not take its predecessor's phases
/// for its own.
fn process_name(pod_name: Option<&str>) -> String {
    let pod = pod_name.unwrap_or("local");
    format!("{pod}/{}-{}", clock::now().as_microsecond(), std::process::id())
}

fn key(kind: ActionKind, object: &DynamicObject) -> Key {
    Key {
        kind,
        name: object.metadata.name.clone().unwrap_or_default(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
    }
}

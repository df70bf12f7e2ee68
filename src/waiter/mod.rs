//! The waiter: takes planned pods in, waits for their containers, runs their commands, and records what became of each.

pub mod attempt;
pub mod begin;
pub mod brake;
pub mod budget;
mod conditions;
pub mod control;
mod counts;
pub mod end;
pub mod events;
pub mod exec;
pub mod gate;
mod init;
pub mod intake;
pub mod missed;
#[cfg(test)]
mod model;
pub mod output;
pub mod pod_view;
pub mod queue;
pub mod redact;
pub mod restores;
pub mod result_file;
mod retention;
mod retry;
pub mod run_task;
mod setback;
pub mod settlement;
mod stale;
pub mod step;
pub mod traffic;
mod waiting;
pub mod watch;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use clap::Args;
use kube::Client;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    duration::GoDuration,
    infra::{
        ca_file, ca_store, health,
        kube::clients,
        lease::{Elector, End, LostLease, ProcessNames, Standing},
        lent_token,
        metrics::Metrics,
        policies::{self, Policies},
        shutdown::Shutdown,
        watchdog,
    },
};
use gate::Gate;
use queue::Queue;
use run_task::Context;

/// Runs the post hooks of restored pods and records their results.
#[derive(Args, Debug)]
pub struct WaiterArgs {
    /// Address for /livez, /readyz and /metrics (plain HTTP).
    #[arg(long, default_value = "127.0.0.1:8081")]
    health_listen: SocketAddr,
    /// Reveille's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "reveille")]
    namespace: String,
    /// The webhook's Service, for the names in its certificate.
    #[arg(long, default_value = "reveille")]
    service: String,
    /// The Secret with the certificate authority; made here if it is not there.
    #[arg(long, default_value = "reveille-ca")]
    ca_secret: String,
    /// A file with the certificate authority (PEM, one or more), instead of the Secret: it is published, and not made here.
    #[arg(long, value_name = "FILE", conflicts_with = "ca_secret")]
    ca_file: Option<std::path::PathBuf>,
    /// The webhook configuration that gets the certificate authority. Without it none is published.
    #[arg(long)]
    webhook_configuration: Option<String>,
    /// The webhook's account: the waiter lends it a token in --webhook-token-folder.
    #[arg(long, requires = "webhook_token_folder")]
    webhook_account: Option<String>,
    /// The folder in which the webhook's container finds its token.
    #[arg(long, value_name = "FOLDER", requires = "webhook_account")]
    webhook_token_folder: Option<std::path::PathBuf>,
    /// An admission policy, with a binding of its name, that this installation has: it is said where it is missing (may be given
    /// several times).
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<String>,
    /// Who runs the hooks of a Restore that does not say: takeover, alongside or off.
    #[arg(long, default_value = "takeover")]
    mode: crate::admission::Mode,
    /// Label key by which another restore tool marks the pods it restores (may be given several times).
    #[arg(long = "marker-label")]
    marker_labels: Vec<String>,
    /// A namespace in which no hooks are run, though the webhook is never asked there (may be given several times).
    #[arg(long = "excluded-namespace")]
    excluded_namespaces: Vec<String>,
    /// Label selector (JSON) of the namespaces about which the webhook is asked; in others no hooks are run.
    #[arg(long, value_parser = namespace_selector)]
    namespace_selector: Option<kube::core::Selector>,
    /// The `ConfigMap` in Reveille's own namespace on which `reveille pause` pauses everything.
    #[arg(long, default_value = crate::names::PAUSE_CONFIG_MAP)]
    pause_config_map: String,
    /// How many commands may run at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    max_concurrent_hooks: u16,
    /// How many of them in one namespace.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    max_concurrent_hooks_per_namespace: u16,
    /// How long a whole run may take, from the pod's creation (Go duration): what has not started by then is not started.
    #[arg(long, default_value = "24h", value_parser = GoDuration::positive)]
    run_limit: GoDuration,
    /// The Lease by which one of several waiters leads; made here if it is not there.
    #[arg(long, default_value = "reveille-waiter")]
    lease: String,
    /// How long the Lease is valid, in seconds: after a crash another waiter takes over when this time is over.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=600))]
    lease_seconds: u16,
    /// How long running commands may take to end after SIGTERM, in seconds; after that their end is not known.
    #[arg(long, default_value_t = 600)]
    drain_seconds: u64,
    #[command(flatten)]
    output: output::OutputArgs,
    #[command(flatten)]
    retention: retention::RetentionArgs,
    /// How long a run may wait before it is said what it waits for (Event and condition); ten times as long for what comes by
    /// itself, such as an image that is pulled. Go duration.
    #[arg(long, default_value = "30s", value_parser = GoDuration::positive)]
    report_waiting_after: GoDuration,
    /// Run in this very process. Without it a parent process starts the waiter again whenever it ends other than by SIGTERM: its
    /// container, and with it the pod, stays ready.
    #[arg(long)]
    pub(crate) no_supervisor: bool,
    /// This process' pod, for Events and claims.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
    /// Its uid: an earlier process of the same pod is dead.
    #[arg(long, env = "POD_UID", hide = true)]
    pod_uid: Option<String>,
}

/// Runs the waiter until SIGTERM, or until another process leads in its place.
pub async fn run(args: WaiterArgs) -> anyhow::Result<()> {
    let WaiterArgs {
        health_listen,
        mode,
        marker_labels,
        service,
        ..
    } = &args;
    tracing::info!(%mode, ?marker_labels, service, "the waiter starts");
    let clients = clients().await?;
    let shutdown = Shutdown::on_signals()?;
    let metrics = Arc::new(Metrics::waiter());
    let readiness = health::Readiness::default();
    let readable = readiness.gate("lease");
    health::start(*health_listen, readiness, Arc::clone(&metrics), &shutdown).await?;
    shutdown.spawn_background("watchdog", watchdog::run(shutdown.ended()));
    if let (Some(account), Some(folder)) = (&args.webhook_account, &args.webhook_token_folder) {
        // Each replica for its own webhook, whoever leads.
        let (client, namespace) = (clients.api.clone(), args.namespace.clone());
        let lender = lent_token::run_lender(client, namespace, account.clone(), folder.clone(), shutdown.ended());
        shutdown.spawn_background("webhook-token", lender);
    }
    // Renewals wait for no other call.
    let lease = clients.exec.clone();
    let exec = exec::ApiExec::new(clients.exec, args.output.rules()?);
    let life = shutdown.clone();
    shutdown.spawn_foreground("leader", async move {
        lead(&args, clients.api, lease, exec, &life, metrics, || readable.set(true)).await
    });
    Ok(shutdown.finish(Duration::from_secs(5)).await?)
}

/// Waits for the Lease, works as long as it is held, gives it up, and finishes what runs. A process leads once: when another
/// has taken the Lease it ends, and its parent starts the next.
async fn lead(
    args: &WaiterArgs,
    client: Client,
    lease: Client,
    exec: exec::ApiExec,
    shutdown: &Shutdown,
    metrics: Arc<Metrics>,
    readable: impl Fn(),
) -> Result<(), LostLease> {
    let own = ProcessNames::of(args.pod_name.as_deref(), args.pod_uid.as_deref());
    let standing = Arc::new(Standing::new(
        own.process,
        Duration::from_secs(args.lease_seconds.into()),
    ));
    let mut elector = Elector::new(&standing, lease, &args.namespace, &args.lease, own.predecessors);
    let stopping = shutdown.stopping();
    if !elector.acquire(&stopping, readable).await {
        return Ok(());
    }
    metrics.leading.set(1);
    let leading = metrics.leading.clone();
    let tasks = TaskTracker::new();
    let gate = start(args, client, exec, shutdown, metrics, &standing, &tasks);
    let end = elector.keep(&stopping).await;
    // Nothing new starts from here on, also where it was another process that ended this one's time.
    shutdown.stop();
    leading.set(0);
    tasks.close();
    let running = gate.close() > 0;
    if end == End::Stopped {
        elector.release(running).await;
    }
    if running {
        let limit = Duration::from_secs(args.drain_seconds);
        let finished = async {
            if tokio::time::timeout(limit, tasks.wait()).await.is_err() {
                tracing::warn!(
                    running = tasks.len(),
                    "commands that still run are left; their end will not be known"
                );
            }
        };
        elector.finish(finished).await;
    }
    match end {
        End::Stopped => Ok(()),
        End::Lost(holder) => Err(LostLease(holder)),
    }
}

/// Keeps the `caBundle` as the CA is: one from a file, or one that is made here.
fn publish_ca(args: &WaiterArgs, client: &Client, shutdown: &Shutdown, metrics: &Arc<Metrics>) {
    let Some(configuration) = args.webhook_configuration.clone() else {
        return;
    };
    let (client, metrics, end) = (client.clone(), Arc::clone(metrics), shutdown.stopping());
    if let Some(file) = args.ca_file.clone() {
        let publisher = ca_file::run_file_publisher(client, file, configuration, metrics, end);
        shutdown.spawn_background("ca-publisher", publisher);
    } else {
        let (namespace, secret) = (args.namespace.clone(), args.ca_secret.clone());
        let publisher = ca_store::run_ca_publisher(client, namespace, secret, configuration, metrics, end);
        shutdown.spawn_background("ca-publisher", publisher);
    }
}

/// Starts what the leader does, and returns the gate through which its commands start.
fn start(
    args: &WaiterArgs,
    client: Client,
    exec: exec::ApiExec,
    shutdown: &Shutdown,
    metrics: Arc<Metrics>,
    standing: &Arc<Standing>,
    tasks: &TaskTracker,
) -> Arc<Gate> {
    publish_ca(args, &client, shutdown, &metrics);
    let (synced, is_synced) = tokio::sync::watch::channel(false);
    let is_listed = is_synced.clone();
    let queue = Arc::new(Queue::default());
    let traffic = Arc::new(traffic::Traffic::default());
    let events = events::Events::new(client.clone(), args.pod_name.clone()).behind(Arc::clone(&traffic));
    let missed = Arc::new(missed::Missed {
        client: client.clone(),
        events: events.clone(),
        mode: args.mode,
        excluded_namespaces: args.excluded_namespaces.clone(),
        namespace_selector: args.namespace_selector.clone().unwrap_or_default(),
        restores: Arc::default(),
    });
    let gate = Arc::new(Gate::new(
        Arc::clone(standing),
        args.max_concurrent_hooks.into(),
        args.max_concurrent_hooks_per_namespace.into(),
    ));
    let policies = Arc::new(Policies::new(args.policies.clone()));
    let look = policies::run(
        Arc::clone(&policies),
        client.clone(),
        Arc::clone(&metrics),
        shutdown.stopping(),
    );
    shutdown.spawn_background("policies", look);
    let context = Arc::new(Context {
        client: client.clone(),
        redactor: exec.redactor().clone(),
        exec_client: exec.client().clone(),
        exec,
        queue,
        events,
        traffic,
        metrics,
        missed,
        policies,
        process: standing.process().to_owned(),
        stop: shutdown.stopping(),
        standing: Arc::clone(standing),
        gate: Arc::clone(&gate),
        run_limit: args.run_limit.to_signed(),
        report_after: args.report_waiting_after.to_signed(),
        synced: is_synced,
    });
    let lists = Arc::new(Lists::new(Arc::clone(&context.metrics)));
    spawn_watches(shutdown, &context, tasks, Arc::clone(&lists), move || {
        synced.send_replace(true);
    });
    let pause = (args.namespace.clone(), args.pause_config_map.clone());
    spawn_brake(shutdown, &context, pause, &lists);
    spawn_restores(shutdown, &context, is_listed, &lists, args.retention);
    gate
}

/// The lists that must be complete before anything is started: planned pods, runs, Restores and the pause of everything. A
/// pod or a run that is missing in them means nothing before that, and a brake may be on that is not known yet.
const LISTS: u32 = 4;

/// Counts those that are complete.
struct Lists {
    complete: Semaphore,
    metrics: Arc<Metrics>,
}

impl Lists {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.lists_missing.set(LISTS.into());
        Self {
            complete: Semaphore::new(0),
            metrics,
        }
    }

    async fn all(&self) {
        let _ = self.complete.acquire_many(LISTS).await;
    }

    /// Counts one list as complete, the first time only: a watch that breaks lists again.
    fn count_once(self: &Arc<Self>) -> impl Fn() + Send + Sync + 'static {
        let (lists, done) = (Arc::clone(self), std::sync::Once::new());
        move || {
            done.call_once(|| {
                lists.complete.add_permits(1);
                lists.metrics.lists_missing.dec();
            });
        }
    }
}

/// Follows planned pods and `HookRun`s, with a task for each unfinished run. `lists` counts the lists that are complete;
/// `on_listed` is called once all are.
fn spawn_watches(
    shutdown: &Shutdown,
    context: &Arc<Context<exec::ApiExec>>,
    tasks: &TaskTracker,
    lists: Arc<Lists>,
    on_listed: impl Fn() + Send + Sync + 'static,
) {
    let start = {
        let (context, tasks, life) = (Arc::clone(context), tasks.clone(), shutdown.clone());
        move |(key, bell): watch::NewTask| {
            let task = run_task::drive(Arc::clone(&context), key, bell);
            tasks.spawn(life.clone().unless_it_panics("run", task));
        }
    };
    let (client, queue) = (context.client.clone(), Arc::clone(&context.queue));
    let (standing, ended) = (Arc::clone(&context.standing), shutdown.ended());
    let redactor = context.redactor.clone();
    shutdown.spawn_background("watches", async move {
        let all = async {
            lists.all().await;
            on_listed();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = watch::pods(client.clone(), &queue, &redactor, lists.count_once(), start.clone()) => {}
            () = watch::runs(client, &queue, lists.count_once(), start.clone()) => {}
            () = all => {}
            () = wake_when_others_end(&standing, &queue) => {}
            () = ended.cancelled() => {}
        }
        Ok::<_, Infallible>(())
    });
}

/// Follows Velero's Restores, and deletes finished runs when their time is over.
fn spawn_restores(
    shutdown: &Shutdown,
    context: &Context<exec::ApiExec>,
    is_listed: tokio::sync::watch::Receiver<bool>,
    lists: &Arc<Lists>,
    retention: retention::RetentionArgs,
) {
    let (client, queue, missed) = (&context.client, &context.queue, &context.missed);
    let restores = restores::run(
        client.clone(),
        Arc::clone(queue),
        Arc::clone(missed),
        retention.ttl.to_signed(),
        is_listed,
        lists.count_once(),
        shutdown.stopping(),
    );
    shutdown.spawn_background("restores", restores);
    let retention = retention::run(
        client.clone(),
        Arc::clone(queue),
        Arc::clone(&missed.restores),
        Arc::clone(&context.metrics),
        retention,
        shutdown.stopping(),
    );
    shutdown.spawn_background("retention", retention);
}

/// Follows the pause of everything; `place`: namespace and name of its `ConfigMap`.
fn spawn_brake(shutdown: &Shutdown, context: &Context<exec::ApiExec>, place: (String, String), lists: &Arc<Lists>) {
    let (client, queue) = (context.client.clone(), Arc::clone(&context.queue));
    let brake = brake::run(client, place, queue, lists.count_once(), shutdown.stopping());
    shutdown.spawn_background("brake", brake);
}

fn namespace_selector(text: &str) -> Result<kube::core::Selector, String> {
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    crate::hooks::matching::selector(Some(&value))
}

/// Lets all runs look again when a process that finishes its commands has come or gone.
async fn wake_when_others_end(standing: &Standing, queue: &Queue) {
    loop {
        standing.changed().await;
        queue.ring_all();
    }
}

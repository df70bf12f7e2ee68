//! The waiter: takes planned pods in, waits for their containers, runs their commands, and records what became of each.

pub mod begin;
pub mod budget;
mod conditions;
mod counts;
pub mod end;
pub mod events;
pub mod exec;
mod init;
pub mod intake;
pub mod missed;
pub mod output;
pub mod pod_view;
pub mod queue;
pub mod redact;
pub mod restores;
mod retention;
pub mod run_task;
mod setback;
mod stale;
pub mod step;
mod waiting;
pub mod watch;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::task::TaskTracker;

use crate::{
    duration::GoDuration,
    infra::{ca_store, clock, health, kube::clients, lent_token, metrics::Metrics, shutdown::Shutdown},
};
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
    /// The webhook configuration that gets the certificate authority. Without it none is published.
    #[arg(long)]
    webhook_configuration: Option<String>,
    /// The webhook's account: the waiter lends it a token in --webhook-token-folder.
    #[arg(long, requires = "webhook_token_folder")]
    webhook_account: Option<String>,
    /// The folder in which the webhook's container finds its token.
    #[arg(long, value_name = "FOLDER", requires = "webhook_account")]
    webhook_token_folder: Option<std::path::PathBuf>,
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
    /// How many commands may run at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    max_concurrent_hooks: u16,
    /// How long running commands may take to end after SIGTERM, in seconds; after that their end is not known.
    #[arg(long, default_value_t = 600)]
    drain_seconds: u64,
    #[command(flatten)]
    output: output::OutputArgs,
    #[command(flatten)]
    retention: retention::RetentionArgs,
    /// How long a run may wait before it is said what it waits for (Event and condition). Go duration.
    #[arg(long, default_value = "30s", value_parser = positive)]
    report_waiting_after: GoDuration,
    /// This process' pod, for Events and claims.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
}

/// Runs the waiter until SIGTERM.
pub async fn run(args: WaiterArgs) -> anyhow::Result<()> {
    let WaiterArgs {
        health_listen,
        namespace,
        service,
        ca_secret,
        webhook_configuration,
        mode,
        marker_labels,
        ..
    } = &args;
    tracing::info!(%mode, ?marker_labels, service, "the waiter starts");
    let clients = clients().await?;
    let shutdown = Shutdown::on_signals()?;
    let metrics = Arc::new(Metrics::waiter());
    let readiness = health::Readiness::default();
    let synced_gate = readiness.gate("watches");
    let listener = TcpListener::bind(health_listen)
        .await
        .with_context(|| format!("can't listen on {health_listen}"))?;
    shutdown.spawn_background(
        "health",
        health::serve(
            listener,
            health::router(readiness, Arc::clone(&metrics)),
            shutdown.ended(),
        ),
    );
    if let (Some(account), Some(folder)) = (&args.webhook_account, &args.webhook_token_folder) {
        // Each replica for its own webhook, whoever leads.
        let (client, namespace) = (clients.api.clone(), namespace.clone());
        let lender = lent_token::run_lender(client, namespace, account.clone(), folder.clone(), shutdown.ended());
        shutdown.spawn_background("webhook-token", lender);
    }
    if let Some(configuration) = webhook_configuration {
        let publisher = ca_store::run_ca_publisher(
            clients.api.clone(),
            namespace.clone(),
            ca_secret.clone(),
            configuration.clone(),
            Arc::clone(&metrics),
            shutdown.ended(),
        );
        shutdown.spawn_background("ca-publisher", publisher);
    }

    let (synced, is_synced) = tokio::sync::watch::channel(false);
    let is_listed = is_synced.clone();
    let queue = Arc::new(Queue::default());
    let events = events::Events::new(clients.api.clone(), args.pod_name.clone());
    let missed = Arc::new(missed::Missed {
        client: clients.api.clone(),
        events: events.clone(),
        mode: *mode,
        excluded_namespaces: args.excluded_namespaces.clone(),
        namespace_selector: args.namespace_selector.clone().unwrap_or_default(),
        restores: Arc::default(),
    });
    let context = Arc::new(Context {
        client: clients.api.clone(),
        exec: exec::ApiExec::new(clients.exec, args.output.rules()?),
        queue,
        events,
        metrics,
        missed,
        process: process_name(args.pod_name.as_deref()),
        stop: shutdown.stopping(),
        report_after: args.report_waiting_after.to_signed(),
        slots: Arc::new(Semaphore::new(args.max_concurrent_hooks.into())),
        synced: is_synced,
    });
    let tasks = TaskTracker::new();
    spawn_watches(&shutdown, clients.api.clone(), &context, &tasks, move || {
        synced.send_replace(true);
        synced_gate.set(true);
    });
    spawn_restores(&shutdown, &context, is_listed, args.retention);

    let (stopping, drain) = (shutdown.stopping(), Duration::from_secs(args.drain_seconds));
    shutdown.spawn_foreground("runs", async move {
        stopping.cancelled().await;
        tasks.close();
        if tokio::time::timeout(drain, tasks.wait()).await.is_err() {
            tracing::warn!(
                running = tasks.len(),
                "commands that still run are left; their end will not be known"
            );
        }
        Ok::<_, Infallible>(())
    });
    Ok(shutdown.finish(Duration::from_secs(5)).await?)
}

/// Follows planned pods and `HookRun`s, with a task for each unfinished run. `on_listed` is called once both lists are
/// complete: before that a missing pod or run means nothing, and tasks wait.
fn spawn_watches(
    shutdown: &Shutdown,
    client: kube::Client,
    context: &Arc<Context<exec::ApiExec>>,
    tasks: &TaskTracker,
    on_listed: impl Fn() + Send + Sync + 'static,
) {
    let start = {
        let (context, tasks) = (Arc::clone(context), tasks.clone());
        move |(key, bell): watch::NewTask| {
            tasks.spawn(run_task::drive(Arc::clone(&context), key, bell));
        }
    };
    let (queue, ended) = (Arc::clone(&context.queue), shutdown.ended());
    shutdown.spawn_background("watches", async move {
        let lists = tokio::sync::Semaphore::new(0);
        let listed = || lists.add_permits(1);
        let both = async {
            let _ = lists.acquire_many(2).await;
            on_listed();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = watch::pods(client.clone(), &queue, once(listed), start.clone()) => {}
            () = watch::runs(client, &queue, once(listed), start.clone()) => {}
            () = both => {}
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
    retention: retention::RetentionArgs,
) {
    let (client, queue, missed) = (&context.client, &context.queue, &context.missed);
    let restores = restores::run(
        client.clone(),
        Arc::clone(queue),
        Arc::clone(missed),
        is_listed,
        shutdown.ended(),
    );
    shutdown.spawn_background("restores", restores);
    let retention = retention::run(
        client.clone(),
        Arc::clone(queue),
        Arc::clone(&missed.restores),
        Arc::clone(&context.metrics),
        retention,
        shutdown.ended(),
    );
    shutdown.spawn_background("retention", retention);
}

/// Calls `action` the first time only: a watch that breaks lists again.
fn once(action: impl Fn()) -> impl Fn() {
    let done = std::sync::Once::new();
    move || done.call_once(&action)
}

fn positive(text: &str) -> Result<GoDuration, String> {
    let duration: GoDuration = text.parse().map_err(|error| format!("{error}"))?;
    if duration.is_negative() || duration.is_zero() {
        return Err(format!("{text:?} is not more than nothing"));
    }
    Ok(duration)
}

fn namespace_selector(text: &str) -> Result<kube::core::Selector, String> {
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    crate::hooks::matching::selector(Some(&value))
}

/// A name for this process in claims: a restarted container has the same pod name, and must not take its predecessor's
/// attempts for its own.
fn process_name(pod_name: Option<&str>) -> String {
    format!(
        "{}/{}-{}",
        pod_name.unwrap_or("local"),
        clock::now().as_microsecond(),
        std::process::id()
    )
}

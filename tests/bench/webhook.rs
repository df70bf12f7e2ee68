//! Reveille's webhook beside a controller-runtime one and the floor, one after the other in turn. The server has a core to
//! itself and so has the load: `tests/bench/run` starts this program on the second core.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use axum::{Json, Router, extract::Query, routing::get};
use clap::Args;
use jiff::Timestamp;
use reveille::infra::pki::Ca;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    cluster::{ends_with_us, say},
    figures::{Machine, Times, save},
    load::{Answers, Caller},
    process::Process,
    reviews::{Payload, RESTORE},
};

/// Where a server under test listens.
const ADDRESS: &str = "127.0.0.1:19443";
/// The core that it has to itself.
const SERVER_CORE: &str = "0";
/// The longest that a server may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Arguments of `webhook`.
#[derive(Args)]
pub(crate) struct WebhookArgs {
    /// Where the figures go.
    #[arg(long)]
    out: PathBuf,
    /// Reveille's program.
    #[arg(long)]
    reveille: PathBuf,
    /// The controller-runtime peer's program.
    #[arg(long)]
    peer: PathBuf,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// Everything of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WebhookFigures {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) measured: Vec<Measured>,
    pub(crate) starts: Vec<Start>,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Server {
    Reveille,
    ControllerRuntime,
    Floor,
}

/// All of them, in the order in which they take turns.
pub(crate) const SERVERS: [Server; 3] = [Server::ControllerRuntime, Server::Reveille, Server::Floor];

/// How calls come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Load {
    /// Over so many kept connections.
    Kept(usize),
    /// Over a new connection each.
    Fresh,
    /// So many at once, over a new connection each.
    Burst(usize),
}

/// One measurement.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) server: Server,
    pub(crate) payload: Payload,
    pub(crate) load: Load,
    pub(crate) times: Times,
    pub(crate) failed: usize,
    /// Answers in a second.
    pub(crate) rate: f64,
    /// Processor seconds of the server for 1,000 answers.
    pub(crate) cpu: f64,
}

/// A server's life: how long until its first answer, and the most memory it had.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) server: Server,
    /// Milliseconds.
    pub(crate) first_answer: f64,
    /// KiB, after 6 KB pods without the burst.
    pub(crate) peak_kept: u64,
    /// KiB, with the burst.
    pub(crate) peak_burst: u64,
    /// KiB, with 200 KB pods, too.
    pub(crate) peak: u64,
}

/// Measures everything about the webhook.
pub(crate) async fn run(arguments: WebhookArgs) -> anyhow::Result<()> {
    let machine = Machine::look();
    if machine.load_before > 0.5 {
        say(&format!(
            "the machine is busy (load {}): the figures will be worse",
            machine.load_before
        ));
    }
    let bench = Bench::new(&arguments).await?;
    let (mut measured, mut starts) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        for server in SERVERS {
            say(&format!("round {round}, {server:?}"));
            bench.life(server, &mut measured, &mut starts).await?;
        }
    }
    let figures = WebhookFigures {
        machine,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        measured,
        starts,
    };
    save(&arguments.out, &figures)
}

struct Bench<'a> {
    arguments: &'a WebhookArgs,
    folder: tempfile::TempDir,
    ca: String,
    small: [Payload; 2],
    large: [Payload; 2],
}

impl<'a> Bench<'a> {
    async fn new(arguments: &'a WebhookArgs) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let now = Timestamp::now();
        let ca = Ca::generate(now)?;
        let leaf = ca.sign_leaf(&["localhost".to_owned()], now)?;
        write_pem(&folder.path().join("tls.crt"), "CERTIFICATE", &leaf.certificate)?;
        write_pem(&folder.path().join("tls.key"), "PRIVATE KEY", leaf.key.secret_der())?;
        let api = serve_restores().await?;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{api}")}}],
            "users": [{"name": "u", "user": {}}],
        });
        fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string())?;
        let both = |kilobytes| [true, false].map(|hooks| Payload { kilobytes, hooks });
        Ok(Self {
            arguments,
            folder,
            ca: ca.certificate.clone(),
            small: both(6),
            large: both(200),
        })
    }

    /// From a server's start to its end.
    async fn life(&self, server: Server, measured: &mut Vec<Measured>, starts: &mut Vec<Start>) -> anyhow::Result<()> {
        let began = Instant::now();
        let running = self.start(server)?;
        let process = Process(running.0.id());
        let hooked = self.small[0];
        self.first_answer(server, hooked).await?;
        let first_answer = began.elapsed().as_secs_f64() * 1000.0;
        for payload in self.small {
            self.answers_are_right(server, payload).await?;
        }
        for payload in self.small {
            for load in [Load::Kept(1), Load::Kept(25)] {
                measured.push(self.measure(server, process, payload, load).await?);
            }
        }
        measured.push(self.measure(server, process, hooked, Load::Fresh).await?);
        let peak_kept = process.peak()?;
        measured.push(self.measure(server, process, hooked, Load::Burst(500)).await?);
        let peak_burst = process.peak()?;
        for payload in self.large {
            self.answers_are_right(server, payload).await?;
            for load in [Load::Kept(1), Load::Kept(25)] {
                measured.push(self.measure(server, process, payload, load).await?);
            }
        }
        starts.push(Start {
            server,
            first_answer,
            peak_kept,
            peak_burst,
            peak: process.peak()?,
        });
        Ok(())
    }

    fn start(&self, server: Server) -> anyhow::Result<Running> {
        let folder = self.folder.path();
        let mut command = ends_with_us("taskset");
        command.args(["-c", SERVER_CORE]);
        match server {
            Server::Reveille => command
                .arg(&self.arguments.reveille)
                .args([
                    "webhook",
                    "--listen",
                    ADDRESS,
                    "--health-listen=127.0.0.1:0",
                    "--shutdown-delay=0s",
                ])
                .arg("--tls-cert")
                .arg(folder.join("tls.crt"))
                .arg("--tls-key")
                .arg(folder.join("tls.key"))
                .env("KUBECONFIG", folder.join("kubeconfig")),
            Server::ControllerRuntime => command
                .arg(&self.arguments.peer)
                .args(["-port", ADDRESS.rsplit(':').next().unwrap_or_default(), "-cert-dir"])
                .arg(folder),
            Server::Floor => command
                .arg(env::current_exe()?)
                .args(["floor", "--listen", ADDRESS, "--certificates"])
                .arg(folder),
        };
        let log = fs::File::create(folder.join("server.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Running(command.spawn().context("taskset")?))
    }

    fn caller(&self, payload: Payload) -> anyhow::Result<Caller> {
        Caller::new(ADDRESS.parse()?, &self.ca, payload.review()?)
    }

    /// Calls until an answer comes that has a patch.
    async fn first_answer(&self, server: Server, payload: Payload) -> anyhow::Result<()> {
        let (caller, start) = (self.caller(payload)?, Instant::now());
        loop {
            if let Ok(answer) = caller.once().await
                && patch(&answer)?.is_some()
            {
                return Ok(());
            }
            ensure!(
                start.elapsed() < START_LIMIT,
                "{server:?} does not answer: {}",
                fs::read_to_string(self.folder.path().join("server.log"))?
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What is compared does the same.
    async fn answers_are_right(&self, server: Server, payload: Payload) -> anyhow::Result<()> {
        let patch = patch(&self.caller(payload)?.once().await?)?;
        match (server, payload.hooks) {
            (Server::Floor, _) => ensure!(patch.is_some(), "the floor answers with a patch"),
            (_, true) => {
                let text = patch
                    .with_context(|| format!("{server:?} injects nothing"))?
                    .to_string();
                for word in ["/spec/initContainers/1", "prepare:3.2", "psql", "reveille.dev"] {
                    ensure!(text.contains(word), "{server:?}: {word} is missing in {text}");
                }
            }
            (_, false) => ensure!(patch.is_none(), "{server:?} changes a pod without hooks: {patch:?}"),
        }
        Ok(())
    }

    async fn measure(
        &self,
        server: Server,
        process: Process,
        payload: Payload,
        load: Load,
    ) -> anyhow::Result<Measured> {
        let caller = self.caller(payload)?;
        let duration = Duration::from_secs_f64(self.arguments.seconds);
        let (cpu, start) = (process.cpu()?, Instant::now());
        let Answers { times, failed } = match load {
            Load::Kept(connections) => caller.kept(connections, duration).await?,
            Load::Fresh => caller.fresh(duration).await,
            Load::Burst(calls) => caller.burst(calls).await,
        };
        let (cpu, elapsed) = (process.cpu()? - cpu, start.elapsed().as_secs_f64());
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let count = times.len() as f64;
        Ok(Measured {
            server,
            payload,
            load,
            times: Times::of(times),
            failed,
            rate: count / elapsed,
            cpu: cpu * 1000.0 / count.max(1.0),
        })
    }
}

/// A server that ends with its measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The patch in an answer, if there is one.
fn patch(answer: &[u8]) -> anyhow::Result<Option<Value>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let answer: Value = serde_json::from_slice(answer)?;
    ensure!(answer["response"]["allowed"] == true, "not allowed: {answer}");
    let Some(patch) = answer["response"]["patch"].as_str() else {
        return Ok(None);
    };
    Ok(Some(serde_json::from_slice(&STANDARD.decode(patch)?)?))
}

fn write_pem(path: &Path, label: &str, der: &[u8]) -> anyhow::Result<()> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der)
    );
    Ok(fs::write(path, text)?)
}

#[derive(Deserialize)]
struct Watch {
    #[serde(default)]
    watch: bool,
}

/// An API server that knows one Restore, under way, and nothing else. A quiet one: it shares the load's core.
async fn serve_restores() -> anyhow::Result<SocketAddr> {
    let restore = json!({
        "apiVersion": "velero.io/v1",
        "kind": "Restore",
        "metadata": {
            "name": RESTORE, "namespace": "velero", "uid": "0e3c1b52-7c39-4c5f-9a52-2f8f3d8a9b11", "resourceVersion": "1",
            "creationTimestamp": Timestamp::now().to_string(),
            "annotations": {"reveille.dev/owner": "reveille", "reveille.dev/hooks-result": "Pending"},
        },
        "spec": {"backupName": "nightly-20261120", "includedNamespaces": ["*"]},
        "status": {"phase": "InProgress", "startTimestamp": Timestamp::now().to_string()},
    });
    let list = json!({"apiVersion": "velero.io/v1", "kind": "RestoreList", "metadata": {"resourceVersion": "1"},
        "items": [restore]});
    let restores = async move |Query(query): Query<Watch>| {
        if query.watch {
            // Nothing ever happens.
            std::future::pending::<()>().await;
        }
        Json(list)
    };
    let router = Router::new().route("/apis/velero.io/v1/restores", get(restores));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

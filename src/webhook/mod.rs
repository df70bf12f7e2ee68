//! `reveille webhook`: the admission webhook. Stateless, every replica serves, and it never writes to the API.

mod body;
pub mod connection;
pub mod handler;
pub mod limits;
pub mod restores;
pub mod serve;
pub mod tls;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::net::{TcpListener, TcpSocket};
use tracing::info;

use crate::{
    admission::Mode,
    duration::GoDuration,
    infra::{
        health::{self, Readiness},
        kube::{KubeError, clients},
        lent_token::{ACCOUNT_FOLDER, await_token},
        metrics::Metrics,
        pki::service_names,
        shutdown::{Shutdown, ShutdownError},
    },
};
use handler::{Settings, Webhook};
use limits::Limits;
use restores::{RestoreCache, VeleroApi};
use serve::Server;
use tls::{ServingCertificate, Target, TlsError};

/// How long caches and the health port may take to end once all calls are answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `reveille webhook`.
#[derive(Clone, Debug, Args)]
pub struct WebhookArgs {
    /// Address for the API server's calls (HTTPS).
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9443")]
    pub listen: SocketAddr,
    /// Address for /livez, /readyz and /metrics (plain HTTP).
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub health_listen: SocketAddr,
    /// Namespace of the Service and of the Secret with the CA.
    #[arg(long, env = "POD_NAMESPACE", required_unless_present = "tls_cert")]
    pub namespace: Option<String>,
    /// Name of the Service through which the API server calls: the certificate is made for it.
    #[arg(long, required_unless_present = "tls_cert")]
    pub service: Option<String>,
    /// Name of the Secret with the CA that the waiter makes.
    #[arg(long, value_name = "SECRET", required_unless_present = "tls_cert")]
    pub ca_secret: Option<String>,
    /// Serve the certificate chain of this PEM file instead of one signed with the CA. Read again every 30 seconds.
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "ca_secret")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Begin only when the token of the service account is there: in the chart's pod the waiter brings it.
    #[arg(long)]
    pub wait_for_token: bool,
    /// Who runs the hooks of Restores that do not say so themselves: takeover, alongside or off.
    #[arg(long, default_value_t = Mode::Takeover)]
    pub mode: Mode,
    /// Label by which another restore tool marks the pods that it restores. May be given several times.
    #[arg(long = "marker-label", value_name = "KEY")]
    pub marker_labels: Vec<String>,
    /// An admission policy keeps everybody else from changing a plan once its pod exists. Pods whose status Velero restores are
    /// then planned at admission, like all others.
    #[arg(long)]
    pub marks_protected: bool,
    /// How long to go on serving after SIGTERM, until nobody sends calls here any more.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = delay)]
    pub shutdown_delay: Duration,
}

fn delay(text: &str) -> Result<Duration, String> {
    let duration: GoDuration = text.parse().map_err(|error| format!("{error}"))?;
    duration.to_std().ok_or_else(|| "it is negative".to_owned())
}

/// Why the webhook ends other than well.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// No way to the API server.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// A port can't be had.
    #[error("can't listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        cause: std::io::Error,
    },
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A task ended before its time.
    #[error(transparent)]
    Ended(#[from] ShutdownError),
    /// clap lets nobody get here.
    #[error("--{0} is missing")]
    Missing(&'static str),
}

/// Runs the webhook until SIGTERM or SIGINT.
///
/// Needs [`crate::infra::kube::install_crypto_provider`] to have been called.
pub async fn run(args: WebhookArgs) -> Result<(), WebhookError> {
    let shutdown = Shutdown::on_signals()?;
    let readiness = Readiness::default();
    let serving = readiness.gate("serving");
    let (certificate_gate, restores_gate) = (readiness.gate("certificate"), readiness.gate("restore-cache"));
    let metrics = Arc::new(Metrics::webhook());
    let health_listener = bind(args.health_listen)?;
    let listener = bind(args.listen)?;
    let pages = health::router(readiness, Arc::clone(&metrics));
    shutdown.spawn_background("health", health::serve(health_listener, pages, shutdown.ended()));
    if args.wait_for_token {
        let stopping = shutdown.stopping();
        tokio::select! {
            () = await_token(Path::new(ACCOUNT_FOLDER)) => {}
            () = stopping.cancelled() => return Ok(shutdown.finish(PATIENCE).await?),
        }
    }
    let client = clients().await?.api;

    let cache = Arc::new(RestoreCache::new(VeleroApi::new(client.clone())));
    let watch = restores::run_watch(
        Arc::clone(&cache),
        VeleroApi::new(client.clone()),
        restores_gate,
        Arc::clone(&metrics),
        shutdown.ended(),
    );
    shutdown.spawn_background("restore-cache", watch);

    let certificate = ServingCertificate::default();
    let target = Target {
        certificate: certificate.clone(),
        gate: certificate_gate,
        metrics: Arc::clone(&metrics),
    };
    if let (Some(chain), Some(key)) = (args.tls_cert, args.tls_key) {
        let task = tls::run_files(chain, key, tls::FILE_CHECK, target, shutdown.ended());
        shutdown.spawn_background("certificate", task);
    } else {
        let namespace = args.namespace.ok_or(WebhookError::Missing("namespace"))?;
        let service = args.service.ok_or(WebhookError::Missing("service"))?;
        let secret = args.ca_secret.ok_or(WebhookError::Missing("ca-secret"))?;
        let names = service_names(&service, &namespace);
        let task = tls::run_self_signed(client, namespace, secret, names, target, shutdown.ended());
        shutdown.spawn_background("certificate", task);
    }

    let limits = Limits {
        shutdown_delay: args.shutdown_delay,
        ..Limits::default()
    };
    let settings = Settings {
        mode: args.mode,
        marker_labels: args.marker_labels,
        marks_protected: args.marks_protected,
    };
    info!(mode = %settings.mode, marker_labels = ?settings.marker_labels, "webhook starts");
    let server = Server {
        router: Arc::new(Webhook::new(settings, limits, cache, metrics)).router(),
        tls: tls::server_config(certificate)?,
        limits,
        gate: serving,
    };
    let stopping = shutdown.stopping();
    shutdown.spawn_foreground("https", async move {
        server.run(listener, stopping).await;
        Ok::<_, Infallible>(())
    });
    Ok(shutdown.finish(PATIENCE).await?)
}

/// How many connections may wait to be accepted. A whole node's pods may come at once, and a connection that finds the queue full is
/// only tried again after a second; the default is 128.
const BACKLOG: u32 = 4096;

fn bind(address: SocketAddr) -> Result<TcpListener, WebhookError> {
    let failed = |cause| WebhookError::Listen { address, cause };
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let listening = socket.and_then(|socket| {
        // As `TcpListener::bind` has it: a restart may follow at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    });
    let listener = listening.map_err(failed)?;
    // Port 0 is any port: which one?
    info!(address = %listener.local_addr().map_err(failed)?, "listening");
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody accepts: all of them wait in the kernel's queue, and none is turned away.
    #[tokio::test]
    async fn a_burst_of_connections_finds_room() {
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let limit = std::time::Duration::from_secs(10);
        let all: Result<Vec<_>, _> = (0..300)
            .map(|_| std::net::TcpStream::connect_timeout(&address, limit))
            .collect();
        assert!(all.is_ok(), "{all:?}");
    }
}

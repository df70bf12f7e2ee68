//! Health: `/livez`, `/readyz` and `/metrics` over plain HTTP, on a port of their own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{metrics::Metrics, shutdown::Shutdown, slots::Slots};

/// Connections at the same time: probes, a few Prometheuses, a person. For a further one the oldest is closed.
const CONNECTIONS: usize = 64;
/// How long a connection has before it may be closed for another one.
const GIVE_WAY: Duration = Duration::from_secs(1);
/// For a request's head, and between two requests.
const HEAD: Duration = Duration::from_secs(60);
/// What a connection may hold of a head that has not ended.
const READ_BUFFER: usize = 16 << 10;
/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What must hold before a process counts as ready. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    gates: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

/// One condition for readiness, closed at first.
#[derive(Clone, Debug)]
pub struct Gate {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a closed gate. A process without gates is ready.
    pub fn gate(&self, name: &'static str) -> Gate {
        let gate = Gate {
            name,
            readiness: self.clone(),
        };
        gate.set(false);
        gate
    }

    /// The names of the gates that are closed.
    pub fn unmet(&self) -> Vec<&'static str> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter(|(_, open)| !**open)
            .map(|(name, _)| *name)
            .collect()
    }
}

impl Gate {
    /// Opens or closes the gate.
    pub fn set(&self, open: bool) {
        let mut gates = self.readiness.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.insert(self.name, open);
    }
}

/// Serves the pages of a process until it has ended. An error says that nothing can listen there.
pub async fn start(
    address: SocketAddr,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}"))?;
    let pages = serve(listener, router(readiness, metrics), shutdown.ended());
    shutdown.spawn_background("health", pages);
    Ok(())
}

/// The three pages. `/livez` says only that the process answers: a restart cures nothing that lies outside it.
pub fn router(readiness: Readiness, metrics: Arc<Metrics>) -> Router {
    let ready = move || {
        let unmet = readiness.unmet();
        async move {
            if unmet.is_empty() {
                return (StatusCode::OK, "ok\n".to_owned());
            }
            let mut text = "not ready:\n".to_owned();
            for name in unmet {
                let _ = writeln!(text, "- {name}"); // writing to a String can't fail
            }
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    };
    let page = move || {
        let text = metrics.encode();
        async move {
            match text {
                Ok(text) => ([(CONTENT_TYPE, Metrics::CONTENT_TYPE)], text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        }
    };
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(page))
}

/// Serves the pages until `end` fires. What clients can hold is bounded: it is the process of the webhook, or of the waiter, too.
pub async fn serve(listener: TcpListener, router: Router, end: CancellationToken) -> Result<(), std::io::Error> {
    let slots = Slots::new(CONNECTIONS, GIVE_WAY);
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (slot, router, end) = (slots.take().await, router.clone(), end.clone());
                    connections.spawn(async move {
                        // A connection that hangs must not hold the end up.
                        tokio::select! {
                            () = answer(stream, router) => {}
                            () = slot.leave().cancelled() => {}
                            () = end.cancelled() => {}
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = end.cancelled() => {}
    }
    Ok(())
}

/// One connection. Its slot counts as idle all the time: a page takes no time, and who is cut off asks again.
async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_all_gates_are_open() {
        let readiness = Readiness::default();
        assert!(readiness.unmet().is_empty());
        let (one, two) = (readiness.gate("one"), readiness.gate("two"));
        assert_eq!(readiness.unmet(), ["one", "two"]);
        one.set(true);
        two.set(true);
        assert!(readiness.unmet().is_empty());
        one.set(false);
        assert_eq!(readiness.unmet(), ["one"]);
    }
}

//! Health: `/livez`, `/readyz` and `/metrics` over plain HTTP, on a port of their own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;

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

/// Serves the pages until `end` fires.
pub async fn serve(listener: TcpListener, router: Router, end: CancellationToken) -> Result<(), std::io::Error> {
    // A connection that hangs must not hold the end up, so it is not waited for.
    tokio::select! {
        result = axum::serve(listener, router) => result,
        () = end.cancelled() => Ok(()),
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

//! Who may start a command now: only the leader, nothing once the process ends, and not too many at a time.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::infra::lease::Standing;

/// The way to each start of a command.
#[derive(Debug)]
pub struct Gate {
    standing: Arc<Standing>,
    total: Arc<Semaphore>,
    in_total: usize,
    per_namespace: usize,
    namespaces: Mutex<HashMap<String, Arc<Semaphore>>>,
    claims: Mutex<Claims>,
}

#[derive(Debug, Default)]
struct Claims {
    open: usize,
    closed: bool,
}

/// A place among the commands that may run at once.
#[derive(Debug)]
pub struct Place {
    _in_namespace: OwnedSemaphorePermit,
    _in_total: OwnedSemaphorePermit,
}

/// Why a command may not start yet although its container is up: as many run as may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crowd {
    /// Since when this process has waited for a place for it.
    pub since: Timestamp,
    /// How many run, in words.
    pub message: String,
}

/// A run's place, or its way to one. It keeps its turn while the run does other things.
#[derive(Default)]
pub enum Slot {
    /// None is wanted.
    #[default]
    Free,
    /// It waits for one.
    Awaited {
        /// Since when.
        since: Timestamp,
        /// Comes when it is its turn.
        place: Pin<Box<dyn Future<Output = Option<Place>> + Send + Sync>>,
    },
    /// It has one.
    Taken(Place),
}

impl Slot {
    /// Asks for a place, if that was not done before; tells why there is none, if so.
    pub fn ask(&mut self, gate: &Gate, namespace: &str, now: Timestamp) -> Option<Crowd> {
        if matches!(self, Self::Free) {
            let place = Box::pin(gate.place(namespace));
            *self = Self::Awaited { since: now, place };
        }
        // A look, no more; whoever waits is woken by `comes`.
        let _ = self.comes().now_or_never();
        match self {
            Self::Awaited { since, .. } => Some(Crowd {
                since: *since,
                message: gate.crowd(namespace),
            }),
            Self::Free | Self::Taken(_) => None,
        }
    }

    /// Ends when the place that it waits for has come; never, if it waits for none.
    pub async fn comes(&mut self) {
        match self {
            Self::Awaited { place, .. } => *self = place.await.map_or(Self::Free, Self::Taken),
            Self::Free | Self::Taken(_) => std::future::pending().await,
        }
    }
}

/// The right to record a start and to run its command to the end. While one is open the process says that it is alive.
#[derive(Debug)]
pub struct Claim {
    gate: Arc<Gate>,
}

impl Gate {
    /// `total`, `per_namespace`: how many commands may run at once.
    pub fn new(standing: Arc<Standing>, total: usize, per_namespace: usize) -> Self {
        Self {
            standing,
            total: Arc::new(Semaphore::new(total)),
            in_total: total,
            per_namespace,
            namespaces: Mutex::default(),
            claims: Mutex::default(),
        }
    }

    /// Waits for a place; who waits first is served first. `None` never comes: the semaphores are not closed.
    pub fn place(&self, namespace: &str) -> impl Future<Output = Option<Place>> + Send + Sync + use<> {
        let (in_namespace, in_total) = (self.namespace(namespace), Arc::clone(&self.total));
        async move {
            // First the narrower one: who waits there must not take a place in total from other namespaces.
            let in_namespace = in_namespace.acquire_owned().await.ok()?;
            let in_total = in_total.acquire_owned().await.ok()?;
            Some(Place {
                _in_namespace: in_namespace,
                _in_total: in_total,
            })
        }
    }

    /// Why there is no place in a namespace now, in words.
    fn crowd(&self, namespace: &str) -> String {
        if self.total.available_permits() == 0 {
            return format!("{} commands run, and no more may at once", self.in_total);
        }
        let limit = self.per_namespace;
        let running = limit.saturating_sub(self.namespace(namespace).available_permits());
        format!("{running} commands run in namespace {namespace}, {limit} at most may at once")
    }

    fn namespace(&self, name: &str) -> Arc<Semaphore> {
        let mut all = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name) {
            return Arc::clone(known);
        }
        // Those that nobody uses or waits for go, so that the map does not grow for ever.
        all.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        let new = Arc::new(Semaphore::new(self.per_namespace));
        all.insert(name.to_owned(), Arc::clone(&new));
        new
    }

    /// The right to start a command; `None` when this process does not hold the Lease, or ends.
    pub fn claim(self: &Arc<Self>) -> Option<Claim> {
        let mut claims = self.claims();
        if claims.closed || !self.standing.is_held() {
            return None;
        }
        claims.open += 1;
        drop(claims);
        Some(Claim { gate: Arc::clone(self) })
    }

    /// Whether a claim that was given may still be used to start a command.
    pub fn is_open(&self) -> bool {
        !self.claims().closed && self.standing.is_held()
    }

    /// Gives no more claims; returns how many are open.
    pub fn close(&self) -> usize {
        let mut claims = self.claims();
        claims.closed = true;
        claims.open
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.gate.claims();
        claims.open = claims.open.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::time::Duration;

    fn gate(total: usize, per_namespace: usize) -> Arc<Gate> {
        let standing = Standing::new("me".to_owned(), Duration::from_secs(600));
        standing.hold();
        Arc::new(Gate::new(Arc::new(standing), total, per_namespace))
    }

    #[test]
    fn a_full_namespace_holds_back_no_other() {
        let gate = gate(3, 1);
        let first = gate.place("a").now_or_never().flatten();
        assert!(first.is_some());
        assert!(gate.place("a").now_or_never().is_none());
        let second = gate.place("b").now_or_never().flatten();
        let third = gate.place("c").now_or_never().flatten();
        assert!(second.is_some() && third.is_some());
        assert!(gate.place("d").now_or_never().is_none(), "three in total");
        drop(first);
        assert!(gate.place("a").now_or_never().flatten().is_some());
    }

    #[test]
    fn namespaces_are_forgotten() {
        let gate = gate(1000, 1);
        for number in 0..100 {
            let _ = gate.place(&number.to_string()).now_or_never();
        }
        assert!(gate.namespaces.lock().unwrap().len() <= 2);
    }

    #[test]
    fn no_claim_without_the_lease_or_after_the_end() {
        let standing = Arc::new(Standing::new("me".to_owned(), Duration::from_secs(600)));
        let gate = Arc::new(Gate::new(Arc::clone(&standing), 1, 1));
        assert!(gate.claim().is_none() && !gate.is_open());
        standing.hold();
        let claim = gate.claim();
        assert!(claim.is_some());
        assert_eq!(gate.close(), 1);
        assert!(gate.claim().is_none() && !gate.is_open());
        drop(claim);
        assert_eq!(gate.close(), 0);
    }
}

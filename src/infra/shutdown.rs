//! Starting and ending a process: tasks that must live, and an orderly end on SIGTERM or SIGINT.
//!
//! The end has two steps, since what serves others needs its background (caches, health, certificates) until its last
//! request is answered: `stopping` fires at the signal and ends the foreground; when that is done `ended` fires and ends
//! the background.

use std::{
    fmt::Display,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

/// Why a process ends other than well.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// A task that has to run as long as the process does ended before it.
    #[error("{task} ended: {reason}")]
    TaskEnded {
        /// Its name.
        task: &'static str,
        /// What it said.
        reason: String,
    },
    /// Signals can't be caught.
    #[error("signals can't be caught: {0}")]
    Signals(std::io::Error),
}

/// The life of a process. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stopping: CancellationToken,
    ended: CancellationToken,
    foreground: TaskTracker,
    background: TaskTracker,
    failure: Arc<Mutex<Option<ShutdownError>>>,
}

impl Shutdown {
    /// A life that only [`Self::stop`] or a failing task ends.
    pub fn new() -> Self {
        Self::default()
    }

    /// A life that ends at SIGTERM or SIGINT.
    pub fn on_signals() -> Result<Self, ShutdownError> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate()).map_err(ShutdownError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ShutdownError::Signals)?;
        let (stopping, ended) = (shutdown.stopping.clone(), shutdown.ended.clone());
        shutdown.background.spawn(async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM: ending"),
                _ = interrupt.recv() => info!("SIGINT: ending"),
                () = ended.cancelled() => {}
            }
            stopping.cancel();
        });
        Ok(shutdown)
    }

    /// Fires when the end begins.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Fires when the foreground is done.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Begins the end.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Runs what the process is there for; it ends by itself after [`Self::stopping`].
    pub fn spawn_foreground<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.foreground.spawn(self.clone().watched(name, task));
    }

    /// Runs what the foreground needs; it ends by itself after [`Self::ended`].
    pub fn spawn_background<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.background.spawn(self.clone().watched(name, task));
    }

    /// Runs a task of which there are many; it may end when it likes. One that panics ends the process: what it was to do would
    /// wait for ever, and the next process takes it up.
    pub async fn unless_it_panics(self, name: &'static str, task: impl Future<Output = ()>) {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            self.fail(name, "it panicked".to_owned());
        }
    }

    /// A task that ends early or badly, or panics, ends the process.
    async fn watched<E: Display>(self, name: &'static str, task: impl Future<Output = Result<(), E>>) {
        let reason = match AssertUnwindSafe(task).catch_unwind().await {
            Ok(Ok(())) if self.stopping.is_cancelled() => return,
            Ok(Ok(())) => "without a reason".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        self.fail(name, reason);
    }

    fn fail(&self, name: &'static str, reason: String) {
        error!(
            task = name,
            reason, "a task ended that has to live as long as the process"
        );
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(ShutdownError::TaskEnded { task: name, reason });
        drop(failure);
        self.stopping.cancel();
    }

    /// Waits for the end to begin, then for the foreground, then for the background (for that at most `patience`). Fails if
    /// a task ended before its time.
    pub async fn finish(self, patience: Duration) -> Result<(), ShutdownError> {
        self.stopping.cancelled().await;
        self.foreground.close();
        self.foreground.wait().await;
        self.ended.cancel();
        self.background.close();
        if tokio::time::timeout(patience, self.background.wait()).await.is_err() {
            warn!("background tasks did not end in time and are cut off");
        }
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_background_outlives_the_foreground() {
        let shutdown = Shutdown::new();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (foreground, background) = (Arc::clone(&order), Arc::clone(&order));
        let (stopping, ended) = (shutdown.stopping(), shutdown.ended());
        shutdown.spawn_background("background", async move {
            ended.cancelled().await;
            background.lock().unwrap().push("background");
            Ok::<_, Infallible>(())
        });
        shutdown.spawn_foreground("foreground", async move {
            stopping.cancelled().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            foreground.lock().unwrap().push("foreground");
            Ok::<_, Infallible>(())
        });
        shutdown.stop();
        shutdown.finish(PATIENCE).await.unwrap();
        assert_eq!(*order.lock().unwrap(), ["foreground", "background"]);
    }

    #[tokio::test]
    async fn a_task_that_ends_early_ends_the_process() {
        let ends = || async { Ok::<_, Infallible>(()) };
        let fails = || async { Err("broken") };
        let panics = || async {
            assert!(std::hint::black_box(false), "boom");
            Ok::<_, Infallible>(())
        };
        let early = Shutdown::new();
        early.spawn_background("early", ends());
        assert!(early.finish(PATIENCE).await.is_err());
        let failing = Shutdown::new();
        failing.spawn_foreground("failing", fails());
        assert_eq!(
            failing.finish(PATIENCE).await.unwrap_err().to_string(),
            "failing ended: broken"
        );
        let panicking = Shutdown::new();
        panicking.spawn_background("panicking", panics());
        assert!(panicking.finish(PATIENCE).await.is_err());
        let one_of_many = Shutdown::new();
        one_of_many.clone().unless_it_panics("run", async {}).await;
        assert!(!one_of_many.stopping().is_cancelled());
        let panics = async { assert!(std::hint::black_box(false), "boom") };
        one_of_many.clone().unless_it_panics("run", panics).await;
        assert!(one_of_many.finish(PATIENCE).await.is_err());
    }
}

//! The functions that phases call, done for real. Each can be taken up again by another process, except `KubeExec`.

pub mod kube_exec;
pub mod kube_ops;
pub mod kube_task;
pub mod scale;
pub mod wait;

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use super::{
    Settings,
    end::Outcome,
    recorder::{Recorder, TurnError},
};
use crate::{
    blueprint::{Params, call::FunctionCall},
    digest,
    duration::GoDuration,
    infra::kube::Clients,
};

pub use kube_task::remove_pods;

/// The first pause of a poll, as Kanister's; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause of a poll. Kanister's is 10 s.
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What all functions need.
#[derive(Clone, Copy)]
pub struct Tools<'a> {
    /// The clients.
    pub clients: &'a Clients,
    /// The controller's settings.
    pub settings: &'a Settings,
}

/// Which phase is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The hook's index.
    pub hook: usize,
    /// The phase's index.
    pub phase: usize,
}

/// One phase on its way.
pub struct Running<'a> {
    /// Clients and settings.
    pub tools: Tools<'a>,
    /// Writes what must be known before the next thing is done.
    pub recorder: &'a mut Recorder,
    /// Which phase.
    pub place: Place,
    /// The params of its templates.
    pub params: &'a Params,
    /// When it was begun.
    pub started_at: Timestamp,
    /// It was begun before: by a process that is gone, or by this one, until an error came.
    pub resumed: bool,
}

impl Running<'_> {
    fn client(&self) -> &Client {
        &self.tools.clients.api
    }

    /// A name for what this phase makes: the same each time, for this try of this phase.
    fn unique_hex(&self) -> String {
        let action = self.recorder.action();
        let (hook, attempt) = match action.status.hooks.get(self.place.hook) {
            Some(hook) => (format!("{}/{}", hook.hook.path(), hook.namespace), hook.attempt),
            None => (String::new(), 0),
        };
        digest::hex(&format!("{}/{hook}/{attempt}/{}", action.uid, self.place.phase), 8)
    }
}

/// Runs a call to its end. An error is passing: the phase is taken up again.
pub async fn run(call: FunctionCall, running: &mut Running<'_>) -> Result<Outcome, TurnError> {
    match call {
        FunctionCall::KubeTask(task) => kube_task::run(&task, running).await,
        FunctionCall::Wait(wait) => wait::run(&wait, running).await,
        FunctionCall::KubeExec(exec) => Ok(kube_exec::run(&exec, running).await),
        FunctionCall::KubeOps(ops) => kube_ops::run(&ops, running).await,
        FunctionCall::ScaleWorkload(scale) => scale::run(&scale, running).await,
    }
}

/// Growing pauses.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LAST_PAUSE);
    }
}

/// Whether this much time has gone since a start.
fn is_over(start: Timestamp, limit: GoDuration, now: Timestamp) -> bool {
    now.duration_since(start) >= limit.to_signed()
}

/// What the API server refused for good; anything else may pass.
fn refusal(error: kube::Error) -> Result<String, TurnError> {
    match error {
        kube::Error::Api(status) if (400..500).contains(&status.code) && !matches!(status.code, 409 | 429) => {
            Ok(status.message.clone())
        }
        other => Err(other.into()),
    }
}

/// What could not be read, without the value that stands there: it may hold a secret.
fn expectation(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None if text.starts_with("missing field") => text,
        None => "a field has the wrong form".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_do_not_repeat_values() {
        let pod = json!({"spec": {"containers": [{"name": "c", "env": "hunter2"}]}});
        let error = serde_json::from_value::<Pod>(pod).unwrap_err();
        assert!(error.to_string().contains("hunter2"), "{error}");
        let told = expectation(&error);
        assert!(told.contains("sequence") && !told.contains("hunter2"), "{told}");
    }
}

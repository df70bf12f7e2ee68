//! `KubeExec`: a command in a container. The only function that nobody can take over: an exec has no name to find it by.

use futures::future::join;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Running, kube_task::shown};
use crate::{
    actions::end::Outcome,
    blueprint::{call::KubeExec, output},
    infra::kube::reason,
    waiter::{attempt::Outcome as ExecOutcome, exec, output::OutputRules},
};

/// The most of each stream that is kept, in bytes. A longer standard output fails the phase: its outputs could not be read.
const OUTPUT_LIMIT: usize = 16 << 20;
/// How long output may still come once the end is known.
const LAST_OUTPUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs the command once.
pub async fn run(call: &KubeExec, running: &Running<'_>) -> Outcome {
    let rules = &running.tools.settings.output;
    let pods: Api<Pod> = Api::namespaced(running.client().clone(), &call.namespace);
    let pod = match pods.get(&call.pod).await {
        Ok(pod) => pod,
        Err(error) => return Outcome::Failed(format!("not started: {}", reason(&error))),
    };
    let first = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.containers.first())
        .map(|container| container.name.clone());
    let container = call
        .container
        .clone()
        .filter(|name| !name.is_empty())
        .or(first)
        .unwrap_or_default();
    // Never retried by itself.
    let pods: Api<Pod> = Api::namespaced(running.tools.clients.exec.clone(), &call.namespace);
    let mut process = match exec::attach(&pods, &call.pod, &container, &call.command).await {
        Ok(process) => process,
        Err(not_attached) => return outcome(&not_attached, &[], &[], false, rules),
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (process.stdout(), process.stderr());
    let streams = join(read(out, &mut stdout), read(err, &mut stderr));
    let (ended, whole) = exec::follow(process, streams, LAST_OUTPUT).await;
    let whole = whole.is_some_and(|(whole, _)| whole);
    let ended = match ended {
        ExecOutcome::Exited(0) => exec::confirm(&pods, &call.pod, &container).await,
        ended => ended,
    };
    outcome(&ended, &stdout, &stderr, whole, rules)
}

fn outcome(ended: &ExecOutcome, stdout: &[u8], stderr: &[u8], whole: bool, rules: &OutputRules) -> Outcome {
    match ended {
        ExecOutcome::Exited(0) if !whole => Outcome::Unknown(format!(
            "exit code 0, but its output is longer than {OUTPUT_LIMIT} bytes, or its end did not come"
        )),
        ExecOutcome::Exited(0) => match output::parse(stdout) {
            Ok(output) => Outcome::Succeeded(output.into_iter().collect()),
            Err(error) => Outcome::Failed(error.to_string()),
        },
        ExecOutcome::Exited(code) => Outcome::Failed(format!(
            "exit code {code}{}{}",
            shown("; stdout", stdout, rules),
            shown("; stderr", stderr, rules)
        )),
        ExecOutcome::Refused(why) | ExecOutcome::TurnedAway { why, .. } => {
            Outcome::Failed(format!("the command could not be started: {}", rules.words(why)))
        }
        // This function sets no limit of its own, and keeps no claims: neither comes out of an exec here.
        ExecOutcome::TimedOut { .. } | ExecOutcome::ProcessGone => {
            Outcome::Unknown("nobody knows how the command has ended".to_owned())
        }
        ExecOutcome::Lost(why) => Outcome::Unknown(format!(
            "the connection broke before the exit code came, so its end is not known: {}",
            rules.words(why)
        )),
    }
}

/// Reads a stream to its end; true if all of it was kept.
async fn read(stream: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> bool {
    let Some(mut stream) = stream else { return true };
    let mut buffer = vec![0_u8; 8192];
    let mut whole = true;
    while let Ok(count) = stream.read(&mut buffer).await {
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        // The rest is read all the same: a full pipe would stop the command.
        if into.len() + chunk.len() <= OUTPUT_LIMIT {
            into.extend_from_slice(chunk);
        } else {
            whole = false;
        }
    }
    whole
}

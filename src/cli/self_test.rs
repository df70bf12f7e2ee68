//! `reveille self-test`: proves with a dry run that a restored pod gets its hooks. The chart runs it as `helm test`.

use std::{collections::BTreeMap, io::Write, process::ExitCode, time::Duration};

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{
    duration::GoDuration,
    infra::{
        clock::Stopwatch,
        kube::{clients, reason},
    },
    names::{INIT_PREFIX, PLAN_ANNOTATION, POST_PREFIX, REVEILLE_DOMAIN, SELF_TEST_LABEL},
};

/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// The container that is to be injected.
const CONTAINER: &str = "reveille-self-test";

/// Asks the API server, by a dry run, what it would make of a restored pod, and looks for its hooks in the answer.
///
/// Nothing is created. Exit code: 0 the init container and the plan are there, 2 they are not.
#[derive(Args, Debug)]
pub struct SelfTestArgs {
    /// Reveille's own namespace: there the webhook is asked about such dry runs.
    #[arg(long, env = "POD_NAMESPACE", default_value = "reveille")]
    namespace: String,
    /// How long to try: right after an installation the API server may not reach the webhook yet.
    #[arg(long, default_value = "60s")]
    timeout: GoDuration,
}

/// Runs the command.
pub async fn run(args: SelfTestArgs) -> anyhow::Result<ExitCode> {
    let pods: Api<Pod> = Api::namespaced(clients().await?.api, &args.namespace);
    let pod: Pod = serde_json::from_value(restored_pod())?;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let (watch, limit) = (Stopwatch::start(), args.timeout.to_std().unwrap_or_default());
    loop {
        let missing = match pods.create(&dry_run, &pod).await {
            Ok(answer) => missing(&answer),
            Err(error) => Some(format!("the API server refused the pod: {}", reason(&error))),
        };
        let Some(missing) = missing else {
            // A closed stream is no reason to fail.
            let _ = writeln!(
                std::io::stdout(),
                "ok: a restored pod gets its init container and its plan (dry run)"
            );
            return Ok(ExitCode::SUCCESS);
        };
        if watch.elapsed() >= limit {
            bail!("{missing}; `reveille check` tells more");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A pod with one hook of each kind that any namespace lets in, restricted ones too.
fn restored_pod() -> serde_json::Value {
    let annotations = BTreeMap::from([
        (
            format!("{INIT_PREFIX}{REVEILLE_DOMAIN}/container-image"),
            "registry.invalid/none",
        ),
        (format!("{INIT_PREFIX}{REVEILLE_DOMAIN}/container-name"), CONTAINER),
        (format!("{POST_PREFIX}{REVEILLE_DOMAIN}/command"), "true"),
    ]);
    let security = json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let resources = json!({"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}});
    json!({
        "metadata": {"generateName": "reveille-self-test-", "labels": {SELF_TEST_LABEL: "true"}, "annotations": annotations},
        "spec": {
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main", "image": "registry.invalid/none", "securityContext": security, "resources": resources,
            }],
        },
    })
}

/// What is not as it should be, in words.
fn missing(answer: &Pod) -> Option<String> {
    let injected = answer
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .any(|container| container.name == CONTAINER);
    let annotations = answer.metadata.annotations.as_ref();
    let planned = annotations.is_some_and(|annotations| annotations.contains_key(PLAN_ANNOTATION));
    match (injected, planned) {
        (true, true) => None,
        (false, false) => Some("the API server did not ask the webhook, or got no answer".to_owned()),
        (false, true) => Some("the pod has a plan and no init container".to_owned()),
        (true, false) => Some("the pod has an init container and no plan".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::{Mode, PodContext, decide_pod, patch},
        hooks::restored::Restored,
    };
    use jiff::Timestamp;

    #[test]
    fn the_pod_passes_once_the_webhook_has_seen_it_and_not_before() {
        let pod = restored_pod();
        let read = |value| serde_json::from_value::<Pod>(value).unwrap();
        assert!(missing(&read(pod.clone())).is_some_and(|words| words.contains("did not ask")));
        let context = PodContext {
            namespace: "reveille",
            restored: Restored::ByMarker(SELF_TEST_LABEL.to_owned()),
            mode: Mode::Takeover,
            marks_protected: false,
            now: Timestamp::UNIX_EPOCH,
        };
        let after = patch::apply(&pod, &decide_pod(&pod, &context).operations).unwrap();
        assert_eq!(missing(&read(after)), None);
    }
}

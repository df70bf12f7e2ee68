//! `KubeTask`: a command in a pod of its own. The pod's name follows from action, hook, try and phase, so whoever takes over
//! finds it again, and a second one can't be made.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, LogParams, PostParams},
};
use serde_json::{Map, Value};

use super::{Pauses, Running, expectation, is_over, refusal};
use crate::{
    actions::{
        action::ACTION_LABEL,
        end::{Outcome, set_condition},
        pod::{self, CONTAINER, Setting, TaskState},
        recorder::TurnError,
    },
    api::action::PodReference,
    blueprint::{call::KubeTask, output},
    infra::{
        clock,
        kube::{is_conflict, is_not_found},
    },
    waiter::{
        events::cut,
        output::{OutputRules, Tail},
    },
};

/// The ConfigMap that has the last word about hook pods.
const OVERRIDE_CONFIG_MAP: &str = "pod-spec-override";
/// Its key.
const OVERRIDE_KEY: &str = "override";
/// The most of a log that is read, in bytes; the kubelet keeps 10 MiB of it by default.
const LOG_LIMIT: i64 = 32 << 20;
/// What is said when an image could be pulled after all.
const PULLED: &str = "the image was pulled in the end";
/// How many of its last lines a failure shows.
const SHOWN_LINES: usize = 10;

/// Runs the task.
pub async fn run(task: &KubeTask, running: &mut Running<'_>) -> Result<Outcome, TurnError> {
    let own = running.tools.settings.namespace.clone();
    let namespace = task.namespace.clone().filter(|name| !name.is_empty()).unwrap_or(own);
    let pods: Api<Pod> = Api::namespaced(running.client().clone(), &namespace);
    let name = format!("kanister-job-{}", running.unique_hex());
    let recorded = running
        .recorder
        .phase(running.place.hook, running.place.phase)
        .and_then(|phase| phase.pod.clone());
    let found = match (pods.get_opt(&name).await?, recorded) {
        (Some(pod), _) => pod,
        (None, Some(recorded)) => {
            return Ok(Outcome::Unknown(format!(
                "its pod {}/{} is gone, so nobody knows how its command ended",
                recorded.namespace, recorded.name
            )));
        }
        (None, None) => match create(task, &pods, &name, &namespace, running).await? {
            Ok(pod) => pod,
            Err(why) => return Ok(Outcome::Failed(why)),
        },
    };
    let uid = found.metadata.uid.clone().unwrap_or_default();
    let action = running.recorder.action().uid.clone();
    if found
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(ACTION_LABEL))
        != Some(&action)
    {
        return Ok(Outcome::Failed(format!(
            "there is a pod {namespace}/{name} that another has made"
        )));
    }
    let reference = PodReference {
        namespace,
        name: name.clone(),
        uid: uid.clone(),
    };
    running
        .recorder
        .edit_phase(running.place.hook, running.place.phase, |phase| {
            phase.pod = Some(reference);
        })
        .await?;
    clear(
        running,
        "PodRefused",
        "Created",
        "the hook's pod was created in the end",
    )
    .await?;
    follow(&pods, &name, &uid, running).await
}

async fn create(
    task: &KubeTask,
    pods: &Api<Pod>,
    name: &str,
    namespace: &str,
    running: &mut Running<'_>,
) -> Result<Result<Pod, String>, TurnError> {
    let last_word = match last_word(running.client(), &running.tools.settings.namespace).await? {
        Ok(last_word) => last_word,
        Err(why) => return Ok(Err(why)),
    };
    let settings = running.tools.settings;
    let setting = Setting {
        name,
        namespace,
        action: &running.recorder.action().uid,
        action_namespace: &settings.namespace,
        service_account: (namespace == settings.namespace)
            .then_some(settings.service_account.as_deref())
            .flatten(),
        force_root: settings.force_root,
        last_word: last_word.as_ref(),
    };
    let pod = match pod::task_pod(task, &setting) {
        Ok(pod) => pod,
        Err(why) => return Ok(Err(why)),
    };
    let pod: Pod = match serde_json::from_value(pod) {
        Ok(pod) => pod,
        Err(error) => return Ok(Err(format!("podOverride makes no pod: {}", expectation(&error)))),
    };
    match pods.create(&PostParams::default(), &pod).await {
        Ok(pod) => Ok(Ok(pod)),
        // Made a moment ago by a process that could not write it down any more.
        Err(error) if is_conflict(&error) => Ok(pods
            .get_opt(name)
            .await?
            .ok_or_else(|| TurnError::Kube(error))
            .map(Ok)?),
        Err(error) => {
            let why = refusal(error)?;
            let text = if why.contains("PodSecurity") {
                let hint = if settings.force_root {
                    "hook pods run as root by default: set actions.forceRootInKanisterHooks to false and give the phase a \
                     podOverride.securityContext, or run it in another namespace"
                } else {
                    "give the phase a podOverride.securityContext that the namespace allows"
                };
                format!("namespace {namespace} refuses the hook's pod: {why}; {hint}")
            } else {
                format!("the pod could not be created in namespace {namespace}: {why}")
            };
            say(running, "PodRefused", true, "Refused", &text).await?;
            Ok(Err(text))
        }
    }
}

/// The `spec` of the override ConfigMap, if there is one.
async fn last_word(client: &Client, namespace: &str) -> Result<Result<Option<Map<String, Value>>, String>, TurnError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let Some(map) = maps.get_opt(OVERRIDE_CONFIG_MAP).await? else {
        return Ok(Ok(None));
    };
    let Some(text) = map.data.as_ref().and_then(|data| data.get(OVERRIDE_KEY)) else {
        return Ok(Err(format!(
            "ConfigMap {namespace}/{OVERRIDE_CONFIG_MAP} has no key {OVERRIDE_KEY}"
        )));
    };
    let pod: Value = match serde_saphyr::from_str(text) {
        Ok(pod) => pod,
        Err(error) => {
            return Ok(Err(format!(
                "key {OVERRIDE_KEY} of ConfigMap {namespace}/{OVERRIDE_CONFIG_MAP} is no YAML: {error}"
            )));
        }
    };
    match pod.get("spec") {
        None | Some(Value::Null) => Ok(Ok(None)),
        Some(Value::Object(spec)) => Ok(Ok(Some(spec.clone()))),
        Some(_) => Ok(Err(format!(
            "key {OVERRIDE_KEY} of ConfigMap {namespace}/{OVERRIDE_CONFIG_MAP}: spec is no object"
        ))),
    }
}

/// Waits for the command's end and reads its output.
async fn follow(pods: &Api<Pod>, name: &str, uid: &str, running: &mut Running<'_>) -> Result<Outcome, TurnError> {
    let mut pauses = Pauses::new();
    let limit = running.tools.settings.pod_start_timeout;
    loop {
        let Some(pod) = pods
            .get_opt(name)
            .await?
            .filter(|pod| pod.metadata.uid.as_deref() == Some(uid))
        else {
            return Ok(Outcome::Unknown(format!(
                "its pod {name} was deleted while it ran, so nobody knows how its command ended"
            )));
        };
        let value = serde_json::to_value(&pod).map_err(|error| TurnError::Unreadable(error.to_string()))?;
        let image = value
            .pointer("/spec/containers/0/image")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match pod::task_state(&value) {
            TaskState::Exited(code) => {
                clear(running, "ImagePull", "Pulled", PULLED).await?;
                return end(pods, name, code, &running.tools.settings.output).await;
            }
            TaskState::Ended(why) => return Ok(Outcome::Failed(why)),
            TaskState::Hopeless(why) => {
                let text = format!("image {image} can't be used: {why}");
                say(running, "ImagePull", false, "Failed", &text).await?;
                return Ok(Outcome::Failed(text));
            }
            TaskState::Running => clear(running, "ImagePull", "Pulled", PULLED).await?,
            TaskState::Starting(why) => {
                if let Some(why) = why.as_deref().filter(|why| pod::is_image_trouble(why)) {
                    let text = format!("image {image} of pod {name} can't be pulled: {why}");
                    say(running, "ImagePull", false, "Failing", &text).await?;
                }
                if is_over(running.started_at, limit, clock::now()) {
                    let why = why.unwrap_or_else(|| "nobody says why".to_owned());
                    return Ok(Outcome::Failed(format!(
                        "pod {name} did not start within {limit}: {why}"
                    )));
                }
            }
        }
        pauses.pause().await;
    }
}

/// Reads the log of a command that has ended.
async fn end(pods: &Api<Pod>, name: &str, code: i32, rules: &OutputRules) -> Result<Outcome, TurnError> {
    let parameters = LogParams {
        container: Some(CONTAINER.to_owned()),
        limit_bytes: Some(LOG_LIMIT),
        ..LogParams::default()
    };
    let log = match pods.logs(name, &parameters).await {
        Ok(log) => log,
        Err(error) => {
            let why = format!("exit code {code}, but the log can't be read: {}", refusal(error)?);
            return Ok(if code == 0 {
                Outcome::Unknown(why)
            } else {
                Outcome::Failed(why)
            });
        }
    };
    if code != 0 {
        return Ok(Outcome::Failed(format!(
            "exit code {code}{}",
            shown("; its last lines", log.as_bytes(), rules)
        )));
    }
    Ok(match output::parse(log.as_bytes()) {
        Ok(output) => Outcome::Succeeded(output.into_iter().collect()),
        Err(error) => Outcome::Failed(error.to_string()),
    })
}

/// The last lines of an output, for a message, without secrets and without what is meant for other phases; nothing for an
/// empty one.
pub(super) fn shown(title: &str, output: &[u8], rules: &OutputRules) -> String {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().filter(|line| !line.contains("###Phase-output###:"));
    let mut tail = Tail::new(rules.tail);
    for line in lines {
        tail.push(line.as_bytes());
        tail.push(b"\n");
    }
    let text = tail.text(rules);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines
        .get(lines.len().saturating_sub(SHOWN_LINES)..)
        .unwrap_or_default()
        .join("\n");
    if last.trim().is_empty() {
        return String::new();
    }
    cut(&format!("{title}: {}", last.trim_end()), 1024)
}

/// Writes a condition, if it says something new.
async fn say(running: &mut Running<'_>, type_: &str, holds: bool, reason: &str, text: &str) -> Result<(), TurnError> {
    let mut status = running.recorder.status().clone();
    set_condition(&mut status, type_, holds, reason, cut(text, 1024), clock::now());
    let changed = |status: &crate::api::action::ActionStatus| {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_);
        found.map(|condition| (condition.status.clone(), condition.reason.clone()))
    };
    // The words of a back-off change with every look.
    if changed(&status) == changed(running.recorder.status()) {
        return Ok(());
    }
    tracing::warn!(
        action = running.recorder.action().name,
        condition = type_,
        text,
        "a hook's pod has trouble"
    );
    status.message = cut(text, 1024);
    running.recorder.write(status).await
}

/// Says that what a condition told of is over.
async fn clear(running: &mut Running<'_>, type_: &str, reason: &str, text: &str) -> Result<(), TurnError> {
    let told = running.recorder.status().troubles().find(|one| one.type_ == type_);
    let Some(holds) = told.map(|one| one.status != "True") else {
        return Ok(());
    };
    say(running, type_, holds, reason, text).await
}

/// Removes an action's pods, at once; those of one phase, or all. Gives how many there were.
pub async fn remove_pods(client: &Client, action: &str, only: Option<&PodReference>) -> Result<usize, TurnError> {
    let now = DeleteParams::default().grace_period(0);
    let gone = |error: kube::Error| if is_not_found(&error) { Ok(()) } else { Err(error) };
    if let Some(pod) = only {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
        pods.delete(&pod.name, &now).await.map(drop).or_else(gone)?;
        return Ok(1);
    }
    let selector = ListParams::default().labels(&format!("{ACTION_LABEL}={action}"));
    let all = Api::<Pod>::all(client.clone()).list_metadata(&selector).await?.items;
    for pod in &all {
        let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else {
            continue;
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        pods.delete(name, &now).await.map(drop).or_else(gone)?;
    }
    Ok(all.len())
}

//! Hooks that an annotation on a Velero object asks for. Velero copies a Schedule's annotations to its Backups, so a Schedule
//! is a policy for all of them. Each such object gets an action of its own, which waits for its end.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, PostParams, Preconditions},
    runtime::{
        WatchStreamExt,
        events::EventType,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    action::{ACTION_LABEL, Action, ActionKind, api_version},
    velero::resource,
};
use crate::{
    api::action::Hooks,
    digest,
    hooks::restored::is_terminal,
    infra::{
        clock,
        kube::{is_conflict, is_not_found, watch_reason},
    },
    waiter::events::Events,
};

/// Annotation on a Velero Schedule, Backup or Restore: `onSuccess` and `onFailure` in the words of an action's `hooks`, as YAML
/// or JSON.
pub const HOOKS_ANNOTATION: &str = "reveille.dev/execution-hooks";
/// Label on the actions that are made here.
pub const ASKED_LABEL: &str = "reveille.dev/asked-by";
/// An object that ended longer ago was seen by another controller, or its hooks would surprise more than help.
const TOO_LATE: SignedDuration = SignedDuration::from_hours(1);
/// The pause before an action that could not be made is tried to be made again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Follows Velero's objects of one kind until `end` fires.
pub async fn run(
    context: Arc<Context>,
    events: Events,
    kind: ActionKind,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let policies = Policies {
        context,
        events,
        kind,
        done: Mutex::default(),
    };
    tokio::select! {
        () = policies.follow() => {}
        () = end.cancelled() => {}
    }
    Ok(())
}

struct Policies {
    context: Arc<Context>,
    events: Events,
    kind: ActionKind,
    /// The objects (by uid) that need no further look as long as they have this annotation: an action that somebody deletes is
    /// not made again.
    done: Mutex<HashMap<String, String>>,
}

impl Policies {
    async fn follow(&self) {
        let velero = &self.context.settings.velero_namespace;
        let api: Api<DynamicObject> = Api::namespaced_with(
            self.context.clients.api.clone(),
            velero,
            &resource(self.kind.velero_kind()),
        );
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut listed = HashSet::new();
        let mut is_told = false;
        while let Some(event) = stream.next().await {
            is_told &= event.is_err();
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.extend(object.metadata.uid.clone());
                    self.look_at(&object).await;
                }
                Ok(Event::InitDone) => self.clear(|uid| !listed.contains(uid)).await,
                Ok(Event::Apply(object)) => self.look_at(&object).await,
                Ok(Event::Delete(object)) => self.clear(|uid| object.metadata.uid.as_deref() == Some(uid)).await,
                Err(error) if is_told => {
                    tracing::debug!(
                        reason = watch_reason(&error),
                        "the watch of Velero's objects failed again"
                    );
                }
                Err(error) => {
                    is_told = true;
                    let (kind, reason) = (self.kind.velero_kind(), watch_reason(&error));
                    tracing::warn!(
                        kind,
                        reason,
                        "Velero's objects can't be watched; the hooks that annotations ask for wait for that"
                    );
                }
            }
        }
    }

    async fn look_at(&self, object: &DynamicObject) {
        let value = serde_json::to_value(object).unwrap_or_default();
        let Some(asked) = asked_for(&value, clock::now()) else {
            return;
        };
        let kind = self.kind;
        let name = object.metadata.name.clone().unwrap_or_default();
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let annotations = object.metadata.annotations.iter().flatten();
        let text = annotations
            .filter(|(key, _)| *key == HOOKS_ANNOTATION)
            .map(|(_, text)| text.clone());
        let text: String = text.collect();
        if self.done().insert(uid.clone(), text.clone()) == Some(text) {
            return;
        }
        let action_name = action_name(kind, &name, &uid);
        let hooks = match asked {
            Asked::For(hooks) => hooks,
            Asked::Wrong(why) => return self.complain(object, &why).await,
            Asked::TooLate => {
                // Its action may have run long ago.
                if let Ok(None) = self.actions().get_metadata_opt(&action_name).await {
                    let why =
                        "it had ended more than an hour before its annotation was seen: its hooks are not run any more";
                    self.complain(object, why).await;
                }
                return;
            }
        };
        let has_pre_hook = hooks.pre_hook.is_some();
        let action = json!({
            "apiVersion": api_version(),
            "kind": kind.word(),
            "metadata": {"name": action_name, "labels": {ASKED_LABEL: "annotation"}},
            "spec": {"existing": {"name": name, "uid": uid}, "hooks": hooks},
        });
        let api = self.actions();
        let action: DynamicObject = match serde_json::from_value(action) {
            Ok(action) => action,
            Err(error) => return tracing::error!(%error, "an action could not be made"),
        };
        let mut pause = FIRST_PAUSE;
        loop {
            match api.create(&PostParams::default(), &action).await {
                Ok(_) if has_pre_hook => {
                    let why = "its annotation asks for a preHook: Velero begins with an object as soon as it is created and has no \
                               gate before that; its hooks are refused";
                    return self.complain(object, why).await;
                }
                Ok(_) => {
                    let kind = kind.velero_kind();
                    return tracing::info!(kind, name, "hooks of an annotation: an action is made");
                }
                Err(error) if is_conflict(&error) => return self.compare(object, &action.name_any(), &hooks).await,
                Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                    let message = &status.message;
                    let why = format!("annotation {HOOKS_ANNOTATION}: the action could not be made: {message}");
                    return self.complain(object, &why).await;
                }
                Err(error) => tracing::warn!(name, %error, "the action of an annotation could not be made yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// The object's action was made before. An annotation that has changed since changes nothing about it, and that is said.
    async fn compare(&self, object: &DynamicObject, name: &str, wanted: &Hooks) {
        if let Ok(Some(made)) = self.actions().get_opt(name).await
            && Action::read(self.kind, &made).is_ok_and(|made| made.request.hooks != *wanted)
        {
            let why = "its annotation was changed after its action had been made: the first text counts";
            self.complain(object, why).await;
        }
    }

    fn done(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn actions(&self) -> Api<DynamicObject> {
        let Context { clients, settings, .. } = self.context.as_ref();
        Api::namespaced_with(clients.api.clone(), &settings.namespace, &self.kind.resource())
    }

    async fn complain(&self, object: &DynamicObject, why: &str) {
        tracing::warn!(
            kind = self.kind.velero_kind(),
            name = object.metadata.name,
            why,
            "hooks of an annotation are refused"
        );
        let about = ObjectReference {
            api_version: Some("velero.io/v1".to_owned()),
            kind: Some(self.kind.velero_kind().to_owned()),
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone(),
            uid: object.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        // Equal Events are counted as one, and what they say is not compared.
        let action = format!("ExecutionHooks-{}", digest::hex(why, 4));
        self.events
            .publish(&about, EventType::Warning, "HooksRefused", &action, why)
            .await;
    }

    /// Removes the finished actions of objects that are gone, as their records would pile up otherwise.
    async fn clear(&self, is_gone: impl Fn(&str) -> bool) {
        self.done().retain(|uid, _| !is_gone(uid));
        let api = self.actions();
        let list = match api.list(&ListParams::default().labels(ASKED_LABEL)).await {
            Ok(list) => list.items,
            Err(error) => return tracing::debug!(%error, "actions of annotations could not be listed"),
        };
        for object in list {
            let Ok(action) = Action::read(self.kind, &object) else {
                continue;
            };
            let gone = action
                .request
                .existing
                .as_ref()
                .is_some_and(|existing| is_gone(&existing.uid));
            if !(gone && action.status.phase.is_final()) {
                continue;
            }
            let parameters = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(action.uid.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            match api.delete(&action.name, &parameters).await {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => tracing::warn!(action = action.name, %error, "a finished action could not be removed"),
            }
        }
    }
}

/// What an annotation asks for.
enum Asked {
    For(Box<Hooks>),
    /// It can't be read.
    Wrong(String),
    /// Its object ended long before.
    TooLate,
}

/// The hooks that an object asks for; none if it has no annotation, if an action has made it, or if it is a copy.
fn asked_for(object: &Value, now: Timestamp) -> Option<Asked> {
    let metadata = object.get("metadata")?;
    let text = metadata.get("annotations")?.get(HOOKS_ANNOTATION)?.as_str()?;
    if metadata
        .get("labels")
        .and_then(|labels| labels.get(ACTION_LABEL))
        .is_some()
    {
        return None;
    }
    let status = object.get("status").unwrap_or(&Value::Null);
    let time = |value: &Value, key: &str| value.get(key)?.as_str()?.parse::<Timestamp>().ok();
    let (created, completed) = (time(metadata, "creationTimestamp"), time(status, "completionTimestamp"));
    if status.get("phase").and_then(Value::as_str).is_some_and(is_terminal) {
        // Velero copies Backups from the object store into each cluster: those are created after they were completed.
        let copied = created
            .zip(completed)
            .is_some_and(|(created, completed)| created > completed);
        let late = completed
            .or(created)
            .is_some_and(|end| now.duration_since(end) > TOO_LATE);
        if copied {
            return None;
        }
        if late {
            return Some(Asked::TooLate);
        }
    }
    Some(match read_hooks(text) {
        Ok(hooks) => Asked::For(Box::new(hooks)),
        Err(error) => Asked::Wrong(format!("annotation {HOOKS_ANNOTATION} can't be read: {error}")),
    })
}

/// The hooks in an annotation. The API server warns of an unknown key in an object, of one in an annotation nobody does.
fn read_hooks(text: &str) -> Result<Hooks, String> {
    const HOOKS: [&str; 3] = ["preHook", "onSuccess", "onFailure"];
    const HOOK: [&str; 3] = ["blueprint", "actionName", "subject"];
    const SUBJECT: [&str; 6] = ["name", "namespace", "type", "group", "apiVersion", "resource"];
    let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    known(&value, &HOOKS, "")?;
    for (name, hook) in fields(&value) {
        known(&hook, &HOOK, &format!("{name}."))?;
        if let Some(subject) = hook.get("subject") {
            known(subject, &SUBJECT, &format!("{name}.subject."))?;
        }
    }
    let hooks: Hooks = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if hooks == Hooks::default() {
        return Err(format!("it names no hook; it may name {}", HOOKS.join(", ")));
    }
    Ok(hooks)
}

fn known(value: &Value, keys: &[&str], path: &str) -> Result<(), String> {
    let unknown = value
        .as_object()
        .and_then(|fields| fields.keys().find(|key| !keys.contains(&key.as_str())));
    match unknown {
        Some(key) => Err(format!("{path}{key} is not known; there are {}", keys.join(", "))),
        None => Ok(()),
    }
}

/// The same each time, so that making it twice is harmless.
fn action_name(kind: ActionKind, name: &str, uid: &str) -> String {
    let cut: String = name.chars().take(200).collect();
    let kind = kind.velero_kind().to_ascii_lowercase();
    format!("{kind}-{}-{}", cut.trim_end_matches(['.', '-']), digest::hex(uid, 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(metadata: Value, status: Value) -> Value {
        let mut base = json!({
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {HOOKS_ANNOTATION: "onSuccess: {blueprint: b, actionName: a}"},
        });
        json_patch::merge(&mut base, &metadata);
        json!({"metadata": base, "status": status})
    }

    #[test]
    fn an_annotation_asks_for_hooks_unless_the_object_is_a_copy_or_old_or_an_actions_own() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let asked = |metadata: Value, status: Value| asked_for(&backup(metadata, status), now);
        let Some(Asked::For(hooks)) = asked(json!({}), json!({})) else {
            panic!("it asks for a hook")
        };
        assert_eq!(hooks.on_success.unwrap().action_name, "a");
        let done = |at: &str| json!({"phase": "Completed", "completionTimestamp": at});
        assert!(matches!(
            asked(json!({}), done("2026-01-01T00:30:00Z")),
            Some(Asked::For(_))
        ));
        // Copied from the object store.
        assert!(asked(json!({}), done("2025-12-31T23:59:00Z")).is_none());
        let old = json!({"creationTimestamp": "2025-01-01T00:00:00Z"});
        assert!(matches!(asked(old, done("2025-01-01T00:30:00Z")), Some(Asked::TooLate)));
        assert!(asked(json!({"labels": {ACTION_LABEL: "u"}}), json!({})).is_none());
        assert!(asked(json!({"annotations": {HOOKS_ANNOTATION: null}}), json!({})).is_none());
        for (text, words) in [
            ("onSuccess: 3", HOOKS_ANNOTATION),
            ("onFailed: {blueprint: b, actionName: a}", "onFailed is not known"),
            ("onSuccess: {blueprint: b, action: a}", "onSuccess.action is not known"),
            ("{}", "names no hook"),
        ] {
            let bad = json!({"annotations": {HOOKS_ANNOTATION: text}});
            let Some(Asked::Wrong(error)) = asked(bad, json!({})) else {
                panic!("{text}")
            };
            assert!(error.contains(words), "{error}");
        }
    }
}

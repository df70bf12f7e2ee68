//! Hooks that an annotation on a Velero object asks for. Velero copies a Schedule's annotations to its Backups, so a Schedule
//! is a policy for all of them. Each such object gets an action of its own, which waits for its end.

use std::{collections::HashSet, convert::Infallible, sync::Arc};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api,
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
        kube::{is_conflict, is_not_found, reason, watch_reason},
    },
    waiter::events::Events,
};

/// Annotation on a Velero Schedule, Backup or Restore: `onSuccess` and `onFailure` in the words of an action's `hooks`, as YAML
/// or JSON.
pub const HOOKS_ANNOTATION: &str = "reveille.dev/execution-hooks";
/// Label on the actions that are made here.
pub const ASKED_LABEL: &str = "reveille.dev/asked-by";
/// An object that ended longer ago was seen by another controller, or its hooks would surprise more than help.
const TOO_LATE: SignedDuration = SignedDuration::from_hours(24);

/// Follows Velero's objects of one kind until `end` fires.
pub async fn run(
    context: Arc<Context>,
    events: Events,
    kind: ActionKind,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let policies = Policies { context, events, kind };
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
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.extend(object.metadata.uid.clone());
                    self.look_at(&object).await;
                }
                Ok(Event::InitDone) => self.clear(|uid| !listed.contains(uid)).await,
                Ok(Event::Apply(object)) => self.look_at(&object).await,
                Ok(Event::Delete(object)) => self.clear(|uid| object.metadata.uid.as_deref() == Some(uid)).await,
                Err(error) => tracing::debug!(reason = watch_reason(&error), "the watch of Velero's objects failed"),
            }
        }
    }

    async fn look_at(&self, object: &DynamicObject) {
        let value = serde_json::to_value(object).unwrap_or_default();
        let Some(hooks) = asked_for(&value, clock::now()) else {
            return;
        };
        let kind = self.kind;
        let name = object.metadata.name.clone().unwrap_or_default();
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let hooks = match hooks {
            Ok(hooks) => hooks,
            Err(why) => {
                self.complain(object, &why).await;
                return;
            }
        };
        let action = json!({
            "apiVersion": api_version(),
            "kind": kind.word(),
            "metadata": {"name": action_name(kind, &name, &uid), "labels": {ASKED_LABEL: "annotation"}},
            "spec": {"existing": {"name": name, "uid": uid}, "hooks": hooks},
        });
        let api = self.actions();
        let action: DynamicObject = match serde_json::from_value(action) {
            Ok(action) => action,
            Err(error) => return tracing::error!(%error, "an action could not be made"),
        };
        match api.create(&PostParams::default(), &action).await {
            Ok(_) if hooks.pre_hook.is_some() => {
                let why = "its annotation asks for a preHook: Velero begins with an object as soon as it is created and has no gate \
                           before that; its hooks are refused";
                self.complain(object, why).await;
            }
            Ok(_) => tracing::info!(
                kind = kind.velero_kind(),
                name,
                "hooks of an annotation: an action is made"
            ),
            Err(error) if is_conflict(&error) => {}
            Err(error) => {
                let why = format!(
                    "annotation {HOOKS_ANNOTATION}: the action could not be made: {}",
                    reason(&error)
                );
                self.complain(object, &why).await;
            }
        }
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
        self.events
            .publish(&about, EventType::Warning, "HooksRefused", "ExecutionHooks", why)
            .await;
    }

    /// Removes the finished actions of objects that are gone, as their records would pile up otherwise.
    async fn clear(&self, is_gone: impl Fn(&str) -> bool) {
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

/// The hooks that an object asks for; none if it has no annotation, if an action has made it, or if its end is old news.
fn asked_for(object: &Value, now: Timestamp) -> Option<Result<Hooks, String>> {
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
        if copied || late {
            return None;
        }
    }
    let hooks = serde_saphyr::from_str::<Hooks>(text);
    Some(hooks.map_err(|error| format!("annotation {HOOKS_ANNOTATION} can't be read: {error}")))
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
        let hooks = asked(json!({}), json!({})).unwrap().unwrap();
        assert_eq!(hooks.on_success.unwrap().action_name, "a");
        let done = |at: &str| json!({"phase": "Completed", "completionTimestamp": at});
        assert!(asked(json!({}), done("2026-01-01T00:30:00Z")).is_some());
        // Copied from the object store.
        assert!(asked(json!({}), done("2025-12-31T23:59:00Z")).is_none());
        let old = json!({"creationTimestamp": "2025-01-01T00:00:00Z"});
        assert!(asked(old, done("2025-01-01T00:30:00Z")).is_none());
        assert!(asked(json!({"labels": {ACTION_LABEL: "u"}}), json!({})).is_none());
        assert!(asked(json!({"annotations": {HOOKS_ANNOTATION: null}}), json!({})).is_none());
        let bad = json!({"annotations": {HOOKS_ANNOTATION: "onSuccess: 3"}});
        assert!(asked(bad, json!({})).unwrap().unwrap_err().contains(HOOKS_ANNOTATION));
    }
}

//! Kubernetes Events: what happened, where people look first.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::{setback, traffic::Traffic, waiting::is_ordinary};
use crate::{
    api::{
        HookRun,
        hook_run::{HookRunSpec, HookState, InitState, InitStatus, PostStatus, Rerun},
    },
    infra::kube::reason as in_words,
    result::Verdict,
};

/// Kubernetes' limit on an Event's note, in bytes.
const NOTE_LIMIT: usize = 1024;

/// Writes Events. A failure to write one is logged and changes nothing else.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    traffic: Arc<Traffic>,
}

impl Events {
    /// `instance`: the name of this process' pod.
    pub fn new(client: Client, instance: Option<String>) -> Self {
        Self {
            traffic: Arc::default(),
            recorder: Recorder::new(
                client,
                Reporter {
                    controller: "reveille".to_owned(),
                    instance,
                },
            ),
        }
    }

    /// Lets what matters more go first.
    #[must_use]
    pub fn behind(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic, ..self }
    }

    /// Writes one. `action` keeps Events apart that have the same reason: equal ones are counted as one.
    pub async fn publish(&self, about: &ObjectReference, type_: EventType, reason: &str, action: &str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(cut(note, NOTE_LIMIT)),
            action: action.to_owned(),
            secondary: None,
        };
        let _turn = self.traffic.other().await;
        if let Err(error) = self.recorder.publish(&event, about).await {
            if setback::kind(&error) == setback::Kind::NamespaceEnds {
                tracing::debug!(reason, "an Event could not be written: the namespace is being deleted");
            } else {
                tracing::warn!(error = in_words(&error), reason, "an Event could not be written");
            }
        }
    }
}

/// A pod, as Events refer to it.
pub fn pod_reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// A Restore, as Events refer to it.
pub fn restore_reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("velero.io/v1".to_owned()),
        kind: Some("Restore".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// The Event for an init container whose state has changed; nothing for what is in order.
pub fn for_init(old: &InitStatus, new: &InitStatus) -> Option<(EventType, &'static str, String)> {
    let (type_, reason) = match new.state {
        InitState::TimedOut => (EventType::Warning, "InitTimedOut"),
        InitState::Failed => (EventType::Warning, "InitHookFailed"),
        InitState::Succeeded if old.state == InitState::Failed => (EventType::Normal, "InitHookSucceeded"),
        _ => return None,
    };
    let mut note = format!("init container {} of hook {}: {:?}", new.container, new.name, new.state);
    if !new.message.is_empty() {
        note = format!("{note}: {}", new.message);
    }
    Some((type_, reason, note))
}

/// The Event for a request to run again that was taken in or refused: type, reason and note.
pub fn for_rerun(rerun: &Rerun) -> (EventType, &'static str, String) {
    if let Some(why) = &rerun.refused {
        let note = format!("a rerun asked for {} is refused: {why}", rerun.request);
        return (EventType::Warning, "RerunRefused", note);
    }
    let hooks = rerun.hooks.join(", ");
    let note = format!("post hooks run again: {hooks}; asked for {}", rerun.request);
    (EventType::Normal, "HooksRunAgain", note)
}

/// How bad it is to wait for this: what comes by itself is ordinary.
pub fn for_waiting(reason: &str) -> EventType {
    if is_ordinary(reason) {
        EventType::Normal
    } else {
        EventType::Warning
    }
}

/// How many failed hooks the Event on a Restore names.
const NAMED: usize = 5;

/// The Event for a restore whose hooks have all ended: type, reason and note.
pub fn for_restore(verdict: &Verdict, runs: &[&HookRun]) -> (EventType, &'static str, String) {
    let hooks = || {
        runs.iter()
            .flat_map(|run| run.status.iter().map(move |status| (run, status)))
            .flat_map(|(run, status)| status.post.iter().map(move |post| (run, post)))
            .filter(|(_, post)| post.state != HookState::LeftToVelero)
    };
    let bad: Vec<String> = hooks()
        .filter(|(_, post)| post.state != HookState::Succeeded)
        .map(|(run, post)| {
            let namespace = run.metadata.namespace.as_deref().unwrap_or_default();
            format!("{namespace}/{} {}: {:?}", run.spec.pod.name, post.name, post.state)
        })
        .collect();
    let (type_, reason) = match verdict {
        Verdict::Failed(_) => (EventType::Warning, "HooksFailed"),
        _ => (EventType::Normal, "HooksSucceeded"),
    };
    let all = hooks().count();
    let mut note = format!(
        "pods with hooks: {}; post hooks that succeeded: {} of {all}",
        runs.len(),
        all - bad.len()
    );
    if !bad.is_empty() {
        let named = bad
            .iter()
            .take(NAMED)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        note = format!("{note}. Not: {named}");
        if bad.len() > NAMED {
            note = format!("{note} and {} more", bad.len() - NAMED);
        }
    }
    (type_, reason, note)
}

/// The Event for a hook that has ended: type, reason and note.
pub fn for_hook(spec: &HookRunSpec, index: usize, state: &PostStatus) -> (EventType, String, String) {
    let name = spec
        .plan
        .post
        .get(index)
        .map_or(state.name.as_str(), |hook| hook.name.as_str());
    let type_ = if state.state == HookState::Succeeded {
        EventType::Normal
    } else {
        EventType::Warning
    };
    let mut note = format!("post hook {name} in container {}: {:?}", state.container, state.state);
    if !state.message.is_empty() {
        note = format!("{note}: {}", state.message);
    }
    (type_, format!("Hook{:?}", state.state), note)
}

/// At most `limit` bytes, cut between characters.
pub fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(states: &[&str]) -> HookRun {
        let posts: Vec<_> = states
            .iter()
            .enumerate()
            .map(|(index, state)| serde_json::json!({"name": format!("h{index}"), "state": state}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": "r", "namespace": "shop"},
            "spec": {
                "pod": {"name": "db-0", "uid": "u", "createdAt": "2026-01-01T00:00:00Z"},
                "plan": {"version": 1, "plannedAt": "2026-01-01T00:00:00Z"},
            },
            "status": {"phase": "Succeeded", "post": posts},
        }))
        .unwrap()
    }

    #[test]
    fn a_restores_event_counts_all_hooks_and_names_a_few() {
        let well = run(&["Succeeded", "LeftToVelero"]);
        let (_, reason, note) = for_restore(&Verdict::Succeeded, &[&well]);
        assert_eq!(
            (reason, note.as_str()),
            (
                "HooksSucceeded",
                "pods with hooks: 1; post hooks that succeeded: 1 of 1"
            )
        );
        let bad = run(&["Failed"; 7]);
        let (_, reason, note) = for_restore(&Verdict::Failed(String::new()), &[&well, &bad]);
        assert_eq!(reason, "HooksFailed");
        assert!(
            note.starts_with("pods with hooks: 2; post hooks that succeeded: 1 of 8. Not: shop/db-0 h0: Failed, "),
            "{note}"
        );
        assert!(note.ends_with("h4: Failed and 2 more"), "{note}");
    }

    #[test]
    fn notes_are_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        let long = cut(&"ä".repeat(600), NOTE_LIMIT);
        assert!(long.len() <= NOTE_LIMIT && long.ends_with('…'));
    }
}

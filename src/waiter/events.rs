//! Kubernetes Events: what happened, where people look first.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::api::hook_run::{HookRunSpec, HookState, PostStatus};

/// Kubernetes' limit on an Event's note, in bytes.
const NOTE_LIMIT: usize = 1024;

/// Writes Events. A failure to write one is logged and changes nothing else.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// `instance`: the name of this process' pod.
    pub fn new(client: Client, instance: Option<String>) -> Self {
        Self {
            recorder: Recorder::new(
                client,
                Reporter {
                    controller: "reveille".to_owned(),
                    instance,
                },
            ),
        }
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
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(%error, reason, "an Event could not be written");
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

    #[test]
    fn notes_are_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        let long = cut(&"ä".repeat(600), NOTE_LIMIT);
        assert!(long.len() <= NOTE_LIMIT && long.ends_with('…'));
    }
}

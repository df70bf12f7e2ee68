//! What a run waits for, in words, and when it is time to say so. Pure.

use jiff::{SignedDuration, Timestamp};

use super::{
    conditions::{self, WAITING},
    gate::Crowd,
    init,
    pod_view::{ContainerView, PodView},
    step::Situation,
};
use crate::{
    api::hook_run::{HookRunSpec, HookRunStatus, HookState, InitState},
    hooks::PostHook,
};

/// What a run waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// A word for machines: the kubelet's own where it has one.
    pub(super) reason: String,
    /// A sentence that follows "waits: ".
    pub(super) message: String,
}

/// The word for a hook that waits for a place among the commands that may run at once.
const NO_FREE_SLOT: &str = "NoFreeSlot";
/// What comes by itself is said after so many times as long: in most restores it is no news.
const PATIENCE: i32 = 10;
/// The longest time between two reports of what has changed.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(10);

/// What is to be said about a run that waits.
pub(super) enum Report {
    /// Write this status: it says what the run waits for.
    Now(Box<HookRunStatus>),
    /// Look again at this time.
    At(Timestamp),
    /// Nothing.
    Nothing,
}

/// A run that waits says why once it has waited for a while, and again when the reason has changed, with growing pauses: a
/// container that crashes again and again causes a bounded number of writes.
pub(super) fn report(situation: &Situation) -> Report {
    let Situation {
        spec, status, pod, now, ..
    } = *situation;
    let mut seen = status.clone();
    init::observe_all(spec, &mut seen, pod, now);
    // A run that is paused says so, and waits for nothing else.
    let waiting = if status.paused_since.is_some() {
        None
    } else {
        reason(spec, &seen, pod, situation.crowd)
    };
    let Some(waiting) = waiting else {
        return Report::Nothing;
    };
    let said = status.conditions.iter().find(|condition| condition.type_ == WAITING);
    let is_waiting = said.filter(|said| said.status == "True");
    if is_waiting.is_some_and(|said| said.reason == waiting.reason) {
        return Report::Nothing;
    }
    let created = spec.pod.created_at;
    let last = said.map_or(created, |said| said.last_transition_time.0);
    let pause = match is_waiting {
        Some(_) => last
            .duration_since(created)
            .clamp(situation.report_after, LONGEST_PAUSE.max(situation.report_after)),
        None if is_ordinary(&waiting.reason) => situation.report_after.saturating_mul(PATIENCE),
        None => situation.report_after,
    };
    // A place that comes soon is no news, however long the run had waited for other things before.
    let queued = situation.crowd.filter(|_| waiting.reason == NO_FREE_SLOT);
    let queued = queued.and_then(|crowd| crowd.since.checked_add(situation.report_after).ok());
    match last
        .checked_add(pause)
        .map(|due| queued.map_or(due, |queued| due.max(queued)))
    {
        Ok(due) if due > now => Report::At(due),
        Ok(_) => {
            let mut new = seen;
            new.message = words(&waiting);
            conditions::waits(&mut new, &waiting, now);
            Report::Now(Box::new(new))
        }
        Err(_) => Report::Nothing,
    }
}

/// Whether this comes by itself: images are pulled, init containers restore data, containers start and become ready.
pub(super) fn is_ordinary(reason: &str) -> bool {
    matches!(
        reason,
        "PodInitializing"
            | "ContainerCreating"
            | "ContainerNotReady"
            | "ContainerNotRunning"
            | "InitContainerRunning"
            | "InitContainerNotEnded"
    )
}

/// The message of a run that waits.
pub(super) fn words(waiting: &Waiting) -> String {
    format!("waits: {}", waiting.message)
}

/// What the first hook that waits needs, or else an init container that is watched.
pub(super) fn reason(
    spec: &HookRunSpec,
    status: &HookRunStatus,
    pod: Option<&PodView>,
    crowd: Option<&Crowd>,
) -> Option<Waiting> {
    let pod = pod?;
    let waits = |reason: &str, message: String| {
        Some(Waiting {
            reason: reason.to_owned(),
            message,
        })
    };
    let mut hooks = spec.plan.post.iter().zip(&status.post);
    if let Some((hook, _)) = hooks.find(|(_, state)| state.state == HookState::Waiting) {
        let name = &hook.container;
        if let Some(why) = &pod.unscheduled {
            let word = why.split(':').next().unwrap_or_default();
            return waits(word, format!("the pod has no node ({why})"));
        }
        let Some(view) = pod.container(name) else {
            return waits("ContainerNotRunning", format!("container {name} does not run yet"));
        };
        if view.running {
            if hook.wait_for_ready && !view.ready {
                return waits("ContainerNotReady", format!("container {name} runs and is not ready"));
            }
            return crowd.and_then(|crowd| waits(NO_FREE_SLOT, crowd.message.clone()));
        }
        if matches!(view.waiting.as_deref(), None | Some("PodInitializing"))
            && let Some(waiting) = initializing(pod)
        {
            return Some(waiting);
        }
        let word = view.waiting.as_deref().unwrap_or("ContainerNotRunning");
        return waits(word, format!("container {name} does not run ({})", condition(view)));
    }
    let mut inits = spec.plan.init.iter().zip(&status.init);
    let (hook, state) = inits.find(|(_, state)| !init::is_over(state))?;
    let view = pod.container(&hook.container);
    let word = view
        .and_then(|view| view.waiting.as_deref())
        .unwrap_or(match state.state {
            InitState::Running => "InitContainerRunning",
            _ => "InitContainerNotEnded",
        });
    let how = view.map_or_else(|| "not started".to_owned(), condition);
    waits(
        word,
        format!("init container {} has not ended well ({how})", hook.container),
    )
}

/// Which init container holds the pod up, if one does.
fn initializing(pod: &PodView) -> Option<Waiting> {
    let mut init = pod.containers.iter().filter(|(_, view)| view.init && !view.ready);
    // Those behind it wait for it.
    let (name, view) = init.find(|(_, view)| {
        view.running || view.waiting.as_deref().is_some_and(|why| why != "PodInitializing") || view.ended.is_some()
    })?;
    let word = view.waiting.as_deref().filter(|why| *why != "PodInitializing");
    Some(Waiting {
        reason: word.unwrap_or("PodInitializing").to_owned(),
        message: format!("init container {name} has not ended ({})", condition(view)),
    })
}

/// How a container stands.
fn condition(view: &ContainerView) -> String {
    let ended = view
        .ended
        .as_ref()
        .map(|ended| format!("it has ended with exit code {}", ended.exit_code));
    let waiting = match (&view.waiting, &view.waiting_message) {
        (Some(why), Some(message)) => Some(format!("{why}: {message}")),
        (why, _) => why.clone(),
    };
    match (view.running, waiting, ended) {
        (true, ..) => "it runs".to_owned(),
        (_, Some(waiting), Some(ended)) => format!("{waiting}; {ended}"),
        (_, Some(words), None) | (_, None, Some(words)) => words,
        (_, None, None) => "not started".to_owned(),
    }
}

/// Why a hook can never run in this pod, although the pod goes on: end state, reason and words.
pub(super) fn never(hook: &PostHook, pod: Option<&PodView>) -> Option<(HookState, &'static str, String)> {
    let (pod, name) = (pod?, &hook.container);
    if !pod.declared.is_empty() && !pod.declared.contains(name) {
        let message = format!("the pod has no container {name}; it has {}", pod.declared.join(", "));
        return Some((HookState::Skipped, "ContainerMissing", message));
    }
    let view = pod.container(name).filter(|view| view.over)?;
    let code = view.ended.as_ref().map_or(0, |ended| ended.exit_code);
    let message = format!(
        "container {name} has ended (exit code {code}) and its restart policy does not start it again; the hook had not been started"
    );
    Some((HookState::Cancelled, "ContainerEnded", message))
}

#[cfg(test)]
mod tests;

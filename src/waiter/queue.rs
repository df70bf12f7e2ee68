//! What the waiter knows of the cluster, and whom to wake when it changes. Rebuilt from the watches at any time: nothing is
//! only in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::FutureExt;
use tokio::sync::Notify;

use super::{end::cancelling_failure, init, pod_view::PodView};
use crate::{
    api::{
        HookRun,
        hook_run::{Attempt, HookRunStatus, RunPhase},
    },
    control::{Controls, Request},
    hooks::restored::RestoreInfo,
};

/// A run by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunKey {
    /// The pod's namespace.
    pub namespace: String,
    /// The `HookRun`'s name, which follows from the pod's name and uid.
    pub name: String,
}

impl RunKey {
    /// The run of a pod.
    pub fn of_pod(pod: &PodView) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            name: pod.identity.run_name(),
        }
    }

    /// The key of a run; `None` if it never came from an API server.
    pub fn of_run(run: &HookRun) -> Option<Self> {
        Some(Self {
            namespace: run.metadata.namespace.clone()?,
            name: run.metadata.name.clone()?,
        })
    }
}

/// The queue, shared by the watches and the runs' tasks.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Planned pods without a run.
    pub unplanned: usize,
    /// Runs in which nothing has been started.
    pub pending: usize,
    /// Runs in which something has.
    pub running: usize,
    /// Finished runs that are still kept.
    pub finished: usize,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<RunKey, Arc<PodView>>,
    runs: HashMap<RunKey, Arc<HookRun>>,
    /// One task for each of these; it sleeps on its bell.
    bells: HashMap<RunKey, Arc<Notify>>,
    /// Restore uid to its runs in which a hook with onError Fail failed, each with the reason why that cancels what has not
    /// started in the others; the first failure first.
    failed: HashMap<String, Vec<(RunKey, String)>>,
    /// Restore uid to what people ask of that restore.
    controls: HashMap<String, RestoreControls>,
    /// Somebody has paused everything.
    pause: Option<Request>,
    /// Restores (by uid) of which a run is run again: their results change.
    rerun: HashSet<String>,
}

/// What people ask of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RestoreControls {
    cancel: Option<Request>,
    pause: Option<Request>,
}

impl Queue {
    /// Takes over a pod; returns the bell of a new task, if one must be started.
    pub fn pod_seen(&self, pod: PodView) -> Option<(RunKey, Arc<Notify>)> {
        let key = RunKey::of_pod(&pod);
        let mut state = self.lock();
        state.pods.insert(key.clone(), Arc::new(pod));
        state.ring(key)
    }

    /// A pod has left the watch: deleted, or no longer labelled.
    pub fn pod_gone(&self, key: &RunKey) {
        let mut state = self.lock();
        state.pods.remove(key);
        if let Some(bell) = state.bells.get(key) {
            bell.notify_one();
        }
    }

    /// Takes over a run; returns the bell of a new task, if one must be started.
    pub fn run_seen(&self, run: impl Into<Arc<HookRun>>) -> Option<(RunKey, Arc<Notify>)> {
        let run = without_output(run.into());
        let key = RunKey::of_run(&run)?;
        let asked_again = run.open_rerun().is_some();
        let unfinished = asked_again
            || run
                .status
                .as_ref()
                .is_none_or(|status| !status.phase.is_final() || watches_init(status));
        let mut state = self.lock();
        state.note_failure(&key, &run);
        let was_run_again = run.status.as_ref().is_some_and(|status| status.last_rerun().is_some());
        if let (true, Some(restore)) = (asked_again || was_run_again, &run.spec.plan.restore) {
            state.rerun.insert(restore.uid.clone());
        }
        state.keep_run(&key, run);
        if unfinished { state.ring(key) } else { None }
    }

    /// A run was deleted.
    pub fn run_gone(&self, key: &RunKey) {
        let mut state = self.lock();
        state.runs.remove(key);
        if let Some(bell) = state.bells.get(key) {
            bell.notify_one();
        }
    }

    /// Forgets the pods that a fresh list does not name, and wakes their runs.
    pub fn only_pods(&self, listed: &HashSet<RunKey>) {
        let gone: Vec<RunKey> = self
            .lock()
            .pods
            .keys()
            .filter(|key| !listed.contains(key))
            .cloned()
            .collect();
        for key in &gone {
            self.pod_gone(key);
        }
    }

    /// Forgets the runs that a fresh list does not name.
    pub fn only_runs(&self, listed: &HashSet<RunKey>) {
        let gone: Vec<RunKey> = self
            .lock()
            .runs
            .keys()
            .filter(|key| !listed.contains(key))
            .cloned()
            .collect();
        for key in &gone {
            self.run_gone(key);
        }
    }

    /// The pod of a run, if it is planned and there.
    pub fn pod(&self, key: &RunKey) -> Option<Arc<PodView>> {
        self.lock().pods.get(key).cloned()
    }

    /// A run as last seen.
    pub fn run(&self, key: &RunKey) -> Option<Arc<HookRun>> {
        self.lock().runs.get(key).cloned()
    }

    /// All runs of a restore.
    pub fn runs_of(&self, restore_uid: &str) -> Vec<Arc<HookRun>> {
        self.runs_that(|run| is_of(run, restore_uid))
    }

    /// All runs for which this holds.
    pub fn runs_that(&self, holds: impl Fn(&HookRun) -> bool) -> Vec<Arc<HookRun>> {
        self.lock().runs.values().filter(|run| holds(run)).cloned().collect()
    }

    /// The runs that have a task: they have not ended, or one of their init containers has not.
    pub fn worked_on(&self) -> HashSet<RunKey> {
        self.lock().bells.keys().cloned().collect()
    }

    /// Wakes the tasks of the runs for which this holds.
    pub fn wake(&self, holds: impl Fn(&HookRun) -> bool) {
        self.lock().wake(holds);
    }

    /// How much there is to do.
    pub fn census(&self) -> Census {
        let state = self.lock();
        let phase = |run: &Arc<HookRun>| run.status.as_ref().map(|status| status.phase).unwrap_or_default();
        let in_phase = |wanted: RunPhase| state.runs.values().filter(|run| phase(run) == wanted).count();
        Census {
            unplanned: state.pods.keys().filter(|key| !state.runs.contains_key(key)).count(),
            pending: in_phase(RunPhase::Pending),
            running: in_phase(RunPhase::Running),
            finished: state.runs.values().filter(|run| phase(run).is_final()).count(),
        }
    }

    /// Which failure cancels what has not started in a restore, if one does.
    pub fn failed(&self, restore_uid: &str) -> Option<String> {
        let state = self.lock();
        let (_, reason) = state.failed.get(restore_uid)?.first()?;
        Some(reason.clone())
    }

    /// Takes over what people ask of a restore, and wakes its runs when that has changed.
    pub fn restore_seen(&self, restore: &RestoreInfo) {
        let controls = RestoreControls {
            cancel: restore.cancel.clone(),
            pause: restore.pause.clone(),
        };
        let mut state = self.lock();
        let old = state.controls.insert(restore.uid.clone(), controls.clone());
        if old.unwrap_or_default() != controls {
            state.wake(|run| is_of(run, &restore.uid));
        }
    }

    /// A Restore was deleted.
    pub fn restore_gone(&self, uid: &str) {
        let mut state = self.lock();
        state.controls.remove(uid);
        state.failed.remove(uid);
    }

    /// Forgets the Restores that a fresh list does not name.
    pub fn only_restores(&self, listed: &HashSet<String>) {
        let mut state = self.lock();
        state.controls.retain(|uid, _| listed.contains(uid));
        state.failed.retain(|uid, _| listed.contains(uid));
    }

    /// Takes over whether everything is paused, and wakes all runs when that has changed.
    pub fn pause_all(&self, pause: Option<Request>) {
        let mut state = self.lock();
        if state.pause != pause {
            state.pause = pause;
            state.wake(|_| true);
        }
    }

    /// All that people ask of a run, as last seen.
    pub fn controls(&self, key: &RunKey) -> Controls {
        let state = self.lock();
        let Some(run) = state.runs.get(key) else {
            return Controls {
                pause: state.pause.clone(),
                ..Controls::default()
            };
        };
        let known = run
            .spec
            .plan
            .restore
            .as_ref()
            .and_then(|of| state.controls.get(&of.uid));
        let on_restore = known.cloned().unwrap_or_default();
        Controls {
            cancel: run.cancel_request().into_iter().chain(on_restore.cancel).collect(),
            pause: state.pause.clone().or(on_restore.pause),
            rerun: run.rerun_request(),
        }
    }

    /// The restores (by uid) of which a run was or is run again; they are forgotten by that.
    pub fn take_rerun_restores(&self) -> HashSet<String> {
        std::mem::take(&mut self.lock().rerun)
    }

    /// Wakes all runs.
    pub fn ring_all(&self) {
        for bell in self.lock().bells.values() {
            bell.notify_one();
        }
    }

    /// The task of a run is about to end; false if its bell has rung since it last looked: then it must look again.
    pub fn may_end(&self, key: &RunKey, bell: &Notify) -> bool {
        // Bells are rung under this lock, so none can ring in between.
        let mut state = self.lock();
        if bell.notified().now_or_never().is_some() {
            return false;
        }
        state.bells.remove(key);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; if it ever did, the maps are still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Keeps a run. One that is here already, from the watch or from this process' own write, is held once by all who know it.
    fn keep_run(&mut self, key: &RunKey, run: Arc<HookRun>) {
        let version = |run: &HookRun| run.metadata.resource_version.clone();
        match self.runs.get(key) {
            Some(known) if version(known).is_some() && version(known) == version(&run) => {}
            _ => {
                self.runs.insert(key.clone(), run);
            }
        }
    }

    /// Rings the bell of a run's task, or hangs up a bell for a task to be started.
    fn ring(&mut self, key: RunKey) -> Option<(RunKey, Arc<Notify>)> {
        if let Some(bell) = self.bells.get(&key) {
            bell.notify_one();
            return None;
        }
        let bell = Arc::new(Notify::new());
        self.bells.insert(key.clone(), Arc::clone(&bell));
        Some((key, bell))
    }

    /// Wakes the runs for which this holds.
    fn wake(&self, concerned: impl Fn(&HookRun) -> bool) {
        for (key, bell) in &self.bells {
            if self.runs.get(key).is_some_and(|run| concerned(run)) {
                bell.notify_one();
            }
        }
    }

    /// A failure with onError Fail wakes the other runs of its restore, so that they cancel what has not started.
    fn note_failure(&mut self, key: &RunKey, run: &HookRun) {
        let Some(restore) = &run.spec.plan.restore else { return };
        let failure = run
            .status
            .as_ref()
            .and_then(|status| cancelling_failure(&run.spec, status));
        let Some(reason) = failure else {
            // It may have been run again, with success.
            if let Some(known) = self.failed.get_mut(&restore.uid) {
                known.retain(|(run, _)| run != key);
            }
            return;
        };
        let known = self.failed.entry(restore.uid.clone()).or_default();
        let is_first = known.is_empty();
        if !known.iter().any(|(run, _)| run == key) {
            known.push((key.clone(), reason));
        }
        if is_first {
            self.wake(|run| is_of(run, &restore.uid));
        }
    }
}

/// Whether a run is of this restore.
fn is_of(run: &HookRun, restore_uid: &str) -> bool {
    run.spec.plan.restore.as_ref().is_some_and(|of| of.uid == restore_uid)
}

/// A run that has ended, and of which an init container has not: its end is recorded, too.
fn watches_init(status: &HookRunStatus) -> bool {
    status.phase != RunPhase::Stale && status.init.iter().any(init::is_open)
}

/// Output is read by people, from the API server; here it would only take up memory, for as long as finished runs are kept.
fn without_output(mut run: Arc<HookRun>) -> Arc<HookRun> {
    let said_something = |attempt: &Attempt| !(attempt.stdout.is_empty() && attempt.stderr.is_empty());
    let mut posts = run.status.iter().flat_map(|status| &status.post);
    if posts.any(|post| post.attempts.iter().any(said_something)) {
        let posts = Arc::make_mut(&mut run).status.iter_mut();
        for attempt in posts
            .flat_map(|status| &mut status.post)
            .flat_map(|post| &mut post.attempts)
        {
            attempt.stdout = String::new();
            attempt.stderr = String::new();
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn runs_are_kept_without_output_and_counted() {
        let run: HookRun = serde_json::from_value(json!({
            "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": "r", "namespace": "n"},
            "spec": {
                "pod": {"name": "p", "uid": "u", "createdAt": "2026-01-01T00:00:00Z"},
                "plan": {"version": 1, "plannedAt": "2026-01-01T00:00:00Z"},
            },
            "status": {"phase": "Running", "post": [{"name": "h", "attempts": [
                {"number": 1, "claimedBy": "me", "startedAt": "2026-01-01T00:00:00.000000Z", "stdout": "long", "stderr": "longer"},
            ]}]},
        }))
        .unwrap();
        let queue = Queue::default();
        let (key, _bell) = queue.run_seen(run).expect("a new task");
        let kept = queue.run(&key).unwrap();
        let attempt = &kept.status.as_ref().unwrap().post[0].attempts[0];
        assert_eq!(
            (attempt.number, attempt.stdout.as_str(), attempt.stderr.as_str()),
            (1, "", "")
        );
        let copy = HookRun::clone(&queue.run(&key).unwrap());
        queue.run_seen(copy.clone());
        assert!(
            !Arc::ptr_eq(&kept, &queue.run(&key).unwrap()),
            "without a version nobody can tell"
        );
        let versioned = |version: &str| {
            let mut run = copy.clone();
            run.metadata.resource_version = Some(version.to_owned());
            queue.run_seen(run);
            queue.run(&key).unwrap()
        };
        let first = versioned("7");
        assert!(Arc::ptr_eq(&first, &versioned("7")), "one copy for all");
        assert!(!Arc::ptr_eq(&first, &versioned("8")));
        let expected = Census {
            unplanned: 0,
            pending: 0,
            running: 1,
            finished: 0,
        };
        assert_eq!(queue.census(), expected);
    }
}

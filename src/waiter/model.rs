//! A model of the whole: waiters that come, crash, hand over and lose their Lease, containers in which commands really run, and the one record in
//! etcd. Whatever happens in whatever order, also between any two writes: each command that ran is on record as an attempt,
//! nothing is begun twice under one attempt, and nothing is called a success without an exit code 0.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::{
    attempt::{Outcome, record, withdraw},
    begin::first_status,
    gate::Crowd,
    pod_view::{ContainerView, PodView},
    redact::Redactor,
    step::{DEFAULT_RUN_LIMIT, Situation, Step, next},
};
use crate::{
    api::{
        HookRun,
        hook_run::{HookRunSpec, HookRunStatus, HookState},
    },
    control::Controls,
    duration::GoDuration,
    hooks::OnUnknown,
};

/// What may happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The leader takes its next step: at most one write.
    Turn,
    /// The same while as many commands run elsewhere as may.
    CrowdedTurn,
    /// A waiter that has recorded a start begins the command.
    Begin,
    /// A waiter that has recorded a start must not begin any more.
    Withdraw,
    /// A command ends.
    Exit(i32),
    /// A waiter learns what became of its command, and records it.
    Learn,
    /// The connection to a command breaks.
    Break,
    /// A command's time is over.
    TimeOut,
    /// The leader is killed, and another leads.
    Crash,
    /// The leader loses the Lease without knowing it yet, and another leads: what it is at it goes on with.
    LoseLease,
    /// The leader gives up, finishes its command, and another leads.
    HandOver,
    /// A waiter that finishes its command is killed.
    CrashFinishing,
    /// Its mark on the Lease is not believed any more, or it was taken away.
    ForgetFinishing,
    /// The container is restarted: what runs in it is gone, result files too.
    Restart,
    /// The pod goes.
    Gone,
    /// Time passes, in seconds.
    Later(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Turn),
        2 => Just(Event::CrowdedTurn),
        6 => Just(Event::Begin),
        1 => Just(Event::Withdraw),
        6 => (0..3).prop_map(Event::Exit),
        8 => Just(Event::Learn),
        1 => Just(Event::Break),
        1 => Just(Event::TimeOut),
        2 => Just(Event::Crash),
        2 => Just(Event::LoseLease),
        2 => Just(Event::HandOver),
        1 => Just(Event::CrashFinishing),
        1 => Just(Event::ForgetFinishing),
        1 => Just(Event::Restart),
        3 => (1_i64..40).prop_map(Event::Later),
    ]
}

/// How far a waiter has come with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its start is on record.
    Recorded,
    /// It is connected to the command.
    Attached,
    /// It looks for the result file.
    Looking,
    /// The connection broke, and there is no result file.
    Lost,
    /// The command was left behind.
    TimedOut,
}

/// What a waiter is at. It knows its own attempt; the record may have gone on without it.
#[derive(Clone, Copy, Debug)]
struct Job {
    stage: Stage,
    hook: usize,
    attempt: u32,
}

/// One real execution of a command.
#[derive(Debug)]
struct Execution {
    hook: usize,
    attempt: u32,
    /// Its exit code, once it has ended by itself.
    ended: Option<i32>,
    /// It and its files went with its container, or it was ended.
    swept: bool,
    /// The script that ends commands has ended it, for its time was over.
    timed_out: bool,
}

struct World {
    spec: HookRunSpec,
    /// What stands in etcd.
    status: HookRunStatus,
    pod: Option<PodView>,
    second: i64,
    /// Counts waiters; the last one leads.
    waiters: u32,
    /// What each living waiter is at.
    jobs: BTreeMap<u32, Job>,
    /// Waiters whose mark stands on the Lease.
    marks: BTreeSet<u32>,
    executions: Vec<Execution>,
    /// Attempts of which somebody has been told that they were not begun and never will be.
    barred: BTreeSet<(usize, u32)>,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn name(waiter: u32) -> String {
    format!("waiter-{waiter}")
}

impl World {
    fn new(spec: HookRunSpec) -> Self {
        let status = first_status(&spec, at(0));
        let mut world = Self {
            spec,
            status,
            pod: None,
            second: 1,
            waiters: 1,
            jobs: BTreeMap::new(),
            marks: BTreeSet::new(),
            executions: Vec::new(),
            barred: BTreeSet::new(),
        };
        world.pod_up(0);
        world
    }

    fn pod_up(&mut self, restarts: u32) {
        let view = |name: &str| ContainerView {
            id: Some(format!("{name}-{restarts}")),
            running: true,
            ready: true,
            ..ContainerView::default()
        };
        let pod =
            json!({"metadata": {"namespace": "n", "name": "p", "uid": "u", "creationTimestamp": at(0).to_string()}});
        let mut pod = PodView::read(&serde_json::from_value(pod).unwrap(), Redactor::built_in()).unwrap();
        "Running".clone_into(&mut pod.phase);
        pod.containers = ["a", "b"].map(|name| (name.to_owned(), Box::new(view(name)))).into();
        self.pod = Some(pod);
    }

    fn number(&self, hook: usize) -> u32 {
        self.status.post[hook]
            .attempts
            .last()
            .map_or(0, |attempt| attempt.number)
    }

    fn execution(&self, job: Job) -> Option<&Execution> {
        let mut runs = self.executions.iter();
        runs.find(|run| run.hook == job.hook && run.attempt == job.attempt)
    }

    /// The leader begins to work on the last attempt of a hook.
    fn take(&mut self, stage: Stage, hook: usize) {
        let attempt = self.number(hook);
        self.jobs.insert(self.waiters, Job { stage, hook, attempt });
    }

    /// A waiter's job comes to its next stage.
    fn advance(&mut self, waiter: u32, stage: Stage) {
        if let Some(job) = self.jobs.get_mut(&waiter) {
            job.stage = stage;
        }
    }

    /// Writes the end of a waiter's job, if the attempt is still its own.
    fn end(&mut self, waiter: u32, hook: usize, outcome: &Outcome) {
        self.jobs.remove(&waiter);
        self.marks.remove(&waiter);
        let state = &self.status.post[hook];
        let owner = state.attempts.last().map(|attempt| attempt.owner().to_owned());
        if state.state == HookState::Started && owner.as_deref() == Some(&name(waiter)) {
            let output = (String::new(), String::new());
            self.status = record(&self.spec, &self.status, hook, outcome, output, at(self.second));
        }
    }

    fn turn(&mut self, crowd: Option<&Crowd>) {
        let leader = self.waiters;
        if self.jobs.contains_key(&leader) {
            return;
        }
        let process = name(leader);
        let finishing = self
            .marks
            .iter()
            .map(|waiter| (name(*waiter), at(self.second + 15)))
            .collect();
        let situation = Situation {
            spec: &self.spec,
            status: &self.status,
            pod: self.pod.as_ref(),
            now: at(self.second),
            process: &process,
            finishing: &finishing,
            run_limit: DEFAULT_RUN_LIMIT,
            report_after: jiff::SignedDuration::from_secs(30),
            crowd,
            failed_elsewhere: None,
            controls: &Controls::default(),
        };
        match next(&situation) {
            Step::Execute { hook, status } => {
                assert!(crowd.is_none(), "there is no place");
                self.status = status;
                self.take(Stage::Recorded, hook);
            }
            Step::Collect { hook, status } => {
                assert!(self.spec.plan.post[hook].result_file.is_some());
                self.status = status;
                self.take(Stage::Looking, hook);
            }
            Step::Record(status) => {
                assert_ne!(status, self.status, "a write that changes nothing");
                self.status = status;
            }
            Step::Wait(due) => assert!(due.is_none_or(|due| due > at(self.second)), "it would never sleep"),
            Step::Done => {}
        }
    }

    /// The first waiter whose job is at this stage.
    fn find(&self, wanted: impl Fn(Stage) -> bool) -> Option<(u32, Job)> {
        let mut jobs = self.jobs.iter();
        jobs.find(|(_, job)| wanted(job.stage))
            .map(|(waiter, job)| (*waiter, *job))
    }

    fn begin(&mut self) {
        let Some((waiter, job)) = self.find(|stage| stage == Stage::Recorded) else {
            return;
        };
        let Job { hook, attempt, .. } = job;
        if self.pod.is_none() || self.barred.contains(&(hook, attempt)) {
            return self.end(waiter, hook, &Outcome::Refused("the pod is gone".to_owned()));
        }
        self.advance(waiter, Stage::Attached);
        self.executions.push(Execution {
            hook,
            attempt,
            ended: None,
            swept: false,
            timed_out: false,
        });
    }

    fn learn(&mut self) {
        let Some((waiter, job)) = self.find(|stage| stage != Stage::Recorded) else {
            return;
        };
        let Job { stage, hook, attempt } = job;
        let run = self.execution(job);
        let is_timed_out = stage == Stage::Looking && run.is_some_and(|run| run.timed_out);
        let run = run.map(|run| (run.ended, run.swept));
        let lost = Outcome::Lost("broken".to_owned());
        let outcome = match (stage, run) {
            (Stage::Attached | Stage::Looking, Some((Some(code), false))) => Outcome::Exited(code),
            (Stage::Attached | Stage::Looking, Some((None, false))) => return,
            (Stage::Looking, None) if self.pod.is_some() => {
                self.barred.insert((hook, attempt));
                Outcome::Refused("it was not begun".to_owned())
            }
            // Another waiter that had lost its Lease was quicker.
            _ if is_timed_out => Outcome::TimedOut {
                limit: GoDuration::from_secs(30),
                ended: true,
            },
            (Stage::TimedOut, _) => {
                let ended = self.spec.plan.post[hook].result_file.is_some();
                // The script ends what runs.
                let is_own = |run: &&mut Execution| ended && run.hook == hook && run.attempt == attempt;
                for run in self.executions.iter_mut().filter(is_own) {
                    run.swept = true;
                    run.timed_out = true;
                }
                Outcome::TimedOut {
                    limit: GoDuration::from_secs(30),
                    ended,
                }
            }
            _ => lost,
        };
        self.end(waiter, hook, &outcome);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn => self.turn(None),
            Event::CrowdedTurn => self.turn(Some(&Crowd {
                since: at(0),
                message: "many commands run".to_owned(),
            })),
            Event::Begin => self.begin(),
            Event::Withdraw => {
                if let Some((waiter, Job { hook, .. })) = self.find(|stage| stage == Stage::Recorded) {
                    self.jobs.remove(&waiter);
                    self.marks.remove(&waiter);
                    let owner = self.status.post[hook]
                        .attempts
                        .last()
                        .map(|attempt| attempt.owner().to_owned());
                    if owner == Some(name(waiter)) && self.status.post[hook].state == HookState::Started {
                        self.status = withdraw(&self.status, hook, at(self.second));
                    }
                }
            }
            Event::Exit(code) => {
                if let Some(run) = self.executions.iter_mut().find(|run| run.ended.is_none() && !run.swept) {
                    run.ended = Some(code);
                }
            }
            Event::Learn => self.learn(),
            Event::Break => {
                if let Some((waiter, job)) = self.find(|stage| stage == Stage::Attached) {
                    let has_file = self.spec.plan.post[job.hook].result_file.is_some();
                    self.advance(waiter, if has_file { Stage::Looking } else { Stage::Lost });
                }
            }
            Event::TimeOut => {
                if let Some((waiter, job)) = self.find(|stage| matches!(stage, Stage::Attached | Stage::Looking))
                    && self.execution(job).is_some_and(|run| run.ended.is_none())
                {
                    self.advance(waiter, Stage::TimedOut);
                }
            }
            Event::Crash => {
                self.jobs.remove(&self.waiters);
                self.waiters += 1;
            }
            Event::LoseLease => self.waiters += 1,
            Event::HandOver => {
                if self.jobs.contains_key(&self.waiters) {
                    self.marks.insert(self.waiters);
                }
                self.waiters += 1;
            }
            Event::CrashFinishing => {
                if let Some(waiter) = self.marks.first() {
                    self.jobs.remove(waiter);
                }
            }
            Event::ForgetFinishing => {
                // Only of one that is dead: a living one keeps its mark.
                let dead = self
                    .marks
                    .iter()
                    .find(|waiter| !self.jobs.contains_key(waiter))
                    .copied();
                if let Some(dead) = dead {
                    self.marks.remove(&dead);
                }
            }
            Event::Restart => {
                for run in &mut self.executions {
                    run.swept = true;
                }
                if self.pod.is_some() {
                    let restarts = u32::try_from(self.executions.len()).unwrap() + self.waiters;
                    self.pod_up(restarts);
                }
            }
            Event::Gone => {
                for run in &mut self.executions {
                    run.swept = true;
                }
                self.pod = None;
            }
            Event::Later(seconds) => self.second += seconds,
        }
    }

    /// What must hold after each event.
    fn check(&self, before: &HookRunStatus) {
        for (hook, (old, new)) in before.post.iter().zip(&self.status.post).enumerate() {
            assert!(
                !old.state.is_final() || old == new,
                "an end state changed: {old:?} {new:?}"
            );
            let limit = self.spec.plan.post[hook].retry.limit();
            assert!(new.attempts.len() <= limit as usize + 1, "{new:?}");
            let runs: Vec<&Execution> = self.executions.iter().filter(|run| run.hook == hook).collect();
            let numbers: BTreeSet<u32> = runs.iter().map(|run| run.attempt).collect();
            assert_eq!(numbers.len(), runs.len(), "an attempt was begun twice: {runs:?}");
            let recorded: BTreeSet<u32> = new
                .attempts
                .iter()
                .filter(|attempt| attempt.reason != "NotStarted")
                .map(|attempt| attempt.number)
                .collect();
            assert!(numbers.is_subset(&recorded), "run unseen: {runs:?} {new:?}");
            for attempt in &new.attempts {
                let Some(code) = attempt.exit_code else { continue };
                let told = runs
                    .iter()
                    .find(|run| run.attempt == attempt.number)
                    .and_then(|run| run.ended);
                assert_eq!(told, Some(code), "an exit code that no command gave");
            }
            let last = new.attempts.last().and_then(|attempt| attempt.exit_code);
            assert_eq!(new.state == HookState::Succeeded, last == Some(0), "{new:?}");
            let earlier = new.attempts.iter().rev().skip(1);
            assert!(
                earlier.into_iter().all(|attempt| attempt.exit_code != Some(0)),
                "again after success: {new:?}"
            );
            let may_overlap = self.spec.plan.post[hook].retry.on_unknown == OnUnknown::Retry;
            let alive = runs.iter().filter(|run| run.ended.is_none() && !run.swept).count();
            assert!(alive <= 1 || may_overlap, "beside itself: {runs:?} {new:?}");
        }
    }
}

fn run_spec(hooks: &[(&str, bool, u32, bool, bool)]) -> HookRunSpec {
    let post: Vec<_> = hooks
        .iter()
        .map(|(container, fail, retries, again, file)| {
            json!({
                "name": "h", "source": "spec", "container": container, "command": ["x"], "execTimeout": "30s",
                "onError": if *fail { "Fail" } else { "Continue" },
                "retry": {"limit": retries, "backoff": "5s", "onUnknown": if *again { "Retry" } else { "Fail" }},
                "resultFile": file.then_some("/tmp"),
            })
        })
        .collect();
    let run = json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {},
        "spec": {
            "pod": {"name": "p", "uid": "u", "createdAt": at(0).to_string()},
            "plan": {"version": 1, "plannedAt": at(0).to_string(), "post": post},
        },
    });
    serde_json::from_value::<HookRun>(run).unwrap().spec
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn every_run_is_on_record_and_every_hook_ends_once(
        hooks in proptest::collection::vec((proptest::sample::select(vec!["a", "b"]), any::<bool>(), 0_u32..3, any::<bool>(), any::<bool>()), 1..4),
        events in proptest::collection::vec(event(), 0..80),
    ) {
        let mut world = World::new(run_spec(&hooks));
        // In the end the pod goes, all who finish are dead, and the last leader works on.
        let end = [Event::Gone, Event::Crash]
            .into_iter()
            .chain((0..100).map(|_| Event::CrashFinishing))
            .chain((0..100).flat_map(|_| [Event::ForgetFinishing, Event::CrashFinishing]))
            .chain((0..40).flat_map(|_| [Event::Turn, Event::Begin, Event::Learn]));
        for event in events.into_iter().chain(end) {
            let before = world.status.clone();
            world.happen(event);
            world.check(&before);
        }
        prop_assert!(world.status.phase.is_final(), "{:?}", world.status);
        prop_assert!(world.status.post.iter().all(|state| state.state.is_final()));
    }

    /// With result files, and as long as containers live, nothing stays unknown.
    #[test]
    fn result_files_turn_every_unknown_end_into_the_truth(
        hooks in proptest::collection::vec((proptest::sample::select(vec!["a", "b"]), Just(false), 0_u32..2, any::<bool>(), Just(true)), 1..4),
        events in proptest::collection::vec(event(), 0..80),
    ) {
        let mut world = World::new(run_spec(&hooks));
        let calm = |event: &Event| !matches!(event, Event::Restart | Event::Gone);
        let end = (0..100)
            .flat_map(|_| [Event::CrashFinishing, Event::ForgetFinishing])
            .chain((0..60).flat_map(|_| [Event::Turn, Event::Begin, Event::Exit(0), Event::Learn, Event::Later(60)]));
        for event in events.into_iter().filter(calm).chain(end) {
            let before = world.status.clone();
            world.happen(event);
            world.check(&before);
        }
        for state in &world.status.post {
            prop_assert!(state.state.is_final() && state.state != HookState::Unknown, "{:?}", state);
        }
    }
}

//! Whatever happens in whatever order: a run ends, no hook is started twice unasked, an end state never changes unasked.

use proptest::prelude::*;

use super::{controls::request, *};
use crate::control::RerunRequest;

#[derive(Clone, Debug)]
enum Happening {
    Up(Vec<&'static str>),
    Gone,
    Terminating,
    Later(i64),
    Crash,
    Exit(i32),
    Break,
    FailureElsewhere,
    Cancel,
    Pause,
    Resume,
    Rerun(Option<&'static str>),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => proptest::sample::subsequence(vec!["a", "b!", "c"], 0..=3).prop_map(Happening::Up),
        1 => Just(Happening::Gone),
        1 => Just(Happening::Terminating),
        6 => (1_i64..5000).prop_map(Happening::Later),
        2 => Just(Happening::Crash),
        12 => (0_i32..3).prop_map(Happening::Exit),
        2 => Just(Happening::Break),
        1 => Just(Happening::FailureElsewhere),
        1 => Just(Happening::Cancel),
        2 => Just(Happening::Pause),
        3 => Just(Happening::Resume),
        3 => proptest::sample::select(vec![None, Some("hook-a"), Some("hook-x")]).prop_map(Happening::Rerun),
    ]
}

/// The waiter's shell: works until there is nothing to do; a running command keeps it busy.
struct Shell {
    spec: HookRunSpec,
    status: HookRunStatus,
    pod: Option<PodView>,
    second: i64,
    process: u32,
    running: Option<usize>,
    failed_elsewhere: Option<&'static str>,
    controls: Controls,
    /// How many commands have been started.
    executions: usize,
}

impl Shell {
    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Up(names) => {
                if self.pod.is_some() {
                    self.pod = Some(pod(&names));
                }
            }
            Happening::Gone => self.pod = None,
            Happening::Terminating => {
                if let Some(pod) = &mut self.pod {
                    pod.terminating = true;
                }
            }
            Happening::Later(seconds) => self.second += seconds,
            Happening::Crash => {
                self.process += 1;
                self.running = None;
            }
            Happening::Exit(code) => self.ends(&Outcome::Exited(code)),
            Happening::Break => self.ends(&Outcome::Lost("x".to_owned())),
            Happening::FailureElsewhere => self.failed_elsewhere = Some("elsewhere"),
            Happening::Cancel => self.controls.cancel = vec![request(&format!("c{}", self.second))],
            Happening::Pause => self.controls.pause = Some(request("p")),
            Happening::Resume => self.controls.pause = None,
            Happening::Rerun(hook) => {
                self.controls.rerun = Some(RerunRequest {
                    request: request(&format!("r{}", self.second)),
                    hook: hook.map(str::to_owned),
                });
            }
        }
    }

    fn ends(&mut self, outcome: &Outcome) {
        if let Some(hook) = self.running.take() {
            let output = (String::new(), String::new());
            self.status = record(&self.spec, &self.status, hook, outcome, output, at(self.second));
        }
    }

    fn works(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..30 {
            if self.running.is_some() {
                return Ok(());
            }
            let process = format!("process-{}", self.process);
            let situation = Situation {
                spec: &self.spec,
                status: &self.status,
                pod: self.pod.as_ref(),
                now: at(self.second),
                process: &process,
                failed_elsewhere: self.failed_elsewhere,
                controls: &self.controls,
                finishing: &BTreeMap::new(),
                run_limit: DEFAULT_RUN_LIMIT,
                report_after: SignedDuration::from_secs(30),
                crowd: None,
            };
            match next(&situation) {
                Step::Execute { hook, status: new } => {
                    let is_new = self.status.post[hook].state != HookState::Started;
                    prop_assert!(!is_new || self.controls.pause.is_none(), "started while paused");
                    self.running = Some(hook);
                    self.status = new;
                    self.executions += 1;
                }
                Step::Collect { .. } => return Err(TestCaseError::fail("there are no result files here")),
                Step::Record(new) => {
                    prop_assert_ne!(&new, &self.status);
                    self.status = new;
                }
                Step::Wait(due) => {
                    prop_assert!(due.is_none_or(|due| due > at(self.second)));
                    return Ok(());
                }
                Step::Done => return Ok(()),
            }
        }
        Err(TestCaseError::fail("it does not come to rest"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn holds(
        hooks in proptest::collection::vec((proptest::sample::select(vec!["a", "b", "c"]), any::<bool>(), any::<bool>(), 0_i64..200), 1..5),
        happenings in proptest::collection::vec(happening(), 0..40),
    ) {
        let spec = spec(hooks.into_iter().map(|(container, fail, ready, wait)| PostHook {
            on_error: if fail { OnError::Fail } else { OnError::Continue },
            wait_for_ready: ready,
            wait_timeout: GoDuration::from_secs(wait),
            ..hook(container)
        }).collect());
        let status = first_status(&spec, at(0));
        let mut shell = Shell {
            spec, status, pod: Some(pod(&[])), second: 1, process: 0, running: None,
            failed_elsewhere: None, controls: Controls::default(), executions: 0,
        };
        let last = [Happening::Resume, Happening::Gone, Happening::Exit(0), Happening::Later(1)];
        for happening in happenings.into_iter().chain(last) {
            let before = shell.status.clone();
            shell.happens(happening);
            shell.works()?;
            let status = &shell.status;
            let reruns = status.last_rerun().map_or(0, |rerun| rerun.number);
            for (old, new) in before.post.iter().zip(&status.post) {
                let was_asked_for = new.rerun > old.rerun;
                prop_assert!(!old.state.is_final() || old == new || was_asked_for, "an end state changed: {:?} {:?}", old, new);
                prop_assert!(!was_asked_for || old.state != HookState::Succeeded, "what had succeeded ran again");
                // One attempt, and at most one more for each rerun.
                prop_assert!(new.attempts.len() <= 1 + usize::try_from(reruns).unwrap());
                let read_zero = new.attempts.last().is_some_and(|attempt| attempt.exit_code == Some(0));
                prop_assert_eq!(new.state == HookState::Succeeded, read_zero);
            }
            let attempts: usize = status.post.iter().map(|post| post.attempts.len()).sum();
            prop_assert_eq!(attempts, shell.executions, "each execution is recorded, and nothing else");
            // Each request to run again was answered once.
            let mut ids: Vec<_> = status.reruns.iter().map(|rerun| &rerun.request.id).collect();
            ids.sort();
            ids.dedup();
            prop_assert_eq!(ids.len(), status.reruns.len());
        }
        prop_assert!(shell.status.phase.is_final(), "{:?}", shell.status);
        prop_assert!(shell.status.post.iter().all(|state| state.state.is_final()));
    }
}

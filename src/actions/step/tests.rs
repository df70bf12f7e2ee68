//! A model of the whole: random Blueprints' fates, process deaths after any write, and what must hold in the end.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    actions::{
        action::{ActionKind, Request},
        end::{begun, created, finished},
        plan::{Facts, accept},
    },
    api::action::{ExistingObject, Fields, HookReference, Hooks, PhaseStatus},
    blueprint::model::Artifact,
    duration::GoDuration,
};

/// No other process finishes anything.
static NOBODY: BTreeMap<String, Timestamp> = BTreeMap::new();

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn limits(retries: u32) -> Limits {
    Limits {
        hook_retries: retries,
        hook_timeout: GoDuration::from_secs(3600),
        velero_timeout: GoDuration::from_secs(36_000),
        partially_failed: PartiallyFailed::Failure,
    }
}

fn hook(action: &str) -> HookReference {
    HookReference {
        blueprint: "b".to_owned(),
        action_name: action.to_owned(),
        subject: None,
    }
}

fn action(kind: ActionKind) -> Action {
    Action {
        kind,
        name: "a".to_owned(),
        namespace: "ns".to_owned(),
        uid: "uid".to_owned(),
        generation: 1,
        cancel: None,
        request: Request {
            velero_spec: Some(Fields::new()),
            hooks: Hooks {
                pre_hook: Some(hook("pre")),
                on_success: Some(hook("good")),
                on_failure: Some(hook("bad")),
            },
            ..Request::default()
        },
        status: ActionStatus::default(),
    }
}

fn facts(namespaces: &[&str], setup: Result<(), String>) -> Facts {
    let hooks = [
        HookName::PreHook,
        HookName::OnSuccess,
        HookName::OnFailure,
        HookName::ExportOnSuccess,
        HookName::ExportOnFailure,
    ];
    let blueprints = hooks.map(|hook| (hook, Ok("d".to_owned())));
    Facts {
        namespaces: Ok(namespaces.iter().map(|name| (*name).to_owned()).collect()),
        setup,
        blueprints: BTreeMap::from(blueprints),
    }
}

fn phases() -> Vec<PhaseStatus> {
    let phase = |name: &str, func: &str, deferred| PhaseStatus {
        name: name.to_owned(),
        func: func.to_owned(),
        deferred,
        ..PhaseStatus::default()
    };
    vec![
        phase("one", "KubeTask", false),
        phase("two", "KubeExec", false),
        phase("last", "KubeTask", true),
    ]
}

/// What happens to the things that are run.
#[derive(Clone, Debug)]
struct Fate {
    namespaces: usize,
    retries: u32,
    setup: bool,
    velero: bool,
    /// Taken one by one: does the phase that runs next end well?
    phases: Vec<bool>,
    /// Taken one by one: does the process die after this write, before it does anything?
    deaths: Vec<bool>,
    /// After so many steps somebody cancels.
    cancel: Option<usize>,
}

/// What was really done.
#[derive(Default, Debug)]
struct Done {
    velero_created: usize,
    /// Runs of a phase to its end, by hook, namespace, try and phase.
    ran: BTreeMap<(HookName, String, u32, usize), usize>,
    order: Vec<HookName>,
    died_in_exec: usize,
}

/// Runs an action to its end.
#[allow(clippy::too_many_lines)] // the one loop of the model
fn play(mut action: Action, fate: &Fate) -> (ActionStatus, Done) {
    let names: Vec<String> = (0..fate.namespaces).map(|number| format!("ns{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let setup = if fate.setup {
        Ok(())
    } else {
        Err("no backup".to_owned())
    };
    let limits = limits(fate.retries);
    let (mut ends, mut deaths) = (
        fate.phases.iter().copied().cycle(),
        fate.deaths.iter().copied().chain(std::iter::repeat(false)),
    );
    let (mut done, mut now, mut process) = (Done::default(), 0, 0);
    let mut exists = false;
    for step_number in 0..2000 {
        if fate.cancel == Some(step_number) {
            action.cancel = Some("enough".to_owned());
        }
        now += 1;
        let name = format!("p{process}");
        let seen = Seen::Ended {
            phase: if fate.velero { "Completed" } else { "Failed" }.to_owned(),
            hooks_failed: None,
            export: Export::Nothing,
        };
        let world = World {
            process: &name,
            finishing: &NOBODY,
            velero_namespace: "velero",
            velero: Some(&seen),
            limits,
        };
        let status = match next(&action, &world, second(now)) {
            Step::Check => accept(&action, &facts(&names, setup.clone()), "velero", &limits, second(now)),
            Step::Record(status) => *status,
            Step::CreateVelero => {
                if !exists {
                    done.velero_created += 1;
                }
                exists = true;
                if deaths.next().unwrap() {
                    process += 1;
                    continue;
                }
                created(&action.status, "v", second(now))
            }
            Step::Begin(hook) => begun(&action.status, hook, Ok(phases()), &limits, second(now)),
            Step::Run(hook, phase) => {
                let invocation = &action.status.hooks[hook];
                assert_eq!(
                    invocation.phases[phase].state,
                    StepState::Running,
                    "recorded before it is run"
                );
                let is_exec = invocation.phases[phase].func == "KubeExec";
                if deaths.next().unwrap() {
                    process += 1;
                    if is_exec {
                        // It may have run; nobody may run it again in this try.
                        done.died_in_exec += 1;
                        *done
                            .ran
                            .entry((invocation.hook, invocation.namespace.clone(), invocation.attempt, phase))
                            .or_default() += 1;
                    }
                    continue;
                }
                *done
                    .ran
                    .entry((invocation.hook, invocation.namespace.clone(), invocation.attempt, phase))
                    .or_default() += 1;
                done.order.push(invocation.hook);
                let outcome = if ends.next().unwrap() {
                    Outcome::Succeeded(Fields::new())
                } else {
                    Outcome::Failed("no".to_owned())
                };
                ran(&action.status, hook, phase, outcome, second(now))
            }
            Step::Finish(hook) => {
                let artifacts = BTreeMap::from([("out".to_owned(), Artifact::default())]);
                finished(&action.status, hook, Ok(artifacts), second(now))
            }
            Step::Wait(due) => {
                now = due.expect("something is due").as_second().max(now);
                continue;
            }
            Step::CleanUp => {
                let mut status = action.status.clone();
                status.cleaned_up = true;
                status
            }
            Step::Done => return (action.status, done),
        };
        // What has ended never changes.
        for (old, new) in action.status.hooks.iter().zip(&status.hooks) {
            if old.state.is_final() {
                assert_eq!(old, new);
            }
        }
        if action.status.phase.is_final() {
            assert_eq!(action.status.phase, status.phase);
        }
        action.status = status;
        if deaths.next().unwrap() {
            process += 1;
        }
    }
    panic!("it never ends: {:?}", action.status);
}

fn fate() -> impl Strategy<Value = Fate> {
    (
        1..4_usize,
        0..3_u32,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.7),
        prop::collection::vec(prop::bool::weighted(0.8), 1..40),
        prop::collection::vec(prop::bool::weighted(0.2), 0..60),
        prop::option::weighted(0.2, 0..60_usize),
    )
        .prop_map(|(namespaces, retries, setup, velero, phases, deaths, cancel)| Fate {
            namespaces,
            retries,
            setup,
            velero,
            phases,
            deaths,
            cancel,
        })
}

proptest! {
    #[test]
    fn whatever_happens_each_step_is_done_once_and_the_end_fits(fate in fate()) {
        let (status, done) = play(action(ActionKind::Restore), &fate);
        prop_assert!(status.phase.is_final() && status.cleaned_up);
        prop_assert!(done.velero_created <= 1);
        for (step, times) in &done.ran {
            prop_assert_eq!(*times, 1, "{:?} ran {} times", step, times);
        }
        let of = |name: HookName| status.hooks.iter().filter(move |hook| hook.hook == name);
        for hook in &status.hooks {
            prop_assert!(hook.state.is_final());
            let most = if hook.hook.is_on_failure() { 1 } else { fate.retries + 1 };
            prop_assert!(hook.attempt <= most, "{:?}", hook);
            if hook.state == StepState::Succeeded {
                prop_assert!(hook.phases.iter().all(|phase| phase.state == StepState::Succeeded));
            }
            // Not begun means: nothing of it ran.
            let ran = done.ran.keys().any(|(name, namespace, ..)| *name == hook.hook && *namespace == hook.namespace);
            prop_assert!(hook.attempt > 0 || !ran);
            // The deferred phase runs whenever a try has begun, unless somebody cancels.
            if hook.attempt > 0 && status.phase != ActionPhase::Cancelled {
                prop_assert!(done.ran.contains_key(&(hook.hook, hook.namespace.clone(), hook.attempt, 2)));
            }
        }
        // Velero is asked only after all preHooks have succeeded.
        if done.velero_created > 0 {
            prop_assert!(fate.setup && of(HookName::PreHook).all(|hook| hook.state == StepState::Succeeded));
        }
        if status.phase == ActionPhase::Cancelled {
            prop_assert!(fate.cancel.is_some());
            return Ok(());
        }
        let all_good = done.velero_created > 0 && fate.velero && of(HookName::OnSuccess).all(|hook| hook.state == StepState::Succeeded);
        prop_assert_eq!(status.phase == ActionPhase::Succeeded, all_good, "{:?}", status);
        for (good, bad) in of(HookName::OnSuccess).zip(of(HookName::OnFailure)) {
            // Either one or the other, and both only when onSuccess failed.
            prop_assert_eq!(bad.attempt == 1, good.state != StepState::Succeeded, "{:?} {:?}", good, bad);
            prop_assert_eq!(good.attempt > 0, done.velero_created > 0 && fate.velero);
        }
        for pre in of(HookName::PreHook) {
            prop_assert_eq!(pre.artifacts.contains_key("out"), pre.state == StepState::Succeeded);
        }
    }
}

fn well(namespaces: usize) -> Fate {
    Fate {
        namespaces,
        retries: 2,
        setup: true,
        velero: true,
        phases: vec![true],
        deaths: Vec::new(),
        cancel: None,
    }
}

#[test]
fn each_namespace_gets_its_invocations() {
    let (status, done) = play(action(ActionKind::Restore), &well(2));
    assert_eq!(status.phase, ActionPhase::Succeeded);
    let ended: Vec<_> = status
        .hooks
        .iter()
        .map(|hook| (hook.hook, hook.namespace.as_str(), hook.state))
        .collect();
    assert_eq!(
        ended,
        [
            (HookName::PreHook, "ns0", StepState::Succeeded),
            (HookName::PreHook, "ns1", StepState::Succeeded),
            (HookName::OnSuccess, "ns0", StepState::Succeeded),
            (HookName::OnSuccess, "ns1", StepState::Succeeded),
            (HookName::OnFailure, "ns0", StepState::Skipped),
            (HookName::OnFailure, "ns1", StepState::Skipped),
        ]
    );
    assert_eq!(done.order.len(), 4 * 3);
}

#[test]
fn a_backup_that_is_not_there_leads_to_on_failure_once() {
    let (status, done) = play(
        action(ActionKind::Restore),
        &Fate {
            setup: false,
            ..well(1)
        },
    );
    assert_eq!(
        (status.phase, status.message.as_str()),
        (ActionPhase::Failed, "no backup")
    );
    assert_eq!(
        (done.velero_created, done.order.as_slice()),
        (0, &[HookName::OnFailure; 3][..])
    );
}

#[test]
fn a_failing_hook_is_tried_again_and_on_failure_is_not() {
    let (status, done) = play(
        action(ActionKind::Restore),
        &Fate {
            phases: vec![false, true],
            ..well(1)
        },
    );
    assert_eq!(status.phase, ActionPhase::Failed);
    assert_eq!(
        (status.hooks[0].attempt, status.hooks[0].earlier_failures.len()),
        (3, 2)
    );
    assert_eq!((status.hooks[2].attempt, status.hooks[2].state), (1, StepState::Failed));
    assert_eq!(done.velero_created, 0);
    assert!(
        status
            .message
            .contains("hooks.preHook (pre of Blueprint b) for namespace ns0"),
        "{}",
        status.message
    );
}

fn refused(change: impl FnOnce(&mut Action, &mut Facts)) -> String {
    let mut action = action(ActionKind::Restore);
    let mut facts = facts(&["ns0"], Ok(()));
    change(&mut action, &mut facts);
    let limits = limits(0).with(&action.request.options);
    let status = accept(&action, &facts, "velero", &limits, second(0));
    assert_eq!(status.phase, ActionPhase::Refused, "{status:?}");
    assert!(status.hooks.is_empty());
    status.message
}

fn with_subject(kind: &str, namespace: Option<&str>) -> impl FnOnce(&mut Action) {
    let subject = crate::api::action::Subject {
        name: "x".to_owned(),
        namespace: namespace.map(str::to_owned),
        type_: kind.to_owned(),
        ..crate::api::action::Subject::default()
    };
    move |action: &mut Action| action.request.hooks.on_success.as_mut().unwrap().subject = Some(subject)
}

#[test]
fn what_cannot_be_run_is_refused_by_name_before_anything_runs() {
    let check = |message: String, words: &[&str]| {
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    let nothing = refused(|_, facts| {
        let missing = Err("Blueprint b has no action good".to_owned());
        facts.blueprints.insert(HookName::OnSuccess, missing);
    });
    check(nothing, &["hooks.onSuccess", "Blueprint b has no action good"]);
    check(refused(|_, facts| facts.namespaces = Ok(Vec::new())), &["no namespace"]);
    check(
        refused(|_, facts| facts.namespaces = Err("a restore of everything".to_owned())),
        &["a restore of everything"],
    );
    check(
        refused(|action, _| with_subject("statefulset", Some("other"))(action)),
        &["hooks.onSuccess.subject.namespace", "other"],
    );
    check(
        refused(|action, _| with_subject("namespace", None)(action)),
        &["hooks.onSuccess.subject.name", "\"x\"", "target namespace"],
    );
    check(
        refused(|action, _| with_subject("cassandra", None)(action)),
        &["hooks.onSuccess.subject.type", "cassandra"],
    );
    let backup = refused(|action, _| {
        action.kind = ActionKind::Backup;
        with_subject("statefulset", None)(action);
    });
    check(backup, &["hooks.onSuccess.subject", "work on namespaces"]);
    let policy = refused(|action, _| {
        action.request.velero_spec = None;
        action.request.existing = Some(ExistingObject {
            name: "r".to_owned(),
            uid: "u".to_owned(),
        });
    });
    check(policy, &["hooks.preHook", "no gate"]);
    check(
        refused(|action, _| action.request.options.hook_timeout = Some(GoDuration::ZERO)),
        &["hookTimeout"],
    );
}

#[test]
fn an_object_that_exists_is_only_waited_for() {
    let mut action = action(ActionKind::Backup);
    action.request.hooks.pre_hook = None;
    action.request.velero_spec = None;
    action.request.existing = Some(ExistingObject {
        name: "r".to_owned(),
        uid: "u".to_owned(),
    });
    let (status, done) = play(action, &well(1));
    assert_eq!((status.phase, done.velero_created), (ActionPhase::Succeeded, 0));
    assert_eq!(status.velero.unwrap().name, "r");
}

#[test]
fn an_export_that_moves_nothing_is_refused_by_name() {
    let mut action = action(ActionKind::Backup);
    action.request.export_hooks = Some(Hooks {
        on_success: Some(hook("good")),
        on_failure: Some(hook("bad")),
        ..Hooks::default()
    });
    let (status, _) = play(action, &well(1));
    assert_eq!(status.phase, ActionPhase::Failed);
    assert!(
        status.message.contains("exportHooks are refused: nothing was moved"),
        "{}",
        status.message
    );
    let state = |name: HookName| status.hooks.iter().find(|hook| hook.hook == name).unwrap().state;
    // The two are independent.
    assert_eq!(
        (state(HookName::OnSuccess), state(HookName::OnFailure)),
        (StepState::Succeeded, StepState::Skipped)
    );
    assert_eq!(
        (state(HookName::ExportOnSuccess), state(HookName::ExportOnFailure)),
        (StepState::Skipped, StepState::Succeeded)
    );
    assert_eq!(
        (
            status.conditions[0].type_.as_str(),
            status.conditions[0].reason.as_str()
        ),
        ("Export", "NothingMoved")
    );
}

#[test]
fn velero_that_takes_too_long_or_is_deleted_is_a_failure() {
    let mut action = action(ActionKind::Restore);
    action.status = accept(&action, &facts(&["ns0"], Ok(())), "velero", &limits(0), second(0));
    action.status.phase = ActionPhase::Velero;
    action.status.velero = Some(VeleroObject {
        name: "r".to_owned(),
        uid: Some("u".to_owned()),
        started_at: Some(MicroTime(second(0))),
        ..VeleroObject::default()
    });
    let after = |seen: Seen, now: i64| {
        let world = World {
            process: "p",
            finishing: &NOBODY,
            velero_namespace: "velero",
            velero: Some(&seen),
            limits: limits(0),
        };
        match next(&action, &world, second(now)) {
            Step::Record(status) => status.failure,
            other => panic!("{other:?}"),
        }
    };
    let pending = Seen::Pending {
        phase: "InProgress".to_owned(),
        why: "Velero works on it".to_owned(),
    };
    assert_eq!(after(pending.clone(), 10), None);
    assert!(after(pending, 36_000).unwrap().contains("did not end within 10h0m0s"));
    assert!(after(Seen::Gone, 1).unwrap().contains("is gone"));
    let partial = |by: PartiallyFailed| {
        let seen = Seen::Ended {
            phase: "PartiallyFailed".to_owned(),
            hooks_failed: None,
            export: Export::Nothing,
        };
        let limits = Limits {
            partially_failed: by,
            ..limits(0)
        };
        let world = World {
            process: "p",
            finishing: &NOBODY,
            velero_namespace: "velero",
            velero: Some(&seen),
            limits,
        };
        match next(&action, &world, second(1)) {
            Step::Record(status) => status.failure.is_some(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (partial(PartiallyFailed::Failure), partial(PartiallyFailed::Success)),
        (true, false)
    );
    let failed_hooks = Seen::Ended {
        phase: "Completed".to_owned(),
        hooks_failed: Some("pod db".to_owned()),
        export: Export::Nothing,
    };
    assert!(after(failed_hooks, 1).unwrap().contains("pod db"));
}

#[test]
fn a_spec_that_changes_underway_is_a_failure() {
    let mut action = action(ActionKind::Restore);
    action.status = accept(&action, &facts(&["ns0"], Ok(())), "velero", &limits(0), second(0));
    action.generation = 2;
    let world = World {
        process: "p",
        finishing: &NOBODY,
        velero_namespace: "velero",
        velero: None,
        limits: limits(0),
    };
    match next(&action, &world, second(1)) {
        Step::Record(status) => assert!(status.failure.unwrap().contains("was changed")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_of_a_process_that_finishes_is_waited_for_that_of_a_dead_one_is_unknown() {
    let mut action = action(ActionKind::Restore);
    action.status = accept(&action, &facts(&["ns0"], Ok(())), "velero", &limits(0), second(0));
    action.status = begun(&action.status, 0, Ok(phases()), &limits(0), second(0));
    let states = [StepState::Succeeded, StepState::Running, StepState::Pending];
    for (phase, state) in action.status.hooks[0].phases.iter_mut().zip(states) {
        phase.state = state;
        "other".clone_into(&mut phase.claimed_by);
    }
    let after = |finishing: &BTreeMap<String, Timestamp>| {
        let world = World {
            process: "p",
            finishing,
            velero_namespace: "velero",
            velero: None,
            limits: limits(0),
        };
        next(&action, &world, second(1))
    };
    let finishing = BTreeMap::from([("other".to_owned(), second(9))]);
    assert_eq!(after(&finishing), Step::Wait(Some(second(9))));
    let Step::Record(ended) = after(&NOBODY) else {
        panic!("it is recorded")
    };
    assert_eq!(ended.hooks[0].phases[1].state, StepState::Unknown);
}

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::{
    api::{
        HookRunSpec, HookRunStatus,
        hook_run::{HookState, PodIdentity, PostStatus, Rerun, RunPhase},
    },
    plan::Plan,
};

/// A Restore on the API server: takes merge patches, and is read as the waiter reads it.
struct Server(Value);

impl Server {
    fn new(phase: &str) -> Self {
        Self(json!({
            "metadata": {"namespace": "velero", "name": "r", "uid": "u",
                "annotations": {"reveille.dev/owner": "reveille", "reveille.dev/hooks-result": "Pending"}},
            "status": {"phase": phase, "completionTimestamp": "1970-01-01T00:00:00Z"},
        }))
    }

    fn patched(&mut self, patch: Value) -> &mut Self {
        json_patch::merge(&mut self.0, &patch);
        self
    }

    fn info(&self) -> RestoreInfo {
        RestoreInfo::read(&self.0).unwrap()
    }

    /// Decides and writes, as the waiter does; gives the name of the decision.
    fn settle(&mut self, runs: &[HookRun]) -> &'static str {
        let runs: Vec<&HookRun> = runs.iter().collect();
        let info = self.info();
        let verdict = result::judge(&info, 0, &runs, Timestamp::from_second(100).unwrap());
        let (name, patch) = match settle(&info, &verdict, &runs) {
            Settlement::Leave => return "leave",
            Settlement::Reopen(patch) => ("reopen", patch),
            Settlement::Write(patch) => ("write", patch),
            Settlement::Repair(patch) => ("repair", patch),
        };
        self.patched(patch);
        name
    }

    fn stands(&self) -> (Option<String>, String, (u64, u64)) {
        let RestoreInfo {
            result,
            phase,
            hook_counts,
            ..
        } = self.info();
        (result, phase, (hook_counts.attempted, hook_counts.failed))
    }
}

fn stands(result: &str, phase: &str, counts: (u64, u64)) -> (Option<String>, String, (u64, u64)) {
    (Some(result.to_owned()), phase.to_owned(), counts)
}

fn run(phase: RunPhase, state: HookState, rerun: Option<i64>) -> HookRun {
    let plan = Plan::parse(r#"{"version":1,"plannedAt":"1970-01-01T00:00:00Z"}"#).unwrap();
    let pod = PodIdentity {
        name: "p".to_owned(),
        uid: "u".to_owned(),
        created_at: Timestamp::UNIX_EPOCH,
    };
    let mut run = HookRun::new("x", HookRunSpec { pod, plan });
    let reruns = rerun.map(|second| Rerun {
        request: crate::control::Request::default(),
        number: 1,
        taken_at: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::from_second(second).unwrap()),
        hooks: vec![],
        despite: vec![],
        refused: None,
    });
    run.status = Some(HookRunStatus {
        phase,
        post: vec![PostStatus {
            state,
            ..PostStatus::default()
        }],
        reruns: reruns.into_iter().collect(),
        ..HookRunStatus::default()
    });
    run
}

fn failed() -> HookRun {
    run(RunPhase::Failed, HookState::Failed, None)
}

#[test]
fn a_result_is_written_once_and_added_to_veleros_numbers() {
    let mut server = Server::new("Completed");
    server.patched(json!({"status": {"hookStatus": {"hooksAttempted": 5, "hooksFailed": 1}}}));
    assert_eq!(
        server.settle(&[run(RunPhase::Running, HookState::Started, None)]),
        "leave"
    );
    assert_eq!(server.settle(&[failed()]), "write");
    assert_eq!(server.stands(), stands("Failed", "PartiallyFailed", (6, 2)));
    assert_eq!(server.settle(&[failed()]), "leave");
    // The records are cleaned up some day: that changes no result.
    assert_eq!(server.settle(&[]), "leave");
}

#[test]
fn what_is_overwritten_is_put_back_with_and_without_the_runs() {
    for runs in [vec![failed()], vec![]] {
        let mut server = Server::new("Completed");
        server.settle(&[failed()]);
        let written = server.stands();
        for (overwrite, counts) in [
            (
                json!({"metadata": {"annotations": {"reveille.dev/hooks-result": null}}}),
                (1, 1),
            ),
            (
                json!({"metadata": {"annotations": {"reveille.dev/hooks-result": "Succeeded"}}}),
                (1, 1),
            ),
            (
                json!({"metadata": {"annotations": {"reveille.dev/hooks-result": "Pending"}}}),
                (1, 1),
            ),
            (json!({"status": {"phase": "Completed"}}), (1, 1)),
            (json!({"status": {"hookStatus": null}}), (1, 1)),
            // Velero writes its own numbers anew.
            (
                json!({"status": {"hookStatus": {"hooksAttempted": 3, "hooksFailed": 0}}}),
                (4, 1),
            ),
            (
                json!({"status": {"phase": "Completed", "hookStatus": {"hooksAttempted": 3, "hooksFailed": 0}}}),
                (4, 1),
            ),
        ] {
            server.patched(overwrite.clone());
            assert_eq!(server.settle(&runs), "repair", "{overwrite}");
            assert_eq!(server.stands(), stands("Failed", &written.1, counts), "{overwrite}");
            assert_eq!(server.settle(&runs), "leave", "{overwrite}");
        }
    }
}

#[test]
fn a_rerun_opens_the_result_again_and_the_phase_stays() {
    let mut server = Server::new("Completed");
    server.settle(&[failed()]);
    assert_eq!(
        server.settle(&[run(RunPhase::Running, HookState::Waiting, Some(7))]),
        "reopen"
    );
    assert_eq!(server.stands(), stands("Pending", "PartiallyFailed", (1, 1)));
    assert_eq!(
        server.settle(&[run(RunPhase::Running, HookState::Waiting, Some(7))]),
        "leave"
    );
    let well = run(RunPhase::Succeeded, HookState::Succeeded, Some(7));
    assert_eq!(server.settle(std::slice::from_ref(&well)), "write");
    assert_eq!(server.stands(), stands("Succeeded", "PartiallyFailed", (1, 0)));
    assert_eq!(server.settle(&[well]), "leave");
    // One that was over before anybody looked.
    assert_eq!(
        server.settle(&[run(RunPhase::Failed, HookState::Failed, Some(8))]),
        "write"
    );
    assert_eq!(server.stands(), stands("Failed", "PartiallyFailed", (1, 1)));
    // Of the runs that are left only an older one succeeded: the result stays.
    assert_eq!(
        server.settle(&[run(RunPhase::Succeeded, HookState::Succeeded, Some(7))]),
        "leave"
    );
}

#[test]
fn a_rerun_of_what_is_left_makes_no_failure_good() {
    let mut server = Server::new("Completed");
    let well = |rerun| run(RunPhase::Succeeded, HookState::Succeeded, rerun);
    assert_eq!(server.settle(&[failed(), well(None)]), "write");
    assert_eq!(server.stands(), stands("Failed", "PartiallyFailed", (2, 1)));
    // The one that failed is gone.
    assert_eq!(server.settle(&[well(Some(7))]), "write");
    assert_eq!(server.stands(), stands("Failed", "PartiallyFailed", (2, 1)));
    assert_eq!(server.settle(&[well(Some(7))]), "leave");
}

#[test]
fn nothing_is_written_on_what_nobody_promised_or_what_goes_away() {
    let mut unmarked = Server::new("Completed");
    unmarked.patched(json!({"metadata": {"annotations": null}}));
    let mut deleting = Server::new("Completed");
    deleting.patched(json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
    for server in [
        &mut unmarked,
        &mut deleting,
        &mut Server::new("InProgress"),
        &mut Server::new("Deleting"),
    ] {
        assert_eq!(server.settle(&[failed()]), "leave");
    }
}

#[test]
fn a_result_from_before_there_were_records_is_judged_again_only_for_a_rerun() {
    let mut server = Server::new("PartiallyFailed");
    server.patched(json!({
        "metadata": {"annotations": {"reveille.dev/hooks-result": "Failed"}},
        "status": {"hookStatus": {"hooksAttempted": 1, "hooksFailed": 1}},
    }));
    assert_eq!(server.settle(&[failed()]), "leave");
    let well = run(RunPhase::Succeeded, HookState::Succeeded, Some(7));
    assert_eq!(server.settle(&[well]), "write");
    assert_eq!(server.stands(), stands("Succeeded", "PartiallyFailed", (1, 0)));
}

proptest! {
    /// Whatever stands on a Restore: what is written once is right, and is not written again.
    #[test]
    fn comes_to_rest(
        phase in proptest::sample::select(vec!["Completed", "PartiallyFailed", "Failed"]),
        result in proptest::sample::select(vec![None, Some("Pending"), Some("Succeeded"), Some("rubbish")]),
        written in proptest::sample::select(vec![None, Some("{}"), Some("rubbish"),
            Some(r#"{"result":"Failed","own":{"attempted":1,"failed":1},"total":{"attempted":2,"failed":1},"partiallyFailed":true}"#)]),
        counts in (0_u64..4, 0_u64..4), rerun in proptest::option::of(0_i64..9), state in proptest::sample::select(vec![HookState::Failed, HookState::Succeeded]),
    ) {
        let mut server = Server::new(phase);
        server.patched(json!({
            "metadata": {"annotations": {"reveille.dev/hooks-result": result, "reveille.dev/hooks-written": written}},
            "status": {"hookStatus": {"hooksAttempted": counts.0, "hooksFailed": counts.1}},
        }));
        let runs = [run(if state == HookState::Failed { RunPhase::Failed } else { RunPhase::Succeeded }, state, rerun)];
        server.settle(&runs);
        let once = server.0.clone();
        prop_assert_eq!(server.settle(&runs), "leave");
        prop_assert_eq!(once, server.0);
    }
}

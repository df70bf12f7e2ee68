use super::*;
use crate::cli::target::tests::run;

fn status(result: &'static str, message: &str, states: &[HookState]) -> RestoreStatus {
    let mut run = run("app", "db-0", None);
    let posts = states.iter().map(|state| crate::api::hook_run::PostStatus {
        state: *state,
        ..Default::default()
    });
    run.status = Some(crate::api::HookRunStatus {
        post: posts.collect(),
        ..Default::default()
    });
    RestoreStatus {
        restore: None,
        velero_phase: None,
        result,
        message: message.to_owned(),
        cancelled: None,
        paused: None,
        runs: vec![run],
        not_served: Vec::new(),
    }
}

#[test]
fn counts_what_has_ended_and_says_what_is_waited_for() {
    use HookState::{Failed, LeftToVelero, Started, Succeeded, Waiting};
    let statuses = [
        status("Succeeded", "", &[Succeeded, LeftToVelero]),
        status("Pending", "pod db-0\nwaits", &[Failed, Started, Waiting]),
    ];
    let count = Count::of(&statuses);
    assert_eq!((count.all, count.ended, count.bad, count.running), (4, 2, 1, 1));
    assert_eq!(
        count.words(&statuses),
        "2 of 4 hooks ended, 1 of them not well, 1 running; pod db-0 waits"
    );
    assert_eq!(Count::default().words(&[]), "0 of 0 hooks ended");
}

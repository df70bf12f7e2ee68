//! Hooks that can't be run as they are written: said in words where their author looks, and the others run.

use reveille::api::hook_run::{HookState, InitState, RunPhase};
use serde_json::json;

use crate::harness::*;

#[tokio::test]
async fn a_bad_duration_is_told_everywhere_and_the_other_hook_runs() {
    let t = Scenario::new("bad-duration").await;
    let list = json!([tracing_container("prepare")]);
    // No other test has this value.
    let bad = format!("5 {}s", t.namespace);
    let pod = t
        .pod("app")
        .annotate(post("command"), trace("post"))
        .annotate(post("exec-timeout"), &bad)
        .annotate(init("initContainers"), list);
    let backup = t.back_up_and_lose(&[pod]).await;
    let restore = t
        .restore(&backup)
        .hooks(rule("silenced", &[exec(&trace("spec"))]))
        .run()
        .await;

    let says_all = |text: &str| text.contains(&post("exec-timeout")) && text.contains(&bad);
    let hook = restore.post("app");
    assert_eq!((hook.state, hook.attempts.len()), (HookState::Skipped, 0));
    assert!(says_all(&hook.message), "HookRun: {}", hook.message);
    assert!(
        t.events("app", "HookInvalid").await.iter().any(|note| says_all(note)),
        "Event"
    );
    let warnings = velero_warnings();
    assert!(
        warnings.iter().any(|line| says_all(line)),
        "the warning that Velero logs: {warnings:?}"
    );
    t.running("app").await;
    // The broken hook runs nowhere, and it silences the Restore's hooks of its kind all the same.
    assert_eq!((t.ran("prepare"), t.ran("post"), t.ran("spec")), (1, 0, 0));
    assert_eq!(t.velero_ran(), Vec::<String>::new());
    assert_eq!(restore.status("app").phase, RunPhase::PartiallyFailed);
    assert_eq!(restore.phase, "Completed");
}

#[tokio::test]
async fn init_hooks_are_watched_to_their_end_also_when_no_post_hook_can_run() {
    let t = Scenario::new("init-watched").await;
    let list = json!([tracing_container("prepare")]);
    let pod = t
        .pod("app")
        .annotate(post("command"), "[]")
        .annotate(init("initContainers"), list);
    let backup = t.back_up_and_lose(&[pod]).await;
    let restore = t.restore(&backup).run().await;

    assert_eq!(restore.post("app").state, HookState::Skipped);
    assert_eq!(restore.init("app").state, InitState::Succeeded);
    assert_eq!(t.ran("prepare"), 1);
}

#[tokio::test]
async fn an_empty_command_and_an_unknown_container_are_skipped_with_the_reason() {
    let t = Scenario::new("bad-command").await;
    let empty = t
        .pod("empty")
        .annotate(post("command"), "[]")
        .annotate(post("on-error"), "Fail");
    let lost = t
        .pod("lost")
        .annotate(post("command"), trace("lost"))
        .annotate(post("container"), "databse");
    let well = t.pod("well").annotate(post("command"), trace("well"));
    let backup = t.back_up_and_lose(&[empty, lost, well]).await;
    let restore = t.restore(&backup).run().await;

    for (pod, words) in [
        ("empty", vec![post("command"), "empty".to_owned()]),
        ("lost", vec!["databse".to_owned(), "main".to_owned()]),
    ] {
        let hook = restore.post(pod);
        assert_eq!((hook.state, hook.attempts.len()), (HookState::Skipped, 0), "{pod}");
        for word in words {
            assert!(hook.message.contains(&word), "{pod}: {} says {word}", hook.message);
            assert!(
                t.events(pod, "HookInvalid")
                    .await
                    .iter()
                    .any(|note| note.contains(&word)),
                "{pod}: Event"
            );
        }
    }
    // It was to fail if anything went wrong, and it did not run.
    assert_eq!(
        (restore.phase.as_str(), restore.result.as_deref()),
        ("PartiallyFailed", Some("Failed"))
    );
    assert_eq!(restore.status("empty").phase, RunPhase::Failed);
    assert_eq!(restore.post("well").state, HookState::Succeeded);
    assert_eq!((t.ran("lost"), t.ran("well")), (0, 1));
    assert_eq!(t.velero_ran(), Vec::<String>::new());
}

#[tokio::test]
async fn a_restore_with_hooks_that_cannot_be_read_warns_whoever_creates_it() {
    let t = Scenario::new("bad-restore").await;
    let mut bad = exec(&trace("post"));
    bad["exec"]["execTimeout"] = json!("-3s");
    let spec = t
        .restore("none")
        .hooks(rule("spec", &[bad]))
        .name(&format!("{}-bad", t.namespace));
    let path = t.write("restore.json", &spec.json().to_string());
    let output = run("kubectl", &["create", "--dry-run=server", "-f", &path]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("Warning:") && said.contains("execTimeout") && said.contains("-3s"),
        "{said}"
    );
}

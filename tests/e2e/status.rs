//! `reveille status`, as a person or a script calls it, and what it shows of a command's output.

use std::process::Output;

use serde_json::{Value, json};

use crate::harness::*;

fn text(output: &Output) -> (Option<i32>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn status_tells_the_result_by_its_exit_code_and_waits_if_asked() {
    let t = Scenario::new("status").await;
    let blocking = sh(&format!(
        "until [ -e /traces/go ]; do sleep 0.1; done; {}",
        trace_script("post")
    ));
    let pod = t
        .pod("app")
        .annotate(post("command"), blocking)
        .annotate(post("exec-timeout"), "5m");
    let backup = t.back_up_and_lose(&[pod]).await;
    let begun = t.restore(&backup).begin().await;
    begun
        .reaches("the hook has started", |now| {
            let started = now.run_of("app")?.status.as_ref()?.started_at.is_some();
            (started && now.phase == "Completed").then_some(())
        })
        .await;

    let (code, shown) = text(&reveille(&["status", &begun.name]));
    assert_eq!(code, Some(3), "{shown}");
    assert!(shown.contains("hooks Pending") && shown.contains("Started"), "{shown}");
    // A limit that is over is no failure: it is still not finished.
    let (code, shown) = text(&reveille(&["status", &begun.name, "--wait", "--timeout", "1ms"]));
    assert_eq!(code, Some(3), "{shown}");

    let name = begun.name.clone();
    let waiting = tokio::task::spawn_blocking(move || reveille(&["status", &name, "--wait", "--timeout", "4m"]));
    t.signal("go");
    let (code, shown) = text(&waiting.await.unwrap());
    assert_eq!(code, Some(0), "{shown}");
    begun.finish().await.assert_all_well(1);
    assert_eq!(t.ran("post"), 1);

    let (code, shown) = text(&reveille(&["status", &format!("{VELERO}/{}", begun.name)]));
    assert_eq!(code, Some(0), "{shown}");
    let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    let title = format!("Restore {VELERO}/{}: hooks Succeeded, Velero Completed", begun.name);
    assert_eq!(shown.lines().next(), Some(title.as_str()));
    assert_eq!(
        words[1],
        [
            "NAMESPACE",
            "POD",
            "KIND",
            "CONTAINER",
            "HOOK",
            "STATE",
            "ATTEMPTS",
            "DURATION",
            "REASON"
        ]
    );
    assert_eq!(
        words[2][..7],
        [
            &t.namespace,
            "app",
            "post",
            "main",
            "<from-annotation>",
            "Succeeded",
            "1"
        ]
    );
    assert_eq!(words[3], ["1", "pod,", "1", "post", "hook:", "1", "Succeeded"]);

    let json: Value = serde_json::from_slice(&reveille(&["status", &begun.name, "-o", "json"]).stdout).unwrap();
    let restores = json["restores"].as_array().unwrap();
    assert_eq!((restores.len(), &restores[0]["result"]), (1, &json!("Succeeded")));
    assert_eq!(restores[0]["restore"]["name"], json!(begun.name));
    assert_eq!(
        restores[0]["runs"][0]["status"]["post"][0]["attempts"][0]["exitCode"],
        0
    );
}

#[tokio::test]
async fn status_says_1_after_a_failure_that_counts_and_2_for_what_is_not_there() {
    let t = Scenario::new("status-fail").await;
    // 1 MB of output, its last line with what a terminal should never see.
    let noisy =
        "yes 0123456789 | head -c 1100000; printf 'the end\\033[31m\\007\\n'; printf 'to stderr\\r' >&2; exit 9";
    let pod = t
        .pod("app")
        .annotate(post("command"), sh(noisy))
        .annotate(post("on-error"), "Fail");
    let backup = t.back_up_and_lose(&[pod]).await;
    let restore = t.restore(&backup).run().await;

    let (code, shown) = text(&reveille(&["status", &restore.name]));
    assert_eq!(code, Some(1), "{shown}");
    assert!(
        shown.contains("hooks Failed, Velero PartiallyFailed") && shown.contains("exit code 9"),
        "{shown}"
    );
    let (code, shown) = text(&reveille(&["status", "there-is-no-such-restore"]));
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("there-is-no-such-restore"), "{shown}");

    let attempt = &restore.post("app").attempts[0];
    assert_eq!(attempt.exit_code, Some(9));
    assert!(
        attempt.stdout.ends_with("0123456789\nthe end\\u{1b}[31m\\u{7}\n"),
        "{}",
        attempt.stdout
    );
    assert!(attempt.stdout.len() < 5000, "{} bytes are kept", attempt.stdout.len());
    assert!(
        attempt.stdout.contains("bytes before this are not kept"),
        "{}",
        attempt.stdout
    );
    assert_eq!(attempt.stderr, "to stderr\\r");
}

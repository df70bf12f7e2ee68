use super::*;
use crate::{api::HookRunStatus, cli::target::tests::run};

fn one(status: serde_json::Value) -> HookRun {
    let mut run = run("shop", "db-0", None);
    run.status = Some(serde_json::from_value::<HookRunStatus>(status).unwrap());
    run
}

#[test]
fn each_attempt_has_a_header_and_its_output() {
    let run = one(serde_json::json!({"post": [
        {"name": "h", "container": "main", "state": "Succeeded", "attempts": [
            {"number": 1, "claimedBy": "x", "startedAt": "2026-05-01T10:00:00.000000Z",
             "finishedAt": "2026-05-01T10:00:01.500000Z", "exitCode": 3, "stderr": "broken\n"},
            {"number": 2, "claimedBy": "x", "startedAt": "2026-05-01T10:01:00.000000Z",
             "finishedAt": "2026-05-01T10:01:02.000000Z", "exitCode": 0, "stdout": "fine"},
        ]},
        {"name": "i", "container": "main", "state": "Unknown", "message": "nobody knows", "attempts": [
            {"number": 1, "claimedBy": "x", "startedAt": "2026-05-01T10:00:00.000000Z"},
        ]},
        {"name": "j", "container": "main", "state": "Started", "attempts": [
            {"number": 1, "claimedBy": "x", "startedAt": "2026-05-01T10:00:00.000000Z"},
        ]},
        {"name": "k", "container": "main", "state": "Waiting"},
    ]}));
    let runs = [run];
    assert_eq!(
        text(&logs(&runs, None)),
        "==> shop/db-0 main h attempt 1, 2026-05-01T10:00:00Z: exit code 3 after 1.5s <==\n\
         --- stderr\nbroken\n\
         ==> shop/db-0 main h attempt 2, 2026-05-01T10:01:00Z: exit code 0 after 2s <==\n\
         --- stdout\nfine\n\
         ==> shop/db-0 main i attempt 1, 2026-05-01T10:00:00Z: Unknown: nobody knows <==\n\
         --- no output\n\
         ==> shop/db-0 main j attempt 1, 2026-05-01T10:00:00Z: running <==\n\
         --- no output\n"
    );
    assert_eq!(logs(&runs, Some("i")).len(), 1);
    let json = serde_json::to_value(logs(&runs, Some("h"))).unwrap();
    assert_eq!((&json[0]["pod"], &json[1]["exitCode"]), (&"db-0".into(), &0.into()));
    assert_eq!(text(&logs(&runs, Some("k"))), "No command has been started.\n");
}

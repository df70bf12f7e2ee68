//! As many commands at once as the installation allows, and what becomes of those that wait for a place.

use std::process::Output;

use reveille::api::hook_run::{HookRunStatus, HookState};

use crate::harness::*;

/// A command that notes when it is not alone, and ends once it is let go.
fn alone(name: &str) -> serde_json::Value {
    let begin = "mkdir /traces/place || echo two >> /traces/together";
    let script = format!(
        "{begin}; {}; until [ -e /traces/go ]; do sleep 0.1; done; sleep 0.3; rmdir /traces/place",
        trace_script(name)
    );
    sh(&script)
}

fn status_of(now: &Outcome, pod: &str) -> Option<HookRunStatus> {
    now.run_of(pod)?.status.clone()
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn in_a_namespace_no_more_commands_run_than_may_and_the_others_say_what_they_wait_for() {
    let t = Scenario::alone("places").await;
    install(&[
        "waiter.maxConcurrentHooksPerNamespace=1",
        "waiter.reportWaitingAfter=1s",
    ]);
    webhook_answers(&t.client).await;
    let names = ["a", "b", "c", "d"];
    let pods = names.map(|name| {
        t.pod(name)
            .annotate(post("command"), alone(name))
            .annotate(post("exec-timeout"), "10m")
    });
    let backup = t.back_up_and_lose_pods(&pods).await;
    let begun = t.restore(&backup).begin().await;

    // One runs, and the three others say that there is no place.
    let waiting = begun
        .reaches("one runs and three say that they wait for a place", |now| {
            let statuses = names.map(|name| Some((name, status_of(now, name)?)));
            let statuses: Vec<_> = statuses.into_iter().collect::<Option<_>>()?;
            let waits = |status: &HookRunStatus| {
                let mut conditions = status.conditions.iter();
                conditions
                    .any(|known| known.type_ == "Waiting" && known.status == "True" && known.reason == "NoFreeSlot")
            };
            let started = |status: &HookRunStatus| status.post[0].state == HookState::Started;
            let runs = statuses.iter().filter(|(_, status)| started(status)).count();
            let waiting: Vec<_> = statuses.into_iter().filter(|(_, status)| waits(status)).collect();
            (runs == 1 && waiting.len() == 3).then_some(waiting)
        })
        .await;
    for (name, status) in &waiting {
        let words = format!("1 commands run in namespace {}, 1 at most may at once", t.namespace);
        assert_eq!(status.message, format!("waits: {words}"));
        let told = eventually("an Event says so", async || t.events(name, "HooksWaiting").await.pop()).await;
        assert!(told.contains(&words), "{told}");
    }

    // While they wait they can be cancelled, and end with their pods.
    let (cancelled, deleted) = (waiting[0].0, waiting[1].0);
    succeeds(&reveille(&["cancel", &format!("{}/{cancelled}", t.namespace)]));
    kubectl(&["-n", &t.namespace, "delete", "pod", deleted, "--wait=false"]);
    begun
        .reaches("both have ended although there was no place", |now| {
            let ended = |name| Some(status_of(now, name)?.phase.is_final());
            (ended(cancelled)? && ended(deleted)?).then_some(())
        })
        .await;
    t.signal("go");
    let end = begun.finish().await;

    assert_eq!(end.post(cancelled).reason, "CancelledByUser");
    assert_eq!(end.post(deleted).state, HookState::Cancelled);
    for name in names {
        let runs = usize::from(![cancelled, deleted].contains(&name));
        assert_eq!(t.ran(name), runs, "{name}");
    }
    assert_eq!(t.read("together"), "", "never two at once");
}

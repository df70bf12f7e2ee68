//! At least fifty kills at random points while commands run. Each command appends a line to a file of its own on this machine;
//! the lines are compared with the attempts on record. The seed is printed, and `REVEILLE_CHAOS_SEED` sets it.

use std::{collections::BTreeSet, env, time::Duration};

use fastrand::Rng;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use reveille::api::hook_run::{Attempt, HookState, PostStatus};
use serde_json::{Value, json};

use crate::harness::*;

/// How many kills there are to be.
const KILLS: usize = 50;
/// How many pods, and how many hooks in each.
const PODS: usize = 16;
const HOOKS: usize = 24;

/// What is done to Reveille.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// SIGKILL for the waiter that leads.
    Leader,
    /// SIGKILL for all waiters.
    Everybody,
    /// The leader's pod goes, without a grace period.
    Pod,
    /// All pods go.
    Pods,
    /// Somebody else's name stands on the Lease.
    LeaseEdited,
    /// The Lease is deleted.
    LeaseDeleted,
    /// SIGKILL for the API server.
    ApiServer,
}

impl Kill {
    fn choose(rng: &mut Rng, number: usize) -> Self {
        // It takes long to come back.
        if number % 25 == 12 {
            return Self::ApiServer;
        }
        match rng.u8(0..13) {
            0..=5 => Self::Leader,
            6 => Self::Everybody,
            7..=9 => Self::Pod,
            10 => Self::LeaseEdited,
            11 => Self::LeaseDeleted,
            _ => Self::Pods,
        }
    }

    /// Does it. False when there was nobody to do it to.
    async fn happen(self, t: &Scenario) -> bool {
        let pods: Api<Pod> = Api::namespaced(t.client.clone(), REVEILLE);
        let now = DeleteParams::default().grace_period(0);
        let lease = waiter_lease(&t.client);
        match self {
            Self::Everybody => kill_waiters(&t.client, None).await > 0,
            Self::Pods => pods.delete_collection(&now, &ListParams::default()).await.is_ok(),
            Self::LeaseDeleted => lease.delete("reveille-waiter", &DeleteParams::default()).await.is_ok(),
            Self::LeaseEdited => {
                let patch = json!({"spec": {"holderIdentity": "somebody else"}});
                lease
                    .patch("reveille-waiter", &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .is_ok()
            }
            Self::ApiServer => {
                cluster_script(&["stop", &cluster_name(), "kube-apiserver", "--kill"]);
                cluster_script(&["start", &cluster_name(), "kube-apiserver"]);
                cluster_script(&["wait", &cluster_name(), "120"]);
                true
            }
            Self::Leader | Self::Pod => match (leading_pod(&t.client).await, self) {
                (None, _) => false,
                (Some(pod), Self::Leader) => {
                    let killed = kill_waiters(&t.client, Some(&pod)).await > 0;
                    // A container that is killed again and again is held back by the kubelet; a new pod is not.
                    let _ = pods.delete(&pod, &now).await;
                    killed
                }
                (Some(pod), _) => pods.delete(&pod, &now).await.is_ok(),
            },
        }
    }
}

/// What a hook asks for.
fn hook(index: usize, rng: &mut Rng) -> (String, Value) {
    let name = format!("h{index}");
    let code = if rng.u8(0..8) == 0 { 3 } else { 0 };
    let sleep = format!("0.{}", rng.u8(1..9));
    let script = format!("echo $(hostname) >> {TRACES}/$(hostname).{name}; sleep {sleep}; exit {code}");
    let mut exec = json!({"command": ["/bin/sh", "-c", script], "onError": "Continue", "execTimeout": "60s"});
    match rng.u8(0..4) {
        0 => {}
        1 => exec["resultFile"] = json!("/tmp"),
        2 => {
            exec["onUnknown"] = json!("Retry");
            exec["retries"] = json!(5);
            exec["retryBackoff"] = json!("100ms");
        }
        _ => {
            exec["resultFile"] = json!("/tmp");
            exec["onUnknown"] = json!("Retry");
            exec["retries"] = json!(2);
            exec["retryBackoff"] = json!("100ms");
        }
    }
    (name.clone(), json!({"name": name, "postHooks": [{"exec": exec}]}))
}

/// Whether an attempt on record says that its command was never begun.
fn never_begun(attempt: &Attempt) -> bool {
    attempt.reason == "NotStarted"
}

/// One hook after the storm.
fn check(pod: &str, post: &PostStatus, lines: usize, has_result_file: bool) {
    let what = format!("{pod} {}: {lines} lines, {post:?}", post.name);
    assert!(post.state.is_final(), "{what}");
    let ends = [
        HookState::Succeeded,
        HookState::Failed,
        HookState::ExecTimedOut,
        HookState::Unknown,
    ];
    assert!(
        ends.contains(&post.state),
        "nothing cancels and nothing skips here: {what}"
    );
    assert!(!post.attempts.is_empty(), "none is lost: {what}");
    let numbers: Vec<u32> = post.attempts.iter().map(|attempt| attempt.number).collect();
    let expected: Vec<u32> = (1..).take(numbers.len()).collect();
    assert_eq!(numbers, expected, "{what}");
    let last = post.attempts.last().expect("one");
    assert_eq!(post.state == HookState::Succeeded, last.exit_code == Some(0), "{what}");
    let earlier = post.attempts.iter().rev().skip(1);
    assert!(
        earlier.into_iter().all(|attempt| attempt.exit_code != Some(0)),
        "run again after a success: {what}"
    );
    // Each run is on record; an attempt whose end is not known may have been recorded and not begun.
    let begun = post.attempts.iter().filter(|attempt| !never_begun(attempt)).count();
    let known = post
        .attempts
        .iter()
        .filter(|attempt| attempt.exit_code.is_some())
        .count();
    assert!(lines <= begun, "run unseen: {what}");
    assert!(lines >= known, "an exit code that nobody gave: {what}");
    if has_result_file
        && post
            .attempts
            .iter()
            .all(|attempt| attempt.exit_code.is_some() || never_begun(attempt))
    {
        assert_eq!(lines, known, "{what}");
    }
}

#[tokio::test]
async fn fifty_kills_lose_nothing_and_run_nothing_unseen() {
    let t = Scenario::alone("chaos").await;
    let seed = env::var("REVEILLE_CHAOS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("REVEILLE_CHAOS_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    // A short Lease: there is much to be taken over. Few commands at once: they must last for all kills.
    install(&["replicaCount=3", "waiter.leaseSeconds=3", "waiter.maxConcurrentHooks=6"]);
    let pods: Vec<PodSpec> = (0..PODS).map(|number| t.pod(&format!("p{number}"))).collect();
    let backup = t.back_up_and_lose_pods(&pods).await;
    let hooks: Vec<(String, Value)> = (0..HOOKS).map(|index| hook(index, &mut rng)).collect();
    let with_files: BTreeSet<&str> = hooks
        .iter()
        .filter(|(_, rule)| !rule["postHooks"][0]["exec"]["resultFile"].is_null())
        .map(|(name, _)| name.as_str())
        .collect();
    let rules: Vec<&Value> = hooks.iter().map(|(_, rule)| rule).collect();
    let begun = t
        .restore(&backup)
        .annotate("reveille.dev/hooks", json!({"resources": rules}))
        .begin()
        .await;
    let mut kills = Vec::new();
    let lines = || {
        pods.iter()
            .map(|pod| {
                hooks
                    .iter()
                    .map(|(name, _)| t.ran(&format!("{}.{name}", pod.name())))
                    .sum::<usize>()
            })
            .sum::<usize>()
    };
    while kills.len() < KILLS {
        // Somebody leads and runs commands again; then it happens at any moment.
        let before = lines();
        let progress = async {
            eventually("commands run", async || (lines() > before).then_some(())).await;
        };
        progress.await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..900))).await;
        let kill = Kill::choose(&mut rng, kills.len());
        if kill.happen(&t).await {
            kills.push(kill);
        }
    }
    println!("{kills:?}");
    let end = begun.finish().await;

    assert_eq!(end.runs.len(), PODS);
    let mut counts = std::collections::BTreeMap::new();
    for run in &end.runs {
        let pod = &run.spec.pod.name;
        let status = run.status.as_ref().expect("a status");
        assert_eq!(status.post.len(), HOOKS);
        for post in &status.post {
            let lines = t.ran(&format!("{pod}.{}", post.name));
            check(pod, post, lines, with_files.contains(post.name.as_str()));
            *counts.entry(format!("{:?}", post.state)).or_insert(0) += 1;
        }
    }
    println!("{counts:?}");
    assert!(t.velero_ran().is_empty());
}

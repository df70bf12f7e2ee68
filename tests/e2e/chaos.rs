//! At least fifty kills at random points while commands run. Each command appends a line with its time to a file of its own on
//! this machine; the lines are compared with the attempts on record. The seed is printed, and `REVEILLE_CHAOS_SEED` sets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    time::Duration,
};

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
const HOOKS: usize = 40;

/// How far clocks and their reading may be apart, in milliseconds. Between the beginning of a command and that of its next
/// attempt there are at least two hundred: it sleeps, and retries pause.
const SLACK: i64 = 50;
/// Why a command may not have been begun here: the next waiter found no trace of it.
const NOT_STARTED: &str = "was gone before it did";

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

    /// Whether a process ends by it; the others only take the Lease away.
    const fn kills(self) -> bool {
        !matches!(self, Self::LeaseEdited | Self::LeaseDeleted)
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
    // Time as the kernel counts it: the shell of the image knows no parts of a second.
    let line = "read up idle < /proc/uptime; echo $(hostname) $up";
    let script = format!("{{ {line}; }} >> {TRACES}/$(hostname).{name}; sleep {sleep}; exit {code}");
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

/// Milliseconds from 1970 to the start of this machine, by which its containers tell the time.
fn booted_at() -> i64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    reveille::infra::clock::now().as_millisecond() - uptime_in_millis(uptime.split_whitespace().next().unwrap())
}

/// Reads `123.45`.
fn uptime_in_millis(text: &str) -> i64 {
    let (seconds, hundredths) = text.split_once('.').expect("seconds and hundredths");
    seconds.parse::<i64>().unwrap() * 1000 + hundredths.parse::<i64>().unwrap() * 10
}

/// When the commands of a hook began, in milliseconds from 1970.
fn beginnings(t: &Scenario, pod: &str, hook: &str, booted: i64) -> Vec<i64> {
    let lines = t.read(&format!("{pod}.{hook}"));
    let times = lines.lines().map(|line| {
        let (host, up) = line.split_once(' ').unwrap();
        assert_eq!(host, pod);
        booted + uptime_in_millis(up)
    });
    times.collect()
}

/// From the start of an attempt to that of the next one at most one command began: its own. One whose end is not known may have
/// begun later than that, for nobody was there to see it.
fn check_times(what: &str, attempts: &[Attempt], lines: &[i64]) {
    let starts: Vec<i64> = attempts
        .iter()
        .map(|attempt| attempt.started_at.0.as_millisecond() - SLACK)
        .collect();
    let before = starts
        .first()
        .map_or(lines.len(), |first| lines.iter().filter(|line| *line < first).count());
    assert_eq!(before, 0, "begun before it was on record: {what}");
    let mut late = 0;
    for (index, attempt) in attempts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(i64::MAX);
        let begun = lines.iter().filter(|line| (starts[index]..end).contains(*line)).count();
        let allowed = late + usize::from(!never_begun(attempt));
        assert!(begun <= allowed, "attempt {} was begun twice: {what}", attempt.number);
        assert!(
            begun > 0 || attempt.exit_code.is_none(),
            "attempt {} has an exit code and was not begun: {what}",
            attempt.number
        );
        late = allowed - begun;
    }
}

/// One hook after the storm. `beginnings`: when its commands began.
fn check(pod: &str, post: &PostStatus, beginnings: &[i64], has_result_file: bool) {
    let lines = beginnings.len();
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
    for attempt in post.attempts.iter().filter(|attempt| never_begun(attempt)) {
        assert!(attempt.message.contains(NOT_STARTED), "why was it not started? {what}");
    }
    check_times(&what, &post.attempts, beginnings);
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

/// That the check can fail.
#[test]
fn a_command_that_began_twice_is_not_made_good_by_one_that_never_began() {
    let attempt = |number: i64, code: Option<i32>, reason: &str| -> Attempt {
        let start = jiff::Timestamp::from_second(number * 10).unwrap();
        serde_json::from_value(json!({
            "number": number, "claimedBy": "w", "startedAt": format!("{start:.6}"), "exitCode": code, "reason": reason,
        }))
        .unwrap()
    };
    let (unknown, known) = (attempt(1, None, "ProcessGone"), attempt(2, Some(0), ""));
    let holds = |attempts: &[Attempt], lines: &[i64]| {
        let check = std::panic::AssertUnwindSafe(|| check_times("", attempts, lines));
        std::panic::catch_unwind(check).is_ok()
    };
    let both = [unknown.clone(), known];
    assert!(holds(&both, &[10_100, 20_100]));
    assert!(holds(&both, &[20_100]), "the first may not have begun");
    assert!(holds(&both, &[20_100, 20_500]), "or late");
    assert!(!holds(&both, &[10_100, 10_500]), "the second has an exit code");
    assert!(!holds(&both, &[10_100, 20_100, 20_500]));
    let never = [unknown.clone(), attempt(2, None, "NotStarted")];
    assert!(holds(&never, &[10_100]) && !holds(&never, &[10_100, 20_100]));
    let twice = [unknown, attempt(2, None, "ProcessGone")];
    assert!(!holds(&twice, &[10_100, 10_500]));
    assert!(!holds(&twice, &[9_000]));
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
    let booted = booted_at();
    let mut kills: Vec<Kill> = Vec::new();
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
    while kills.iter().filter(|kill| kill.kills()).count() < KILLS {
        // Mostly when somebody leads and runs commands again, and sometimes on top of the last kill.
        let before = lines();
        let progress = async {
            eventually("commands run", async || (lines() > before).then_some(())).await;
        };
        if rng.u8(0..3) > 0 {
            progress.await;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..900))).await;
        let kill = Kill::choose(&mut rng, kills.len());
        if kill.happen(&t).await {
            kills.push(kill);
        }
    }
    println!("{kills:?}; {} lines for {} hooks so far", lines(), PODS * HOOKS);
    let end = begun.finish().await;

    assert_eq!(end.runs.len(), PODS);
    let mut counts = BTreeMap::new();
    for run in &end.runs {
        let pod = &run.spec.pod.name;
        let status = run.status.as_ref().expect("a status");
        assert_eq!(status.post.len(), HOOKS);
        for post in &status.post {
            let lines = beginnings(&t, pod, &post.name, booted);
            check(pod, post, &lines, with_files.contains(post.name.as_str()));
            *counts.entry(format!("{:?}", post.state)).or_insert(0) += 1;
        }
    }
    println!("{counts:?}");
    assert!(t.velero_ran().is_empty());
}

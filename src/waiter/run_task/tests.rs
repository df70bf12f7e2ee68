//! One run's task against an API server in memory whose answers get lost, and a command runner that counts.

use std::{
    convert::Infallible,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::{
    admission::Mode,
    api::hook_run::{HookRunStatus, HookState},
    control::Controls,
    waiter::{
        attempt::Outcome,
        exec::{Command, Report},
    },
};

/// What goes wrong with a write of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It is done, and the answer gets lost.
    AnswerLost,
    /// It is not done, and the caller can't know.
    RequestLost,
    /// Somebody else has written in between.
    Conflict,
    /// The API server does not take as much.
    TooLarge,
}

/// One `HookRun` and its pod.
#[derive(Debug)]
struct Server {
    run: Mutex<Value>,
    pod: Mutex<Value>,
    /// For the writes of a status, in order; then all goes well.
    faults: Mutex<Vec<Option<Fault>>>,
    writes: AtomicUsize,
    /// What the next looks at the pod are answered with.
    pod_errors: Mutex<Vec<u16>>,
    /// The reasons of Events.
    events: Mutex<Vec<String>>,
    /// All requests.
    requests: AtomicUsize,
    /// The namespace is being deleted, or is gone.
    namespace: Mutex<Namespace>,
    /// The next write of a status takes so long, and meanwhile another pod takes this one's name.
    slow_write: Mutex<Option<Duration>>,
}

/// How the run's namespace stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Active,
    Terminating,
    Gone,
}

impl Server {
    fn new(faults: &[Option<Fault>]) -> Arc<Self> {
        let now = clock::now().to_string();
        let hook = json!({"name": "h", "source": "spec", "container": "main", "command": ["x"], "execTimeout": "30s"});
        let pod = json!({"name": "p", "uid": "pu", "createdAt": now});
        let spec = json!({"pod": pod, "plan": {"version": 1, "plannedAt": now, "post": [hook]}});
        let mut run: HookRun = serde_json::from_value(json!({
            "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun",
            "metadata": {"namespace": "n", "name": run_name(), "uid": "ru", "resourceVersion": "1"}, "spec": spec,
        }))
        .unwrap();
        run.status = Some(begin::first_status(&run.spec, clock::now()));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "n", "name": "p", "uid": "pu", "creationTimestamp": now, "resourceVersion": "1"},
            "spec": {"containers": [{"name": "main"}]},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "main", "containerID": "c1", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }]},
        });
        Arc::new(Self {
            run: Mutex::new(serde_json::to_value(run).unwrap()),
            pod: Mutex::new(pod),
            faults: Mutex::new(faults.iter().rev().copied().collect()),
            writes: AtomicUsize::new(0),
            pod_errors: Mutex::default(),
            events: Mutex::default(),
            requests: AtomicUsize::new(0),
            namespace: Mutex::new(Namespace::Active),
            slow_write: Mutex::default(),
        })
    }

    fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "n")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let path = parts.uri.path().to_owned();
        self.requests.fetch_add(1, Ordering::SeqCst);
        let namespace = *self.namespace.lock().unwrap();
        let refused = match (namespace, &parts.method) {
            (Namespace::Gone, _) => Some(status(404)),
            (Namespace::Terminating, &Method::POST) => {
                let mut refused = status(403);
                refused["details"] = json!({"causes": [{"reason": "NamespaceTerminating"}]});
                Some(refused)
            }
            _ => None,
        };
        if let Some(refused) = refused {
            let code = u16::try_from(refused["code"].as_u64().unwrap()).unwrap();
            let body = Body::from(serde_json::to_vec(&refused).unwrap());
            return Response::builder().status(code).body(body).unwrap();
        }
        let (code, value) = match (&parts.method, path.as_str()) {
            (&Method::GET, path) if path.ends_with(&format!("/hookruns/{}", run_name())) => {
                (200, self.run.lock().unwrap().clone())
            }
            (&Method::GET, path) if path.ends_with("/pods/p") => match self.pod_errors.lock().unwrap().pop() {
                Some(code) => (code, status(code)),
                None => (200, self.pod.lock().unwrap().clone()),
            },
            (&Method::PUT, path) if path.ends_with(&format!("/hookruns/{}/status", run_name())) => {
                self.writes.fetch_add(1, Ordering::SeqCst);
                let pause = self.slow_write.lock().unwrap().take();
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                    self.pod.lock().unwrap()["metadata"]["uid"] = json!("another");
                }
                let fault = self.faults.lock().unwrap().pop().flatten();
                self.replace(serde_json::from_slice(&bytes).unwrap(), fault)
            }
            // Events.
            (&Method::POST, _) => {
                let event: Value = serde_json::from_slice(&bytes).unwrap();
                let reason = event["reason"].as_str().unwrap_or_default().to_owned();
                self.events.lock().unwrap().push(reason);
                (201, event)
            }
            _ => (404, status(404)),
        };
        let body = Body::from(serde_json::to_vec(&value).unwrap());
        Response::builder().status(code).body(body).unwrap()
    }

    fn replace(&self, mut new: Value, fault: Option<Fault>) -> (u16, Value) {
        let mut run = self.run.lock().unwrap();
        let bump = |value: &mut Value| {
            let version: u64 = value["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            value["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        };
        if fault == Some(Fault::Conflict) {
            run["metadata"]["annotations"] = json!({"somebody": "else"});
            bump(&mut run);
        }
        if fault == Some(Fault::TooLarge) {
            return (413, status(413));
        }
        if fault == Some(Fault::RequestLost) {
            return (500, status(500));
        }
        if new["metadata"]["resourceVersion"] != run["metadata"]["resourceVersion"] {
            return (409, status(409));
        }
        bump(&mut new);
        *run = new.clone();
        if fault == Some(Fault::AnswerLost) {
            return (500, status(500));
        }
        (200, new)
    }

    fn status(&self) -> HookRunStatus {
        serde_json::from_value(self.run.lock().unwrap()["status"].clone()).unwrap()
    }
}

/// As the waiter names the run of that pod.
fn run_name() -> String {
    let identity = PodIdentity {
        name: "p".to_owned(),
        uid: "pu".to_owned(),
        created_at: Timestamp::UNIX_EPOCH,
    };
    identity.run_name()
}

fn status(code: u16) -> Value {
    let reason = if code == 404 { "NotFound" } else { "" };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": format!("code {code}"),
    })
}

/// Counts commands; each ends at once with exit code 0, but for those that are turned away first.
#[derive(Debug, Default)]
struct Runner {
    commands: AtomicUsize,
    turned_away: Mutex<Vec<u16>>,
    /// The kubelet does not answer when it is asked whether a success is true.
    is_silent: Mutex<bool>,
}

impl Exec for Arc<Runner> {
    async fn run(&self, _: Command<'_>) -> Report {
        if let Some(code) = self.turned_away.lock().unwrap().pop() {
            let why = "no".to_owned();
            return Report::refused("").with(Outcome::TurnedAway { code, why });
        }
        self.commands.fetch_add(1, Ordering::SeqCst);
        Report::refused("").with(Outcome::Exited(0))
    }

    async fn confirm(&self, _: &str, _: &str, _: &str) -> Outcome {
        if *self.is_silent.lock().unwrap() {
            return Outcome::Lost("the kubelet does not answer".to_owned());
        }
        Outcome::Exited(0)
    }
}

struct Setup {
    server: Arc<Server>,
    runner: Arc<Runner>,
    context: Arc<Context<Arc<Runner>>>,
    key: RunKey,
    _synced: watch::Sender<bool>,
}

impl Setup {
    fn new(faults: &[Option<Fault>]) -> Self {
        let (server, runner) = (Server::new(faults), Arc::new(Runner::default()));
        let client = server.client();
        let standing = Arc::new(Standing::new("me".to_owned(), Duration::from_secs(600)));
        standing.hold();
        let traffic = Arc::new(Traffic::default());
        let events = Events::new(client.clone(), None).behind(Arc::clone(&traffic));
        let (synced, is_synced) = watch::channel(true);
        let queue = Arc::new(Queue::default());
        let missed = Missed {
            client: client.clone(),
            events: events.clone(),
            mode: Mode::Takeover,
            excluded_namespaces: Vec::new(),
            namespace_selector: kube::core::Selector::default(),
            restores: Arc::default(),
        };
        let context = Context {
            exec_client: client.clone(),
            client,
            exec: Arc::clone(&runner),
            queue: Arc::clone(&queue),
            events,
            traffic,
            metrics: Arc::new(Metrics::waiter()),
            policies: Arc::new(Policies::new(Vec::new())),
            missed: Arc::new(missed),
            process: "me".to_owned(),
            stop: CancellationToken::new(),
            gate: Arc::new(Gate::new(Arc::clone(&standing), 1, 1)),
            standing,
            run_limit: step::DEFAULT_RUN_LIMIT,
            report_after: SignedDuration::from_secs(30),
            redactor: Redactor::built_in().clone(),
            synced: is_synced,
        };
        let run: HookRun = serde_json::from_value(server.run.lock().unwrap().clone()).unwrap();
        let key = RunKey::of_run(&run).unwrap();
        queue.run_seen(run);
        Self {
            server,
            runner,
            context: Arc::new(context),
            key,
            _synced: synced,
        }
    }

    /// Lets the task work until it ends.
    async fn drive(&self) {
        let bell = Arc::new(Notify::new());
        let task = drive(Arc::clone(&self.context), self.key.clone(), bell);
        let limit = Duration::from_secs(3600);
        tokio::time::timeout(limit, task).await.expect("the task ends");
    }

    fn commands(&self) -> usize {
        self.runner.commands.load(Ordering::SeqCst)
    }
}

/// The hook ran once, in one attempt, and that is on record.
fn assert_once(setup: &Setup) {
    let status = setup.server.status();
    let post = &status.post[0];
    assert_eq!((setup.commands(), post.attempts.len()), (1, 1), "{post:?}");
    assert_eq!(
        (post.state, post.attempts[0].exit_code),
        (HookState::Succeeded, Some(0))
    );
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_on_the_way_a_command_runs_once_and_its_end_is_recorded() {
    use Fault::{AnswerLost, Conflict, RequestLost};
    let faults = [None, Some(AnswerLost), Some(RequestLost), Some(Conflict)];
    // The first write records the start, the second the end; then the third is the end's second try.
    for start in faults {
        for end in faults {
            for again in faults {
                let setup = Setup::new(&[start, end, again]);
                setup.drive().await;
                assert_once(&setup);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_that_nobody_confirms_is_none() {
    let setup = Setup::new(&[]);
    *setup.runner.is_silent.lock().unwrap() = true;
    setup.drive().await;
    let post = &setup.server.status().post[0];
    assert_eq!((setup.commands(), post.state), (1, HookState::Unknown));
    assert_eq!(post.attempts[0].exit_code, None);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_was_not_recorded_runs_nothing() {
    let setup = Setup::new(&[]);
    // Somebody else has recorded the whole run meanwhile.
    let mut done = setup.server.status();
    done.phase = crate::api::hook_run::RunPhase::Failed;
    done.post[0].state = HookState::Cancelled;
    {
        let mut run = setup.server.run.lock().unwrap();
        run["status"] = serde_json::to_value(&done).unwrap();
        run["metadata"]["resourceVersion"] = json!("7");
    }
    setup.drive().await;
    assert_eq!((setup.commands(), setup.server.status()), (0, done));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_comes_too_late_is_given_up() {
    let setup = Setup::new(&[]);
    let taken = setup.context.gate.place("other").await;
    let task = setup.drive();
    let meanwhile = async {
        // The task waits for its place; then its pod goes.
        tokio::time::sleep(Duration::from_secs(60)).await;
        setup.server.pod.lock().unwrap()["metadata"]["uid"] = json!("another");
        drop(taken);
    };
    tokio::join!(task, meanwhile);
    let post = &setup.server.status().post[0];
    assert_eq!(
        (setup.commands(), post.state, post.reason.as_str()),
        (0, HookState::Cancelled, "PodGone")
    );
    // And it keeps nobody from the place.
    let place = tokio::time::timeout(Duration::from_secs(1), setup.context.gate.place("n")).await;
    assert!(place.is_ok_and(|place| place.is_some()));
}

#[tokio::test(start_paused = true)]
async fn while_it_waits_for_a_place_it_says_so_and_can_be_cancelled() {
    let setup = Setup::new(&[]);
    let taken = setup.context.gate.place("n").await;
    let bell = Arc::new(Notify::new());
    let task = drive(Arc::clone(&setup.context), setup.key.clone(), Arc::clone(&bell));
    let meanwhile = async {
        // The pod's watch is not driven here, so the task looks at it now and then; the clock of the test does not wait.
        tokio::time::sleep(Duration::from_secs(40)).await;
        {
            let mut run = setup.server.run.lock().unwrap();
            let cancel = json!({"id": "c", "by": "somebody", "at": "2026-01-01T00:00:00Z"}).to_string();
            run["metadata"]["annotations"] = json!({"reveille.dev/cancel": cancel});
            run["metadata"]["resourceVersion"] = json!("7");
            let seen: HookRun = serde_json::from_value(run.clone()).unwrap();
            setup.context.queue.run_seen(seen);
        }
        bell.notify_one();
    };
    tokio::join!(task, meanwhile);
    let status = setup.server.status();
    assert_eq!(
        (setup.commands(), status.post[0].reason.as_str()),
        (0, "CancelledByUser")
    );
    // It keeps nobody from the place.
    drop(taken);
    let place = tokio::time::timeout(Duration::from_secs(1), setup.context.gate.place("n")).await;
    assert!(place.is_ok_and(|place| place.is_some()));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_keeps_its_turn() {
    let setup = Setup::new(&[]);
    let taken = setup.context.gate.place("n").await;
    let bell = Arc::new(Notify::new());
    let task = drive(Arc::clone(&setup.context), setup.key.clone(), Arc::clone(&bell));
    let others = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // One that comes later, and all sorts of reasons to look again.
        let mut later = std::pin::pin!(setup.context.gate.place("n"));
        assert!(futures::poll!(later.as_mut()).is_pending());
        for _ in 0..3 {
            bell.notify_one();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        drop(taken);
        assert!(later.await.is_some());
        assert_eq!(setup.commands(), 1, "the first has had its turn");
    };
    tokio::join!(task, others);
    assert_once(&setup);
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_turns_away_for_a_while_is_started_later_and_once() {
    for code in [401, 403, 429] {
        let setup = Setup::new(&[]);
        *setup.runner.turned_away.lock().unwrap() = vec![code; 5];
        setup.drive().await;
        assert_once(&setup);
        let blocked = setup
            .server
            .events
            .lock()
            .unwrap()
            .iter()
            .any(|reason| reason == "HooksBlocked");
        assert_eq!(blocked, code != 429, "{code}");
        // A start, a withdrawal, and so on: there are pauses between them, not a loop.
        assert_eq!(setup.server.writes.load(Ordering::SeqCst), 12);
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_at_the_pod_that_fails_ends_no_hook() {
    for code in [400, 401, 403, 429, 500, 503] {
        let setup = Setup::new(&[]);
        *setup.server.pod_errors.lock().unwrap() = vec![code; 6];
        setup.drive().await;
        assert_once(&setup);
    }
}

/// Lets the hook start, as the watch showed its pod, with this container by now on the API server and in the watch.
async fn start_with(setup: &Setup, on_server: &str, watched: &str) {
    let pod = |id: &str| {
        let mut pod = setup.server.pod.lock().unwrap().clone();
        pod["status"]["containerStatuses"][0]["containerID"] = json!(id);
        pod
    };
    let view = |id: &str| PodView::read(&serde_json::from_value(pod(id)).unwrap(), Redactor::built_in()).unwrap();
    let mut task = RunTask {
        run: setup.context.queue.run(&setup.key),
        behind: false,
        marked: true,
        reported: false,
        cleaned: false,
        slot: Slot::Taken(setup.context.gate.place("n").await.unwrap()),
        context: &setup.context,
        key: setup.key.clone(),
    };
    let run = task.run.clone().unwrap();
    let status = run.status.clone().unwrap();
    let situation = Situation {
        spec: &run.spec,
        status: &status,
        pod: Some(&view("c1")),
        now: clock::now(),
        process: "me",
        finishing: &std::collections::BTreeMap::new(),
        run_limit: step::DEFAULT_RUN_LIMIT,
        failed_elsewhere: None,
        controls: &Controls::default(),
        report_after: SignedDuration::from_secs(30),
        crowd: None,
    };
    let Step::Execute { hook, status } = step::next(&situation) else {
        panic!("the hook starts")
    };
    let now = pod(on_server);
    *setup.server.pod.lock().unwrap() = now;
    let _ = setup.context.queue.pod_seen(view(watched));
    task.execute(hook, status).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_start_is_taken_back_when_the_container_was_restarted_in_between() {
    for (on_server, watched) in [("c2", "c1"), ("c1", "c2")] {
        let setup = Setup::new(&[]);
        start_with(&setup, on_server, watched).await;
        let post = &setup.server.status().post[0];
        assert_eq!(
            (setup.commands(), post.state, post.attempts.len()),
            (0, HookState::Waiting, 0)
        );
        // With a fresh look it runs.
        setup.context.queue.pod_gone(&setup.key);
        setup.drive().await;
        assert_once(&setup);
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_at_the_pod_that_is_old_by_the_time_of_the_start_does_not_count() {
    for watched in [true, false] {
        let setup = Setup::new(&[]);
        *setup.server.slow_write.lock().unwrap() = Some(Duration::from_secs(2));
        if watched {
            start_with(&setup, "c1", "c1").await;
        } else {
            setup.drive().await;
        }
        let post = &setup.server.status().post[0];
        assert_eq!((setup.commands(), post.state), (0, HookState::Failed));
        assert!(post.message.contains("the pod is gone"), "{}", post.message);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_without_the_lease() {
    let setup = Setup::new(&[]);
    setup.context.gate.close();
    let driven = tokio::time::timeout(Duration::from_secs(600), setup.drive()).await;
    assert!(driven.is_err(), "it waits");
    assert_eq!((setup.commands(), setup.server.writes.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_not_taken_is_written_shorter_and_said_so_if_that_does_not_help() {
    // The start is recorded; then the end is refused once, and for a while.
    for refusals in [1, 8] {
        let mut faults = vec![None];
        faults.extend(vec![Some(Fault::TooLarge); refusals]);
        let setup = Setup::new(&faults);
        let ends = setup.drive();
        let meanwhile = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            // Its command has ended: it keeps nobody from starting one.
            let place = tokio::time::timeout(Duration::from_secs(1), setup.context.gate.place("n")).await;
            assert!(place.is_ok_and(|place| place.is_some()));
        };
        tokio::join!(ends, meanwhile);
        assert_once(&setup);
        assert_eq!(setup.server.writes.load(Ordering::SeqCst), refusals + 2);
        let events = setup.server.events.lock().unwrap();
        let blocked = events.iter().filter(|reason| *reason == "HooksBlocked").count();
        assert_eq!(blocked, 1, "{events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_being_deleted_is_asked_seldom_and_one_that_is_gone_ends_the_run() {
    let setup = Setup::new(&[]);
    // A planned pod without a run: it can't be created any more.
    let mut plan = setup.context.queue.run(&setup.key).unwrap().spec.plan.clone();
    plan.resolved = true;
    let mut pod = setup.server.pod.lock().unwrap().clone();
    pod["metadata"]["annotations"] = json!({"reveille.dev/plan": plan.to_text().unwrap()});
    let pod = PodView::read(&serde_json::from_value(pod).unwrap(), Redactor::built_in()).unwrap();
    setup.context.queue.run_gone(&setup.key);
    let key = RunKey::of_pod(&pod);
    setup.context.queue.pod_seen(pod);
    *setup.server.namespace.lock().unwrap() = Namespace::Terminating;
    let bell = Arc::new(Notify::new());
    let task = drive(Arc::clone(&setup.context), key.clone(), Arc::clone(&bell));
    let meanwhile = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let asked = setup.server.requests.load(Ordering::SeqCst);
        assert!((1..=15).contains(&asked), "{asked} requests in an hour");
        *setup.server.namespace.lock().unwrap() = Namespace::Gone;
        setup.context.queue.pod_gone(&key);
        bell.notify_one();
    };
    tokio::join!(task, meanwhile);

    // A run whose namespace has gone with all that was in it.
    let setup = Setup::new(&[]);
    *setup.server.namespace.lock().unwrap() = Namespace::Gone;
    setup.drive().await;
    assert!(setup.server.requests.load(Ordering::SeqCst) < 5);
    assert_eq!(setup.commands(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_older_reveille_has_written_is_gone_on_with() {
    let started = json!({"number": 1, "claimedBy": "older", "startedAt": "2026-01-01T00:00:00.000000Z"});
    for (hook, state, commands) in [
        (
            json!({"name": "h", "container": "main", "state": "Waiting"}),
            HookState::Succeeded,
            1,
        ),
        (
            json!({"name": "h", "container": "main", "state": "Started", "attempts": [started]}),
            HookState::Unknown,
            0,
        ),
    ] {
        let setup = Setup::new(&[]);
        {
            // As the first version wrote it: nothing of reruns, pauses, progress, conditions.
            let mut run = setup.server.run.lock().unwrap();
            run["status"] = json!({"phase": "Pending", "post": [hook]});
            run["metadata"]["resourceVersion"] = json!("7");
        }
        setup.drive().await;
        let status = setup.server.status();
        assert_eq!(
            (status.post[0].state, setup.commands()),
            (state, commands),
            "{status:?}"
        );
        assert!(status.phase.is_final() && !status.conditions.is_empty());
    }
}

/// Thousands of tasks sleep between their turns.
#[tokio::test]
async fn a_task_that_sleeps_is_small() {
    let setup = Setup::new(&[]);
    let task = drive(Arc::clone(&setup.context), setup.key.clone(), Arc::default());
    let size = std::mem::size_of_val(&task);
    assert!(size < 1024, "{size} bytes");
}

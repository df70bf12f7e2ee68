//! Answering admission calls over HTTP: reads the body within bounds, asks the pure core, writes the answer.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Semaphore, time::Instant};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{debug, error, info};

use super::{
    body::{self, BodyError, Room},
    limits::Limits,
    restores::RestoreCache,
};
use crate::{
    admission::{
        Mode, PodContext, PodDecision, decide_pod, decide_restore,
        review::{self, Answer, Request},
    },
    duration::GoDuration,
    hooks::{
        Problem,
        restored::{KnownRestores, RestoreInfo, Restored, restored, surely_stale},
    },
    infra::{
        clock::{self, Stopwatch},
        metrics::{Decision, Metrics, Resource},
    },
    names::{SELF_TEST_LABEL, VELERO_RESTORE_LABEL},
};

/// Where the API server posts reviews of pods.
pub const PODS_PATH: &str = "/mutate/pods";
/// Where it posts reviews of Restores.
pub const RESTORES_PATH: &str = "/mutate/restores";

/// What a call may take if it does not say so itself: the chart's `timeoutSeconds`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The API server's own maximum.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer is on its way so long before the call ends.
const MARGIN: Duration = Duration::from_millis(500);
/// More warnings than this are only counted.
const WARNINGS: usize = 10;
/// The annotation on pods that only show what a kubelet runs from a file.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// How the webhook decides.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who runs the hooks of Restores that do not say so themselves.
    pub mode: Mode,
    /// Labels by which other restore tools mark their pods.
    pub marker_labels: Vec<String>,
    /// An admission policy keeps everybody else from changing a plan once its pod exists.
    pub marks_protected: bool,
}

/// What all calls share.
pub struct Webhook {
    settings: Settings,
    limits: Limits,
    restores: Arc<RestoreCache>,
    metrics: Arc<Metrics>,
    room: Room,
    calls: Semaphore,
}

impl Webhook {
    /// A webhook that knows the Restores of this cache.
    pub fn new(settings: Settings, limits: Limits, restores: Arc<RestoreCache>, metrics: Arc<Metrics>) -> Self {
        Self {
            room: Room::new(&limits),
            calls: Semaphore::new(limits.calls),
            settings,
            limits,
            restores,
            metrics,
        }
    }

    /// Its pages. A panic becomes a 500 of that one call.
    pub fn router(self: Arc<Self>) -> Router {
        let metrics = Arc::clone(&self.metrics);
        let on_panic = move |_| {
            error!("a call panicked: this is a fault in Reveille");
            metrics.admission(Resource::Other, Decision::Failed, Duration::ZERO);
            (StatusCode::INTERNAL_SERVER_ERROR, "internal error\n").into_response()
        };
        Router::new()
            .route(PODS_PATH, post(mutate))
            .route(RESTORES_PATH, post(mutate))
            .with_state(self)
            .layer(CatchPanicLayer::custom(on_panic))
    }
}

#[derive(Deserialize)]
struct CallQuery {
    timeout: Option<String>,
}

/// When the answer has to be ready. A timeout that can't be read counts as absent.
fn deadline(query: &CallQuery, start: Instant) -> Instant {
    let asked = query
        .timeout
        .as_deref()
        .and_then(|text| text.parse::<GoDuration>().ok()?.to_std());
    let timeout = asked.filter(|timeout| !timeout.is_zero()).unwrap_or(DEFAULT_TIMEOUT);
    let timeout = timeout.min(LONGEST_TIMEOUT);
    start + timeout.saturating_sub(MARGIN).max(timeout / 2)
}

/// One call. What is asked is read from the review itself, so both paths are one.
async fn mutate(State(webhook): State<Arc<Webhook>>, uri: Uri, body: Body) -> Response {
    let watch = Stopwatch::start();
    let query = Query::try_from_uri(&uri).map_or(CallQuery { timeout: None }, |Query(query)| query);
    let deadline = deadline(&query, Instant::now());
    let (resource, decision, response) = webhook.respond(body, deadline).await;
    webhook.metrics.admission(resource, decision, watch.elapsed());
    response
}

type Outcome = (Resource, Decision, Response);

fn refusal(decision: Decision, status: StatusCode, reason: String) -> Outcome {
    debug!(%status, reason, "call refused");
    (Resource::Other, decision, (status, reason + "\n").into_response())
}

fn refuse_body(error: &BodyError) -> Outcome {
    let (decision, status) = match error {
        BodyError::TooLarge(_) | BodyError::TooHeavy(..) => (Decision::TooLarge, StatusCode::PAYLOAD_TOO_LARGE),
        BodyError::TooSlow => (Decision::Refused, StatusCode::REQUEST_TIMEOUT),
        BodyError::NoRoom => (Decision::Refused, StatusCode::SERVICE_UNAVAILABLE),
        BodyError::Broken(_) => (Decision::Invalid, StatusCode::BAD_REQUEST),
    };
    refusal(decision, status, error.to_string())
}

impl Webhook {
    async fn respond(&self, body: Body, deadline: Instant) -> Outcome {
        // `held` counts the body's bytes as in flight until the answer is written.
        let (body, _held) = match body::read(body, &self.limits, &self.room, deadline).await {
            Ok(read) => read,
            Err(error) => return refuse_body(&error),
        };
        let Ok(Ok(_turn)) = tokio::time::timeout_at(deadline, self.calls.acquire()).await else {
            let reason = "too many calls at the same time".to_owned();
            return refusal(Decision::Refused, StatusCode::SERVICE_UNAVAILABLE, reason);
        };
        let _tree = match body::room_for_tree(&body, &self.limits, &self.room, deadline).await {
            Ok(held) => held,
            Err(error) => return refuse_body(&error),
        };
        let request = match review::read(&body) {
            Ok(request) => request,
            Err(reason) => return refusal(Decision::Invalid, StatusCode::BAD_REQUEST, reason),
        };
        let (resource, decision, answer) = self.decide(&request, deadline, clock::now()).await;
        match review::write(&request.uid, &answer) {
            Ok(bytes) => {
                let response = ([(CONTENT_TYPE, "application/json")], bytes).into_response();
                (resource, decision, response)
            }
            Err(error) => {
                error!(%error, "an answer can't be written: this is a fault in Reveille");
                let response = (StatusCode::INTERNAL_SERVER_ERROR, "internal error\n").into_response();
                (resource, Decision::Failed, response)
            }
        }
    }

    /// The answer to a review of anything. Repeats the filters of the webhook configuration: that may be older than we are.
    async fn decide(&self, request: &Request, deadline: Instant, now: Timestamp) -> (Resource, Decision, Answer) {
        let resource = (request.resource.group.as_str(), request.resource.resource.as_str());
        let plain = request.sub_resource.is_empty() && request.object.is_object();
        match (resource, request.operation.as_str()) {
            (("", "pods"), "CREATE") if plain && !is_mirror(&request.object) => {
                let (decision, answer) = self.pod(request, deadline, now).await;
                (Resource::Pods, decision, answer)
            }
            (("velero.io", "restores"), "CREATE" | "UPDATE") if plain => {
                let (decision, answer) = self.restore(request);
                (Resource::Restores, decision, answer)
            }
            _ => (Resource::Other, Decision::Foreign, Answer::default()),
        }
    }

    /// The mode and the markers that hold for a pod. A self-test is served in any mode, and only as the dry run that it is.
    fn rules_for(&self, request: &Request) -> (Mode, Cow<'_, [String]>) {
        let label = request.object.pointer("/metadata/labels");
        let self_test = label.is_some_and(|labels| labels.get(SELF_TEST_LABEL).is_some());
        if request.dry_run && self_test {
            return (Mode::Takeover, Cow::Owned(vec![SELF_TEST_LABEL.to_owned()]));
        }
        (self.settings.mode, Cow::Borrowed(&self.settings.marker_labels))
    }

    async fn pod(&self, request: &Request, deadline: Instant, now: Timestamp) -> (Decision, Answer) {
        let pod = &request.object;
        let (mode, markers) = self.rules_for(request);
        let creator = Some(request.user_info.username.as_str()).filter(|user| !user.is_empty());
        let decided = |known: KnownRestores| {
            let restored = restored(pod, &request.namespace, creator, known, &markers);
            let by = match restored {
                Restored::By(restore) => Some(format!("{}/{}", restore.namespace, restore.name)),
                _ => None,
            };
            let unresolved = matches!(restored, Restored::Unknown(_));
            let context = PodContext {
                namespace: &request.namespace,
                restored,
                mode,
                marks_protected: self.settings.marks_protected,
                now,
            };
            (unresolved, by, decide_pod(pod, &context))
        };

        let label = restore_label(pod).unwrap_or_default();
        let cached = self.restores.named(label);
        let references: Vec<&RestoreInfo> = cached.restores.iter().map(AsRef::as_ref).collect();
        let trusted = label.is_empty() || (cached.synced && surely_stale(pod, creator, &references));
        let complete = match (trusted, cached.synced) {
            (true, _) => Ok(()),
            (false, true) => Err("it may be newer than what the watch has brought"),
            (false, false) => Err("the Restores are not known yet"),
        };
        let known = KnownRestores {
            restores: &references,
            complete,
        };
        let (mut unresolved, mut by, mut decision) = decided(known);
        if unresolved {
            let fetched = self.restores.fetch(label, deadline).await;
            let restores = fetched.as_deref().unwrap_or_default();
            let references: Vec<&RestoreInfo> = restores.iter().map(AsRef::as_ref).collect();
            let known = KnownRestores {
                restores: &references,
                complete: fetched.as_ref().map(|_| ()).map_err(String::as_str),
            };
            (unresolved, by, decision) = decided(known);
        }
        log_pod(request, by.as_deref(), &decision);
        let outcome = match &decision {
            _ if unresolved => Decision::Unresolved,
            decision if !decision.restored => Decision::NotRestored,
            decision if decision.operations.is_empty() => Decision::Unchanged,
            _ => Decision::Patched,
        };
        (outcome, pod_answer(outcome, by, decision))
    }

    fn restore(&self, request: &Request) -> (Decision, Answer) {
        let old = Some(&request.old_object).filter(|old| !old.is_null());
        let decision = decide_restore(&request.object, old, self.settings.mode);
        let outcome = if decision.operations.is_empty() {
            Decision::Unchanged
        } else {
            Decision::Patched
        };
        debug!(
            namespace = request.namespace,
            owned = decision.owned,
            "Restore admitted"
        );
        let mut answer = Answer {
            warnings: warnings(&decision.problems),
            operations: decision.operations,
            ..Answer::default()
        };
        note(&mut answer, "decision", outcome.as_str());
        note(&mut answer, "owned", if decision.owned { "true" } else { "false" });
        (outcome, answer)
    }
}

fn restore_label(pod: &Value) -> Option<&str> {
    pod.get("metadata")?.get("labels")?.get(VELERO_RESTORE_LABEL)?.as_str()
}

fn is_mirror(pod: &Value) -> bool {
    let annotations = pod.get("metadata").and_then(|metadata| metadata.get("annotations"));
    annotations.is_some_and(|annotations| annotations.get(MIRROR_ANNOTATION).is_some())
}

fn pod_answer(outcome: Decision, by: Option<String>, decision: PodDecision) -> Answer {
    let mut answer = Answer {
        warnings: warnings(&decision.problems),
        operations: decision.operations,
        ..Answer::default()
    };
    note(&mut answer, "decision", outcome.as_str());
    if let Some(by) = by {
        note(&mut answer, "restore", by);
    }
    if let Some(plan) = decision.plan {
        note(&mut answer, "plan", plan.digest);
        note(&mut answer, "post-hooks", decision.hooks.len().to_string());
        note(&mut answer, "init-hooks", plan.init.len().to_string());
    }
    answer
}

fn note(answer: &mut Answer, key: &str, value: impl Into<String>) {
    answer.audit.insert(key.to_owned(), value.into());
}

fn warnings(problems: &[Problem]) -> Vec<String> {
    let mut warnings: Vec<String> = problems.iter().take(WARNINGS).map(ToString::to_string).collect();
    if let Some(more) = problems.len().checked_sub(WARNINGS).filter(|more| *more > 0) {
        warnings.push(format!("and {more} more problems with hooks"));
    }
    warnings
}

/// A pod with which all is well gets a line at `debug` alone: what was decided stands on the pod and in the audit log, and a line
/// costs about as much as the decision. Neither commands nor the words of problems are logged: both may hold what a user would
/// rather keep.
fn log_pod(request: &Request, by: Option<&str>, decision: &PodDecision) {
    let metadata = request.object.get("metadata");
    let name = |key: &str| metadata.and_then(|metadata| metadata.get(key)?.as_str());
    let pod = name("name").or_else(|| name("generateName")).unwrap_or_default();
    let (namespace, reason) = (&request.namespace, &decision.reason);
    let (hooks, injected) = (decision.hooks.len(), decision.injected.len());
    let problems = decision.problems.len();
    if problems > 0 {
        info!(
            namespace,
            pod,
            restore = by,
            reason,
            hooks,
            injected,
            problems,
            "pod with problems in its hooks"
        );
    } else if decision.operations.is_empty() {
        debug!(namespace, pod, restore = by, reason, "pod left as it is");
    } else {
        debug!(namespace, pod, restore = by, reason, hooks, injected, "pod planned");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_the_calls_less_a_margin() {
        let start = Instant::now();
        let budget = |timeout: Option<&str>| {
            let timeout = timeout.map(str::to_owned);
            deadline(&CallQuery { timeout }, start) - start
        };
        let millis = Duration::from_millis;
        assert_eq!(budget(Some("10s")), millis(9500));
        assert_eq!(budget(Some("1s")), millis(500));
        assert_eq!(budget(Some("100ms")), millis(50));
        for default in [None, Some("x"), Some("-3s"), Some("0s"), Some("")] {
            assert_eq!(budget(default), millis(4500), "{default:?}");
        }
        assert_eq!(budget(Some("1000h")), millis(29500));
    }

    #[test]
    fn warnings_are_bounded() {
        let problems = |count: usize| vec![Problem::warning("key", "message"); count];
        assert_eq!(warnings(&problems(WARNINGS)).len(), WARNINGS);
        let many = warnings(&problems(WARNINGS + 5));
        assert_eq!(many.last().unwrap(), "and 5 more problems with hooks");
    }
}

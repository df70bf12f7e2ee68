//! `HookRun`: what is to happen in one restored pod, and what became of it. It outlives the pod.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, api::DynamicObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    control::{Request, RerunRequest},
    digest,
    duration::GoDuration,
    names::{CANCEL_ANNOTATION, RERUN_ANNOTATION},
    plan::{self, Plan, PlanError},
};

/// In place of the version of a plan that can't be read: newer than any.
const UNREADABLE: u32 = u32::MAX;

/// The frozen plan of one pod of one restore. Only the waiter creates `HookRun`s.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "reveille.dev",
    version = "v1alpha1",
    kind = "HookRun",
    plural = "hookruns",
    shortname = "hr",
    namespaced,
    status = "HookRunStatus",
    derive = "PartialEq",
    validation = Rule::new("self.spec == oldSelf.spec").message("the spec is what was frozen at admission: it can't be changed"),
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".spec.pod.name"}"#,
    printcolumn = r#"{"name":"Restore","type":"string","jsonPath":".spec.plan.restore.name"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Hooks","type":"string","jsonPath":".status.progress","description":"post hooks that have ended, of all"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Finished')].reason"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct HookRunSpec {
    /// The pod that the plan was found on.
    pub pod: PodIdentity,
    /// What is to happen in it.
    pub plan: Plan,
}

/// One pod, never to be confused with a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was created: the clock of wait timeouts starts here.
    #[schemars(with = "String")]
    pub created_at: Timestamp,
}

impl PodIdentity {
    /// The name of the pod's `HookRun`: the same each time, so that creating it twice is harmless.
    pub fn run_name(&self) -> String {
        // 253 characters are allowed; a pod's name may have as many.
        let cut: String = self.name.chars().take(200).collect();
        let hex = digest::hex(&self.uid, 5);
        format!("{}-{hex}", cut.trim_end_matches(['.', '-']))
    }
}

impl HookRun {
    /// Reads one as the API server gives it. One that a newer Reveille has planned, or that is not whole, is read as far as it
    /// must be understood here: whose it is, and how it stands. Without it a verdict would be another.
    pub fn read(object: DynamicObject) -> Self {
        let DynamicObject { metadata, data, .. } = object;
        let part = |path: &str| data.pointer(path).unwrap_or(&Value::Null);
        let version = part("/spec/plan/version").as_u64().unwrap_or_default();
        let (version, message) = if version > u64::from(plan::VERSION) {
            let version = u32::try_from(version).unwrap_or(u32::MAX);
            (version, PlanError::Newer(version).to_string())
        } else {
            let status = || Option::<HookRunStatus>::deserialize(part("/status"));
            match HookRunSpec::deserialize(part("/spec")).and_then(|spec| Ok((spec, status()?))) {
                Ok((spec, status)) => return Self { metadata, spec, status }.lean(),
                Err(error) => (UNREADABLE, format!("this HookRun can't be read: {error}")),
            }
        };
        let plan = Plan {
            version,
            restore: Option::deserialize(part("/spec/plan/restore")).unwrap_or_default(),
            ..Plan::nothing()
        };
        // The uid tells it from all others also where the pod is not known.
        let pod = PodIdentity::deserialize(part("/spec/pod")).unwrap_or_else(|_| PodIdentity {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            created_at: Timestamp::UNIX_EPOCH,
        });
        let phase = RunPhase::deserialize(part("/status/phase")).unwrap_or(RunPhase::Pending);
        let status = HookRunStatus {
            phase,
            message,
            ..HookRunStatus::default()
        };
        let run = Self {
            metadata,
            spec: HookRunSpec { pod, plan },
            status: Some(status),
        };
        run.lean()
    }

    /// Without the API server's notes on who wrote which field: nobody here reads them, they are larger than all the rest, and
    /// an update without them leaves them as they are.
    #[must_use]
    pub fn lean(mut self) -> Self {
        self.metadata.managed_fields = None;
        self
    }

    /// A newer Reveille has planned it, or it can't be read: nothing is done with it here.
    pub fn is_newer(&self) -> bool {
        self.spec.plan.version > plan::VERSION
    }

    /// The request to run it again that stands on the run, taken in or not.
    pub fn rerun_request(&self) -> Option<RerunRequest> {
        RerunRequest::read(self.metadata.annotations.as_ref()?.get(RERUN_ANNOTATION)?)
    }

    /// The request to run it again that nobody has taken in yet, if there is one.
    pub fn open_rerun(&self) -> Option<RerunRequest> {
        let request = self.rerun_request()?;
        let taken = self.status.as_ref()?.has_taken(&request.request);
        (!taken).then_some(request)
    }

    /// The request to cancel that stands on the run itself.
    pub fn cancel_request(&self) -> Option<Request> {
        Request::read(self.metadata.annotations.as_ref()?.get(CANCEL_ANNOTATION)?)
    }
}

/// How a whole run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RunPhase {
    /// Nothing has been started.
    #[default]
    Pending,
    /// At least one hook has been started.
    Running,
    /// All hooks succeeded.
    Succeeded,
    /// A hook with `onError: Continue` did not succeed; none with `Fail` did not.
    PartiallyFailed,
    /// A hook with `onError: Fail` did not succeed.
    Failed,
    /// It came with a backup or belongs to no restore: it never runs.
    Stale,
}

impl RunPhase {
    /// Nothing will change any more, unless somebody asks for a rerun.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// How one hook stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HookState {
    /// It waits for its turn or its container.
    #[default]
    Waiting,
    /// An attempt has been recorded; its command may be running.
    Started,
    /// It ended with exit code 0, and somebody read that.
    Succeeded,
    /// It ended otherwise, or could not be started.
    Failed,
    /// It was not started: another hook failed, the pod went away, or somebody cancelled it.
    Cancelled,
    /// It was not started: its container was not up in time.
    WaitTimedOut,
    /// It did not end in time; the command may still be running.
    ExecTimedOut,
    /// It was not started: it can't be run as it is written.
    Skipped,
    /// It was started, and nobody knows how it ended.
    Unknown,
    /// It is Velero's to run: Velero saw it because the webhook was not asked. Its result stands in Velero's status.
    LeftToVelero,
}

impl HookState {
    /// Nothing will change any more, unless somebody asks for a rerun.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Started)
    }
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookRunStatus {
    /// How it stands.
    #[serde(default)]
    pub phase: RunPhase,
    /// The same in words, with what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How many of its post hooks have ended, of how many.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// The post hooks, in the order of the plan.
    #[serde(default)]
    pub post: Vec<PostStatus>,
    /// The init containers, in the order of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init: Vec<InitStatus>,
    /// `Finished`, `Succeeded`, `Waiting`; and what is out of the ordinary: `InitTimedOut`, `AdmissionMissed`,
    /// `InjectionMissed`, `LeftToVelero`, `PolicyMissing`, `Paused`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When the first hook was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When the last hook ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Who has cancelled what had not started, if anybody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<Request>,
    /// Since when nothing new is started because somebody has paused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_since: Option<MicroTime>,
    /// How long it was paused before that, since the clocks of its wait timeouts began.
    #[serde(default, skip_serializing_if = "is_no_time")]
    pub paused_for: GoDuration,
    /// The latest requests to run it again, taken in or refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reruns: Vec<Rerun>,
}

/// A request to run again what did not succeed, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rerun {
    /// Who asked, when and why.
    pub request: Request,
    /// From 1, for those that were not refused; 0 for a refused one.
    #[serde(default)]
    pub number: u32,
    /// When it was taken in: the clocks of wait timeouts start anew here.
    pub taken_at: MicroTime,
    /// The names of the hooks that it runs again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<String>,
    /// The requests to cancel (by id) that stood at that time: they were for what went before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub despite: Vec<String>,
    /// Why it was refused, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl HookRunStatus {
    /// The latest rerun that was not refused.
    pub fn last_rerun(&self) -> Option<&Rerun> {
        self.reruns.iter().rev().find(|rerun| rerun.refused.is_none())
    }

    /// Whether this request to run it again has been taken in or refused already.
    pub fn has_taken(&self, request: &Request) -> bool {
        self.reruns.iter().any(|rerun| rerun.request.id == request.id)
    }
}

/// What became of one post hook.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostStatus {
    /// The hook's name.
    pub name: String,
    /// The container it runs in.
    #[serde(default)]
    pub container: String,
    /// How it stands.
    #[serde(default)]
    pub state: HookState,
    /// A word for machines when it did not succeed, for example `NonZeroExitCode`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it may be started again, while it waits for that after a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<MicroTime>,
    /// Each time it was started, but for those that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// How many attempts are left out behind the first, because the record had become too large.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts_left_out: u32,
    /// The number of the last rerun that it was part of; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rerun: u32,
    /// How many attempts there were before that rerun.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts_before_rerun: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_no_time(time: &GoDuration) -> bool {
    time.is_zero()
}

impl PostStatus {
    /// How often it was started.
    pub fn times_started(&self) -> u32 {
        let listed = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        listed.saturating_add(self.attempts_left_out)
    }
}

/// One execution of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// The process that started it.
    pub claimed_by: String,
    /// The process that looks for its result file, if that is another one: the first was gone before the end was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected_by: Option<String>,
    /// The container it runs in, where its result file would go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// Written before the command starts.
    pub started_at: MicroTime,
    /// When its end was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// The exit code that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// A word for machines when it did not succeed, for example `NonZeroExitCode`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The end of its standard output, escaped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdout: String,
    /// The end of its standard error, escaped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stderr: String,
}

/// How an init container stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum InitState {
    /// It has not run yet.
    #[default]
    Waiting,
    /// It runs.
    Running,
    /// It ended with exit code 0.
    Succeeded,
    /// It ended otherwise; the kubelet may start it again.
    Failed,
    /// It had not ended in time; it may still run.
    TimedOut,
    /// It is not in the pod: it can't be used as it is written.
    Skipped,
    /// The pod went away before it had ended.
    Unknown,
    /// It should be in the pod and is not: the webhook was not asked when the pod was created.
    InjectionMissed,
}

/// What became of one init container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InitStatus {
    /// The hook's name.
    pub name: String,
    /// The container's name.
    pub container: String,
    /// How it stands.
    #[serde(default)]
    pub state: InitState,
    /// Why, in a sentence, when there is something to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Its last exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it first started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_name_is_short_and_depends_on_the_uid() {
        let identity = |name: &str, uid: &str| PodIdentity {
            name: name.to_owned(),
            uid: uid.to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(identity("db-0", "u").run_name(), identity("db-0", "u").run_name());
        assert_ne!(identity("db-0", "u").run_name(), identity("db-0", "v").run_name());
        assert!(identity(&"x.".repeat(126), "u").run_name().len() <= 253);
    }

    #[test]
    fn one_that_a_newer_version_wrote_is_known_by_whose_it_is_and_how_it_stands() {
        let object = |version: u32, phase: &str| {
            let run = serde_json::json!({
                "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": "r", "namespace": "n"},
                "spec": {
                    "pod": {"name": "p", "uid": "u", "createdAt": "2026-01-01T00:00:00Z"},
                    "plan": {
                        "version": version, "post": {"not": "a list"},
                        "restore": {"namespace": "velero", "name": "x", "uid": "ru"},
                    },
                },
                "status": {"phase": phase, "post": "neither"},
            });
            serde_json::from_value::<DynamicObject>(run).unwrap()
        };
        let run = HookRun::read(object(99, "Running"));
        assert!(run.is_newer());
        assert_eq!(
            (run.spec.pod.name.as_str(), run.spec.plan.restore.unwrap().uid),
            ("p", "ru".to_owned())
        );
        let status = run.status.unwrap();
        assert_eq!((status.phase, status.post.len()), (RunPhase::Running, 0));
        assert!(status.message.contains("99"), "{}", status.message);
        let done = HookRun::read(object(99, "Succeeded"));
        assert_eq!(done.status.unwrap().phase, RunPhase::Succeeded);
        // A phase that is not known here is not final.
        let odd = HookRun::read(object(99, "Dreaming"));
        assert_eq!(odd.status.unwrap().phase, RunPhase::Pending);
        // One of this version that is not whole counts, too, and is left alone.
        let broken = HookRun::read(object(1, "Failed"));
        assert!(broken.is_newer());
        let status = broken.status.unwrap();
        assert_eq!(status.phase, RunPhase::Failed);
        assert!(status.message.contains("can't be read"), "{}", status.message);
        let nobodys = serde_json::json!({"apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": "r", "uid": "own"}});
        let nobodys = HookRun::read(serde_json::from_value(nobodys).unwrap());
        assert_eq!((nobodys.is_newer(), nobodys.spec.pod.uid.as_str()), (true, "own"));
    }
}

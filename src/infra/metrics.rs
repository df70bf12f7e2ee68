//! Metrics. Every label has few possible values: enums, never names of objects or texts of errors.

use std::{fmt, sync::atomic::AtomicU64, time::Duration};

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// An enum whose variants are label values, with their text.
macro_rules! label_values {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// The label's value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
                self.as_str().encode(encoder)
            }
        }
    };
}

label_values! {
    /// What an admission call was about.
    Resource {
        /// A pod.
        Pods = "pods",
        /// A Velero Restore.
        Restores = "restores",
        /// Something else, or unreadable.
        Other = "other",
    }
}

label_values! {
    /// What was answered to an admission call.
    Decision {
        /// The object is changed.
        Patched = "patched",
        /// It concerns Reveille, and is right as it is.
        Unchanged = "unchanged",
        /// The pod is not being restored.
        NotRestored = "not_restored",
        /// It could not be told by which Restore; the waiter decides.
        Unresolved = "unresolved",
        /// Nothing that Reveille knows: allowed as it is.
        Foreign = "foreign",
        /// HTTP 400: no AdmissionReview.
        Invalid = "invalid",
        /// HTTP 413: the body is too large.
        TooLarge = "too_large",
        /// HTTP 408 or 503: the body came too slowly, or there was too much to do.
        Refused = "refused",
        /// HTTP 500: a fault in Reveille.
        Failed = "failed",
    }
}

label_values! {
    /// Which certificate.
    CertificateKind {
        /// The one that signs.
        Ca = "ca",
        /// The one that is served.
        Leaf = "leaf",
    }
}

label_values! {
    /// How something ended.
    Outcome {
        /// Well.
        Success = "success",
        /// Not well.
        Failure = "failure",
    }
}

label_values! {
    /// When a hook runs.
    HookPhase {
        /// Before the pod's own containers.
        Init = "init",
        /// Once they are up.
        Post = "post",
    }
}

label_values! {
    /// What became of a hook.
    HookResult {
        /// Exit code 0, read by somebody.
        Succeeded = "succeeded",
        /// It failed.
        Failed = "failed",
        /// It may or may not have run to its end.
        Unknown = "unknown",
        /// It is Velero's to run.
        LeftToVelero = "left_to_velero",
        /// It did not run, with a reason.
        Skipped = "skipped",
        /// It did not run: its container was not up in time.
        WaitTimedOut = "wait_timed_out",
        /// It ran longer than it may.
        ExecTimedOut = "exec_timed_out",
        /// An init container: it ran longer than it may.
        TimedOut = "timed_out",
        /// Another hook's failure stopped it before it started.
        Cancelled = "cancelled",
    }
}

label_values! {
    /// The final phase of a HookRun.
    RunPhase {
        /// All hooks ended well.
        Succeeded = "succeeded",
        /// A hook failed whose failure does not count.
        PartiallyFailed = "partially_failed",
        /// A hook failed whose failure counts.
        Failed = "failed",
        /// It belongs to a restore that is gone.
        Stale = "stale",
    }
}

label_values! {
    /// The kind of an action.
    ActionKind {
        /// A `RestoreAction`.
        Restore = "restore",
        /// A `BackupAction`.
        Backup = "backup",
    }
}

label_values! {
    /// The final phase of an action.
    ActionPhase {
        /// All went well.
        Succeeded = "succeeded",
        /// Something did not.
        Failed = "failed",
        /// Somebody cancelled it.
        Cancelled = "cancelled",
        /// It could not be run as it was written.
        Refused = "refused",
    }
}

/// Labels of an action that is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ActionLabels {
    /// Which kind.
    pub kind: ActionKind,
    /// How it ended.
    pub phase: ActionPhase,
}

label_values! {
    /// What admission missed.
    Miss {
        /// A pod that the webhook was not asked about.
        AdmissionMissed = "admission_missed",
        /// An init container that is not in its pod.
        InjectionMissed = "injection_missed",
        /// A post hook that Velero runs itself.
        LeftToVelero = "left_to_velero",
    }
}

label_values! {
    /// How far a pod's hooks are.
    Stage {
        /// The pod is planned and has no HookRun yet.
        Unplanned = "unplanned",
        /// Nothing has been started.
        Pending = "pending",
        /// Something has been started.
        Running = "running",
        /// All is over, and the HookRun is still kept.
        Finished = "finished",
    }
}

/// Labels of the queue's gauge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabels {
    /// How far.
    pub stage: Stage,
}

/// Labels of something missed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MissLabels {
    /// What.
    pub kind: Miss,
}

/// Labels of an answered admission call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AdmissionLabels {
    /// What it was about.
    pub resource: Resource,
    /// What was answered.
    pub decision: Decision,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: Resource,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: CertificateKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    result: Outcome,
}

/// Labels of a hook that is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HookLabels {
    /// When it runs.
    pub phase: HookPhase,
    /// What became of it.
    pub result: HookResult,
}

/// Labels of a HookRun that is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RunLabels {
    /// How it ended.
    pub phase: RunPhase,
}

/// All metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    admission_requests: Family<AdmissionLabels, Counter>,
    admission_duration: Family<ResourceLabels, Histogram>,
    certificate_expiry: Family<CertificateLabels, Gauge<f64, AtomicU64>>,
    certificate_reloads: Family<OutcomeLabels, Counter>,
    restore_cache_synced: Gauge,
    /// Hooks that are over.
    pub hooks: Family<HookLabels, Counter>,
    /// How long a post hook's exec took, in seconds.
    pub hook_duration: Histogram,
    /// Post hooks that are running.
    pub hooks_in_flight: Gauge,
    /// 1 while this process leads.
    pub leading: Gauge,
    /// Waiter: lists that the leader has not got yet; before all are there it starts nothing.
    pub lists_missing: Gauge,
    /// Time from a pod's creation to the start of a hook in it, in seconds.
    pub hook_wait: Histogram,
    /// Commands that were started.
    pub hook_attempts: Counter,
    /// The pods and runs that the waiter knows.
    pub queue: Family<StageLabels, Gauge>,
    policies_missing: Gauge,
    /// Pods with something that admission missed.
    pub missed: Family<MissLabels, Counter>,
    /// HookRuns that are over.
    pub hook_runs: Family<RunLabels, Counter>,
    /// Actions that are over.
    pub actions: Family<ActionLabels, Counter>,
}

impl Metrics {
    /// What [`Self::encode`] writes.
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Metrics of the webhook.
    pub fn webhook() -> Self {
        let mut metrics = Self::unregistered();
        let registry = &mut metrics.registry;
        registry.register(
            "admission_requests",
            "Admission calls by what they were about and what was answered",
            metrics.admission_requests.clone(),
        );
        registry.register(
            "admission_duration_seconds",
            "Time from the first byte of a call's body to its answer",
            metrics.admission_duration.clone(),
        );
        registry.register(
            "restore_cache_synced",
            "1 once the Restores are known",
            metrics.restore_cache_synced.clone(),
        );
        metrics.register_certificates();
        metrics
    }

    /// Metrics of the waiter.
    pub fn waiter() -> Self {
        let mut metrics = Self::unregistered();
        let registry = &mut metrics.registry;
        registry.register(
            "hooks",
            "Hooks that are over, by what became of them",
            metrics.hooks.clone(),
        );
        registry.register(
            "hook_duration_seconds",
            "How long post hooks ran",
            metrics.hook_duration.clone(),
        );
        registry.register(
            "hooks_in_flight",
            "Post hooks that are running",
            metrics.hooks_in_flight.clone(),
        );
        registry.register(
            "leading",
            "1 while this waiter leads; the sum over all is 1",
            metrics.leading.clone(),
        );
        registry.register(
            "lists_missing",
            "Lists (of pods, HookRuns, Restores and the pause of everything) that the leader still waits for: until then it starts no hook",
            metrics.lists_missing.clone(),
        );
        registry.register(
            "hook_wait_seconds",
            "Time from a pod's creation to the start of a post hook in it",
            metrics.hook_wait.clone(),
        );
        registry.register(
            "hook_attempts",
            "Commands of post hooks that were started",
            metrics.hook_attempts.clone(),
        );
        registry.register(
            "queue",
            "Pods with hooks, by how far their hooks are",
            metrics.queue.clone(),
        );
        registry.register(
            "admission_policies_missing",
            "Admission policies of the chart that are not there",
            metrics.policies_missing.clone(),
        );
        registry.register(
            "missed",
            "Pods with something that admission missed",
            metrics.missed.clone(),
        );
        registry.register("hook_runs", "HookRuns that are over", metrics.hook_runs.clone());
        metrics.register_certificates();
        metrics
    }

    /// Metrics of the actions controller.
    pub fn actions() -> Self {
        let mut metrics = Self::unregistered();
        metrics.registry.register(
            "actions",
            "Actions that are over, by how they ended",
            metrics.actions.clone(),
        );
        metrics.registry.register(
            "actions_leading",
            "1 while this actions controller leads; the sum over all is 1",
            metrics.leading.clone(),
        );
        metrics
    }

    fn unregistered() -> Self {
        Self {
            registry: Registry::with_prefix("reveille"),
            admission_requests: Family::default(),
            // The API server's own first bucket ends at 5 ms, which is where every call should be.
            admission_duration: Family::new_with_constructor(|| {
                Histogram::new([0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0])
            }),
            certificate_expiry: Family::default(),
            certificate_reloads: Family::default(),
            restore_cache_synced: Gauge::default(),
            hooks: Family::default(),
            hook_duration: Histogram::new([0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 1800.0, 7200.0]),
            hooks_in_flight: Gauge::default(),
            leading: Gauge::default(),
            lists_missing: Gauge::default(),
            hook_wait: Histogram::new([0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0]),
            hook_attempts: Counter::default(),
            queue: Family::default(),
            policies_missing: Gauge::default(),
            missed: Family::default(),
            hook_runs: Family::default(),
            actions: Family::default(),
        }
    }

    fn register_certificates(&mut self) {
        self.registry.register(
            "certificate_expiry_timestamp_seconds",
            "When a certificate ends, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        self.registry.register(
            "certificate_reloads",
            "Certificates taken into use, and failures to do so",
            self.certificate_reloads.clone(),
        );
    }

    /// Counts an answered call.
    pub fn admission(&self, resource: Resource, decision: Decision, took: Duration) {
        self.admission_requests
            .get_or_create(&AdmissionLabels { resource, decision })
            .inc();
        self.admission_duration
            .get_or_create(&ResourceLabels { resource })
            .observe(took.as_secs_f64());
    }

    /// How many calls were answered in this way.
    pub fn admissions(&self, resource: Resource, decision: Decision) -> u64 {
        self.admission_requests
            .get_or_create(&AdmissionLabels { resource, decision })
            .get()
    }

    /// Notes how many admission policies are not there.
    pub fn policies_missing(&self, count: usize) {
        self.policies_missing.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Notes when a certificate ends.
    pub fn certificate_expires(&self, certificate: CertificateKind, at: Timestamp) {
        self.certificate_expiry
            .get_or_create(&CertificateLabels { certificate })
            .set(at.as_duration().as_secs_f64());
    }

    /// Counts a certificate taken into use, or the failure to do so.
    pub fn certificate_reloaded(&self, result: Outcome) {
        self.certificate_reloads.get_or_create(&OutcomeLabels { result }).inc();
    }

    /// Notes whether the Restores are known.
    pub fn restore_cache_synced(&self, synced: bool) {
        self.restore_cache_synced.set(synced.into());
    }

    /// The text for Prometheus.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented() {
        let webhook = Metrics::webhook();
        webhook.admission(Resource::Pods, Decision::NotRestored, Duration::from_millis(1));
        webhook.certificate_expires(CertificateKind::Leaf, Timestamp::UNIX_EPOCH);
        webhook.certificate_reloaded(Outcome::Failure);
        webhook.restore_cache_synced(true);
        let text = webhook.encode().unwrap();
        for line in [
            r#"reveille_admission_requests_total{resource="pods",decision="not_restored"} 1"#,
            r#"reveille_admission_duration_seconds_count{resource="pods"} 1"#,
            r#"reveille_certificate_expiry_timestamp_seconds{certificate="leaf"} 0.0"#,
            r#"reveille_certificate_reloads_total{result="failure"} 1"#,
            "reveille_restore_cache_synced 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }

        let waiter = Metrics::waiter();
        let labels = HookLabels {
            phase: HookPhase::Post,
            result: HookResult::Succeeded,
        };
        waiter.hooks.get_or_create(&labels).inc();
        let stage = Stage::Pending;
        waiter.queue.get_or_create(&StageLabels { stage }).set(3);
        let phase = RunPhase::Failed;
        waiter.hook_runs.get_or_create(&RunLabels { phase }).inc();
        let text = waiter.encode().unwrap();
        for line in [
            r#"reveille_hooks_total{phase="post",result="succeeded"} 1"#,
            r#"reveille_hook_runs_total{phase="failed"} 1"#,
            "reveille_hooks_in_flight 0",
            "reveille_hook_attempts_total 0",
            "reveille_hook_wait_seconds_count 0",
            r#"reveille_queue{stage="pending"} 3"#,
            "reveille_hook_duration_seconds_count 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}

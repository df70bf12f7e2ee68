//! Every label, annotation and container name that Reveille reads or writes, once.

/// Velero's label on everything it creates; its value is [`crate::hooks::restored::label_value`] of the Restore's name.
pub const VELERO_RESTORE_LABEL: &str = "velero.io/restore-name";
/// Velero's annotation on an object: restore its status too (`true`), or not (`false`), whatever the Restore says.
pub const STATUS_ANNOTATION: &str = "velero.io/restore-status";
/// Velero leaves objects with this label out of backups.
pub const EXCLUDE_FROM_BACKUP_LABEL: &str = "velero.io/exclude-from-backup";

/// The container that holds a pod back until the node agent has restored its volumes (Velero 1.10 and newer).
pub const RESTORE_WAIT: &str = "restore-wait";
/// The same container up to Velero 1.9.
pub const RESTIC_WAIT: &str = "restic-wait";
/// Velero's prefix for the init container of an annotation that gives no name; a random suffix follows.
pub const VELERO_GENERATED_INIT_PREFIX: &str = "velero-restore-init-";
/// Reveille's prefix for the same; a digest of image and command follows, so the name is the same each time.
pub const GENERATED_INIT_PREFIX: &str = "reveille-init-";

/// Velero's annotation domain.
pub const VELERO_DOMAIN: &str = "velero.io";
/// Reveille's annotation domain: the same keys, winning key by key.
pub const REVEILLE_DOMAIN: &str = "reveille.dev";
/// What stands before the domain in a post hook's annotation key.
pub const POST_PREFIX: &str = "post.hook.restore.";
/// What stands before the domain in an init hook's annotation key.
pub const INIT_PREFIX: &str = "init.hook.restore.";

/// Label on a pod whose plan the waiter has still to work through; its only value is [`QUEUE_LABEL_VALUE`].
pub const QUEUE_LABEL: &str = "reveille.dev/hooks";
/// Value of [`QUEUE_LABEL`].
pub const QUEUE_LABEL_VALUE: &str = "planned";
/// Annotation on a pod: the frozen plan (JSON of [`crate::plan::Plan`]).
pub const PLAN_ANNOTATION: &str = "reveille.dev/plan";
/// Annotation on a pod: `<pod uid>/<HookRun uid>`, set once its plan has become a HookRun.
pub const RUN_ANNOTATION: &str = "reveille.dev/run";

/// Annotation on a Restore: who runs its post hooks. Its only value is [`OWNER_REVEILLE`].
pub const OWNER_ANNOTATION: &str = "reveille.dev/owner";
/// Value of [`OWNER_ANNOTATION`].
pub const OWNER_REVEILLE: &str = "reveille";
/// Annotation on a Restore: `Pending`, `Succeeded` or `Failed`.
pub const RESULT_ANNOTATION: &str = "reveille.dev/hooks-result";
/// Annotation on a Restore: `spec.hooks` as its author wrote it, before the exec items were moved off.
pub const MOVED_HOOKS_ANNOTATION: &str = "reveille.dev/moved-hooks";
/// Annotation on a Restore: more hooks (YAML or JSON), in Velero's form or in that of Velero's design document.
pub const HOOKS_ANNOTATION: &str = "reveille.dev/hooks";
/// Annotation on a Restore: overrides the configured mode ([`crate::admission::Mode`]).
pub const MODE_ANNOTATION: &str = "reveille.dev/mode";
/// Label on a pod that is created in a dry run only: `reveille self-test` asks what would become of it.
pub const SELF_TEST_LABEL: &str = "reveille.dev/self-test";
/// Annotation on a Restore: what Reveille has written on it (JSON of [`crate::result::Written`]), so that it can be told from
/// what Velero writes there.
pub const WRITTEN_ANNOTATION: &str = "reveille.dev/hooks-written";
/// Annotation on a Restore or on a HookRun: what has not started is cancelled (JSON of [`crate::control::Request`]).
pub const CANCEL_ANNOTATION: &str = "reveille.dev/cancel";
/// Annotation on a Restore, or on the pause ConfigMap for all of them: nothing new is started (JSON of
/// [`crate::control::Request`]).
pub const PAUSE_ANNOTATION: &str = "reveille.dev/pause";
/// Annotation in the same places: who took the last pause back. A record; it does nothing.
pub const RESUMED_ANNOTATION: &str = "reveille.dev/resumed";
/// Annotation on a HookRun: run again what did not succeed (JSON of [`crate::control::RerunRequest`]).
pub const RERUN_ANNOTATION: &str = "reveille.dev/rerun";
/// The ConfigMap that carries the pause for everything, in Reveille's own namespace, where no other name is given.
pub const PAUSE_CONFIG_MAP: &str = "reveille-pause";
/// Label on a namespace: with value `disabled` nothing is changed at admission there.
pub const INJECTION_LABEL: &str = "reveille.dev/injection";

/// Annotation on a pod: the folder for result files of its post hooks that name none themselves.
pub const RESULT_FILE_ANNOTATION: &str = "reveille.dev/result-file";
/// Label on a `ValidatingAdmissionPolicy` of the chart: what it guards.
pub const POLICY_LABEL: &str = "reveille.dev/policy";

/// The hook name of an annotation's post hook, as in Velero's logs.
pub const FROM_ANNOTATION: &str = "<from-annotation>";

/// Field manager of every write.
pub const FIELD_MANAGER: &str = "reveille";

//! Reveille's own Kubernetes resources.

pub mod action;
pub mod backup_action;
pub mod hook_run;
pub mod restore_action;

pub use backup_action::{BackupAction, BackupActionSpec};
pub use hook_run::{HookRun, HookRunSpec, HookRunStatus};
pub use restore_action::{RestoreAction, RestoreActionSpec};

//! Reveille's own Kubernetes resources.

pub mod hook_run;

pub use hook_run::{HookRun, HookRunSpec, HookRunStatus};

//! What is a hook, where it comes from, and which pod it hits. Pure: no clock, no network, no client.

pub mod annotations;
pub mod glob;
pub mod hook;
pub mod matching;
pub mod restore_spec;
pub mod restored;
pub mod select;
mod values;

pub use hook::{HookSource, InitHook, OnError, OnUnknown, PostHook, Problem, Retry, Severity};

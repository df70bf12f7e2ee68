//! Kanister Blueprints: read, checked before anything runs, and rendered. Pure: no clock, no network, no client.
//!
//! The order of one action: [`Blueprint::read`] → [`check::check`] → [`params::Params`] of the subject →
//! [`render::objects`] of all phases → for each phase [`call::FunctionCall::prepare`], run it, put its output into the
//! params → the deferred phase → [`render::artifacts`].

pub mod call;
pub mod check;
pub mod jsonpath;
pub mod model;
pub mod output;
pub mod params;
pub mod render;
pub mod subject;
pub mod template;
pub mod wait;

pub use model::{Action, Artifact, Blueprint, ObjectReference, Phase};
pub use params::{Params, PhaseParams};
pub use subject::{Subject, SubjectKind};

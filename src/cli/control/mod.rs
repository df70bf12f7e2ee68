//! `reveille cancel`, `pause`, `resume` and `rerun`: requests, written where the waiter finds them.

mod cancel;
mod pause;
mod request;
mod rerun;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output::{self, Output};
use crate::control::Request;

pub use cancel::{CancelArgs, cancel};
pub use pause::{PauseArgs, ResumeArgs, pause, resume};
pub use rerun::{RerunArgs, rerun};

#[derive(Args, Debug)]
struct SayArgs {
    /// Why. It is recorded.
    #[arg(long, default_value = "")]
    reason: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What came of a command.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// What was asked for.
    action: &'static str,
    /// Of what.
    target: String,
    /// False if there was nothing to do.
    changed: bool,
    /// The same in words.
    message: String,
    /// The request that stands there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Request>,
}

impl Answer {
    fn print(&self, output: Output) -> anyhow::Result<ExitCode> {
        output::print(output, self, || format!("{}: {}\n", self.target, self.message))?;
        Ok(ExitCode::SUCCESS)
    }
}

//! The command line.

mod actions_status;
pub mod blueprint;
pub mod check;
pub mod control;
pub mod crd;
pub mod logs;
mod output;
pub mod preview;
mod preview_text;
mod progress;
pub mod release;
pub mod self_test;
pub mod status;
mod status_table;
mod target;
pub mod unserved;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    actions,
    infra::{supervise, telemetry},
    waiter, webhook,
};

/// Restore hooks for Kubernetes.
#[derive(Parser, Debug)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve the admission webhook.
    Webhook(Box<webhook::WebhookArgs>),
    Waiter(Box<waiter::WaiterArgs>),
    Actions(Box<actions::ActionsArgs>),
    Status(status::StatusArgs),
    Wait(status::WaitArgs),
    Logs(logs::LogsArgs),
    Cancel(control::CancelArgs),
    Pause(control::PauseArgs),
    Resume(control::ResumeArgs),
    Rerun(control::RerunArgs),
    Preview(preview::PreviewArgs),
    Blueprint(blueprint::BlueprintArgs),
    Check(check::CheckArgs),
    Release(release::ReleaseArgs),
    SelfTest(self_test::SelfTestArgs),
    Crd(crd::CrdArgs),
}

/// Runs the command that was asked for.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Webhook(args) => {
            telemetry::init()?;
            webhook::run(*args).await?;
        }
        Command::Waiter(args) => {
            telemetry::init()?;
            if !args.no_supervisor {
                return Ok(supervise::supervise(&["--no-supervisor"]).await?);
            }
            supervise::end_with_parent()?;
            waiter::run(*args).await?;
        }
        Command::Actions(args) => {
            telemetry::init()?;
            actions::run(*args).await?;
        }
        Command::Status(args) => return status::run(args).await,
        Command::Wait(args) => return status::wait(args).await,
        Command::Logs(args) => return logs::run(args).await,
        Command::Cancel(args) => return control::cancel(args).await,
        Command::Pause(args) => return control::pause(args).await,
        Command::Resume(args) => return control::resume(args).await,
        Command::Rerun(args) => return control::rerun(args).await,
        Command::Preview(args) => return preview::run(args).await,
        Command::Blueprint(args) => return blueprint::run(args),
        Command::Check(args) => return check::run(args).await,
        Command::Release(args) => return release::run(args).await,
        Command::SelfTest(args) => return self_test::run(args).await,
        Command::Crd(args) => crd::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

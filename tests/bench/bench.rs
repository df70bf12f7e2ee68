//! `make bench`: measures Reveille beside what people use today, and writes docs/benchmarks.md. `tests/bench/run` calls it.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for the terminal
#![allow(clippy::disallowed_methods)] // it looks at the clock all the time, and ends with its tasks
#![allow(clippy::indexing_slicing)] // of JSON that it has just made

mod audit;
mod cluster;
mod figures;
mod floor;
mod hooks;
mod load;
mod ordinary;
mod process;
mod report;
mod reviews;
mod webhook;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Measures Reveille.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Restored pods with a hook each, with Velero's own hooks and with Reveille's, in turn. On the cluster in KUBECONFIG.
    Hooks(hooks::HooksArgs),
    /// Reveille's webhook beside others.
    Webhook(webhook::WebhookArgs),
    /// The least that an admission webhook in Rust can do.
    Floor(floor::FloorArgs),
    /// Writes the page from what was measured.
    Report(report::ReportArgs),
    /// The hook that pods run in the benchmark: notes when it started.
    Stamp {
        /// The file that gets a line.
        file: PathBuf,
        /// Who runs it.
        word: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Hooks(arguments) => on_runtime(hooks::run(arguments)),
        Command::Webhook(arguments) => on_runtime(webhook::run(arguments)),
        Command::Floor(arguments) => on_runtime(floor::run(arguments)),
        Command::Report(arguments) => report::run(&arguments),
        Command::Stamp { file, word } => hooks::stamp(&file, &word),
    }
}

fn on_runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    reveille::infra::kube::install_crypto_provider();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?
        .block_on(work)
}

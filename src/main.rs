//! The `reveille` binary.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use reveille::{cli, infra};

#[tokio::main]
async fn main() -> ExitCode {
    infra::kube::install_crypto_provider();
    match cli::run(cli::Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            // `{:#}`: the whole chain on one line.
            let _ = writeln!(std::io::stderr(), "reveille: {error:#}");
            ExitCode::from(2)
        }
    }
}

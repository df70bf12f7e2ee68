//! How results are printed: a text for people, JSON or YAML for programs.

use std::io::Write;

use clap::ValueEnum;
use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    #[value(alias = "table")]
    Text,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// Prints a result on the standard output.
pub(super) fn print(output: Output, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let text = match output {
        Output::Text => text(),
        Output::Json => serde_json::to_string_pretty(value)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&serde_json::to_value(value)?)?,
    };
    // A reader that has gone away (`| head`) is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Says something on the standard error.
pub(super) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

//! The page docs/benchmarks.md, made from what was measured: no figure on it is written by hand.

mod hooks;
mod webhook;

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::Context;
use clap::Args;

use crate::figures::{Machine, load};

/// Arguments of `report`.
#[derive(Args)]
pub(crate) struct ReportArgs {
    /// The folder with hooks.json and webhook.json; each may be missing.
    #[arg(long)]
    figures: PathBuf,
    /// The page to write.
    #[arg(long)]
    page: PathBuf,
}

const HEAD: &str = "<!-- Written by `make bench` from benchmarks/*.json. Do not edit: change tests/bench/report instead. -->
# Benchmarks

`make bench` (root, a Debian-like machine with Rust and Go) builds all programs, measures for about a quarter of an hour and
writes this page. `make bench BENCH=hooks` or `BENCH=webhook` measures one half, `SMALL=1` only tries all steps. What is
compared runs in turn in one run on one machine, and the figures are the medians of the rounds, with the least and the most in
brackets. The figures of all rounds are in [benchmarks/](benchmarks/).
";

/// Writes the page.
pub(crate) fn run(arguments: &ReportArgs) -> anyhow::Result<()> {
    let mut page = HEAD.to_owned();
    let file = |name: &str| Some(arguments.figures.join(name)).filter(|path| path.exists());
    if let Some(path) = file("hooks.json") {
        page += &hooks::section(&load(&path)?)?;
    }
    if let Some(path) = file("webhook.json") {
        page += &webhook::section(&load(&path)?)?;
    }
    fs::write(&arguments.page, page).with_context(|| arguments.page.display().to_string())
}

/// Where and when.
fn machine_line(machine: &Machine, command: &str) -> String {
    let Machine {
        processor,
        cores,
        memory,
        system,
        commit,
        date,
        load_before,
    } = machine;
    format!(
        "Machine: {cores} cores of {processor}, {memory} GiB, {system}. Load before the run: {load_before}. {date}, commit {commit}. \
         Command: `{command}`.\n"
    )
}

/// A Markdown table; the first row is its head. Figures are aligned to the right.
fn table(rows: &[Vec<String>]) -> anyhow::Result<String> {
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        writeln!(text, "| {} |", row.join(" | "))?;
        if number == 0 {
            writeln!(text, "|---|{}", "---:|".repeat(row.len().saturating_sub(1)))?;
        }
    }
    Ok(text)
}

/// The median of some rounds and, where they differ, the least and the most.
fn spread(values: &[f64], digits: usize) -> String {
    let shown = |value: f64| thousands(value, digits);
    let middle = shown(crate::figures::median(values.iter().copied()));
    let least = shown(values.iter().copied().fold(f64::INFINITY, f64::min));
    let most = shown(values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    if values.is_empty() {
        "-".to_owned()
    } else if least == most {
        middle
    } else {
        format!("{middle} ({least}–{most})")
    }
}

/// A number with its thousands apart.
fn thousands(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left.is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if fraction.is_empty() {
        out
    } else {
        format!("{out}.{fraction}")
    }
}

/// A row of the table of goals.
fn goal(what: &str, measured: String, met: bool) -> Vec<String> {
    vec![
        what.to_owned(),
        measured,
        if met { "met" } else { "**missed**" }.to_owned(),
    ]
}

fn words<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!(thousands(1_234_567.0, 0), "1,234,567");
        assert_eq!(thousands(999.5, 1), "999.5");
        assert_eq!(thousands(-1234.0, 0), "-1,234");
        assert_eq!(spread(&[3.0, 1.0, 2.0], 0), "2 (1–3)");
        assert_eq!(spread(&[2.0, 2.0], 0), "2");
    }
}

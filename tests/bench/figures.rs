//! What is measured, as it stands in the JSON between a measurement and the page.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::Context;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Where it was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) processor: String,
    /// How many this machine has.
    pub(crate) cores: usize,
    /// In GiB.
    pub(crate) memory: u64,
    /// Kernel and its version.
    pub(crate) system: String,
    /// The source's commit.
    pub(crate) commit: String,
    /// When, UTC.
    pub(crate) date: String,
    /// How many processes wanted to run in the minute before.
    pub(crate) load_before: f64,
}

impl Machine {
    /// This one, now.
    pub(crate) fn look() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |file: &str, key: &str| {
            let text = text(file);
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            )
        };
        let kib: u64 = field("/proc/meminfo", "MemTotal")
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            cores: text("/proc/cpuinfo")
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            memory: kib / 1024 / 1024,
            system: said("uname", &["-sr"]),
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=10"]),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            load_before: text("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or_default(),
        }
    }
}

/// A distribution of times.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Times {
    /// How many.
    pub(crate) count: usize,
    /// The median, in milliseconds.
    pub(crate) p50: f64,
    /// 99 % take at most so long.
    pub(crate) p99: f64,
    /// 99.9 % take at most so long.
    pub(crate) p999: f64,
    /// The longest.
    pub(crate) max: f64,
}

impl Times {
    /// Of these times, in milliseconds.
    pub(crate) fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        // The nearest rank: a time that was really measured.
        let rank = |permille: usize| {
            let index = (times.len() * permille).div_ceil(1000).saturating_sub(1);
            times.get(index).copied().unwrap_or_default()
        };
        Self {
            count: times.len(),
            p50: rank(500),
            p99: rank(990),
            p999: rank(999),
            max: rank(1000),
        }
    }
}

/// What a process used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Used {
    /// Processor time, in seconds.
    pub(crate) cpu: f64,
    /// Resident memory before the work, in KiB.
    pub(crate) before: u64,
    /// Resident memory when all pods waited, in KiB.
    pub(crate) waiting: u64,
    /// The most resident memory, in KiB.
    pub(crate) peak: u64,
}

/// API requests by verb.
pub(crate) type Requests = BTreeMap<String, u64>;

/// The middle one; the mean of the two in the middle of an even number. 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

/// Writes what was measured.
pub(crate) fn save(path: &Path, figures: &impl Serialize) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_string(figures)? + "\n").with_context(|| path.display().to_string())
}

/// Reads what was measured.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // they are picked, not computed
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_times() {
        let times = Times::of((1..=1000).rev().map(f64::from).collect());
        assert_eq!(
            (times.p50, times.p99, times.p999, times.max),
            (500.0, 990.0, 999.0, 1000.0)
        );
        assert_eq!(Times::of(vec![7.0]).p50, 7.0);
        assert_eq!(Times::of(vec![]).max, 0.0);
    }

    #[test]
    fn the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }
}

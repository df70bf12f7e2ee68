//! Result files: a command runs under a small shell script that keeps its exit code and output in files of the container, so
//! that whoever comes next learns its end, and a timeout can end it. The command's own arguments stay as they are.
//!
//! Exactly once: the first to make an attempt's file `.pid` decides whether it is ever begun. A start that comes late, after
//! somebody has been told that nothing was begun, is refused.

use std::time::Duration;

use super::exec::{Command, Exec, Report};
use crate::duration::GoDuration;

/// How much of each stream the scripts tell, in bytes; more than is ever kept.
const TOLD: &str = "73728";
/// How long a script may take that only looks or cleans.
const LOOK: GoDuration = GoDuration::from_secs(20);
/// How long the one may take that ends a command.
const END: GoDuration = GoDuration::from_secs(30);

const COMMON: &str = include_str!("common.sh");

/// Where an attempt keeps its files.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// The container.
    pub container: &'a str,
    /// The folder.
    pub folder: &'a str,
    /// A name that no other attempt ever has.
    pub id: String,
}

/// What a script says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The command has ended with this exit code.
    Exited(i32),
    /// The command was not begun, and why.
    Refused(String),
    /// Nobody has begun the command, and nobody will.
    NotBegun,
    /// The command runs.
    Running,
    /// Its end is lost, and why.
    Gone(String),
    /// The command was ended, and all its processes are gone.
    Ended,
    /// The command was told to end and still runs.
    Stuck,
}

impl Answer {
    /// Reads the first line that a script prints.
    fn read(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "exit" => Self::Exited(rest.split(' ').next()?.parse().ok()?),
            "refused" => Self::Refused(rest.to_owned()),
            "none" => Self::NotBegun,
            "running" => Self::Running,
            "gone" => Self::Gone(rest.to_owned()),
            "ended" => Self::Ended,
            "stuck" => Self::Stuck,
            _ => return None,
        })
    }
}

/// The sizes of both streams in the first line of a script, in bytes.
pub(super) fn sizes(line: &str) -> Option<(u64, u64)> {
    let mut words = line.strip_prefix("exit ")?.split(' ').skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

impl Files<'_> {
    /// Begins the command and waits for its end. Without an answer look for it: it may have been begun.
    pub async fn start(&self, exec: &impl Exec, argv: &[String], timeout: GoDuration) -> (Option<Answer>, Report) {
        self.run(exec, include_str!("start.sh"), argv, timeout).await
    }

    /// Asks how the command stands.
    pub async fn look(&self, exec: &impl Exec) -> (Option<Answer>, Report) {
        self.run(exec, include_str!("look.sh"), &[], LOOK).await
    }

    /// Ends the command.
    pub async fn end(&self, exec: &impl Exec) -> (Option<Answer>, Report) {
        self.run(exec, include_str!("end.sh"), &[], END).await
    }

    /// Takes the files away. What stays there if that fails is small.
    pub async fn clean(&self, exec: &impl Exec) {
        let _ = self.run(exec, include_str!("clean.sh"), &[], LOOK).await;
    }

    async fn run(
        &self,
        exec: &impl Exec,
        script: &str,
        argv: &[String],
        timeout: GoDuration,
    ) -> (Option<Answer>, Report) {
        let arguments = script_arguments(script, self.folder, &self.id, argv);
        let command = Command {
            namespace: self.namespace,
            pod: self.pod,
            container: self.container,
            argv: &arguments,
            timeout,
            answers: true,
        };
        let report = exec.run(command).await;
        (Answer::read(&report.answer), report)
    }
}

fn script_arguments(script: &str, folder: &str, id: &str, argv: &[String]) -> Vec<String> {
    let script = format!("{COMMON}{script}");
    let fixed = ["sh", "-c", &script, "sh", folder, id, TOLD].map(str::to_owned);
    fixed.into_iter().chain(argv.iter().cloned()).collect()
}

/// The pause before looking again.
pub const fn pause_after(looks: u32) -> Duration {
    if looks < 5 {
        Duration::from_millis(300)
    } else {
        Duration::from_secs(2)
    }
}

#[cfg(test)]
mod tests;

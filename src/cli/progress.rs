//! How far restores are that somebody waits for: a bar on a terminal, elsewhere a line for each change.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::{output, status::RestoreStatus};
use crate::api::hook_run::HookState;

/// The display, on the standard error. It goes away by itself.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} [{elapsed}] {wide_msg}\n  {bar:40} {pos}/{len} hooks").ok();
        let bar = style.filter(|_| std::io::stderr().is_terminal()).map(|style| {
            let bar = ProgressBar::new(0).with_style(style);
            bar.enable_steady_tick(std::time::Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            last: String::new(),
        }
    }

    /// Shows how far they are.
    pub(super) fn show(&mut self, statuses: &[RestoreStatus]) {
        let count = Count::of(statuses);
        let words = count.words(statuses);
        match &self.bar {
            Some(bar) => {
                bar.set_length(count.all);
                bar.set_position(count.ended);
                bar.set_message(words);
            }
            None if words != self.last => {
                output::note(&words);
                self.last = words;
            }
            None => {}
        }
    }

    /// Says something that is out of the ordinary, once.
    pub(super) fn say(&mut self, words: &str) {
        if words == self.last {
            return;
        }
        match &self.bar {
            Some(bar) => bar.println(words),
            None => output::note(words),
        }
        words.clone_into(&mut self.last);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Post hooks by how they stand.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    all: u64,
    ended: u64,
    bad: u64,
    running: u64,
}

impl Count {
    fn of(statuses: &[RestoreStatus]) -> Self {
        let runs = statuses.iter().flat_map(|status| &status.runs);
        let mut count = Self::default();
        for post in runs.flat_map(|run| run.status.iter()).flat_map(|status| &status.post) {
            let state = post.state;
            if state == HookState::LeftToVelero {
                continue;
            }
            count.all += 1;
            count.ended += u64::from(state.is_final());
            count.bad += u64::from(state.is_final() && state != HookState::Succeeded);
            count.running += u64::from(state == HookState::Started);
        }
        count
    }

    fn words(&self, statuses: &[RestoreStatus]) -> String {
        let Self {
            all,
            ended,
            bad,
            running,
        } = self;
        let mut words = vec![format!("{ended} of {all} hooks ended")];
        if *bad > 0 {
            words.push(format!("{bad} of them not well"));
        }
        if *running > 0 {
            words.push(format!("{running} running"));
        }
        let words = words.join(", ");
        let open = statuses.iter().find(|status| status.result == "Pending");
        match open.map(|status| status.message.replace('\n', " ")) {
            Some(message) if !message.is_empty() => format!("{words}; {message}"),
            _ => words,
        }
    }
}

#[cfg(test)]
mod tests;

//! The half about hooks.

use std::collections::BTreeSet;

use super::{goal, machine_line, spread, table, words};
use crate::{
    figures::{Requests, Used, median},
    hooks::{By, HooksFigures, Round},
    ordinary::Ordinary,
};

/// Verbs that change something in the API.
const WRITES: [&str; 4] = ["create", "update", "patch", "delete"];

struct View<'a> {
    figures: &'a HooksFigures,
}

impl View<'_> {
    fn values(&self, by: By, value: impl Fn(&Round) -> f64) -> Vec<f64> {
        let rounds = self.figures.rounds.iter().filter(|round| round.by == by);
        rounds.map(value).collect()
    }

    fn middle(&self, by: By, value: impl Fn(&Round) -> f64) -> f64 {
        median(self.values(by, value))
    }

    fn both(&self, what: &str, digits: usize, value: impl Fn(&Round) -> f64 + Copy) -> Vec<String> {
        let cell = |by| spread(&self.values(by, value), digits);
        vec![what.to_owned(), cell(By::Velero), cell(By::Reveille)]
    }

    fn reveille(&self, what: &str, digits: usize, value: impl Fn(&Round) -> f64) -> Vec<String> {
        vec![
            what.to_owned(),
            String::new(),
            spread(&self.values(By::Reveille, value), digits),
        ]
    }

    #[allow(clippy::cast_precision_loss)] // thousands
    fn each(&self, count: u64) -> f64 {
        count as f64 / self.figures.pods as f64
    }

    /// KiB for each pod that waits.
    fn for_waiting(&self, used: Used) -> f64 {
        self.each(used.waiting.saturating_sub(used.before))
    }

    fn writes(&self, requests: &Requests) -> f64 {
        let writes = requests
            .iter()
            .filter(|(what, _)| WRITES.iter().any(|verb| what.split(' ').next() == Some(verb)));
        self.each(writes.map(|(_, count)| count).sum())
    }

    fn used(&self) -> Vec<Vec<String>> {
        vec![
            words(["", "Velero's own hooks", "Reveille's"]),
            self.both("Running to start of the command, p50, ms", 1, |round| round.start.p50),
            self.both("p99, ms", 1, |round| round.start.p99),
            self.both("longest, ms", 1, |round| round.start.max),
            self.both("watches of pods by Velero's server while all pods wait", 0, |round| {
                watches_of_pods(&round.velero_watches)
            }),
            self.reveille("by Reveille", 0, |round| watches_of_pods(&round.reveille_watches)),
            self.both("watches of all else by Velero's server", 0, |round| {
                other_watches(&round.velero_watches)
            }),
            self.reveille("by Reveille, two replicas", 0, |round| {
                other_watches(&round.reveille_watches)
            }),
            self.both("processor seconds of Velero's server, restore included", 2, |round| {
                round.velero.cpu
            }),
            self.reveille("of the webhook", 2, |round| round.webhook.cpu),
            self.reveille("of the waiter", 2, |round| round.waiter.cpu),
            self.both("peak memory of Velero's server, MiB", 1, |round| mib(round.velero.peak)),
            self.reveille("of the webhook, MiB", 1, |round| mib(round.webhook.peak)),
            self.reveille("of the waiter, MiB", 1, |round| mib(round.waiter.peak)),
            self.both("memory of Velero's server for each waiting pod, KiB", 1, |round| {
                self.for_waiting(round.velero)
            }),
            self.reveille("of the waiter, KiB", 1, |round| self.for_waiting(round.waiter)),
        ]
    }

    /// Requests for each pod, by verb and resource.
    fn requests(&self) -> Vec<Vec<String>> {
        type Pick = fn(&Round) -> &Requests;
        let columns: [(By, Pick); 3] = [
            (By::Velero, |round| &round.velero_requests),
            (By::Reveille, |round| &round.velero_requests),
            (By::Reveille, |round| &round.reveille_requests),
        ];
        let of = |(by, pick): (By, Pick), what: &str| {
            self.middle(by, |round| {
                self.each(pick(round).get(what).copied().unwrap_or_default())
            })
        };
        let rounds = self.figures.rounds.iter();
        let names: BTreeSet<&str> = rounds
            .flat_map(|round| round.velero_requests.keys().chain(round.reveille_requests.keys()))
            .map(String::as_str)
            .collect();
        let mut rows = vec![words(["", "Velero, own hooks", "Velero, Reveille's hooks", "Reveille"])];
        for name in names {
            let values = columns.map(|column| of(column, name));
            // What does not grow with the pods is left out.
            if values.iter().any(|value| *value >= 0.1) {
                let cells = values.map(|value| format!("{value:.2}"));
                rows.push([vec![name.to_owned()], cells.to_vec()].concat());
            }
        }
        let total = columns.map(|(by, pick)| self.middle(by, |round| self.each(pick(round).values().sum())));
        let writes = columns.map(|(by, pick)| self.middle(by, |round| self.writes(pick(round))));
        for (name, values) in [("all", total), ("of these writes", writes)] {
            let cells = values.map(|value| format!("**{value:.2}**"));
            rows.push([vec![format!("**{name}**")], cells.to_vec()].concat());
        }
        rows
    }

    fn goals(&self) -> Vec<Vec<String>> {
        let (theirs, ours) = (
            self.middle(By::Velero, |round| round.start.p99),
            self.middle(By::Reveille, |round| round.start.p99),
        );
        let watches = self.middle(By::Reveille, |round| watches_of_pods(&round.reveille_watches));
        let writes = self.middle(By::Reveille, |round| self.writes(&round.reveille_requests));
        let memory = self.middle(By::Reveille, |round| self.for_waiting(round.waiter));
        let takeovers = &self.figures.takeovers;
        let first = median(takeovers.iter().map(|takeover| takeover.first_start));
        let pending = median(takeovers.iter().map(|takeover| whole(takeover.pending)));
        let Ordinary {
            pods,
            webhook_calls,
            requests,
            ..
        } = &self.figures.ordinary;
        let touched = requests
            .iter()
            .filter(|(what, _)| what.contains("pods"))
            .map(|(_, count)| count)
            .sum::<u64>();
        vec![
            words(["goal", "measured", ""]),
            goal(
                "p99 from Running to start: a tenth of Velero's, or under 250 ms",
                format!("{ours:.0} ms; Velero {theirs:.0} ms"),
                ours <= theirs / 10.0 || ours < 250.0,
            ),
            goal(
                "one watch, not one for each pod",
                format!("{watches:.0} watches of pods: those with a plan, and those of the Restore that runs"),
                watches <= 2.0,
            ),
            goal(
                "at most 8 API writes for a pod with one hook, Events included",
                format!("{writes:.2}"),
                writes <= 8.0,
            ),
            goal(
                "under 20 KiB of memory for each waiting pod",
                format!("{memory:.1} KiB"),
                memory < 20.0,
            ),
            goal(
                &format!(
                    "graceful end of the waiter with {pending:.0} pending runs: the successor's first command within 2 s"
                ),
                format!("{first:.0} ms"),
                first < 2000.0,
            ),
            goal(
                &format!("{pods} pods without hooks change nothing"),
                format!("{webhook_calls} webhook calls, {touched} requests about pods"),
                *webhook_calls == 0 && touched == 0,
            ),
        ]
    }
}

#[allow(clippy::cast_precision_loss)] // thousands
fn watches_of_pods(watches: &Requests) -> f64 {
    watches.get("watch pods").copied().unwrap_or_default() as f64
}

#[allow(clippy::cast_precision_loss)] // thousands
fn other_watches(watches: &Requests) -> f64 {
    watches.values().sum::<u64>() as f64 - watches_of_pods(watches)
}

#[allow(clippy::cast_precision_loss)] // thousands
fn whole(count: usize) -> f64 {
    count as f64
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The section.
pub(super) fn section(figures: &HooksFigures) -> anyhow::Result<String> {
    let view = View { figures };
    let HooksFigures {
        machine,
        pods,
        spread,
        ordinary,
        ..
    } = figures;
    let change = |of: Used| format!("{:.1} → {:.1} MiB, {:.2} s", mib(of.before), mib(of.waiting), of.cpu);
    let Ordinary {
        pods: others,
        seconds,
        webhook_calls,
        requests,
        webhook,
        waiter,
    } = ordinary;
    let idle: Vec<String> = requests.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let idle = if idle.is_empty() {
        "none".to_owned()
    } else {
        idle.join(", ")
    };
    Ok(format!(
        "
## Hooks: Reveille beside Velero's own

A real Velero restores {pods} pods, each with one post hook, onto a fake node ([kwok](https://kwok.sigs.k8s.io)) of the test
cluster. The pods are held back until all are there and bound, and then become Running and Ready at random moments of
{spread} seconds. Each hook notes when it starts; it has to run exactly once. *Running* is the moment at which kwok tells
the API server so. Both systems start afresh for each round. API server, etcd, kwok and all the rest share the machine.

{}
{}
### Goals

{}
### API requests for each pod

From the API server's audit log. Velero makes its own for the restore, too; what its hooks cost is the difference between
the first two columns. What does not grow with the number of pods is not shown. A pod that waits for more than five minutes
(or half a minute, where something is wrong) costs two writes more: an Event and a condition say what it waits for.

{}
### Pods without hooks

While {others} ordinary pods were made and started ({seconds:.0} s), Reveille's webhooks were called {webhook_calls} times.
Memory and processor time: webhook {}; waiter {}. Reveille's API requests in that time, all of them housekeeping: {idle}.
",
        machine_line(machine, "make bench BENCH=hooks"),
        table(&view.used())?,
        table(&view.goals())?,
        table(&view.requests())?,
        change(*webhook),
        change(*waiter),
    ))
}

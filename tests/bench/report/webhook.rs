//! The half about the webhook.

use super::{goal, machine_line, spread, table, words};
use crate::{
    figures::median,
    reviews::Payload,
    webhook::{Load, Measured, SERVERS, Server, Start, WebhookFigures},
};

const PAYLOADS: [(usize, bool); 4] = [(6, true), (6, false), (200, true), (200, false)];

impl Server {
    fn title(self) -> &'static str {
        match self {
            Self::Reveille => "Reveille",
            Self::ControllerRuntime => "controller-runtime",
            Self::Floor => "floor",
        }
    }
}

impl Load {
    fn title(self) -> String {
        match self {
            Self::Kept(1) => "1 kept connection".to_owned(),
            Self::Kept(count) => format!("{count} kept connections"),
            Self::Fresh => "a new connection each".to_owned(),
            Self::Burst(count) => format!("{count} at once, new connections"),
        }
    }
}

struct View<'a> {
    figures: &'a WebhookFigures,
}

impl View<'_> {
    fn values(&self, server: Server, payload: Payload, load: Load, value: impl Fn(&Measured) -> f64) -> Vec<f64> {
        let all = self.figures.measured.iter();
        all.filter(|one| one.server == server && one.payload == payload && one.load == load)
            .map(value)
            .collect()
    }

    fn lives(&self, server: Server, value: impl Fn(&Start) -> f64) -> Vec<f64> {
        let all = self.figures.starts.iter();
        all.filter(|one| one.server == server).map(value).collect()
    }

    fn payload_table(&self, payload: Payload) -> Vec<Vec<String>> {
        let mut rows = vec![words([
            "",
            "",
            "requests/s",
            "p50, ms",
            "p99, ms",
            "p99.9, ms",
            "longest, ms",
            "processor s for 1,000",
            "failed",
        ])];
        for load in [Load::Kept(1), Load::Kept(25), Load::Fresh, Load::Burst(500)] {
            for server in SERVERS {
                let cell =
                    |digits, value: fn(&Measured) -> f64| spread(&self.values(server, payload, load, value), digits);
                if self.values(server, payload, load, |_| 0.0).is_empty() {
                    continue;
                }
                rows.push(vec![
                    load.title(),
                    server.title().to_owned(),
                    cell(0, |one| one.rate),
                    cell(2, |one| one.times.p50),
                    cell(2, |one| one.times.p99),
                    cell(2, |one| one.times.p999),
                    cell(1, |one| one.times.max),
                    cell(3, |one| one.cpu),
                    cell(0, |one| count(one.failed)),
                ]);
            }
        }
        rows
    }

    fn lives_table(&self) -> Vec<Vec<String>> {
        let mut rows = vec![words([
            "",
            "start to first answer, ms",
            "peak memory, 6 KB pods, MiB",
            "with 500 connections at once, MiB",
            "with 200 KB pods, MiB",
        ])];
        for server in SERVERS {
            let cell = |value: fn(&Start) -> f64| spread(&self.lives(server, value), 1);
            rows.push(vec![
                server.title().to_owned(),
                cell(|life| life.first_answer),
                cell(|life| mib(life.peak_kept)),
                cell(|life| mib(life.peak_burst)),
                cell(|life| mib(life.peak)),
            ]);
        }
        rows
    }

    fn goals(&self) -> Vec<Vec<String>> {
        let payload = Payload {
            kilobytes: 6,
            hooks: true,
        };
        let middle = |server, load, value: fn(&Measured) -> f64| median(self.values(server, payload, load, value));
        let mut rows = vec![words(["goal, 6 KB pods with hooks", "measured", ""])];
        for load in [Load::Kept(1), Load::Kept(25)] {
            let [peer, ours, floor] = SERVERS.map(|server| middle(server, load, |one| one.cpu));
            let times = peer / ours;
            rows.push(goal(
                &format!("{}: 8 times the peer's requests for a processor second", load.title()),
                format!("{times:.1} times"),
                times >= 8.0,
            ));
            let [slow, fast, _] = SERVERS.map(|server| middle(server, load, |one| one.times.p99));
            rows.push(goal(
                &format!("{}: p99 at most an eighth of the peer's", load.title()),
                format!("{fast:.2} ms; the peer {slow:.2} ms, {:.1} times", slow / fast),
                fast <= slow / 8.0,
            ));
            rows.push(goal(
                &format!("{}: at most 1.3 times the floor's processor time", load.title()),
                format!("{:.2} times", ours / floor),
                ours <= floor * 1.3,
            ));
        }
        let memory = median(self.lives(Server::Reveille, |life| mib(life.peak_kept) * 1.048_576));
        rows.push(goal(
            "peak memory under 20 MB, up to 25 connections",
            format!("{memory:.1} MB"),
            memory < 20.0,
        ));
        let burst = Load::Burst(500);
        let failed: f64 = self
            .values(Server::Reveille, payload, burst, |one| count(one.failed))
            .iter()
            .sum();
        let longest = self.values(Server::Reveille, payload, burst, |one| one.times.max);
        let longest = longest.into_iter().fold(0.0, f64::max);
        rows.push(goal(
            "a burst of 500: no failure, all under 1 s, in each round",
            format!("{failed:.0} failed, the slowest {longest:.0} ms"),
            failed == 0.0 && longest < 1000.0,
        ));
        rows
    }
}

#[allow(clippy::cast_precision_loss)] // thousands
fn count(number: usize) -> f64 {
    number as f64
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The section.
pub(super) fn section(figures: &WebhookFigures) -> anyhow::Result<String> {
    let view = View { figures };
    let mut tables = Vec::new();
    for (kilobytes, hooks) in PAYLOADS {
        let with = if hooks { "with hooks" } else { "without hooks" };
        let rows = table(&view.payload_table(Payload { kilobytes, hooks }))?;
        tables.push(format!("\n### Pods of {kilobytes} KB {with}\n\n{rows}"));
    }
    Ok(format!(
        "
## The webhook

Three admission webhooks take turns on one core, and the load has another core:

* **Reveille's**, the program as it is shipped;
* **controller-runtime** 0.25: a minimal pod mutator in Go that does the same to the pod
  ([tests/bench/peers](../tests/bench/peers/controller-runtime/main.go));
* **floor**: bare axum and rustls ([tests/bench/floor.rs](../tests/bench/floor.rs)). It parses the review and answers a
  patch that is always the same; nothing that does its work over HTTPS in Rust can be much cheaper.

Calls are reviews of a restored database pod (environment, volumes, managed fields, `restore-wait`) over TLS 1.3 with
P-256 keys, each connection with one call after the other, for {} seconds in each of {} rounds. A new connection is a whole
handshake, without resumption, as the API server does it.

{}
### Goals

{}
### Start and memory

{}{}",
        figures.seconds,
        figures.rounds,
        machine_line(&figures.machine, "make bench BENCH=webhook"),
        table(&view.goals())?,
        table(&view.lives_table())?,
        tables.concat(),
    ))
}

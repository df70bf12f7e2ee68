//! Leader election: one Lease, held by one process at a time.
//!
//! Own code, because the only library that fits (`kube-lease-manager`) tells its holder no deadline, takes a Lease over
//! without a look at its version, trusts the wall clocks of other machines, and sleeps through a release.
//!
//! A process that ends while commands of its run says so on the Lease itself, in the very write that gives it up: whoever
//! takes it over has read that, and does not take those commands for lost.

mod view;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PostParams},
    runtime::watcher::{self, watch_object},
};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    clock::{self, Stopwatch},
    kube::{is_conflict, is_not_found, reason},
    pod_edit::parameters,
};
use crate::names::EXCLUDE_FROM_BACKUP_LABEL;
use view::{Candidate, Finishing, Record, Wish, finishing_mark};

/// How this process stands. Shared by all that must not act without the Lease.
#[derive(Debug)]
pub struct Standing {
    /// This process' name.
    process: String,
    /// How long the Lease is valid after a renewal.
    duration: Duration,
    /// Runs as long as the process does.
    watch: Stopwatch,
    state: Mutex<State>,
    /// Rings when a process that finishes its commands has come or gone.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// When the last successful renewal was sent off.
    renewed: Option<(Duration, Timestamp)>,
    finishing: Finishing,
}

impl Standing {
    /// `process`: a name that no other process ever has.
    pub fn new(process: String, duration: Duration) -> Self {
        Self {
            process,
            duration,
            watch: Stopwatch::start(),
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// This process' name in the Lease and in claims.
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Whether this process holds the Lease, with a margin for what it is about to do. By two clocks: one of them may have
    /// stood still with the whole machine.
    pub fn is_held(&self) -> bool {
        let valid = self.duration.saturating_sub(self.duration / 5);
        let Some((since, at)) = self.lock().renewed else {
            return false;
        };
        let by_wall = clock::now().duration_since(at).unsigned_abs();
        self.now().saturating_sub(since) < valid && by_wall < valid
    }

    /// Processes that do not lead any more and finish commands of theirs, each with the time until which that is believed
    /// without a further sign of life.
    pub fn finishing(&self, now: Timestamp) -> BTreeMap<String, Timestamp> {
        let alive = self.lock().finishing.alive(self.duration, self.now());
        let until = |left: Duration| now.checked_add(left).unwrap_or(now);
        alive
            .into_iter()
            .map(|(process, left)| (process, until(left)))
            .collect()
    }

    /// Waits until a process that finishes its commands has come or gone.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Holds the Lease from now on, for tests.
    #[cfg(test)]
    pub(crate) fn hold(&self) {
        self.lock().renewed = Some((self.now(), clock::now()));
    }

    fn now(&self) -> Duration {
        self.watch.elapsed()
    }

    fn renewed(&self, sent: (Duration, Timestamp)) {
        self.lock().renewed = Some(sent);
    }

    fn blind(&self) {
        let now = self.now();
        self.lock().finishing.blind(now);
    }

    fn lost(&self) {
        self.lock().renewed = None;
    }

    fn see(&self, record: &Record) {
        let now = self.now();
        if self.lock().finishing.see(&record.finishing, now) {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the Lease is not held any more.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to stop; the Lease is still held.
    Stopped,
    /// Another process holds it.
    Lost(String),
}

/// Another process leads: this one ends.
#[derive(Debug, thiserror::Error)]
#[error("the Lease is held by {0:?} now: this process ends")]
pub struct LostLease(pub String);

/// The name of this process in Leases and claims. A restarted container has the same pod, and must not take its predecessor's
/// claims for its own; but it knows that the predecessor is dead.
#[derive(Debug)]
pub struct ProcessNames {
    /// A name that no other process ever has.
    pub process: String,
    /// How the names of earlier processes in this very container begin, if that can be told.
    pub predecessors: Option<String>,
}

impl ProcessNames {
    /// From the name and the uid of this process' pod.
    pub fn of(pod: Option<&str>, uid: Option<&str>) -> Self {
        let pod = pod.unwrap_or("local");
        let predecessors = uid.map(|uid| format!("{pod}/{uid}/"));
        let prefix = predecessors.clone().unwrap_or_else(|| format!("{pod}/"));
        Self {
            process: format!("{prefix}{}-{}", clock::now().as_microsecond(), std::process::id()),
            predecessors,
        }
    }
}

/// Takes the Lease, keeps it, gives it up.
pub struct Elector<'a> {
    standing: &'a Standing,
    api: Api<Lease>,
    name: String,
    candidate: Candidate,
    changes: BoxStream<'static, watcher::Result<Option<Lease>>>,
    /// The watch does not work at the moment.
    blind: bool,
    record: Record,
}

impl<'a> Elector<'a> {
    /// `predecessors`: how the names of earlier processes in this very container begin.
    pub fn new(
        standing: &'a Standing,
        client: Client,
        namespace: &str,
        name: &str,
        predecessors: Option<String>,
    ) -> Self {
        let api: Api<Lease> = Api::namespaced(client, namespace);
        let pause = standing.duration / 15;
        Self {
            standing,
            changes: watch_object(api.clone(), name)
                .then(move |change| async move {
                    if change.is_err() {
                        tokio::time::sleep(pause).await;
                    }
                    change
                })
                .boxed(),
            api,
            name: name.to_owned(),
            candidate: Candidate::new(standing.duration, predecessors),
            blind: true,
            record: Record::default(),
        }
    }

    /// Waits for the Lease and takes it. False if `stop` fires first. `readable` is called once the Lease could be read.
    pub async fn acquire(&mut self, stop: &CancellationToken, readable: impl Fn()) -> bool {
        let mut tick = ticks(self.standing.duration / 15);
        while !stop.is_cancelled() {
            tokio::select! {
                change = self.changes.next() => self.look(change),
                _ = tick.tick() => if self.blind { self.read().await },
                () = stop.cancelled() => return false,
            }
            if self.blind {
                continue;
            }
            readable();
            let tried = match self.candidate.wish(self.standing.now()) {
                Wish::Wait => continue,
                Wish::Create => self.create().await,
                Wish::Take(record) => self.take(&record).await,
            };
            match tried {
                Ok(()) => return true,
                Err(error) => {
                    // Somebody else was faster, or the API server does not answer: what is true now?
                    tracing::debug!(error = reason(&error), "the Lease could not be taken");
                    self.blind = true;
                }
            }
        }
        false
    }

    /// Keeps the Lease until `stop` fires or another process has it. While the API server can't be reached this process does
    /// not hold it, but nobody else does either: it is renewed as soon as possible.
    pub async fn keep(&mut self, stop: &CancellationToken) -> End {
        let mut tick = ticks(self.standing.duration / 6);
        loop {
            tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                _ = tick.tick() => {}
                // A hint only: the watch may be behind. A renewal tells.
                change = self.changes.next() => match change {
                    Some(Ok(Some(lease))) => {
                        let record = Record::read(&lease);
                        if record.is_older_than(&self.record) {
                            continue;
                        }
                        self.standing.see(&record);
                        if record.holder == self.standing.process {
                            self.record = record;
                            continue;
                        }
                    }
                    Some(Ok(None)) => {}
                    Some(Err(_)) | None => continue,
                },
            }
            if let Err(other) = self.renew().await {
                self.standing.lost();
                return End::Lost(other);
            }
        }
    }

    /// Gives the Lease up. `finishing`: commands of this process still run.
    pub async fn release(&mut self, finishing: bool) {
        let was_held = self.standing.is_held();
        self.standing.lost();
        for _ in 0..5 {
            let mut body = json!({"spec": {"holderIdentity": "", "renewTime": MicroTime(clock::now())}});
            if finishing && let Some(fields) = body.as_object_mut() {
                fields.insert("metadata".to_owned(), self.finishing_metadata());
            }
            match self.write(&self.record.version.clone(), body).await {
                Ok(_) => return,
                Err(error) if is_conflict(&error) => match self.api.get(&self.name).await {
                    Ok(lease) => self.record = Record::read(&lease),
                    Err(_) => return,
                },
                Err(error) => {
                    tracing::warn!(was_held, error = reason(&error), "the Lease could not be given up");
                    return;
                }
            }
            if self.record.holder != self.standing.process {
                return;
            }
        }
    }

    /// Shows life on the Lease until `done`, then takes the mark away.
    pub async fn finish(&mut self, done: impl Future<Output = ()>) {
        let mut tick = ticks(self.standing.duration / 6);
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => break,
                _ = tick.tick() => {
                    let sign = self.finishing_metadata();
                    self.mark(sign).await;
                }
            }
        }
        let (key, _) = finishing_mark(&self.standing.process, clock::now());
        self.mark(json!({"annotations": {key: Value::Null}})).await;
    }

    fn finishing_metadata(&self) -> Value {
        let (key, value) = finishing_mark(&self.standing.process, clock::now());
        json!({"annotations": {key: value}})
    }

    async fn mark(&mut self, metadata: Value) {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let written = in_time(
            self.standing.duration,
            self.api.patch(&self.name, &parameters(), &patch),
        )
        .await;
        if let Err(error) = written {
            tracing::warn!(
                error = reason(&error),
                "the Lease does not say that commands of this process still run"
            );
        }
    }

    /// Takes over what the watch says.
    fn look(&mut self, change: Option<watcher::Result<Option<Lease>>>) {
        match change {
            Some(Ok(lease)) => {
                let record = lease.as_ref().map(Record::read);
                // It may be behind what was read.
                if record.as_ref().is_none_or(|record| !record.is_older_than(&self.record)) {
                    self.seen(record);
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the Lease can't be watched");
                self.blind = true;
            }
            None => self.blind = true,
        }
    }

    fn seen(&mut self, record: Option<Record>) {
        self.blind = false;
        if let Some(record) = &record {
            self.standing.see(record);
            self.record = record.clone();
        }
        self.candidate.see(record, self.standing.now());
    }

    /// Reads it, because the watch does not work or does not know the newest.
    async fn read(&mut self) {
        let read = in_time(self.standing.duration, self.api.get_opt(&self.name)).await;
        match read {
            Ok(lease) => self.seen(lease.as_ref().map(Record::read)),
            Err(error) => {
                tracing::debug!(error = reason(&error), "the Lease can't be read");
                self.candidate.blind(self.standing.now());
            }
        }
    }

    async fn create(&mut self) -> Result<(), kube::Error> {
        let (sent, now) = (self.standing.now(), clock::now());
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([(
                    EXCLUDE_FROM_BACKUP_LABEL.to_owned(),
                    "true".to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.standing.process.clone()),
                lease_duration_seconds: Some(self.seconds()),
                acquire_time: Some(MicroTime(now)),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(self.record.transitions.saturating_add(1)),
                ..LeaseSpec::default()
            }),
        };
        let created = in_time(self.standing.duration, self.api.create(&PostParams::default(), &lease)).await?;
        self.hold(&created, (sent, now));
        Ok(())
    }

    async fn take(&mut self, record: &Record) -> Result<(), kube::Error> {
        let (sent, now) = (self.standing.now(), clock::now());
        let body = json!({"spec": {
            "holderIdentity": self.standing.process,
            "leaseDurationSeconds": self.seconds(),
            "acquireTime": MicroTime(now),
            "renewTime": MicroTime(now),
            "leaseTransitions": record.transitions.saturating_add(1),
        }});
        let taken = self.write(&record.version, body).await?;
        self.hold(&taken, (sent, now));
        tracing::info!(before = record.holder, "this process leads");
        Ok(())
    }

    /// Renews it. `Err`: who has it now. Whatever else goes wrong is tried again at the next tick.
    async fn renew(&mut self) -> Result<(), String> {
        let dead = {
            let state = self.standing.lock();
            state.finishing.dead(self.standing.duration, self.standing.now())
        };
        let removed: BTreeMap<String, Value> = dead
            .iter()
            .map(|process| (finishing_mark(process, clock::now()).0, Value::Null))
            .collect();
        for _ in 0..3 {
            let (sent, now) = (self.standing.now(), clock::now());
            let body = json!({"metadata": {"annotations": removed}, "spec": {"renewTime": MicroTime(now)}});
            let error = match self.write(&self.record.version.clone(), body).await {
                Ok(lease) => {
                    self.hold(&lease, (sent, now));
                    return Ok(());
                }
                Err(error) => error,
            };
            if !is_conflict(&error) && !is_not_found(&error) {
                self.standing.blind();
                tracing::warn!(error = reason(&error), "the Lease could not be renewed yet");
                return Ok(());
            }
            match in_time(self.standing.duration, self.api.get_opt(&self.name)).await {
                Ok(Some(lease)) => {
                    let record = Record::read(&lease);
                    if record.holder != self.standing.process {
                        return Err(record.holder);
                    }
                    // Somebody has changed something else of it.
                    self.record = record;
                }
                // Deleted. Others wait for as long as it would have been valid.
                Ok(None) => {
                    if self.create().await.is_ok() {
                        return Ok(());
                    }
                }
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn hold(&mut self, lease: &Lease, sent: (Duration, Timestamp)) {
        self.record = Record::read(lease);
        self.standing.see(&self.record);
        self.standing.renewed(sent);
    }

    /// Writes to the Lease if it still has this version.
    async fn write(&mut self, version: &str, mut body: Value) -> Result<Lease, kube::Error> {
        if let Some(fields) = body.as_object_mut() {
            let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("resourceVersion".to_owned(), json!(version));
            }
        }
        in_time(
            self.standing.duration,
            self.api.patch(&self.name, &parameters(), &Patch::Merge(body)),
        )
        .await
    }

    fn seconds(&self) -> i32 {
        i32::try_from(self.standing.duration.as_secs()).unwrap_or(i32::MAX)
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// No call may take so long that the Lease is over by then.
async fn in_time<T>(lease: Duration, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(lease / 3, call).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

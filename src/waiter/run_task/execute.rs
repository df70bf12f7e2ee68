//! Running a hook's command between the record of its start and that of its end.

use std::sync::Arc;

use futures::future::join;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{api::PostParams, core::Status};

use super::{
    FIRST_PAUSE, LEASE_POLL, MAX_PAUSE, RunTask, Turn,
    last_look::{self, Look, MayStart},
    until,
};
use crate::{
    api::{
        HookRun, HookRunStatus,
        hook_run::{Attempt, HookState},
    },
    hooks::PostHook,
    infra::clock,
    waiter::{
        attempt::{self, Outcome},
        budget, counts,
        exec::{Command, Exec, Report},
        gate::Slot,
        result_file::{Answer, Files, pause_after},
        setback::Setbacks,
        traffic::UnderWay,
    },
};

/// How long after its time was over the end of a command is looked for, where nobody answers.
const LOOK_ON: jiff::SignedDuration = jiff::SignedDuration::from_mins(2);

/// What is to be written after a start was recorded.
pub(super) enum End {
    /// The command has not been begun and may not be any more: the start is taken back. With the error that kept it, if one did.
    Withdrawn(Option<kube::Error>),
    /// It has ended, or its end is not known.
    Ended(Report),
}

impl<E: Exec> RunTask<'_, E> {
    /// Records the start, runs the command, records the end. Only with a place among the commands that may run at once.
    pub(super) async fn execute(&mut self, hook: usize, started: HookRunStatus) -> Result<Turn, kube::Error> {
        // From here on this process says that it lives, until the end is written.
        let Some(claim) = self.context.gate.claim() else {
            return Ok(Turn::Sleep(clock::now().checked_add(LEASE_POLL).ok()));
        };
        let under_way = self.context.traffic.start();
        let Some(pod) = self.run.as_ref().map(|run| run.spec.pod.clone()) else {
            return Ok(Turn::Over);
        };
        let look = last_look::look(self.context, self.key.namespace.clone(), pod);
        let (written, look) = join(self.write_start(started), look).await;
        written?;
        let Some(run) = self.run.clone() else {
            return Ok(Turn::Over);
        };
        let Some(post) = run.spec.plan.post.get(hook) else {
            return Ok(Turn::Over);
        };
        let end = self.begin(&run, hook, post, (look, under_way)).await;
        let now = clock::now();
        // Nothing runs any more, as far as can be told, however long the record of it may take.
        self.slot = Slot::Free;
        let end = self.confirmed(&run, post, end).await;
        self.write_end(hook, &end, now).await;
        drop(claim);
        match end {
            End::Withdrawn(Some(error)) => return Err(error),
            // What the start waits for comes with the watch.
            End::Withdrawn(None) => tokio::time::sleep(FIRST_PAUSE).await,
            End::Ended(_) => {}
        }
        Ok(Turn::Again)
    }

    /// Runs a command whose start is recorded, if it may still be run.
    async fn begin(
        &self,
        run: &HookRun,
        hook: usize,
        post: &PostHook,
        (look, under_way): (Option<Look>, UnderWay<'_>),
    ) -> End {
        let pod = &run.spec.pod;
        let recorded = last_attempt(run.status.as_ref(), hook).and_then(|attempt| attempt.container_id.as_deref());
        let watched = self.context.queue.pod(&self.key);
        let looked = match look.filter(|look| watched.is_some() && look.is_fresh()) {
            Some(look) => look.pod,
            None => match self.pod_now(&pod.name, &pod.uid).await {
                Ok(pod) => pod,
                Err(error) => return End::Withdrawn(Some(error)),
            },
        };
        // The watch may know less than the look, or what has happened since.
        let views = [Some(looked.as_ref()), watched.as_deref().map(Some)];
        for view in views.into_iter().flatten() {
            match last_look::may_start(view, &post.container, recorded) {
                MayStart::Yes => {}
                MayStart::NotNow => return End::Withdrawn(None),
                MayStart::Never(why) => return End::Ended(Report::refused(why)),
            }
        }
        // All this may have taken its time.
        if !self.context.gate.is_open() {
            return End::Withdrawn(None);
        }
        let (namespace, name, container) = (&self.key.namespace, &pod.name, &post.container);
        tracing::info!(namespace, pod = name, container, hook = post.name, "a post hook starts");
        counts::started(&self.context.metrics, &run.spec, clock::now());
        drop(under_way);
        let command = async {
            if let Some(folder) = &post.result_file {
                return self.run_with_result_file(run, hook, post, folder).await;
            }
            let command = Command {
                namespace,
                pod: name,
                container,
                argv: &post.command,
                timeout: post.exec_timeout,
                answers: false,
            };
            self.context.exec.run(command).await
        };
        let report = counts::timed(&self.context.metrics, command).await;
        match report.outcome {
            Outcome::TurnedAway { code, why } => End::Withdrawn(Some(turned_away(code, &why))),
            _ => End::Ended(report),
        }
    }

    /// The end of a command, once its success is beyond doubt. A script's answer is.
    async fn confirmed(&self, run: &HookRun, post: &PostHook, end: End) -> End {
        match end {
            End::Ended(report) if report.outcome == Outcome::Exited(0) && post.result_file.is_none() => {
                let turn = self.context.traffic.question().await;
                let (namespace, pod) = (&self.key.namespace, &run.spec.pod.name);
                let outcome = self.context.exec.confirm(namespace, pod, &post.container).await;
                drop(turn);
                End::Ended(report.with(outcome))
            }
            end => end,
        }
    }

    /// Runs a command under the script that keeps its result.
    async fn run_with_result_file(&self, run: &HookRun, hook: usize, post: &PostHook, folder: &str) -> Report {
        let files = self.files(run, hook, post, folder);
        let (answer, report) = files.start(&self.context.exec, &post.command, post.exec_timeout).await;
        match (answer, &report.outcome) {
            (Some(Answer::Exited(code)), _) => report.with(Outcome::Exited(code)),
            (Some(Answer::Refused(why)), _) => Report::refused(&why),
            (None, Outcome::Refused(_) | Outcome::TurnedAway { .. }) => report,
            // The connection broke, or the time is over.
            _ => self.look_for_result(run, hook, post, folder).await,
        }
    }

    /// Takes over an attempt of a process that is gone: its result file tells how it ended.
    pub(super) async fn collect(&mut self, hook: usize, taken_over: HookRunStatus) -> Result<Turn, kube::Error> {
        let Some(claim) = self.context.gate.claim() else {
            return Ok(Turn::Sleep(clock::now().checked_add(LEASE_POLL).ok()));
        };
        self.write_start(taken_over).await?;
        let Some(run) = self.run.clone() else {
            return Ok(Turn::Over);
        };
        let Some((post, folder)) = run
            .spec
            .plan
            .post
            .get(hook)
            .and_then(|post| Some((post, post.result_file.as_ref()?)))
        else {
            return Ok(Turn::Over);
        };
        let (namespace, pod) = (&self.key.namespace, &run.spec.pod.name);
        tracing::info!(
            namespace,
            pod,
            hook = post.name,
            "the result file of a post hook is looked for"
        );
        let report = self.look_for_result(&run, hook, post, folder).await;
        self.write_end(hook, &End::Ended(report), clock::now()).await;
        drop(claim);
        Ok(Turn::Again)
    }

    /// Looks for the result of a command until it is there or its time is over; then ends the command.
    async fn look_for_result(&self, run: &HookRun, hook: usize, post: &PostHook, folder: &str) -> Report {
        let files = self.files(run, hook, post, folder);
        let attempt = last_attempt(run.status.as_ref(), hook);
        let began = attempt.map_or_else(clock::now, |attempt| attempt.started_at.0);
        let due = began.checked_add(post.exec_timeout.to_signed()).unwrap_or(began);
        let give_up = due.checked_add(LOOK_ON).unwrap_or(due);
        let mut looks = 0;
        loop {
            let lost = |why: &str| Report::refused("").with(Outcome::Lost(why.to_owned()));
            let pod = self.pod_now(&run.spec.pod.name, &run.spec.pod.uid).await;
            let is_over = clock::now() >= due;
            let (answer, report) = match &pod {
                Ok(None) => return lost("the pod is gone, and its result file with it"),
                Err(error) => (None, lost(&error.to_string())),
                Ok(Some(_)) if is_over => files.end(&self.context.exec).await,
                Ok(Some(_)) => files.look(&self.context.exec).await,
            };
            let id = pod
                .ok()
                .flatten()
                .and_then(|pod| pod.container(&post.container)?.id.clone());
            match answer {
                Some(Answer::Exited(code)) => return report.with(Outcome::Exited(code)),
                Some(Answer::NotBegun) if id == attempt.and_then(|attempt| attempt.container_id.clone()) => {
                    return Report::refused("the waiter that was about to start it was gone before it did");
                }
                Some(Answer::NotBegun) => {
                    return lost("the container was restarted, and there is no result file in it");
                }
                Some(Answer::Gone(why) | Answer::Refused(why)) => return lost(&why),
                Some(Answer::Ended | Answer::Stuck) => {
                    let ended = answer == Some(Answer::Ended);
                    let limit = post.exec_timeout;
                    return report.with(Outcome::TimedOut { limit, ended });
                }
                Some(Answer::Running) | None if clock::now() < give_up => {}
                Some(Answer::Running) | None => {
                    return lost("nobody could tell what its result file says");
                }
            }
            looks += 1;
            let pause = if is_over {
                pause_after(looks)
            } else {
                pause_after(looks).min(until(due, clock::now()))
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn files<'b>(&'b self, run: &'b HookRun, hook: usize, post: &'b PostHook, folder: &'b str) -> Files<'b> {
        let number = last_attempt(run.status.as_ref(), hook).map_or(0, |attempt| attempt.number);
        let uid = run.metadata.uid.as_deref().unwrap_or_default();
        Files {
            namespace: &self.key.namespace,
            pod: &run.spec.pod.name,
            container: &post.container,
            folder,
            id: format!("{uid}-{hook}-{number}"),
        }
    }

    /// Records the start of an execution. When the answer is lost, it is found out whether the record was made: only this
    /// process writes this claim, and it has not begun the command.
    pub(super) async fn write_start(&mut self, started: HookRunStatus) -> Result<(), kube::Error> {
        if self
            .run
            .as_ref()
            .is_some_and(|run| run.status.as_ref() == Some(&started))
        {
            return Ok(());
        }
        let Err(error) = self.write(started.clone()).await else {
            return Ok(());
        };
        let mut pause = FIRST_PAUSE;
        while !self.context.stop.is_cancelled() {
            match self.run_now().await {
                Ok(Some(run)) if run.status.as_ref() == Some(&started) => {
                    self.run = Some(Arc::new(run));
                    return Ok(());
                }
                Ok(_) => return Err(error),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
        Err(error)
    }

    /// Writes the end of an execution. It is known here alone, so it is tried until it is written, each time onto what stands
    /// there by then; unless somebody else has settled this attempt. `now`: when the command ended.
    pub(super) async fn write_end(&mut self, hook: usize, end: &End, now: Timestamp) {
        let mut setbacks = Setbacks::default();
        let mut is_stripped = false;
        let before = self.run.as_ref().and_then(|run| run.status.clone()).unwrap_or_default();
        while let Some((run, status)) = self.run.as_ref().and_then(|run| Some((run, run.status.as_ref()?))) {
            let attempt = status
                .post
                .get(hook)
                .filter(|post| post.state == HookState::Started)
                .and_then(|post| post.attempts.last());
            if attempt.is_none_or(|attempt| attempt.owner() != self.context.process) {
                if matches!(end, End::Ended(report) if is_written(status, hook, &self.context.process, report, now)) {
                    // Only the answer was lost.
                    self.tell(&before, run).await;
                } else {
                    tracing::error!(
                        namespace = self.key.namespace,
                        run = self.key.name,
                        "an attempt was settled by somebody else while its command ran"
                    );
                }
                return;
            }
            let mut new = match end {
                End::Withdrawn(_) => attempt::withdraw(status, hook, now),
                End::Ended(report) => {
                    let output = (report.stdout.clone(), report.stderr.clone());
                    attempt::record(&run.spec, status, hook, &report.outcome, output, now)
                }
            };
            if is_stripped {
                budget::strip(&mut new);
            }
            let run = run.clone();
            let turn = self.context.traffic.end().await;
            let written = self.put(new).await;
            drop(turn);
            let Err(error) = written else {
                if let (Some(before), Some(written)) = (&run.status, &self.run) {
                    self.tell(before, written).await;
                }
                self.clean_up(&run, hook).await;
                return;
            };
            tracing::warn!(namespace = self.key.namespace, run = self.key.name, %error, "a result could not be written yet");
            let advice = setbacks.after(&error);
            self.tell_setback(&advice, &error).await;
            // At once, if there is a way out by the record alone.
            if is_stripped || !is_about_the_record(&error) {
                tokio::time::sleep(advice.pause.min(MAX_PAUSE)).await;
            }
            is_stripped |= is_about_the_record(&error);
            match self.run_now().await {
                Ok(Some(fresh)) => self.run = Some(Arc::new(fresh)),
                Ok(None) => {
                    tracing::error!(
                        namespace = self.key.namespace,
                        run = self.key.name,
                        "a HookRun was deleted while its hook ran"
                    );
                    self.run = None;
                }
                Err(_) => {}
            }
        }
    }

    /// Takes the files of a recorded result away; but not the one that says that nothing was begun, and never will be.
    async fn clean_up(&self, run: &HookRun, hook: usize) {
        let folder = run
            .spec
            .plan
            .post
            .get(hook)
            .and_then(|post| Some((post, post.result_file.as_ref()?)));
        let recorded = last_attempt(self.run.as_ref().and_then(|run| run.status.as_ref()), hook);
        if let Some((post, folder)) = folder
            && recorded.is_some_and(|attempt| attempt.reason != "NotStarted" && attempt.finished_at.is_some())
        {
            self.files(run, hook, post, folder).clean(&self.context.exec).await;
        }
    }

    /// Writes a status against the resource version that was read, and tells what has ended.
    pub(super) async fn write(&mut self, status: HookRunStatus) -> Result<(), kube::Error> {
        let before = self.run.as_ref().and_then(|run| run.status.clone()).unwrap_or_default();
        self.put(status).await?;
        if let Some(written) = &self.run {
            self.tell(&before, written).await;
        }
        Ok(())
    }

    /// Writes a status against the resource version that was read.
    async fn put(&mut self, status: HookRunStatus) -> Result<(), kube::Error> {
        let Some(run) = &self.run else { return Ok(()) };
        let mut new = HookRun::clone(run);
        new.status = Some(status);
        let written = self
            .runs()
            .replace_status(&self.key.name, &PostParams::default(), &new)
            .await?;
        let written = Arc::new(written.lean());
        self.context.queue.run_seen(Arc::clone(&written));
        self.run = Some(written);
        Ok(())
    }
}

/// Whether the API server does not take this very record: it is too large, or something in it is not valid.
fn is_about_the_record(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 413 | 422) || status.message.contains("too large"))
}

/// A call that the API server turned away, as the error that it is.
fn turned_away(code: u16, why: &str) -> kube::Error {
    let status = Status::failure(&format!("a command could not be started: {why}"), "").with_code(code);
    kube::Error::Api(Box::new(status))
}

fn last_attempt(status: Option<&HookRunStatus>, hook: usize) -> Option<&Attempt> {
    status?.post.get(hook)?.attempts.last()
}

/// Whether the status holds this very result: the answer to an earlier write was lost.
fn is_written(status: &HookRunStatus, hook: usize, process: &str, report: &Report, now: jiff::Timestamp) -> bool {
    last_attempt(Some(status), hook).is_some_and(|attempt| {
        let code = match report.outcome {
            Outcome::Exited(code) => Some(code),
            _ => None,
        };
        attempt.owner() == process && attempt.finished_at == Some(MicroTime(now)) && attempt.exit_code == code
    })
}

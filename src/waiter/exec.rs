//! Running a command in a container over the API server's exec, and learning its exit code.

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::join;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{
    Api, Client,
    api::{AttachParams, AttachedProcess, LogParams},
    client::UpgradeConnectionError,
};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    attempt::Outcome,
    events::cut,
    output::{OutputRules, Tail},
    redact::Redactor,
    result_file,
};
use crate::{duration::GoDuration, infra::kube::reason};

/// How long output may still come once the end is known.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// How long a kubelet may take to show that it is there.
const KUBELET_ANSWERS: Duration = Duration::from_secs(10);
/// The longest reason that is kept, in bytes.
const REASON_LIMIT: usize = 1024;

/// The longest first line that may be an answer, in bytes, but for one chunk.
const ANSWER_LIMIT: usize = 4096;

/// What container runtimes and the kubelet say of a command that did not start.
const NOT_STARTED: [&str; 8] = [
    "OCI runtime exec failed",
    "unable to start container process",
    "failed to create exec",
    "failed to start exec",
    "container not found",
    "container not created",
    "container is not created or running",
    "is in CONTAINER_EXITED state",
];

/// Where and what to run.
#[derive(Clone, Debug)]
pub struct Command<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name; whoever calls has just compared its uid.
    pub pod: &'a str,
    /// The container.
    pub container: &'a str,
    /// The argument vector.
    pub argv: &'a [String],
    /// How long it may take.
    pub timeout: GoDuration,
    /// It is a script of [`super::result_file`]: its first line is an answer, and what follows is the output of another command.
    pub answers: bool,
}

/// How a command ended, and the end of its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How.
    pub outcome: Outcome,
    /// The end of its standard output, escaped.
    pub stdout: String,
    /// The end of its standard error, escaped.
    pub stderr: String,
    /// The first line of a script that answers.
    pub answer: String,
}

impl Report {
    /// The command was not started, and why.
    pub fn refused(why: &str) -> Self {
        Self::silent(Outcome::Refused(why.to_owned()))
    }

    fn silent(outcome: Outcome) -> Self {
        Self {
            outcome,
            stdout: String::new(),
            stderr: String::new(),
            answer: String::new(),
        }
    }

    /// The same output with another outcome.
    #[must_use]
    pub fn with(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }
}

/// Runs commands in containers. A trait, so that tests without a cluster can stand in for the kubelet.
pub trait Exec: Send + Sync + 'static {
    /// Runs one command to its end, or to the end of its time. Never tries twice. Exit code 0 is to be believed only once it is
    /// [confirmed](Self::confirm), unless it is that of a script that answers.
    fn run(&self, command: Command<'_>) -> impl Future<Output = Report> + Send;

    /// Whether a command that was reported to have succeeded in this pod's container has done so, or nobody knows.
    fn confirm(&self, namespace: &str, pod: &str, container: &str) -> impl Future<Output = Outcome> + Send;
}

/// Exec through the API server.
#[derive(Clone)]
pub struct ApiExec {
    client: Client,
    rules: Arc<OutputRules>,
}

impl ApiExec {
    /// `client` must not retry by itself: a retry after the command has started would run it twice.
    pub fn new(client: Client, rules: OutputRules) -> Self {
        let rules = Arc::new(rules);
        Self { client, rules }
    }

    async fn execute(&self, command: &Command<'_>, output: &mut Output) -> Outcome {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), command.namespace);
        let mut process = match attach(&pods, command.pod, command.container, command.argv).await {
            Ok(process) => process,
            Err(outcome) => return outcome,
        };
        let (out, err) = (process.stdout(), process.stderr());
        let answer = command.answers.then_some(&mut output.answer);
        let streams = join(
            read(out, &mut output.stdout, answer),
            read(err, &mut output.stderr, None),
        );
        follow(process, streams, LAST_OUTPUT).await.0
    }
}

impl ApiExec {
    /// The client that commands go over.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What takes secrets out of others' words.
    pub fn redactor(&self) -> &Redactor {
        &self.rules.redactor
    }

    fn report(&self, outcome: Outcome, output: &Output) -> Report {
        Report {
            outcome,
            stdout: output.stdout.text(&self.rules),
            stderr: output.stderr.text(&self.rules),
            answer: String::new(),
        }
    }
}

impl Exec for ApiExec {
    async fn run(&self, command: Command<'_>) -> Report {
        let mut output = Output::new(self.rules.tail);
        let limit = command.timeout.to_std().unwrap_or(Duration::ZERO);
        let execution = self.execute(&command, &mut output);
        let outcome = match tokio::time::timeout(limit, execution).await {
            Ok(outcome) => outcome,
            // Dropping the future closes the stream; exec has no signal, so the command itself goes on.
            Err(_) => Outcome::TimedOut {
                limit: command.timeout,
                ended: false,
            },
        };
        let answer = String::from_utf8_lossy(&output.answer).into_owned();
        if let Some((stdout, stderr)) = result_file::sizes(&answer) {
            output.stdout.was(stdout);
            output.stderr.was(stderr);
        }
        let report = match outcome {
            // The kubelet and the runtime may quote the command.
            Outcome::Refused(why) => return Report::silent(Outcome::Refused(said(&self.rules, &why))),
            Outcome::TurnedAway { code, why } => {
                let why = said(&self.rules, &why);
                return Report::silent(Outcome::TurnedAway { code, why });
            }
            Outcome::Lost(why) => self.report(Outcome::Lost(said(&self.rules, &why)), &output),
            outcome => self.report(outcome, &output),
        };
        Report { answer, ..report }
    }

    async fn confirm(&self, namespace: &str, pod: &str, container: &str) -> Outcome {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        match confirm(&pods, pod, container).await {
            Outcome::Lost(why) => Outcome::Lost(said(&self.rules, &why)),
            outcome => outcome,
        }
    }
}

/// Starts a command in a container; or says what became of that. `pods` must not retry by itself: a repeated exec could run the
/// command twice.
pub(crate) async fn attach(
    pods: &Api<Pod>,
    pod: &str,
    container: &str,
    argv: &[String],
) -> Result<AttachedProcess, Outcome> {
    let parameters = AttachParams::default()
        .container(container)
        .stdin(false)
        .stdout(true)
        .stderr(true);
    let attached = pods.exec(pod, argv, &parameters).await;
    attached.map_err(|error| not_attached(&error))
}

/// Follows a command to its end. `streams` reads its output, both streams at once: a command blocks on a full pipe. Once the end is
/// known they have `last` left, for when the connection breaks they are dropped without an end, and reading on would wait for ever. Gives
/// what they have come to, if they were read to their end. Exit code 0 is to be [confirmed](confirm).
pub(crate) async fn follow<T>(
    mut process: AttachedProcess,
    streams: impl Future<Output = T>,
    last: Duration,
) -> (Outcome, Option<T>) {
    let status = process.take_status();
    let mut status = std::pin::pin!(async {
        match status {
            Some(status) => status.await,
            None => None,
        }
    });
    let mut streams = std::pin::pin!(streams);
    let (status, read) = tokio::select! {
        status = &mut status => (status, tokio::time::timeout(last, streams).await.ok()),
        read = &mut streams => (status.await, Some(read)),
    };
    let outcome = match (status, process.join().await) {
        (Some(status), _) => from_status(&status),
        (None, Err(error)) => Outcome::Lost(error.to_string()),
        (None, Ok(())) => Outcome::Lost("the stream was closed without an exit status".to_owned()),
    };
    (outcome, read)
}

/// What exit code 0 is worth. The API server takes the end of its connection to the kubelet for success, also when the kubelet has
/// crashed. Success is believed only if the kubelet still answers (it is asked for one byte of the container's log).
pub async fn confirm(pods: &Api<Pod>, pod: &str, container: &str) -> Outcome {
    let one_byte = LogParams {
        container: Some(container.to_owned()),
        limit_bytes: Some(1),
        tail_lines: Some(1),
        ..LogParams::default()
    };
    match tokio::time::timeout(KUBELET_ANSWERS, pods.logs(pod, &one_byte)).await {
        Ok(Ok(_)) => Outcome::Exited(0),
        // The API server itself refused, or the container has ended since: that says nothing against the kubelet.
        Ok(Err(kube::Error::Api(status))) if status.code < 500 => Outcome::Exited(0),
        Ok(Err(error)) => Outcome::Lost(format!(
            "success was reported, but the node's kubelet does not answer: {}",
            reason(&error)
        )),
        Err(_) => Outcome::Lost("success was reported, but the node's kubelet does not answer".to_owned()),
    }
}

/// What comes out of a command.
struct Output {
    /// The first line of a script that answers.
    answer: Vec<u8>,
    stdout: Tail,
    stderr: Tail,
}

impl Output {
    /// Nothing yet; so many bytes of each stream can be shown.
    fn new(shown: usize) -> Self {
        Self {
            answer: Vec::new(),
            stdout: Tail::new(shown),
            stderr: Tail::new(shown),
        }
    }
}

/// Reads a stream to its end; the first line goes to `answer`, if there is to be one.
async fn read(stream: Option<impl AsyncRead + Unpin>, tail: &mut Tail, mut answer: Option<&mut Vec<u8>>) {
    let Some(mut stream) = stream else { return };
    // On the heap: thousands of waiting runs hold this future.
    let mut buffer = vec![0_u8; 8192];
    // An error here is the connection's: the missing status tells it.
    while let Ok(count) = stream.read(&mut buffer).await {
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
            return;
        };
        let Some(line) = &mut answer else {
            tail.push(chunk);
            continue;
        };
        let (first, rest) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(end) => (chunk.get(..end), chunk.get(end + 1..)),
            None => (Some(chunk), None),
        };
        // What is longer is no answer.
        if line.len() < ANSWER_LIMIT {
            line.extend(first.unwrap_or_default());
        }
        if let Some(rest) = rest {
            answer = None;
            tail.push(rest);
        }
    }
}

/// Whether the API server turns a call away before it looks at it, for a reason that may pass: rights, or too many calls.
const fn is_passing(code: u16) -> bool {
    matches!(code, 401 | 403 | 429)
}

/// What a failed attempt to attach says about the command.
fn not_attached(error: &kube::Error) -> Outcome {
    match error {
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) if is_passing(code.as_u16()) => {
            Outcome::TurnedAway {
                code: code.as_u16(),
                why: format!("the API server answered {code}"),
            }
        }
        kube::Error::Api(status) if is_passing(status.code) => Outcome::TurnedAway {
            code: status.code,
            why: status.message.clone(),
        },
        // A gateway's timeout may come after the command has started; other refusals come before.
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code))
            if !matches!(code.as_u16(), 502..=504) =>
        {
            Outcome::Refused(format!("the API server answered {code}"))
        }
        kube::Error::Api(status) if status.code < 500 => Outcome::Refused(status.message.clone()),
        other => Outcome::Lost(other.to_string()),
    }
}

/// What is kept of others' words. Secrets go first: half of one would not be known.
fn said(rules: &OutputRules, why: &str) -> String {
    cut(&rules.words(why), REASON_LIMIT)
}

/// Reads the exit code out of the status frame that ends an exec stream.
fn from_status(status: &Status) -> Outcome {
    if status.status.as_deref() == Some("Success") {
        return Outcome::Exited(0);
    }
    let causes = status.details.as_ref().and_then(|details| details.causes.as_ref());
    let code = causes
        .into_iter()
        .flatten()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    if let Some(code) = code.and_then(|cause| cause.message.as_deref()?.parse().ok()) {
        return Outcome::Exited(code);
    }
    let message = status.message.as_deref().unwrap_or("no reason was given");
    // Each layer on the way puts the same words in front.
    let message = message.replace("Internal error occurred: ", "");
    // The runtime says so when it could not start a command. Anything else may have come after the start.
    if NOT_STARTED.iter().any(|words| message.contains(words)) {
        Outcome::Refused(message)
    } else {
        Outcome::Lost(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules() -> OutputRules {
        OutputRules {
            tail: 0,
            redactor: Redactor::built_in().clone(),
        }
    }

    #[test]
    fn no_half_of_a_secret_survives_the_cut() {
        let why = format!(
            "{} password=\"{} and\" more",
            "x".repeat(REASON_LIMIT - 20),
            "secret words ".repeat(10)
        );
        let kept = said(&rules(), &why);
        assert!(!kept.contains("secret"), "{kept}");
    }

    #[test]
    fn exit_codes_are_read_from_the_status_frame() {
        let check =
            |status, expected: &Outcome| assert_eq!(&from_status(&serde_json::from_value(status).unwrap()), expected);
        check(json!({"metadata": {}, "status": "Success"}), &Outcome::Exited(0));
        let causes = json!({"causes": [{"reason": "ExitCode", "message": "3"}]});
        check(
            json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "details": causes}),
            &Outcome::Exited(3),
        );
        let message = "OCI runtime exec failed: no such file";
        check(
            json!({"metadata": {}, "status": "Failure", "message": message}),
            &Outcome::Refused(message.to_owned()),
        );
        // What the API server says when its connection to the kubelet breaks.
        let message = "error stream: unexpected EOF";
        check(
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message}),
            &Outcome::Lost(message.to_owned()),
        );
    }
    proptest::proptest! {
        /// Success is what says so, and nothing else; and whatever it says, the reason is short and harmless.
        #[test]
        fn only_success_is_success(
            word in "(Success|Failure|\\PC{0,8})",
            reason in "(ExitCode|\\PC{0,8})",
            code in "(0|-?[0-9]{1,12}|\\PC{0,8})",
            message in "\\PC*|(.|\n){0,3000}",
        ) {
            let frame = json!({
                "metadata": {}, "status": word, "message": message,
                "details": {"causes": [{"reason": reason, "message": code}]},
            });
            match from_status(&serde_json::from_value(frame).unwrap()) {
                Outcome::Exited(0) => proptest::prop_assert!(word == "Success" || (reason == "ExitCode" && code.parse() == Ok(0))),
                Outcome::Refused(why) | Outcome::Lost(why) => {
                    let why = said(&rules(), &why);
                    proptest::prop_assert!(why.len() <= REASON_LIMIT + '…'.len_utf8());
                    proptest::prop_assert!(!why.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
                }
                _ => {}
            }
        }

        /// Any bytes as a status frame are read or refused by the decoder that kube uses.
        #[test]
        fn any_frame_is_read_or_refused(bytes: Vec<u8>) {
            if let Ok(status) = serde_json::from_slice::<Status>(&bytes) {
                let _ = from_status(&status);
            }
        }
    }
}

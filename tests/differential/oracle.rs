//! Velero's own code, as a child process that answers line by line (`oracle/main.go`).

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What Velero makes of a pod and a Restore.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Answer {
    pub(crate) undecodable: String,
    pub(crate) invalid: Vec<String>,
    pub(crate) pod: Option<Value>,
    pub(crate) init_error: String,
    pub(crate) init_panic: String,
    pub(crate) post: Option<BTreeMap<String, Vec<Hook>>>,
    durations: Vec<String>,
    booleans: Vec<String>,
    included: bool,
    excluded: bool,
    glob_panic: String,
}

/// A post hook, Velero's or ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hook {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) container: String,
    pub(crate) command: Vec<String>,
    pub(crate) on_error: String,
    pub(crate) exec_timeout: String,
    pub(crate) wait_timeout: String,
    pub(crate) wait_for_ready: bool,
}

pub(crate) struct Oracle {
    child: Child,
    /// `None` once it has been ended.
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    durations: HashMap<String, Option<i64>>,
    booleans: HashMap<String, Option<bool>>,
    coverage: tempfile::TempDir,
}

impl Oracle {
    pub(crate) fn start() -> Self {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/differential/build-oracle");
        let built = Command::new(&script).stderr(Stdio::inherit()).output().unwrap();
        assert!(
            built.status.success(),
            "{} failed; what it said stands above",
            script.display()
        );
        let path = String::from_utf8(built.stdout).unwrap();
        let coverage = tempfile::tempdir().unwrap();
        let mut child = Command::new(path.trim())
            .env("GOCOVERDIR", coverage.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            questions: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
            durations: HashMap::new(),
            booleans: HashMap::new(),
            coverage,
        }
    }

    fn ask(&mut self, question: &Value) -> Answer {
        let mut line = question.to_string();
        line.push('\n');
        self.questions.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("the oracle's answer: {error}: {answer}"))
    }

    /// `pod` as in the backup, `created` as the API server returned it.
    pub(crate) fn hooks(&mut self, pod: &Value, created: &Value, restore: &Value) -> Answer {
        self.ask(&json!({"pod": pod, "created": created, "restore": restore}))
    }

    /// Go's `time.ParseDuration` in nanoseconds.
    pub(crate) fn duration(&mut self, text: &str) -> Option<i64> {
        if let Some(known) = self.durations.get(text) {
            return *known;
        }
        let answer = self.ask(&json!({"durations": [text]}));
        let value = answer.durations.first().and_then(|text| text.parse().ok());
        self.durations.insert(text.to_owned(), value);
        value
    }

    /// Go's `strconv.ParseBool`.
    pub(crate) fn boolean(&mut self, text: &str) -> Option<bool> {
        if let Some(known) = self.booleans.get(text) {
            return *known;
        }
        let answer = self.ask(&json!({"booleans": [text]}));
        let value = answer.booleans.first().and_then(|text| text.parse().ok());
        self.booleans.insert(text.to_owned(), value);
        value
    }

    /// Whether Velero's lists of this one pattern include and exclude the name; `None` if its library panics.
    pub(crate) fn glob(&mut self, pattern: &str, name: &str) -> Option<(bool, bool)> {
        let answer = self.ask(&json!({"glob": pattern, "name": name}));
        answer
            .glob_panic
            .is_empty()
            .then_some((answer.included, answer.excluded))
    }

    fn stop(&mut self) {
        drop(self.questions.take());
        // It writes its coverage into a folder that goes next.
        let _ = self.child.wait();
    }
}

/// Ends them; how much of each function of Velero's own code they have been through, in per cent.
pub(crate) fn coverage(mut oracles: Vec<Oracle>) -> BTreeMap<String, f64> {
    oracles.iter_mut().for_each(Oracle::stop);
    let folders: Vec<&str> = oracles
        .iter()
        .filter_map(|oracle| oracle.coverage.path().to_str())
        .collect();
    let output = Command::new("go")
        .args(["tool", "covdata", "func", "-i", &folders.join(",")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let function = |line: &str| {
        let mut words = line.split_whitespace();
        let (_, name, share) = (words.next()?, words.next()?, words.next()?);
        Some((name.to_owned(), share.strip_suffix('%')?.parse().ok()?))
    };
    text.lines().filter_map(function).collect()
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.stop();
    }
}

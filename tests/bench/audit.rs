//! What the API server wrote down about the calls it got: who, what, and when to the microsecond.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader},
    path::Path,
};

use jiff::Timestamp;
use serde::Deserialize;

use crate::figures::Requests;

/// One entry of the audit log.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    #[serde(rename = "auditID")]
    id: String,
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    object_ref: Option<ObjectRef>,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
}

#[derive(Debug, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

/// Who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// Any account of Reveille.
    Reveille,
    /// Velero's server, not its node agent.
    Velero,
}

impl Who {
    fn called(self, entry: &Entry) -> bool {
        match self {
            Self::Reveille => entry.user.username.starts_with("system:serviceaccount:reveille:"),
            Self::Velero => {
                let account = "system:serviceaccount:velero:velero";
                entry.user.username == account && !entry.user_agent.starts_with("node-agent")
            }
        }
    }
}

/// What the log says about a span of time.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    entries: Vec<Entry>,
}

impl Audit {
    /// Reads all entries whose request came in `from..=to`.
    pub(crate) fn read(log: &Path, from: Timestamp, to: Timestamp) -> anyhow::Result<Self> {
        let mut entries = Vec::new();
        let folder = log.parent().unwrap_or(Path::new("."));
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            // The log itself, and what was rotated away.
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            if !name.starts_with("audit") || !is_log {
                continue;
            }
            for line in BufReader::new(fs::File::open(&path)?).lines() {
                // The last line may be half written.
                let Ok(entry) = serde_json::from_str::<Entry>(&line?) else {
                    continue;
                };
                if (from..=to).contains(&entry.request_received_timestamp) {
                    entries.push(entry);
                }
            }
        }
        Ok(Self { entries })
    }

    /// How many requests somebody made, by verb and resource; each once, however many stages it went through.
    pub(crate) fn requests(&self, who: Who, from: Timestamp) -> Requests {
        let mut seen: HashMap<&str, String> = HashMap::new();
        let calls = self
            .entries
            .iter()
            .filter(|entry| who.called(entry) && entry.request_received_timestamp >= from);
        for entry in calls {
            seen.insert(&entry.id, entry.what());
        }
        let mut counts = Requests::new();
        for what in seen.into_values() {
            *counts.entry(what).or_default() += 1;
        }
        counts
    }

    /// Which watches somebody had open at a moment, by resource.
    pub(crate) fn open_watches(&self, who: Who, at: Timestamp) -> Requests {
        let mut open: HashMap<&str, (String, bool)> = HashMap::new();
        let watches = self
            .entries
            .iter()
            .filter(|entry| entry.verb == "watch" && who.called(entry) && entry.stage_timestamp <= at);
        for entry in watches {
            let (_, ended) = open.entry(&entry.id).or_insert_with(|| (entry.what(), false));
            *ended |= entry.stage != "ResponseStarted";
        }
        let mut counts = Requests::new();
        for (what, _) in open.into_values().filter(|(_, ended)| !ended) {
            *counts.entry(what).or_default() += 1;
        }
        counts
    }

    /// When kwok first reported something of each pod of a namespace.
    pub(crate) fn first_status(&self, namespace: &str) -> HashMap<&str, Timestamp> {
        let mut first = HashMap::new();
        for entry in &self.entries {
            let Some(object) = &entry.object_ref else { continue };
            let is_status = object.resource == "pods" && object.subresource == "status" && entry.verb == "patch";
            if is_status && object.namespace == namespace && entry.user_agent.starts_with("kwok") {
                let time = first
                    .entry(object.name.as_str())
                    .or_insert(entry.request_received_timestamp);
                *time = (*time).min(entry.request_received_timestamp);
            }
        }
        first
    }

    /// When each pod of Reveille asked for a command to be started, the first call first.
    pub(crate) fn starts_by_pod(&self) -> BTreeMap<&str, Vec<Timestamp>> {
        let mut starts: BTreeMap<&str, Vec<Timestamp>> = BTreeMap::new();
        let execs = self.entries.iter().filter(|entry| {
            // Its other stages are the same call.
            let begun = entry.stage == "ResponseStarted";
            begun && Who::Reveille.called(entry) && entry.what().starts_with("exec ")
        });
        for entry in execs {
            let pod = entry.user.extra.get("authentication.kubernetes.io/pod-name");
            if let Some(pod) = pod.and_then(|names| names.first()) {
                starts.entry(pod).or_default().push(entry.request_received_timestamp);
            }
        }
        for times in starts.values_mut() {
            times.sort_unstable();
        }
        starts
    }
}

impl Entry {
    /// Verb and resource. Commands go by verbs that do not say so.
    fn what(&self) -> String {
        let Some(object) = &self.object_ref else {
            return format!("{} (no resource)", self.verb);
        };
        match object.subresource.as_str() {
            "exec" => "exec pods".to_owned(),
            "" => format!("{} {}", self.verb, object.resource),
            sub => format!("{} {}/{sub}", self.verb, object.resource),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn entry(id: &str, stage: &str, verb: &str, user: &str, second: i64, object: Value) -> Entry {
        let time = Timestamp::from_second(second).unwrap().to_string();
        serde_json::from_value(json!({
            "auditID": id, "stage": stage, "verb": verb, "userAgent": "x", "objectRef": object,
            "user": {"username": user}, "requestReceivedTimestamp": time, "stageTimestamp": time,
        }))
        .unwrap()
    }

    #[test]
    fn a_request_counts_once_and_a_watch_is_open_until_it_ends() {
        let (velero, pods) = ("system:serviceaccount:velero:velero", json!({"resource": "pods"}));
        let audit = Audit {
            entries: vec![
                entry("1", "ResponseStarted", "watch", velero, 1, pods.clone()),
                entry("2", "ResponseStarted", "watch", velero, 2, pods.clone()),
                entry("1", "ResponseComplete", "watch", velero, 3, pods.clone()),
                entry("3", "ResponseComplete", "get", velero, 3, pods.clone()),
                entry("4", "ResponseComplete", "get", "somebody", 3, pods),
            ],
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(audit.open_watches(Who::Velero, at(2))["watch pods"], 2);
        assert_eq!(audit.open_watches(Who::Velero, at(3))["watch pods"], 1);
        let requests = audit.requests(Who::Velero, at(0));
        assert_eq!(requests["watch pods"], 2);
        assert_eq!(requests["get pods"], 1);
        assert!(audit.requests(Who::Reveille, at(0)).is_empty());
    }
}

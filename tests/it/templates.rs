//! Our templates, `JSONPath`s and conditions against a table of what Go makes of them (`tests/templates/`; the differential test
//! sees to it that the table is what Go says today).

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use reveille::blueprint::{
    ObjectReference, Params, PhaseParams, Subject, SubjectKind,
    jsonpath::Path,
    model::Artifact,
    render,
    subject::WorkloadPod,
    wait::{Condition, Dialect, render_condition},
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Table {
    templates: Vec<Row>,
    paths: Vec<Row>,
    conditions: Vec<Row>,
}

/// Go's result; nothing if it is an error.
#[derive(Deserialize)]
struct Row {
    text: String,
    gives: Option<String>,
}

/// Where Reveille means to differ, and why.
const DIFFERENT: [(&str, &str); 5] = [
    (
        "{{ and .Namespace .Namespace.Name }}",
        "Go prints a nil pointer as <nil>; ours is any nil, <no value>",
    ),
    (
        "{{ b64dec \"no base64!\" }}",
        "sprig gives the error's text as the value",
    ),
    (
        "{{ env \"REVEILLE_NOTHING\" }}",
        "refused: it would show the controller's environment",
    ),
    (
        "{{ printf \"%v\" .Phases.first.Secrets.creds.Data.password }}",
        "bytes are their text for every verb",
    ),
    ("{{ title \"a b\" }}", "of sprig only what published Blueprints use"),
];

fn table() -> Table {
    serde_json::from_str(include_str!("../templates/table.json")).unwrap()
}

/// Those of tests/templates/main.go.
fn params() -> Params {
    let pod = |name: &str, containers: &[&str], claims: &[(&str, &str)]| WorkloadPod {
        name: name.to_owned(),
        containers: containers.iter().map(|&name| name.to_owned()).collect(),
        claims: texts(claims),
    };
    let subject = Subject {
        kind: SubjectKind::StatefulSet,
        name: "db".to_owned(),
        namespace: "shop".to_owned(),
        pods: vec![
            pod("db-0", &["main", "proxy"], &[("data-db-0", "/data")]),
            pod("db-1", &["main"], &[]),
        ],
        object: Some(json!({
            "kind": "StatefulSet",
            "metadata": {"name": "db", "labels": {"app.kubernetes.io/name": "db", "b": "2"}},
            "spec": {
                "replicas": 3, "ratio": 0.5, "big": 1e21, "tiny": 1.5e-7, "large": 1_234_567.5, "enabled": true, "null": null,
                "list": ["a", "b", "c"], "mixed": ["x", 1, true, null, 2.5], "empty": [], "sets": [{"count": 2}],
            },
        })),
    };
    let mut params = Params::new("2026-03-04T05:06:07.12Z".parse().unwrap(), subject);
    params.options = texts(&[("mode", "fast")]);
    let backup = Artifact {
        key_value: texts(&[("path", "/p")]),
        ..Artifact::default()
    };
    params.artifacts_in.insert("backup".to_owned(), backup);
    let secret = Secret {
        metadata: metadata("creds", &[("l", "v")]),
        data: Some(BTreeMap::from([(
            "password".to_owned(),
            ByteString(b"hunter2".to_vec()),
        )])),
        ..Secret::default()
    };
    let settings = ConfigMap {
        metadata: metadata("settings", &[]),
        data: Some(texts(&[("key", "value")])),
        ..ConfigMap::default()
    };
    let first = PhaseParams {
        output: BTreeMap::from([("text".to_owned(), json!("out")), ("count".to_owned(), json!(3))]),
        secrets: BTreeMap::from([("creds".to_owned(), secret)]),
        config_maps: BTreeMap::from([("settings".to_owned(), settings)]),
    };
    params.phases.insert("first".to_owned(), first);
    params
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn metadata(name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("shop".to_owned()),
        labels: Some(texts(labels)),
        ..ObjectMeta::default()
    }
}

fn object() -> Value {
    json!({
        "metadata": {"labels": {"app.kubernetes.io/name": "db", "b": "<&>"}, "generation": 3, "empty": {}},
        "status": {
            "phase": "Running", "ratio": 0.5, "big": 1e21, "none": null, "list": [],
            "containerStatuses": [
                {"name": "a", "ready": true, "restarts": 0},
                {"name": "b", "ready": false, "restarts": 7, "extra": {"x": 1}},
            ],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}],
        },
    })
}

/// All rows must agree, except those that are known to differ; and these must differ.
fn compare(rows: &[Row], least: usize, ours: impl Fn(&str) -> Result<String, String>) {
    assert!(rows.len() >= least, "{} rows", rows.len());
    let mut faults = Vec::new();
    for row in rows {
        let ours = ours(&row.text);
        let same = ours.as_ref().ok() == row.gives.as_ref();
        let known = DIFFERENT.iter().any(|(text, _)| *text == row.text);
        if same == known {
            faults.push(format!("{:?}: Go {:?}, ours {ours:?}", row.text, row.gives));
        }
    }
    assert!(
        faults.is_empty(),
        "{} rows differ:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn templates_give_what_go_gives() {
    let params = params();
    compare(&table().templates, 150, |text| {
        render::text(text, &params).map_err(|error| error.to_string())
    });
}

#[test]
fn paths_print_what_kubectl_prints() {
    compare(&table().paths, 60, |text| {
        let path = Path::parse(text).map_err(|error| error.to_string())?;
        path.print(&object()).map_err(|error| error.to_string())
    });
}

#[test]
fn conditions_of_wait_v2_give_what_kubectl_gives() {
    compare(&table().conditions, 15, |text| {
        let condition = Condition {
            dialect: Dialect::Template,
            text: text.to_owned(),
            reference: ObjectReference::default(),
        };
        render_condition(&condition, &object()).map_err(|error| error.message)
    });
}

#[test]
fn each_difference_is_in_the_table() {
    let table = table();
    let rows = [table.templates, table.paths, table.conditions];
    for (text, why) in DIFFERENT {
        assert!(!why.is_empty());
        assert!(rows.iter().flatten().any(|row| row.text == text), "{text}");
    }
}

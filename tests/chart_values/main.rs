//! Each value of the chart does what it says. `values.yaml` beside this file has a row for each: what is set, and which fields
//! of which objects are then otherwise. HELM names the program (default: helm).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde::Deserialize;
use serde_json::{Value, json};

const CHART: &str = "charts/reveille";

/// One row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// The values that it is about.
    set: Value,
    /// Further values without which they have no effect.
    #[serde(default)]
    with: Value,
    /// `KIND/NAME` to a JSON pointer to what stands there then: a value, `{contains: TEXT}`, or `{absent: true}`. The pointer
    /// `""` with `{absent: true}` is the object itself.
    #[serde(default)]
    expect: BTreeMap<String, BTreeMap<String, Value>>,
    /// Words with which the chart refuses it.
    refused: Option<String>,
}

/// The objects of a rendering by kind and name.
type Objects = BTreeMap<String, Value>;

fn helm(values: &Value) -> Output {
    let mut command = Command::new(env::var("HELM").unwrap_or_else(|_| "helm".to_owned()));
    command
        .args([
            "template",
            "reveille",
            CHART,
            "--namespace",
            "reveille",
            "--kube-version",
            "1.34.0",
            "--values",
            "-",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("helm runs: HELM names it");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(values.to_string().as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn render(values: &Value) -> Objects {
    let output = helm(values);
    assert!(
        output.status.success(),
        "{values}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = text.split("\n---").filter(|text| text.contains("apiVersion:"));
    documents
        .map(|text| {
            let text = text.trim_start_matches("---");
            let object: Value = serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let word = |pointer: &str| object.pointer(pointer).unwrap().as_str().unwrap().to_owned();
            (format!("{}/{}", word("/kind"), word("/metadata/name")), object)
        })
        .collect()
}

/// `over` laid upon `base`, as Helm does it.
fn merged(base: &Value, over: &Value) -> Value {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            let mut all = base.clone();
            for (key, value) in over {
                let below = all.get(key).unwrap_or(&Value::Null);
                let value = merged(below, value);
                all.insert(key.clone(), value);
            }
            Value::Object(all)
        }
        (base, Value::Null) => base.clone(),
        (_, over) => over.clone(),
    }
}

fn table() -> Vec<Row> {
    serde_saphyr::from_str(include_str!("values.yaml")).unwrap()
}

fn chart_file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(CHART).join(name)).unwrap()
}

/// What stands there; nothing if the object or the field is not there.
fn found<'a>(objects: &'a Objects, object: &str, pointer: &str) -> &'a Value {
    objects
        .get(object)
        .and_then(|object| object.pointer(pointer))
        .unwrap_or(&Value::Null)
}

fn fits(found: &Value, wanted: &Value) -> bool {
    match wanted.as_object().and_then(|map| map.iter().next()) {
        Some((word, text)) if word == "contains" => {
            let text = text.as_str().unwrap();
            found
                .as_str()
                .map_or_else(|| found.to_string().contains(text), |found| found.contains(text))
        }
        Some((word, _)) if word == "absent" => found.is_null(),
        _ => found == wanted,
    }
}

#[test]
fn each_value_changes_the_field_that_it_is_for() {
    let default = render(&json!({}));
    for row in table() {
        let values = merged(&merged(&json!({}), &row.with), &row.set);
        if let Some(words) = &row.refused {
            let output = helm(&values);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && said.contains(words),
                "{values} is to be refused: {said}"
            );
            continue;
        }
        let before = if row.with.is_null() {
            default.clone()
        } else {
            render(&row.with)
        };
        let after = render(&values);
        assert!(!row.expect.is_empty(), "{values}: what does it change?");
        for (object, fields) in &row.expect {
            for (pointer, wanted) in fields {
                let (old, new) = (found(&before, object, pointer), found(&after, object, pointer));
                assert!(fits(new, wanted), "{values}: {object} {pointer} is {new}, not {wanted}");
                assert!(
                    !fits(old, wanted),
                    "{object} {pointer} is {wanted} without {values}, too"
                );
            }
        }
    }
}

/// The paths of all values that hold no others.
fn leaves(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(value, &path, all);
            }
        }
        None => drop(all.insert(path.to_owned())),
    }
}

#[test]
fn each_value_has_a_row() {
    let values: Value = serde_saphyr::from_str(&chart_file("values.yaml")).unwrap();
    let (mut all, mut set) = (BTreeSet::new(), BTreeSet::new());
    leaves(&values, "", &mut all);
    for row in table().iter().filter(|row| row.refused.is_none()) {
        leaves(&row.set, "", &mut set);
    }
    let covered = |leaf: &String| {
        set.iter()
            .any(|path| path == leaf || path.starts_with(&format!("{leaf}.")))
    };
    let missing: Vec<&String> = all.iter().filter(|leaf| !covered(leaf)).collect();
    assert!(missing.is_empty(), "values without a row: {missing:?}");
}

/// The places of the schema at which keys are fixed, as paths of values.
fn closed(schema: &Value, path: &str, all: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    if schema["additionalProperties"] == json!(false) {
        all.push(path.to_owned());
    }
    for (key, value) in properties {
        closed(
            value,
            &if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            },
            all,
        );
    }
}

#[test]
fn unknown_keys_are_refused_at_every_level() {
    let schema: Value = serde_json::from_str(&chart_file("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&chart_file("values.yaml")).unwrap();
    let mut places = Vec::new();
    closed(&schema, "", &mut places);
    // Objects of values.yaml that Kubernetes defines, or that hold whatever people like.
    let free = ["podSecurityContext", "securityContext"];
    let mut objects = BTreeSet::new();
    let mut all = BTreeSet::new();
    leaves(&values, "", &mut all);
    for leaf in &all {
        let mut parent = leaf.as_str();
        while let Some((above, _)) = parent.rsplit_once('.') {
            objects.insert(above.to_owned());
            parent = above;
        }
    }
    objects.retain(|path| !free.iter().any(|free| path.starts_with(free)) && !path.contains("resources"));
    let open: Vec<&String> = objects.iter().filter(|path| !places.contains(path)).collect();
    assert!(open.is_empty(), "the schema lets unknown keys into {open:?}");
    for place in places {
        let keys = place.split('.').filter(|key| !key.is_empty());
        let values = keys
            .rev()
            .fold(json!({"unknownKey": 1}), |inner, key| json!({key: inner}));
        let output = helm(&values);
        assert!(!output.status.success(), "{values} is let through");
    }
}

/// The alerts, the runbook's sections, and the metrics that the program has.
#[test]
fn each_alert_has_a_section_in_the_runbook_and_a_metric_in_the_program() {
    let rules = render(&json!({"metrics": {"prometheusRule": {"enabled": true}, "service": {"enabled": true}}}));
    let rules = &rules["PrometheusRule/reveille"]["spec"]["groups"][0]["rules"];
    let runbook = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbook.md")).unwrap();
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    // Metrics without a value yet are not printed, so the source is asked.
    let known = include_str!("../../src/infra/metrics.rs");
    let mut alerts = BTreeSet::new();
    for rule in rules.as_array().unwrap() {
        let alert = rule["alert"].as_str().unwrap();
        let link = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert!(link.ends_with(&format!("#{}", alert.to_lowercase())), "{link}");
        let expression = rule["expr"].as_str().unwrap();
        for word in expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let name = word
                .strip_suffix("_total")
                .or(word.strip_suffix("_bucket"))
                .unwrap_or(word);
            if let Some(name) = name.strip_prefix("reveille_") {
                assert!(
                    known.contains(&format!("\"{name}\"")),
                    "{alert}: there is no metric {name}"
                );
            }
        }
        alerts.insert(alert);
    }
    assert_eq!(alerts, sections, "alerts and sections of docs/runbook.md");
}

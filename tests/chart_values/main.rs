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

use reveille::cli::check::rights::Layout;
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
    helm_template(CHART, values, &[])
}

fn helm_template(chart: &str, values: &Value, more: &[&str]) -> Output {
    let mut command = Command::new(env::var("HELM").unwrap_or_else(|_| "helm".to_owned()));
    command
        .args([
            "template",
            "reveille",
            chart,
            "--namespace",
            "reveille",
            "--kube-version",
            "1.34.0",
            "--values",
            "-",
        ])
        .args(more)
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

/// The places of the schema at which keys are fixed, as paths of values; `name[]` is each item of a list.
fn closed(schema: &Value, path: &str, all: &mut Vec<String>) {
    if schema["items"].is_object() {
        closed(&schema["items"], &format!("{path}[]"), all);
    }
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
    // Their keys are in definitions.
    objects.retain(|path| !path.contains("resources"));
    let open: Vec<&String> = objects.iter().filter(|path| !places.contains(path)).collect();
    assert!(open.is_empty(), "the schema lets unknown keys into {open:?}");
    for place in places {
        let keys = place.split('.').filter(|key| !key.is_empty());
        let values = keys
            .rev()
            .fold(json!({"unknownKey": 1}), |inner, key| match key.strip_suffix("[]") {
                Some(list) => json!({list: [inner]}),
                None => json!({key: inner}),
            });
        let output = helm(&values);
        let said = String::from_utf8_lossy(&output.stderr);
        // Not for want of another key.
        assert!(
            !output.status.success() && said.contains("unknownKey"),
            "{values}: {said}"
        );
    }
}

/// The notes after an installation into a cluster that has these kinds. They are rendered as a part of a `ConfigMap`: Helm itself
/// shows them only with a cluster.
fn notes(values: &Value, kinds: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("reveille");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(CHART)
        .arg(&chart)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(copied.unwrap().success());
    std::fs::rename(chart.join("templates/NOTES.txt"), chart.join("notes.txt")).unwrap();
    let template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {text: {{ tpl (.Files.Get \"notes.txt\") . | quote }}}\n";
    std::fs::write(chart.join("templates/notes.yaml"), template).unwrap();
    let output = helm_template(
        &chart.to_string_lossy(),
        values,
        &[&["--show-only", "templates/notes.yaml"], kinds].concat(),
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let map: Value = serde_saphyr::from_str(text.trim_start_matches("---")).unwrap();
    map["data"]["text"].as_str().unwrap().to_owned()
}

#[test]
fn each_warning_is_given_when_there_is_reason_and_only_then() {
    let all = ["--api-versions", "velero.io/v1", "--api-versions", "cert-manager.io/v1"];
    let good = json!({"image": {"registry": "registry.example.com"}});
    let quiet = notes(&good, &all);
    assert!(
        !quiet.contains("WARNING") && quiet.contains("velero.mode is takeover"),
        "{quiet}"
    );
    let said = notes(&good, &[]);
    assert!(said.contains("WARNING: Velero's CRDs"), "{said}");
    for (values, words) in [
        (json!({"replicaCount": 0}), "replicaCount is 0"),
        (
            json!({"replicaCount": 1}),
            "replicaCount is 1: while its node is drained or has failed",
        ),
        (
            json!({"webhook": {"failurePolicy": "Fail"}}),
            "failurePolicy is Fail with 2 replica(s): while none of them answers",
        ),
        (
            json!({"policies": {"podMarks": "Audit"}}),
            "policies.podMarks is not Deny",
        ),
        (
            json!({"metrics": {"service": {"enabled": true}, "prometheusRule": {"enabled": true}}}),
            "runbookURL is no URL",
        ),
        (
            json!({"crds": {"install": false}}),
            "the CRD hookruns.reveille.dev is not in this cluster",
        ),
        (
            json!({"rbac": {"create": false}}),
            "rbac.create is false: ServiceAccount reveille needs",
        ),
        (
            json!({"image": {"registry": "localhost"}}),
            "can be pulled from nowhere",
        ),
    ] {
        let said = notes(&merged(&good, &values), &all);
        let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("WARNING")).collect();
        assert!(
            warnings.len() == 1 && warnings[0].contains(words),
            "{values}: {warnings:?}"
        );
    }
    let issued = json!({"certificates": {"mode": "certManager"}});
    let said = notes(&merged(&good, &issued), &all[..2]);
    assert!(
        said.contains("cert-manager's CRDs (cert-manager.io/v1) are not in this cluster"),
        "{said}"
    );
    for (mode, words) in [("alongside", "velero.mode is alongside"), ("off", "velero.mode is off")] {
        assert!(notes(&merged(&good, &json!({"velero": {"mode": mode}})), &all).contains(words));
    }
}

/// What the roles of a rendering allow an account: group, resource, verb, name (or nothing), and whether it is in its namespace only.
fn granted(objects: &Objects, account: &str) -> BTreeSet<(String, String, String, String, bool)> {
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().cloned().unwrap_or_default();
        list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for binding in objects.values() {
        let kind = binding["kind"].as_str().unwrap();
        if !kind.ends_with("RoleBinding") || binding["subjects"][0]["name"] != account {
            continue;
        }
        let role = &binding["roleRef"];
        let role = &objects[&format!("{}/{}", role["kind"].as_str().unwrap(), role["name"].as_str().unwrap())];
        for rule in role["rules"].as_array().unwrap() {
            let names = match texts(&rule["resourceNames"]) {
                names if names.is_empty() => vec![String::new()],
                names => names,
            };
            for (group, resource) in texts(&rule["apiGroups"]).iter().flat_map(|group| {
                let resources = texts(&rule["resources"]).into_iter();
                resources.map(move |resource| (group.clone(), resource))
            }) {
                for verb in texts(&rule["verbs"]) {
                    for name in &names {
                        all.insert((
                            group.clone(),
                            resource.clone(),
                            verb.clone(),
                            name.clone(),
                            kind == "RoleBinding",
                        ));
                    }
                }
            }
        }
    }
    all
}

#[test]
fn check_asks_for_all_rights_that_the_chart_gives_and_for_no_others() {
    let without_policies =
        json!({"policies": {"podMarks": "Off", "runOrders": "Off", "hookAuthors": {"action": "Off"}}});
    for values in [
        json!({}),
        json!({"certificates": {"mode": "certManager"}}),
        json!({"certificates": {"mode": "existing", "existing": {"secretName": "mine"}}}),
        json!({"waiter": {"ttl": "0"}}),
        without_policies,
    ] {
        // `delete` of the webhook configuration is the uninstalling Job's, which has the same account.
        let objects = render(&merged(&json!({"release": {"enabled": false}}), &values));
        let deployment = serde_json::from_value(objects["Deployment/reveille"].clone()).unwrap();
        let layout = Layout::of(&deployment, "reveille", "reveille");
        for (account, rights) in [
            ("reveille", layout.waiter_rights()),
            (layout.webhook_account.as_str(), layout.webhook_rights()),
        ] {
            let asked: BTreeSet<_> = rights
                .into_iter()
                .map(|right| {
                    let [group, resource, verb] = [right.group, right.resource, right.verb].map(str::to_owned);
                    (
                        group,
                        resource,
                        verb,
                        right.name.unwrap_or_default(),
                        right.namespace.is_some(),
                    )
                })
                .collect();
            assert_eq!(asked, granted(&objects, account), "{account} with {values}");
        }
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

use serde_json::json;

use super::*;
use crate::duration::GoDuration;

fn namespace() -> Subject {
    Subject::namespace("shop", None)
}

fn decode(function: Function, args: Value) -> Result<FunctionCall, CallError> {
    FunctionCall::decode(function, args.as_object().unwrap(), &namespace())
}

/// The error's argument and a word of its message.
fn refused(function: Function, args: Value, argument: &str, word: &str) {
    match decode(function, args) {
        Err(CallError::Argument {
            argument: found,
            message,
        }) => {
            assert_eq!(found, argument, "{message}");
            assert!(message.contains(word), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn functions_are_known_by_their_exact_names() {
    assert_eq!(Function::parse("WaitV2"), Ok(Function::WaitV2));
    let message = |name| Function::parse(name).unwrap_err().to_string();
    assert!(message("kubetask").contains("\"kubetask\" is no function"));
    assert!(message("BackupData").contains("\"BackupData\" is a function of Kanister that Reveille does not have"));
}

#[test]
fn a_task_is_decoded_loosely() {
    let call = decode(
        Function::KubeTask,
        json!({"image": "i", "command": ["sleep", 5, 1.5], "namespace": "", "podLabels": {"a": 1}, "podOverride": {"x": [1]}}),
    );
    let expected = KubeTask {
        image: "i".to_owned(),
        command: ["sleep", "5", "1.5"].map(str::to_owned).to_vec(),
        namespace: None,
        pod_override: json!({"x": [1]}).as_object().unwrap().clone(),
        pod_labels: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
        pod_annotations: BTreeMap::new(),
    };
    assert_eq!(call, Ok(FunctionCall::KubeTask(expected)));
    let Ok(FunctionCall::KubeTask(task)) = decode(Function::KubeTask, json!({"image": "i", "command": "ls"})) else {
        panic!()
    };
    assert_eq!(task.command, ["ls"]);
}

#[test]
fn missing_unknown_and_malformed_arguments_are_named() {
    refused(
        Function::KubeTask,
        json!({"command": ["a"]}),
        "image",
        "is missing; KubeTask needs it",
    );
    refused(
        Function::KubeTask,
        json!({"image": null, "command": ["a"]}),
        "image",
        "is missing",
    );
    refused(
        Function::KubeTask,
        json!({"image": "", "command": ["a"]}),
        "image",
        "is empty",
    );
    refused(
        Function::KubeTask,
        json!({"image": "i", "command": ["a"], "pods": 1}),
        "pods",
        "does not know it",
    );
    refused(
        Function::KubeTask,
        json!({"image": "i", "command": ["a", {}]}),
        "command[1]",
        "is a map",
    );
    refused(
        Function::KubeTask,
        json!({"image": "i", "command": [], "podOverride": "x"}),
        "podOverride",
        "is not a map",
    );
    refused(
        Function::KubeExec,
        json!({"namespace": "n", "pod": "p", "command": []}),
        "command",
        "is empty",
    );
    refused(Function::ScaleWorkload, json!({"replicas": 1.5}), "kind", "is missing");
    let scale = |replicas: Value| json!({"replicas": replicas, "kind": "Deployment", "name": "n", "namespace": "s"});
    for replicas in [
        json!(1.5),
        json!("1.5"),
        json!(-1),
        json!("x"),
        json!(true),
        json!(4_000_000_000_i64),
    ] {
        refused(Function::ScaleWorkload, scale(replicas), "replicas", "whole number");
    }
}

#[test]
fn scaling_takes_its_defaults_from_the_subject() {
    let subject = Subject {
        kind: SubjectKind::StatefulSet,
        name: "db".to_owned(),
        ..namespace()
    };
    let args = json!({"replicas": "3", "waitForReady": "false"});
    let call = FunctionCall::decode(Function::ScaleWorkload, args.as_object().unwrap(), &subject);
    let expected = ScaleWorkload {
        kind: SubjectKind::StatefulSet,
        name: "db".to_owned(),
        namespace: "shop".to_owned(),
        replicas: 3,
        wait_for_ready: false,
    };
    assert_eq!(call, Ok(FunctionCall::ScaleWorkload(expected)));
    refused(
        Function::ScaleWorkload,
        json!({"replicas": 0, "kind": "DaemonSet", "name": "n", "namespace": "s"}),
        "kind",
        "none of StatefulSet",
    );
}

#[test]
fn waits_hold_conditions_with_their_dialect() {
    let reference = json!({"apiversion": "v1", "resource": "pods", "name": "{{ .x }}", "namespace": "n"});
    let args = json!({"timeout": "1m30s", "conditions": {"anyof": [{"condition": "c", "objectReference": reference}], "x": 1}});
    let Ok(FunctionCall::Wait(wait)) = decode(Function::Wait, args) else {
        panic!()
    };
    assert_eq!(wait.timeout, GoDuration::from_secs(90));
    assert_eq!(wait.any_of[0].dialect, Dialect::JsonPath);
    assert_eq!(wait.any_of[0].reference.api_version, "v1");
    assert_eq!(wait.any_of[0].reference.name, "{{ .x }}");

    let with = |timeout: &str, conditions: Value| json!({"timeout": timeout, "conditions": conditions});
    let good = json!({"allOf": [{"condition": "c", "objectReference": {"resource": "pods", "name": "p"}}]});
    refused(
        Function::Wait,
        with("300", good.clone()),
        "timeout",
        "is not a duration",
    );
    refused(Function::Wait, with("2d", good.clone()), "timeout", "unit");
    refused(Function::WaitV2, with("-1s", good), "timeout", "negative");
    refused(
        Function::WaitV2,
        with("1s", json!({})),
        "conditions",
        "neither anyOf nor allOf",
    );
    refused(
        Function::WaitV2,
        with("1s", json!({"allOf": {}})),
        "conditions.allOf",
        "is not a list",
    );
    refused(
        Function::WaitV2,
        with("1s", json!({"allOf": [{"condition": "c"}]})),
        "conditions.allOf[0].objectReference",
        "is missing",
    );
}

#[test]
fn operations_hold_objects() {
    let spec = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: Secret\nmetadata: {generateName: b-}\n";
    let Ok(FunctionCall::KubeOps(KubeOps::Create { namespace, manifests })) =
        decode(Function::KubeOps, json!({"operation": "create", "spec": spec}))
    else {
        panic!()
    };
    assert_eq!((namespace.as_str(), manifests.len()), ("default", 2));

    let create = |spec: Value| json!({"operation": "create", "spec": spec});
    refused(
        Function::KubeOps,
        create(json!("kind: X")),
        "spec",
        "document 1 has no apiVersion",
    );
    refused(Function::KubeOps, create(json!("# nothing")), "spec", "holds no object");
    refused(
        Function::KubeOps,
        create(json!("a: [hunter2")),
        "spec",
        "not readable as YAML at line",
    );
    refused(Function::KubeOps, create(json!({"kind": "x"})), "spec", "behind `|-`");
    refused(Function::KubeOps, json!({"operation": "create"}), "spec", "is missing");
    refused(
        Function::KubeOps,
        json!({"operation": "apply"}),
        "operation",
        "\"apply\" is none of",
    );

    let reference = json!({"apiVersion": "v1", "resource": "pods", "name": "p"});
    let Ok(FunctionCall::KubeOps(KubeOps::Delete { reference: found })) = decode(
        Function::KubeOps,
        json!({"operation": "delete", "namespace": "n", "objectReference": reference}),
    ) else {
        panic!()
    };
    assert_eq!(found.namespace, "n");
    refused(
        Function::KubeOps,
        json!({"operation": "delete", "objectReference": {"name": "p", "apiVersion": "v1"}}),
        "objectReference.resource",
        "is missing",
    );
    refused(
        Function::KubeOps,
        json!({"operation": "patch", "objectReference": reference, "spec": "a: 1\n---\nb: 1"}),
        "spec",
        "2 documents",
    );
}

use serde_json::json;

use super::*;

fn blueprint(action: Value) -> Blueprint {
    Blueprint::read(&json!({
        "apiVersion": "cr.kanister.io/v1alpha1", "kind": "Blueprint", "metadata": {"name": "b"}, "actions": {"a": action},
    }))
    .unwrap()
}

fn found(action: Value) -> Vec<String> {
    let word = |severity| {
        if severity == Severity::Error {
            "error"
        } else {
            "warning"
        }
    };
    let findings = check(&blueprint(action), "a", None);
    findings
        .iter()
        .map(|finding| format!("{}: {finding}", word(finding.severity)))
        .collect()
}

fn one(action: Value, expected: &str) {
    let found = found(action);
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
}

fn task(args: Value) -> Value {
    let mut all = json!({"image": "i", "command": ["c"]});
    all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
    json!({"phases": [{"func": "KubeTask", "name": "p", "args": all}]})
}

#[test]
fn nothing_is_found_in_a_good_action() {
    assert_eq!(
        found(task(
            json!({"namespace": "{{ .Namespace.Name }}", "podOverride": {"{{ .Time }}": [1]}})
        )),
        [""; 0]
    );
    assert_eq!(
        found(json!({
            "phases": [
                {"func": "ScaleWorkload", "name": "one", "args": {"replicas": "{{ .Options.n }}"}},
                {"func": "KubeExec", "name": "two", "args": {"namespace": "{{ .Namespace.Name }}", "pod": "{{ .Phases.one.Output.x }}", "command": "ls"}},
            ],
            "deferPhase": {"func": "KubeTask", "args": {"image": "i", "command": ["{{ .Phases.two.Output.x }}"]}},
            "outputArtifacts": {"o": {"keyValue": {"k": "{{ .DeferPhase.Output.k }}"}}},
        })),
        [""; 0]
    );
}

#[test]
fn what_would_fail_later_is_named_with_its_place() {
    one(
        json!({"phases": [{"func": "kubetask", "name": "p"}]}),
        "error: action a: phase p: argument func: \"kubetask\" is no function",
    );
    one(
        json!({"phases": [{"func": "KubeTask", "name": "p", "args": {"image": "i"}}]}),
        "error: action a: phase p: argument command: is missing",
    );
    one(
        task(json!({"pod": "x"})),
        "error: action a: phase p: argument pod: KubeTask does not know it",
    );
    one(
        task(json!({"image": "{{ .x"})),
        "error: action a: phase p: argument image: line 1",
    );
    one(
        task(json!({"command": ["a", "{{ if .Time }}"]})),
        "error: action a: phase p: argument command[1]: line 1: this if has no",
    );
    one(
        task(json!({"command": ["a", "{{ env \"X\" }}"]})),
        "error: action a: phase p: argument command[1]: the function env is refused",
    );
    one(
        task(json!({"command": ["{{ .Profile.Location.Bucket }}"]})),
        "error: action a: phase p: argument command[0]: .Profile.Location.Bucket can't be read",
    );
    one(
        task(json!({"podOverride": "x"})),
        "error: action a: phase p: argument podOverride: is not a map",
    );
    one(
        json!({"outputArtifacts": {"o": {"keyValue": {"k": "{{ seq }}"}}}, "deferPhase": {"func": "KubeTask", "args": {"image": "i", "command": "c"}}}),
        "error: action a: argument outputArtifacts.o.keyValue.k: there is no function seq",
    );
    let missing = check(&blueprint(json!({})), "b", None);
    assert_eq!(
        missing[0].to_string(),
        "action b: the Blueprint \"b\" has no action of this name; it has a"
    );
}

#[test]
fn waits_are_checked_with_their_conditions() {
    let wait = |func: &str, condition: &str, name: &str| {
        json!({"phases": [{"func": func, "name": "p", "args": {"timeout": "1m", "conditions": {"anyOf": [
            {"condition": condition, "objectReference": {"apiVersion": "v1", "resource": "pods", "name": name, "namespace": "n"}}
        ]}}}]})
    };
    assert_eq!(
        found(wait(
            "Wait",
            "{{ if { $.status.ready } }}true{{ end }}",
            "{{ .StatefulSet.Name }}-0"
        )),
        [""; 0]
    );
    assert_eq!(found(wait("WaitV2", "{{ .status.ready }}", "x")), [""; 0]);
    let place = "error: action a: phase p: argument conditions.anyOf[0]";
    one(
        wait("Wait", "{{ if { $.a[x] } }}{{ end }}", "x"),
        &format!("{place}.condition: {{ $.a[x] }} holds the index"),
    );
    one(
        wait("WaitV2", "{{ if { $.a } }}{{ end }}", "x"),
        &format!("{place}.condition: line 1"),
    );
    one(
        wait("Wait", "true", "{{ .x"),
        &format!("{place}.objectReference.name: line 1"),
    );
}

#[test]
fn what_may_be_meant_is_a_warning() {
    one(json!({}), "warning: action a: it has no phases");
    one(
        task(json!({"image": "{{ .Phases.later.Output.x }}"})),
        "warning: action a: phase p: argument image: .Phases.later is no phase",
    );
    one(
        task(json!({"image": "{{ .NameSpace.Name }}"})),
        "warning: action a: phase p: argument image: .NameSpace is not there",
    );
    let objects = |object: Value| json!({"phases": [{"func": "KubeTask", "name": "p", "objects": {"o": object}, "args": {"image": "i", "command": "c"}}]});
    one(
        objects(json!({"kind": "", "name": ""})),
        "warning: action a: phase p: argument objects.o: the kind \"\" is neither",
    );
    one(
        objects(json!({"kind": "secret"})),
        "error: action a: phase p: argument objects.o: names no object",
    );
    one(
        objects(json!({"kind": "Secret", "name": "{{ .Phases.p.Output.x }}"})),
        "warning: action a: phase p: argument objects.o.name: .Phases.p is no phase",
    );
}

#[test]
fn phases_of_one_action_have_names_of_their_own() {
    let phase = |name: &str| json!({"func": "KubeTask", "name": name, "args": {"image": "i", "command": "c"}});
    one(
        json!({"phases": [phase("p"), phase("p")]}),
        "error: action a: phase p: argument name: another phase",
    );
    one(
        json!({"phases": [phase("")]}),
        "warning: action a: phase #1: argument name: is missing",
    );
    // The deferred phase has a place of its own.
    assert_eq!(
        found(json!({"phases": [phase("p")], "deferPhase": phase("p")})),
        [""; 0]
    );
}

#[test]
fn the_profile_is_never_read_but_may_be_asked_for() {
    let says = |text: &str| found(task(json!({"command": [text]})));
    for text in [
        "{{ toJson .Profile }}",
        "{{ .Profile | toJson }}",
        "{{ if eq .Profile \"x\" }}x{{ end }}",
        "{{ range .Object.list }}{{ $.Profile.Location.Bucket }}{{ end }}",
        "{{ range .Profile }}x{{ end }}",
    ] {
        let found = says(text);
        assert!(
            found.iter().any(|finding| finding.contains("location profile")),
            "{text}: {found:?}"
        );
    }
    for text in [
        "{{ if .Profile }}x{{ end }}",
        "{{ if and (not .Profile) .Namespace }}x{{ end }}",
        "{{ with .Profile }}{{ .Location }}{{ end }}",
    ] {
        assert_eq!(says(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn what_a_subject_stands_in_for_is_missing_where_it_can_not() {
    let scale = json!({"phases": [{"func": "ScaleWorkload", "name": "p", "args": {"replicas": 0}}]});
    let errors = |kind: &SubjectKind| check(&blueprint(scale.clone()), "a", Some(kind)).len();
    assert_eq!(
        (errors(&SubjectKind::Namespace), errors(&SubjectKind::Deployment)),
        (1, 0)
    );
}

#[test]
fn a_templated_argument_hides_no_fault_of_another() {
    let call = |func: &str, args: Value| found(json!({"phases": [{"func": func, "name": "p", "args": args}]}));
    let template = "{{ .Namespace.Name }}";
    let reference = json!({"apiVersion": "v1", "resource": "pods", "name": "x", "namespace": "y"});
    let condition = json!({"condition": "{{ if }}", "objectReference": reference});
    let cases = [
        (
            "Wait",
            json!({"timeout": template, "conditions": {"anyOf": [condition]}}),
            "conditions.anyOf[0].condition",
        ),
        (
            "ScaleWorkload",
            json!({"replicas": template, "waitForReady": "maybe"}),
            "waitForReady",
        ),
        ("ScaleWorkload", json!({"kind": template, "replicas": -1}), "replicas"),
        ("KubeOps", json!({"operation": template, "spec": "a: b"}), "spec"),
        (
            "KubeExec",
            json!({"pod": template, "namespace": "", "command": "ls"}),
            "namespace",
        ),
    ];
    for (func, args, argument) in cases {
        let found = call(func, args);
        assert!(
            found.len() == 1 && found[0].contains(&format!("argument {argument}")),
            "{func}: {found:?}"
        );
    }
    let delete = json!({"operation": template, "objectReference": reference});
    assert_eq!(call("KubeOps", delete), [""; 0]);
}

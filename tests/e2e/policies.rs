//! What the chart's admission policies refuse, tried on the real API server by two users: both may write pods, workloads and
//! `HookRun`s in the test's namespace, and only one of them may exec.

use serde_json::{Value, json};

use crate::harness::*;

const EDITOR: &str = "e2e-editor";
const OPERATOR: &str = "e2e-operator";
/// Has the role that the chart makes for operators, in Velero's namespace.
const ON_CALL: &str = "e2e-on-call";
/// May create Restores.
const RESTORER: &str = "e2e-restorer";

/// Lets both users into the test's namespace.
async fn let_in(t: &Scenario) {
    let roles = [
        (
            "e2e-write",
            json!([
                {"apiGroups": [""], "resources": ["pods", "pods/status", "pods/binding"], "verbs": ["*"]},
                {"apiGroups": ["apps", "batch"], "resources": ["deployments", "cronjobs"], "verbs": ["*"]},
                {"apiGroups": ["reveille.dev"], "resources": ["hookruns", "hookruns/status"], "verbs": ["*"]},
            ]),
            vec![EDITOR, OPERATOR],
        ),
        (
            "e2e-exec",
            json!([{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}]),
            vec![OPERATOR],
        ),
    ];
    let group = "rbac.authorization.k8s.io";
    for (name, rules, users) in roles {
        let subjects: Vec<Value> = users
            .iter()
            .map(|user| json!({"kind": "User", "name": user, "apiGroup": group}))
            .collect();
        t.create(&json!({
            "apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": {"name": name}, "rules": rules,
        }))
        .await;
        t.create(&json!({
            "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": {"name": name}, "subjects": subjects,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        }))
        .await;
    }
    eventually("the roles are in force", async || {
        asks(t, OPERATOR, &["auth", "can-i", "create", "pods", "--subresource=exec"])
            .is_ok()
            .then_some(())
    })
    .await;
}

/// A user's try in the test's namespace; if it was refused, with these words.
fn asks(t: &Scenario, user: &str, arguments: &[&str]) -> Result<(), String> {
    asks_in(&t.namespace, user, arguments)
}

fn asks_in(namespace: &str, user: &str, arguments: &[&str]) -> Result<(), String> {
    let output = run("kubectl", &[&["--as", user, "-n", namespace], arguments].concat());
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn refused(answer: Result<(), String>, policy: &str) {
    let words = answer.expect_err("it is refused");
    assert!(words.contains(&format!("'reveille-{policy}'")), "{words}");
}

#[track_caller]
fn allowed(answer: Result<(), String>) {
    answer.expect("it is allowed");
}

/// Kinds that hold a hook annotation of a pod-to-be.
fn with_hook(kind: &str, hook: &str) -> Value {
    let container = json!({"name": "main", "image": IMAGE, "command": ["sleep", "1000000"]});
    let template = json!({
        "metadata": {"labels": {"app": "w"}, "annotations": {post("command"): hook}},
        "spec": {"restartPolicy": "Never", "containers": [container.clone()]},
    });
    let (version, spec) = match kind {
        "Deployment" => {
            let mut template = template;
            template["spec"]["restartPolicy"] = json!("Always");
            let selector = json!({"matchLabels": {"app": "w"}});
            (
                "apps/v1",
                json!({"replicas": 0, "selector": selector, "template": template}),
            )
        }
        "CronJob" => (
            "batch/v1",
            json!({"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": {"template": template}}}),
        ),
        other => panic!("{other}"),
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "w"}, "spec": spec})
}

/// Further bindings of the chart's policies, which deny in one namespace what the chart only audits.
struct Denied(Vec<String>);

impl Denied {
    fn new(t: &Scenario) -> Self {
        let policies = ["hook-authors-pods", "hook-authors-workloads", "hook-authors-cronjobs"];
        let names = policies.map(|policy| {
            let name = format!("{}-{policy}", t.namespace);
            let binding = json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": name},
                "spec": {
                    "policyName": format!("reveille-{policy}"), "validationActions": ["Deny"],
                    "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": t.namespace}}},
                },
            });
            let path = t.write("binding.json", &binding.to_string());
            kubectl(&["create", "-f", &path]);
            name
        });
        Self(names.to_vec())
    }
}

impl Drop for Denied {
    fn drop(&mut self) {
        let names = self.0.iter().map(String::as_str);
        let command = ["delete", "validatingadmissionpolicybinding", "--ignore-not-found"];
        let arguments: Vec<&str> = command.into_iter().chain(names).collect();
        run("kubectl", &arguments);
    }
}

#[tokio::test]
async fn nobody_but_reveille_changes_its_marks_on_a_pod() {
    let t = Scenario::new("marks").await;
    let_in(&t).await;
    let pod = t
        .pod("app")
        .annotate("reveille.dev/run", "of-a-backup")
        .edit(|pod| pod["spec"]["schedulerName"] = json!("nobody"));
    t.submit(&pod).await;
    // An operator may exec, and still has no business with a plan.
    for user in [EDITOR, OPERATOR] {
        let annotate = |what: &str| asks(&t, user, &["annotate", "pod", "app", "--overwrite", what]);
        refused(annotate("reveille.dev/plan=forged"), "pod-marks");
        refused(annotate("reveille.dev/run=forged"), "pod-marks");
        refused(annotate("reveille.dev/run-"), "pod-marks");
        allowed(annotate(&format!("example.com/note={user}")));
    }
    let label = ["label", "pod", "app", "reveille.dev/hooks=planned"];
    refused(asks(&t, OPERATOR, &label), "pod-marks");
    let forged = r#"{"metadata":{"annotations":{"reveille.dev/run":null}}}"#;
    let status = [
        "patch",
        "pod",
        "app",
        "--subresource=status",
        "--type=merge",
        "-p",
        forged,
    ];
    refused(asks(&t, OPERATOR, &status), "pod-marks");
    let bind = |key: &str| {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "app", "annotations": {key: "x"}},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "no-such-node"},
        });
        let path = t.write("to-node.json", &binding.to_string());
        let url = format!("/api/v1/namespaces/{}/pods/app/binding", t.namespace);
        asks(&t, OPERATOR, &["create", "--raw", &url, "-f", &path])
    };
    refused(bind("reveille.dev/plan"), "binding-marks");
    allowed(bind("example.com/other"));
    // Reveille itself is not refused: every other test that runs a hook shows it.
}

#[tokio::test]
async fn a_missing_policy_is_a_condition_of_runs_that_come_meanwhile() {
    let t = Scenario::alone("no-policy").await;
    let backup = t
        .back_up_and_lose_pods(&[t.pod("app").annotate(post("command"), trace("post"))])
        .await;
    kubectl(&["delete", "validatingadmissionpolicybinding", "reveille-pod-marks"]);
    eventually("the waiter has noticed", async || {
        let log = kubectl(&[
            "-n",
            REVEILLE,
            "logs",
            "-l",
            "app.kubernetes.io/name=reveille",
            "-c",
            "waiter",
            "--tail=-1",
        ]);
        log.contains("admission policies of the chart are missing")
            .then_some(())
    })
    .await;
    let restore = t.restore(&backup).run().await;
    restore.assert_all_well(1);
    let conditions = &restore.status("app").conditions;
    assert!(
        conditions
            .iter()
            .any(|condition| condition.type_ == "PolicyMissing" && condition.message.contains("reveille-pod-marks")),
        "{conditions:?}"
    );
    t.says_once("app", "PolicyMissing").await;
}

/// A run of a pod that is not there.
fn hook_run(name: &str) -> Value {
    let plan = json!({
        "version": 1, "plannedAt": "2026-01-01T00:00:00Z", "resolved": true, "post": [], "init": [], "moved": {}, "problems": [],
        "digest": "",
    });
    let pod = json!({"name": "gone", "uid": "gone", "createdAt": "2026-01-01T00:00:00Z"});
    json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": name},
        "spec": {"pod": pod, "plan": plan},
    })
}

#[tokio::test]
async fn who_writes_a_hook_run_must_be_allowed_to_exec() {
    let t = Scenario::new("written").await;
    let_in(&t).await;
    let create = |user: &str, name: &str| {
        let path = t.write("run.json", &hook_run(name).to_string());
        asks(&t, user, &["create", "-f", &path])
    };
    refused(create(EDITOR, "forged"), "run-orders");
    allowed(create(OPERATOR, "own"));
    // The waiter ends it as Stale: there is no such pod.
    eventually("the run has a status", async || {
        let phase = kubectl(&[
            "-n",
            &t.namespace,
            "get",
            "hookrun",
            "own",
            "-o",
            "jsonpath={.status.phase}",
        ]);
        (phase == "Stale").then_some(())
    })
    .await;
    let status = |user: &str| {
        let patch = r#"{"status":{"phase":"Pending","message":"forged"}}"#;
        let command = ["patch", "hookrun", "own", "--subresource=status", "--type=merge", "-p"];
        asks(&t, user, &[&command[..], &[patch]].concat())
    };
    refused(status(EDITOR), "run-orders");
    let spec = r#"{"spec":{"plan":{"digest":"forged"}}}"#;
    let command = ["patch", "hookrun", "own", "--type=merge", "-p", spec];
    for user in [EDITOR, OPERATOR] {
        let words = asks(&t, user, &command).expect_err("it is refused");
        assert!(words.contains("frozen at admission"), "{words}");
    }
    // What runs nothing needs no more than the role says.
    allowed(asks(&t, EDITOR, &["label", "hookrun", "own", "note=x"]));
    allowed(asks(&t, EDITOR, &["delete", "hookrun", "own"]));
}

/// Lets a user into Velero's namespace, for as long as this lives.
struct InVelero(String);

impl InVelero {
    fn new(t: &Scenario, user: &str, role: &str) -> Self {
        let name = format!("{}-{user}", t.namespace);
        let role = format!("--clusterrole={role}");
        kubectl(&[
            "-n",
            VELERO,
            "create",
            "rolebinding",
            &name,
            &role,
            &format!("--user={user}"),
        ]);
        Self(name)
    }
}

impl Drop for InVelero {
    fn drop(&mut self) {
        run("kubectl", &["-n", VELERO, "delete", "rolebinding", &self.0]);
    }
}

#[tokio::test]
async fn the_operators_role_cancels_a_restore_in_its_own_name_and_changes_no_hooks() {
    let t = Scenario::new("on-call").await;
    let name = t.namespace.as_str();
    let restorer = format!("{name}-restorer");
    kubectl(&[
        "create",
        "clusterrole",
        &restorer,
        "--verb=get,create,patch",
        "--resource=restores.velero.io",
    ]);
    let _on_call = InVelero::new(&t, ON_CALL, "reveille-operator");
    let _restorer = InVelero::new(&t, RESTORER, &restorer);
    let restore = json!({
        "apiVersion": "velero.io/v1", "kind": "Restore", "metadata": {"name": name, "namespace": VELERO},
        "spec": {"backupName": "there-is-none"},
    });
    let path = t.write("restore.json", &restore.to_string());
    kubectl(&["create", "-f", &path]);
    let get = [
        "-n",
        VELERO,
        "get",
        "restores.velero.io",
        name,
        "-o",
        "jsonpath={.status.phase}",
    ];
    eventually("Velero has seen it", async || {
        (kubectl(&get) == "FailedValidation").then_some(())
    })
    .await;
    let annotate = |user: &str, what: &str| {
        asks_in(
            VELERO,
            user,
            &["annotate", "restores.velero.io", name, "--overwrite", what],
        )
    };
    let merge = |user: &str, patch: &str| {
        asks_in(
            VELERO,
            user,
            &["patch", "restores.velero.io", name, "--type=merge", "-p", patch],
        )
    };
    eventually("the roles are in force", async || {
        annotate(RESTORER, "example.com/note=x").ok()
    })
    .await;
    eventually("the roles are in force", async || {
        annotate(ON_CALL, "example.com/note=y").ok()
    })
    .await;

    let signed = |by: &str| format!(r#"reveille.dev/cancel={{"by":"{by}","id":"1"}}"#);
    refused(annotate(ON_CALL, &signed(RESTORER)), "restore-orders");
    allowed(annotate(ON_CALL, &signed(ON_CALL)));
    allowed(annotate(ON_CALL, "reveille.dev/cancel=stop"));
    allowed(annotate(ON_CALL, "reveille.dev/pause=wait"));
    let hooks = r#"{"spec":{"hooks":{"resources":[{"name":"x","postHooks":[{"exec":{"command":["x"]}}]}]}}}"#;
    for what in ["hooks", "execution-hooks", "moved-hooks", "owner", "mode"] {
        refused(annotate(ON_CALL, &format!("reveille.dev/{what}=x")), "restore-orders");
    }
    refused(merge(ON_CALL, hooks), "restore-orders");
    // Who may create a Restore could make another one with these hooks.
    allowed(annotate(RESTORER, "reveille.dev/hooks=x"));
    allowed(merge(RESTORER, hooks));
    refused(annotate(ON_CALL, "reveille.dev/hooks-"), "restore-orders");
    kubectl(&["-n", VELERO, "delete", "restores.velero.io", name]);
    kubectl(&["delete", "clusterrole", &restorer]);
}

#[tokio::test]
async fn a_rerun_or_a_cancellation_needs_the_right_to_exec_and_the_users_own_name() {
    let t = Scenario::new("orders").await;
    let_in(&t).await;
    t.create(&hook_run("run")).await;
    let annotate = |user: &str, what: &str| asks(&t, user, &["annotate", "hookrun", "run", "--overwrite", what]);
    for order in ["rerun", "cancel"] {
        let signed = |by: &str| format!(r#"reveille.dev/{order}={{"by":"{by}","id":"1","at":"2026-01-01T00:00:00Z"}}"#);
        refused(annotate(EDITOR, &signed(EDITOR)), "run-orders");
        refused(annotate(EDITOR, &signed(OPERATOR)), "run-orders");
        refused(annotate(OPERATOR, &signed(EDITOR)), "run-orders");
        for forged in [
            format!(r#"{{"id":"1","\u0062y":"{EDITOR}"}}"#),
            format!(r#"{{"by":"{OPERATOR}","id":"1","by":"{EDITOR}"}}"#),
            format!(r#"{{"by":"{OPERATOR}","id":"1","\u0062y":"{EDITOR}"}}"#),
            format!(r#" ["1","{EDITOR}"]"#),
        ] {
            refused(
                annotate(OPERATOR, &format!("reveille.dev/{order}={forged}")),
                "run-orders",
            );
        }
        allowed(annotate(OPERATOR, &signed(OPERATOR)));
        refused(annotate(EDITOR, &format!("reveille.dev/{order}-")), "run-orders");
        allowed(annotate(OPERATOR, &format!("reveille.dev/{order}-")));
    }
    allowed(annotate(EDITOR, "example.com/note=x"));
    // By hand, in plain words and nobody's name, a brake works, too.
    allowed(annotate(OPERATOR, "reveille.dev/cancel=stop"));
}

#[tokio::test]
async fn who_writes_a_hook_must_be_allowed_to_exec() {
    let t = Scenario::new("authors").await;
    let_in(&t).await;
    let asleep = |name: &str| t.pod(name).edit(|pod| pod["spec"]["schedulerName"] = json!("nobody"));
    let create = |user: &str, object: &Value| {
        let path = t.write("object.json", &object.to_string());
        asks(&t, user, &["create", "-f", &path])
    };
    // As the chart has it: it passes, and the audit log says so.
    let hooked = asleep("hooked").annotate(post("command"), "true");
    eventually("the namespace has its service account", async || {
        match create(EDITOR, hooked.json()) {
            Err(words) if words.contains("serviceaccount") => None,
            answer => {
                allowed(answer);
                Some(())
            }
        }
    })
    .await;
    let audited = t.audited_creations("hooked", None).await;
    let noted: String = audited.iter().flat_map(Audited::values).map(String::as_str).collect();
    assert!(noted.contains("reveille-hook-authors-pods"), "{noted}");

    let _denied = Denied::new(&t);
    let plain = asleep("plain");
    t.submit(&plain).await;
    let annotate = |user: &str, what: &str| asks(&t, user, &["annotate", "pod", "plain", "--overwrite", what]);
    let hook = |value: &str| format!("{}={value}", post("command"));
    // Always another value: what stands there unchanged is exempt, so a second time would be allowed for ever.
    let mut probes = 0..;
    eventually("the policy denies", async || {
        let probe = format!("probe-{}", probes.next()?);
        annotate(EDITOR, &hook(&probe)).is_err().then_some(())
    })
    .await;
    refused(annotate(EDITOR, &hook("evil")), "hook-authors-pods");
    refused(
        annotate(EDITOR, "init.hook.restore.reveille.dev/timeout=1s"),
        "hook-authors-pods",
    );
    refused(annotate(EDITOR, "reveille.dev/result-file=/tmp"), "hook-authors-pods");
    allowed(annotate(OPERATOR, &hook("good")));
    // What stands there may stay, whoever changes something else.
    allowed(annotate(EDITOR, "example.com/note=x"));
    refused(annotate(EDITOR, &format!("{}-", post("command"))), "hook-authors-pods");
    let patch = json!({"metadata": {"annotations": {post("command"): "evil"}}}).to_string();
    let status = [
        "patch",
        "pod",
        "plain",
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ];
    refused(asks(&t, EDITOR, &status), "hook-authors-pods");
    refused(
        create(EDITOR, asleep("other").annotate(post("command"), "x").json()),
        "hook-authors-pods",
    );

    for (kind, policy) in [
        ("Deployment", "hook-authors-workloads"),
        ("CronJob", "hook-authors-cronjobs"),
    ] {
        // Each of the three bindings comes into force by itself.
        eventually("the policy denies", async || {
            let answer = create(EDITOR, &with_hook(kind, "evil"));
            if answer.is_ok() {
                allowed(asks(&t, EDITOR, &["delete", kind, "w"]));
                return None;
            }
            refused(answer, policy);
            Some(())
        })
        .await;
        allowed(create(OPERATOR, &with_hook(kind, "good")));
        let scale = json!({"metadata": {"labels": {"x": "y"}}}).to_string();
        allowed(asks(&t, EDITOR, &["patch", kind, "w", "--type=merge", "-p", &scale]));
        let file = t.write("changed.json", &with_hook(kind, "evil").to_string());
        refused(asks(&t, EDITOR, &["replace", "-f", &file]), policy);
    }
    // The controller that makes a Deployment's pods is exempt: its template's author was asked.
    allowed(asks(
        &t,
        OPERATOR,
        &["patch", "deployment", "w", "-p", r#"{"spec":{"replicas":1}}"#],
    ));
    eventually("the Deployment's pod is there", async || {
        let pods = kubectl(&["-n", &t.namespace, "get", "pods", "-l", "app=w", "-o", "name"]);
        (!pods.trim().is_empty()).then_some(())
    })
    .await;
}

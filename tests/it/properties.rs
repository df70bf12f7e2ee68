//! Whatever bytes come: nothing panics, every patch fits the object that it was made for, and a second look changes nothing.
//! (Further properties stand beside what they are about; docs/SECURITY.md lists them.)

use jiff::Timestamp;
use proptest::{collection::vec, prelude::*};
use reveille::{
    admission::{Mode, PodContext, PodDecision, decide_pod, decide_restore, patch, review},
    hooks::restored::{RestoreInfo, Restored},
    plan::Plan,
};
use serde_json::{Map, Value, json};

/// Any JSON, with words that mean something to Reveille among its keys.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "(restore-wait|Always|main|5m|\\[\"a\"\\])".prop_map(Value::from),
    ];
    let key = prop_oneof![
        "\\PC{0,6}",
        "(name|image|command|args|containers|initContainers|restartPolicy|labels|annotations|resources|postHooks|exec|init)",
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        let object = vec((key.clone(), inner.clone()), 0..5);
        prop_oneof![
            vec(inner, 0..5).prop_map(Value::from),
            object.prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Annotations with hook keys and any values, and perhaps an older plan.
fn any_annotations() -> impl Strategy<Value = Value> {
    let key = "(post|init)\\.hook\\.restore\\.(velero\\.io|reveille\\.dev)/(command|container|on-error|exec-timeout|wait-timeout|\
               wait-for-ready|container-image|container-name|initContainers|timeout|retries|x)";
    let value = prop_oneof![
        "\\PC{0,30}",
        any_json().prop_map(|value| value.to_string()),
        any_json().prop_map(|value| json!([value]).to_string()),
    ];
    let plan = prop_oneof![
        Just(None),
        "\\PC{0,30}".prop_map(Some),
        any_json().prop_map(|plan| Some(plan.to_string())),
        any_json().prop_map(|post| Some(json!({"version": 1, "restore": {"uid": "u"}, "post": post}).to_string())),
    ];
    (vec((key, value), 0..4), plan).prop_map(|(pairs, plan)| {
        let mut map: Map<String, Value> = pairs.into_iter().map(|(key, value)| (key, json!(value))).collect();
        map.extend(plan.map(|plan| ("reveille.dev/plan".to_owned(), json!(plan))));
        Value::Object(map)
    })
}

/// A pod of which some parts are anything.
fn any_pod() -> impl Strategy<Value = Value> {
    let containers = prop_oneof![
        Just(json!([{"name": "main", "image": "i"}])),
        any_json(),
        vec(any_json(), 0..3).prop_map(Value::from),
    ];
    let part = || prop_oneof![3 => Just(None), 1 => any_json().prop_map(Some)];
    (any_annotations(), containers, part(), part(), part(), part()).prop_map(
        |(annotations, containers, init, labels, metadata, spec)| {
            let mut pod = json!({
                "metadata": {"name": "p", "annotations": annotations, "labels": {"velero.io/restore-name": "r"}},
                "spec": {"containers": containers},
            });
            if let Some(init) = init {
                pod["spec"]["initContainers"] = init;
            }
            if let Some(labels) = labels {
                pod["metadata"]["labels"] = labels;
            }
            if let Some(metadata) = metadata {
                pod["metadata"] = metadata;
            }
            if let Some(spec) = spec {
                pod["spec"] = spec;
            }
            pod
        },
    )
}

fn restore(hooks: &Value, marked: bool) -> RestoreInfo {
    let owner = if marked {
        json!({"reveille.dev/owner": "reveille"})
    } else {
        json!({})
    };
    RestoreInfo::read(&json!({
        "metadata": {"namespace": "velero", "name": "r", "uid": "u", "annotations": owner},
        "spec": {"hooks": hooks},
        "status": {"phase": "InProgress"},
    }))
    .unwrap()
}

fn decide(pod: &Value, restored: Restored, marks_protected: bool) -> PodDecision {
    let context = PodContext {
        namespace: "app",
        restored,
        mode: Mode::Takeover,
        marks_protected,
        now: Timestamp::UNIX_EPOCH,
    };
    decide_pod(pod, &context)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any pod, any hooks in its Restore: the patch fits, and what it makes is right as it is.
    #[test]
    fn a_decision_on_any_pod_fits_it_and_is_final(pod in any_pod(), hooks in any_json(), marked: bool, protected: bool) {
        let restore = restore(&hooks, marked);
        let decision = decide(&pod, Restored::By(&restore), protected);
        let after = patch::apply(&pod, &decision.operations)
            .map_err(|error| TestCaseError::fail(format!("{error}: {:?}", decision.operations)))?;
        let again = decide(&after, Restored::By(&restore), protected);
        prop_assert_eq!(again.operations, vec![], "after {}", after);
        if let Some(plan) = decision.plan {
            prop_assert!(Plan::parse(&plan.to_text().unwrap()).is_ok());
        }
    }

    /// The same where it is not known which Restore, and for other tools' pods.
    #[test]
    fn a_decision_without_a_restore_fits_too(pod in any_pod(), unknown: bool) {
        let restored = if unknown { Restored::Unknown("why".to_owned()) } else { Restored::ByMarker("m".to_owned()) };
        let decision = decide(&pod, restored, false);
        prop_assert!(patch::apply(&pod, &decision.operations).is_ok(), "{:?}", decision.operations);
    }

    /// Any Restore: the patch fits it.
    #[test]
    fn a_decision_on_any_restore_fits_it(spec in any_json(), hooks in any_json(), metadata in any_json(), whole: bool) {
        let restore = if whole {
            json!({"metadata": metadata, "spec": spec})
        } else {
            json!({"metadata": {"name": "r", "annotations": metadata}, "spec": {"hooks": {"resources": [hooks]}}})
        };
        let decision = decide_restore(&restore, None, Mode::Takeover);
        prop_assert!(patch::apply(&restore, &decision.operations).is_ok(), "{:?}", decision.operations);
    }

    /// Any edit of any object's annotations: the patch fits, and does what it says.
    #[test]
    fn an_edit_of_any_metadata_fits(metadata in any_json(), key in "\\PC{0,8}", value in proptest::option::of("\\PC{0,8}")) {
        let object = json!({"metadata": metadata});
        let operations = patch::edit_metadata(&object, "annotations", &[(&key, value.as_deref())]);
        let after = patch::apply(&object, &operations).map_err(|error| TestCaseError::fail(error.to_string()))?;
        if let Some(value) = value {
            prop_assert_eq!(&after["metadata"]["annotations"][&key], &json!(value));
        }
    }

    /// Any request in a review: it is read or refused.
    #[test]
    fn any_request_is_read_or_refused(request in any_json(), fields in vec(any_json(), 4)) {
        let [uid, resource, operation, object] = <[Value; 4]>::try_from(fields).unwrap();
        let some = json!({"uid": uid, "resource": resource, "operation": operation, "object": object});
        for request in [request, some] {
            let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
            let _ = review::read(body.to_string().as_bytes());
        }
    }

    /// Any text for a plan on a pod.
    #[test]
    fn any_plan_is_read_or_refused(text in "\\PC*", plan in any_json()) {
        let _ = Plan::parse(&text);
        let _ = Plan::parse(&plan.to_string());
    }
}

/// Found by the properties above: a patch of `/spec/initContainers` needs a spec.
#[test]
fn an_object_without_a_spec_is_no_pod() {
    let annotations = json!({"init.hook.restore.velero.io/container-image": "i"});
    let pod = json!({"metadata": {"annotations": annotations}, "spec": null});
    let decision = decide(&pod, Restored::ByMarker("m".to_owned()), false);
    assert!(!decision.restored && decision.operations.is_empty(), "{decision:?}");
}

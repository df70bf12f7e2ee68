use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::{
    api::{HookRunSpec, hook_run::PodIdentity},
    plan::Plan,
};

pub(in crate::cli) fn run(namespace: &str, pod: &str, restore: Option<RestoreRef>) -> HookRun {
    let mut plan = Plan::parse(r#"{"version":1,"plannedAt":"1970-01-01T00:00:00Z"}"#).unwrap();
    plan.restore = restore;
    let pod = PodIdentity {
        name: pod.to_owned(),
        uid: "u".to_owned(),
        created_at: Timestamp::UNIX_EPOCH,
    };
    let mut run = HookRun::new(&pod.run_name(), HookRunSpec { pod, plan });
    run.metadata.namespace = Some(namespace.to_owned());
    run
}

fn restore(namespace: &str, name: &str, uid: &str) -> RestoreInfo {
    RestoreInfo::read(&json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}})).unwrap()
}

fn reference(namespace: &str, name: &str, uid: &str) -> RestoreRef {
    RestoreRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    }
}

fn name(text: &str) -> Name {
    Name::parse(text, None).unwrap()
}

#[test]
fn names_with_and_without_a_namespace() {
    assert_eq!(Name::parse("n/r", None).unwrap(), Name::parse("r", Some("n")).unwrap());
    assert_eq!(Name::parse("n/r", Some("n")).unwrap().to_string(), "n/r");
    let refused = |text: &str, namespace| Name::parse(text, namespace).unwrap_err().to_string();
    assert!(refused("n/r", Some("m")).contains("--namespace is \"m\""));
    for text in ["", "/", "n/", "/r", "a/b/c"] {
        assert!(
            refused(text, None).contains("neither NAME nor NAMESPACE/NAME"),
            "{text}"
        );
    }
}

#[test]
fn a_name_means_a_restore_or_a_run_by_its_own_name_or_its_pods() {
    let restores = || vec![restore("velero", "shop", "1"), restore("other", "shop", "2")];
    let of_shop = run("app", "db-0", Some(reference("velero", "shop", "1")));
    let runs = || vec![of_shop.clone(), run("app", "web", None), run("app2", "web", None)];
    let chosen = |text: &str, kind| choose(&name(text), kind, restores(), runs()).map(|target| target.to_string());
    assert_eq!(chosen("velero/shop", None).unwrap(), "Restore velero/shop");
    let run_name = of_shop.name_any();
    for text in ["db-0", "app/db-0", &run_name, &format!("app/{run_name}")] {
        assert_eq!(chosen(text, None).unwrap(), format!("run app/{run_name} of pod db-0"));
    }
    let unknown = chosen("nothing", None).unwrap_err().to_string();
    assert_eq!(unknown, "there is no Restore or run \"nothing\"");
    assert!(chosen("app/db-0", Some(Kind::Restore)).is_err() && chosen("velero/shop", Some(Kind::Run)).is_err());
    for (text, first, second) in [
        ("shop", "Restore velero/shop", "Restore other/shop"),
        ("web", "run app/web-", "run app2/web-"),
    ] {
        let ambiguous = chosen(text, None).unwrap_err().to_string();
        assert!(ambiguous.contains(first) && ambiguous.contains(second), "{ambiguous}");
    }
    let Ok(Target::Restore(found)) = choose(&name("velero/shop"), None, restores(), runs()) else {
        panic!("a Restore")
    };
    assert_eq!((found.runs.len(), found.info.is_some()), (1, true));
}

#[test]
fn runs_of_a_deleted_restore_are_found_by_its_name_until_there_is_a_new_one() {
    let old = run("app", "db-0", Some(reference("velero", "shop", "old")));
    let named = |restores: &[RestoreInfo]| restore_references(&name("shop"), restores, std::slice::from_ref(&old));
    assert_eq!(named(&[]), [reference("velero", "shop", "old")]);
    assert_eq!(
        named(&[restore("velero", "shop", "new")]),
        [reference("velero", "shop", "new")]
    );
    let target = choose(&name("shop"), None, vec![], vec![old.clone()]).unwrap();
    assert_eq!(target.to_string(), "Restore velero/shop (deleted, uid old)");
}

#[test]
fn the_same_name_for_both_asks_for_the_kind() {
    let chosen = |kind| {
        choose(
            &name("shop"),
            kind,
            vec![restore("velero", "shop", "1")],
            vec![run("app", "shop", None)],
        )
    };
    assert!(chosen(None).unwrap_err().to_string().contains("--kind"));
    assert!(matches!(chosen(Some(Kind::Restore)), Ok(Target::Restore(_))));
    assert!(matches!(chosen(Some(Kind::Run)), Ok(Target::Run(_))));
}

//! Faults of Velero's own hook runner that no other test here shows to be absent. The list of all is in
//! `docs/differences-from-velero.md`.

use reveille::api::hook_run::HookState;
use serde_json::json;

use crate::harness::*;

/// #8910 and #9359: Velero takes hooks of one name in one container for one, and loses count where a rule has hooks for
/// several containers or init entries first; the restore then ends too early, or never.
#[tokio::test]
async fn hooks_of_one_name_in_one_container_are_each_run_and_recorded() {
    let t = Scenario::new("same-names").await;
    let backup = t.back_up_and_lose(&[t.pod("app").container("second")]).await;
    let mut second = exec(&trace("in-second"));
    second["exec"]["container"] = json!("second");
    let hooks = [
        inject(&[tracing_container("first")]),
        second,
        exec(&trace("one")),
        exec(&trace("two")),
    ];
    let restore = t
        .restore(&backup)
        .hooks(rule("load", &hooks))
        .hooks(rule("load", &[exec(&trace("three"))]))
        .run()
        .await;

    restore.assert_all_well(1);
    assert_eq!(restore.status("app").post.len(), 4, "{:?}", restore.status("app").post);
    for name in ["first", "in-second", "one", "two", "three"] {
        assert_eq!(t.ran(name), 1, "{name}");
    }
    assert_eq!(
        restore.object["status"]["hookStatus"],
        json!({"hooksAttempted": 4, "hooksFailed": 0})
    );
}

/// #9744, #9359: in Velero a hook that waits without a limit holds all restores behind its own, and a later Restore of the same
/// name inherits what is left of it.
#[tokio::test]
async fn a_hook_that_waits_for_ever_holds_no_other_restore_and_leaves_nothing_to_one_of_its_name() {
    let t = Scenario::new("for-ever").await;
    let stuck = t
        .pod("stuck")
        .ready_when("never")
        .annotate(post("command"), trace("stuck"))
        .annotate(post("wait-for-ready"), "true");
    let backup = t.back_up_and_lose(&[stuck, t.pod("other")]).await;
    let only = |app: &'static str| {
        move |restore: &mut serde_json::Value| {
            restore["spec"]["labelSelector"] = json!({"matchLabels": {"app": app}});
        }
    };
    let name = format!("{}-same", t.namespace);
    let first = t.restore(&backup).name(&name).edit(only("stuck")).begin().await;
    first
        .reaches("Velero is done and the hook waits", |now| {
            let status = now.run_of("stuck")?.status.as_ref()?;
            let waits = status.post.first()?.state == HookState::Waiting;
            (now.phase == "Completed" && waits).then_some(())
        })
        .await;

    let hook = rule_for("other", "other", &[exec(&trace("other"))]);
    let second = t.restore(&backup).edit(only("other")).hooks(hook.clone()).run().await;
    second.assert_all_well(1);
    assert_eq!(t.ran("other"), 1);

    // The same name again, while the hook of the first still waits.
    first.delete().await;
    t.pods()
        .delete("other", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    eventually("the pod is gone", async || {
        t.pods().get_opt("other").await.unwrap().is_none().then_some(())
    })
    .await;
    let again = t
        .restore(&backup)
        .name(&name)
        .edit(only("other"))
        .hooks(hook)
        .run()
        .await;
    again.assert_all_well(1);
    assert_eq!((t.ran("other"), t.ran("stuck")), (2, 0));
    assert_eq!(
        again.object["status"]["hookStatus"],
        json!({"hooksAttempted": 1, "hooksFailed": 0})
    );
}

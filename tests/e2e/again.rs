//! Restores of backups that were taken from restored pods, under long names, and into other namespaces.

use reveille::hooks::restored::label_value;
use serde_json::json;

use crate::harness::*;

#[tokio::test]
async fn a_restored_pod_is_backed_up_and_restored_again_and_its_hooks_run_once_more() {
    let t = Scenario::new("generations").await;
    let pods = [
        t.pod("named")
            .annotate(init("container-image"), IMAGE)
            .annotate(init("container-name"), "prepare")
            .annotate(init("command"), sh("true"))
            .annotate(post("command"), trace("named")),
        t.pod("unnamed")
            .annotate(init("container-image"), IMAGE)
            .annotate(init("command"), sh("echo unnamed"))
            .annotate(post("command"), trace("unnamed")),
        t.pod("listed")
            .annotate(init("initContainers"), json!([tracing_container("listed-init")]))
            .annotate(post("command"), trace("listed")),
        t.pod("ruled"),
    ];
    let mut backup = t.back_up_and_lose(&pods).await;
    let mut spec_init = tracing_container("spec-init");
    spec_init["command"] = trace("ruled-init");
    for generation in 1..=3 {
        let restore = t
            .restore(&backup)
            .hooks(rule_for(
                "ruled",
                "spec",
                &[inject(&[spec_init.clone()]), exec(&trace("ruled"))],
            ))
            .run()
            .await;
        restore.assert_all_well(4);
        for pod in ["named", "unnamed", "listed", "ruled"] {
            assert_eq!(t.ran(pod), generation, "post hook of {pod} in generation {generation}");
            let restored = t.running(pod).await;
            assert_eq!(init_names(&restored).len(), 1, "{pod} {:?}", init_names(&restored));
            assert_only_the_mark_stays(&restored, &restore);
        }
        assert_eq!((t.ran("listed-init"), t.ran("ruled-init")), (generation, generation));
        assert_eq!(t.velero_ran(), Vec::<String>::new());
        if generation < 3 {
            backup = t.backup().await;
            t.lose().await;
        }
    }
}

#[tokio::test]
async fn a_restore_whose_name_is_too_long_for_a_label_is_known_all_the_same() {
    let t = Scenario::new("long-name").await;
    let pod = t.pod("app").annotate(post("command"), trace("post"));
    let backup = t.back_up_and_lose(&[pod]).await;
    let name = format!("{}-{}", t.namespace, "long".repeat(20));
    let restore = t.restore(&backup).name(&name).run().await;

    restore.assert_all_well(1);
    assert_eq!(t.ran("post"), 1);
    let label = t.pod_now("app").await["metadata"]["labels"]["velero.io/restore-name"].clone();
    assert_eq!((label.as_str(), name.len() > 63), (Some(&*label_value(&name)), true));
    let output = reveille(&["status", &name]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(t.velero_ran(), Vec::<String>::new());
}

#[tokio::test]
async fn rules_match_the_namespace_that_is_restored_into() {
    let t = Scenario::new("mapping").await;
    let target = format!("{}-to", t.namespace);
    let pod = t.pod("app").annotate(post("command"), trace("annotation"));
    let backup = t.back_up_and_lose(&[pod, t.pod("plain")]).await;
    let of = |namespace: &str, name: &str| {
        let mut container = tracing_container(&format!("{name}-init"));
        container["command"] = trace(&format!("{name}-init-$HOSTNAME"));
        let mut rule = rule(
            name,
            &[exec(&trace(&format!("{name}-$HOSTNAME"))), inject(&[container])],
        );
        rule["includedNamespaces"] = json!([namespace]);
        rule
    };
    let restore = t
        .restore(&backup)
        .edit(|restore| restore["spec"]["namespaceMapping"] = json!({t.namespace.clone(): target}))
        .hooks(of(&t.namespace, "source"))
        .hooks(of(&target, "target"))
        .run()
        .await;

    restore.assert_all_well(2);
    let ran: Vec<usize> = ["annotation", "target-plain", "target-init-app", "target-init-plain"]
        .iter()
        .map(|name| t.ran(name))
        .collect();
    assert_eq!(ran, [1, 1, 1, 1]);
    for name in [
        "target-app",
        "source-app",
        "source-plain",
        "source-init-app",
        "source-init-plain",
    ] {
        assert_eq!(t.ran(name), 0, "{name}");
    }
    assert!(
        restore
            .runs
            .iter()
            .all(|run| run.metadata.namespace.as_deref() == Some(&target))
    );
    assert_eq!(velero_ran_in(&target), Vec::<String>::new());
    kubectl(&["delete", "namespace", &target, "--wait=false"]);
}

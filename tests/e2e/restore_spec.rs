//! Hooks written in the Restore, and which of the two wins.

use crate::harness::*;

#[tokio::test]
async fn the_restores_spec_gives_init_and_post_hooks_and_each_runs_once() {
    let t = Scenario::new("spec").await;
    let backup = t.back_up_and_lose(&[t.pod("app")]).await;
    let hooks = [
        inject(&[tracing_container("spec-init")]),
        exec(&trace("spec-post")),
        exec(&trace("spec-post-2")),
    ];
    let restore = t.restore(&backup).hooks(rule("of-the-restore", &hooks)).run().await;

    restore.assert_all_well(1);
    let names: Vec<_> = restore
        .status("app")
        .post
        .iter()
        .map(|post| post.name.as_str())
        .collect();
    assert_eq!(names, ["of-the-restore", "of-the-restore"]);
    assert_eq!(restore.init("app").container, "spec-init");
    assert_eq!(
        (t.ran("spec-init"), t.ran("spec-post"), t.ran("spec-post-2")),
        (1, 1, 1)
    );
    assert_eq!(t.velero_ran(), Vec::<String>::new());
    assert_eq!(init_names(&t.running("app").await), ["spec-init"]);
    assert!(restore.is_marked() && restore.has_moved_hooks());
    assert_eq!(restore.object["status"]["hookStatus"]["hooksAttempted"], 2);
}

#[tokio::test]
async fn an_annotation_wins_over_the_spec_separately_for_init_and_for_post() {
    let t = Scenario::new("precedence").await;
    let with_init = |pod: PodSpec| {
        pod.annotate(init("container-image"), IMAGE)
            .annotate(init("container-name"), "own-init")
            .annotate(init("command"), sh("true"))
    };
    let with_post = |pod: PodSpec| pod.annotate(post("command"), trace("$HOSTNAME-own-post"));
    let pods = [
        with_post(with_init(t.pod("both"))),
        with_init(t.pod("init")),
        with_post(t.pod("post")),
        t.pod("none"),
    ];
    let backup = t.back_up_and_lose(&pods).await;
    let mut spec_init = tracing_container("spec-init");
    spec_init["command"] = trace("$HOSTNAME-spec-init");
    let hooks = [inject(&[spec_init]), exec(&trace("$HOSTNAME-spec-post"))];
    let restore = t.restore(&backup).hooks(rule("spec", &hooks)).run().await;

    restore.assert_all_well(4);
    // Which init container a pod has, and how often the own post hook, the spec's init hook and the spec's post hook ran.
    for (pod, init, counts) in [
        ("both", "own-init", (1, 0, 0)),
        ("init", "own-init", (0, 0, 1)),
        ("post", "spec-init", (1, 1, 0)),
        ("none", "spec-init", (0, 1, 1)),
    ] {
        let ran = |what: &str| t.ran(&format!("{pod}-{what}"));
        assert_eq!(
            (ran("own-post"), ran("spec-init"), ran("spec-post")),
            counts,
            "pod {pod}"
        );
        assert_eq!(init_names(&t.running(pod).await), [init], "pod {pod}");
    }
    assert_eq!(t.velero_ran(), Vec::<String>::new());
}

#[tokio::test]
async fn a_list_of_init_containers_in_an_annotation_wins_over_the_spec_too() {
    let t = Scenario::new("list-wins").await;
    let list = serde_json::json!([tracing_container("of-the-pod")]);
    let pod = t.pod("app").annotate(init("initContainers"), list);
    let backup = t.back_up_and_lose(&[pod]).await;
    let hooks = [inject(&[tracing_container("of-the-restore")])];
    let restore = t.restore(&backup).hooks(rule("spec", &hooks)).run().await;

    restore.assert_all_well(1);
    // Velero does not know the list and has injected the other one before Reveille saw the pod.
    assert_eq!((t.ran("of-the-pod"), t.ran("of-the-restore")), (1, 0));
    assert_eq!(init_names(&t.running("app").await), ["of-the-pod"]);
}

//! Hooks written on the pod.

use reveille::names::FROM_ANNOTATION;

use crate::harness::*;

#[tokio::test]
async fn annotations_give_an_init_and_a_post_hook_and_each_runs_once() {
    let t = Scenario::new("annotations").await;
    let pod = t
        .pod("app")
        .annotate(init("container-image"), IMAGE)
        .annotate(init("container-name"), "prepare")
        .annotate(init("command"), sh("echo prepared"))
        .annotate(post("command"), trace("post"))
        .annotate(post("container"), "main");
    let backup = t.back_up_and_lose(std::slice::from_ref(&pod)).await;
    let restore = t.restore(&backup).run().await;

    restore.assert_all_well(1);
    assert_eq!(
        (
            restore.post("app").name.as_str(),
            restore.post("app").container.as_str()
        ),
        (FROM_ANNOTATION, "main")
    );
    assert_eq!(restore.init("app").container, "prepare");
    assert_eq!(t.ran("post"), 1);
    assert_eq!(t.velero_ran(), Vec::<String>::new());

    let restored = t.running("app").await;
    assert_eq!(init_names(&restored), ["prepare"]);
    assert_eq!(init_end(&restored, "prepare"), (0, 0));
    // What moved into the plan is back, and nothing else is on the pod.
    for (key, value) in pod.json()["metadata"]["annotations"].as_object().unwrap() {
        assert_eq!(annotation_of(&restored, key), value.as_str(), "{key}");
    }
    assert_only_the_mark_stays(&restored, &restore);
    assert_eq!(restore.object["status"]["hookStatus"]["hooksAttempted"], 1);
    assert_eq!(t.events("app", "HookSucceeded").await.len(), 1);
}

#[tokio::test]
async fn a_list_of_full_init_containers_runs_in_its_order() {
    let t = Scenario::new("init-list").await;
    let first = tracing_container("first");
    let second = serde_json::json!({
        "name": "second", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": sh("test -s /traces/first && echo ran >> /traces/second"),
        "volumeMounts": [{"name": "traces", "mountPath": TRACES}],
    });
    let own = tracing_container("own");
    let pod = t
        .pod("app")
        .init_container(own)
        .annotate(init("initContainers"), serde_json::json!([first, second]));
    t.start(&[pod]).await;
    assert_eq!(t.ran("own"), 1, "the first life");
    let backup = t.backup().await;
    t.lose().await;
    let restore = t.restore(&backup).run().await;

    restore.assert_all_well(1);
    // The pod's own comes after the hooks, and is none.
    assert_eq!(init_names(&t.running("app").await), ["first", "second", "own"]);
    assert_eq!((t.ran("first"), t.ran("second"), t.ran("own")), (1, 1, 2));
}

#[tokio::test]
async fn reveilles_own_keys_win_one_by_one() {
    let t = Scenario::new("own-keys").await;
    let pod = t
        .pod("app")
        .container("second")
        .annotate(post("command"), trace("of-velero"))
        .annotate(post("container"), "second")
        .annotate("post.hook.restore.reveille.dev/command", trace("of-reveille"));
    let backup = t.back_up_and_lose(&[pod]).await;
    let restore = t.restore(&backup).run().await;

    restore.assert_all_well(1);
    assert_eq!((t.ran("of-velero"), t.ran("of-reveille")), (0, 1));
    assert_eq!(restore.post("app").container, "second");
    assert_eq!(t.velero_ran(), Vec::<String>::new());
    let told = t.events("app", "HookQuestionable").await;
    assert!(told.iter().any(|note| note.contains(&post("command"))), "{told:?}");
}

//! Real file-system restores: the node agent fills a volume while Velero's own `restore-wait` holds the pod back, and the
//! hooks behind it see the data.

use serde_json::{Value, json};

use crate::harness::*;

/// An init container that copies what is in the volume into a trace.
fn copying_container(name: &str) -> Value {
    json!({
        "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": copy(name),
        "volumeMounts": [{"name": "traces", "mountPath": TRACES}, {"name": "data", "mountPath": "/data"}],
    })
}

fn copy(name: &str) -> Value {
    sh(&format!("cat /data/file >> {TRACES}/$HOSTNAME-{name}"))
}

#[tokio::test]
async fn hooks_from_annotations_and_from_the_spec_see_the_restored_volume() {
    let t = Scenario::new("volumes").await;
    let sidecar = json!({
        "name": "sidecar", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"],
        "restartPolicy": "Always",
    });
    let pods = [
        t.pod("annotated")
            .data_volume()
            .annotate(init("initContainers"), json!([copying_container("init")]))
            .annotate(post("command"), copy("post")),
        t.pod("ruled").data_volume(),
        // Changed by another injector before it was backed up.
        t.pod("beside").data_volume().init_container(sidecar),
        t.pod("imaged")
            .data_volume()
            .annotate(init("container-image"), IMAGE)
            .annotate(init("command"), sh("true"))
            .annotate(post("command"), copy("post")),
    ];
    t.start(&pods).await;
    let data = format!("the data of {}\n", t.namespace);
    for pod in &pods {
        t.exec(pod.name(), &format!("printf '{data}' > /data/file"));
    }
    let backup = t.backup().await;
    t.lose().await;
    let hooks = [inject(&[copying_container("init")]), exec(&copy("post"))];
    let restore = t.restore(&backup).hooks(rule("spec", &hooks)).run().await;

    restore.assert_all_well(4);
    assert_eq!(t.velero_ran(), Vec::<String>::new());
    for (pod, order) in [
        ("annotated", vec!["restore-wait", "init"]),
        ("ruled", vec!["restore-wait", "init"]),
        ("beside", vec!["restore-wait", "init", "sidecar"]),
    ] {
        assert_eq!(init_names(&t.running(pod).await), order, "{pod}");
        assert_eq!(
            t.read(&format!("{pod}-init")),
            data,
            "the init hook of {pod} saw the data, once"
        );
        assert_eq!(
            t.read(&format!("{pod}-post")),
            data,
            "the post hook of {pod} saw the data, once"
        );
    }
    let names = init_names(&t.running("imaged").await);
    assert_eq!((names.len(), names[0].as_str()), (2, "restore-wait"));
    assert_eq!(t.read("imaged-post"), data);
}

#[tokio::test]
async fn hooks_stand_behind_restore_wait_whatever_another_injector_puts_in_front() {
    let t = Scenario::new("injectors").await;
    // Webhooks are called in the order of their names: one before Reveille, one after it.
    let (first, last) = (format!("a-{}", t.namespace), format!("z-{}", t.namespace));
    let pod = |name: &str, injector: &str| {
        t.pod(name)
            .data_volume()
            .label(INJECTOR_LABEL, injector)
            .annotate(init("initContainers"), json!([copying_container("init")]))
            .annotate(post("command"), copy("post"))
            .annotate(post("container"), "main")
    };
    let pods = [pod("first", &first), pod("last", &last)];
    t.start(&pods).await;
    for pod in &pods {
        t.exec(pod.name(), "echo data > /data/file");
    }
    let backup = t.backup().await;
    t.lose().await;
    let _injectors = [
        Injector::start(&t.client, &first).await,
        Injector::start(&t.client, &last).await,
    ];
    let restore = t.restore(&backup).run().await;

    restore.assert_all_well(2);
    for pod in ["first", "last"] {
        assert_eq!(
            init_names(&t.running(pod).await),
            [INJECTED, "restore-wait", "init"],
            "{pod}"
        );
        assert_eq!(
            (t.read(&format!("{pod}-init")), t.read(&format!("{pod}-post"))),
            ("data\n".into(), "data\n".into())
        );
    }
    assert_eq!(t.velero_ran(), Vec::<String>::new());
    // The second one changed the pod after Reveille, which was asked again, and changed nothing more.
    let rounds = |audited: &Audited| webhook_calls(audited);
    assert_eq!(rounds(&t.audited_restore("first").await), [true]);
    assert_eq!(rounds(&t.audited_restore("last").await), [true, false]);
}

use super::*;
use crate::hooks::OnUnknown;

fn annotations(pairs: &[(&str, &str)]) -> Annotations {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn post(pairs: &[(&str, &str)]) -> PostHook {
    read(&annotations(pairs), false).post.expect("a post hook")
}

#[test]
fn a_full_post_hook() {
    let hook = post(&[
        ("post.hook.restore.velero.io/command", r#"["/bin/sh","-c","true"]"#),
        ("post.hook.restore.velero.io/container", "db"),
        ("post.hook.restore.velero.io/on-error", "Fail"),
        ("post.hook.restore.velero.io/exec-timeout", "1m"),
        ("post.hook.restore.velero.io/wait-timeout", "5m"),
        ("post.hook.restore.velero.io/wait-for-ready", "T"),
    ]);
    assert_eq!(hook.command, ["/bin/sh", "-c", "true"]);
    assert_eq!(hook.container, "db");
    assert_eq!(hook.on_error, OnError::Fail);
    assert_eq!(
        (hook.exec_timeout.to_string(), hook.wait_timeout.to_string()),
        ("1m0s".to_owned(), "5m0s".to_owned())
    );
    assert!(hook.wait_for_ready);
    assert_eq!(hook.error, None);
}

#[test]
fn retries_are_asked_for_with_the_own_domain_only() {
    let own = |key: &str| format!("post.hook.restore.reveille.dev/{key}");
    let hook = post(&[
        ("post.hook.restore.velero.io/command", "true"),
        (&own("retries"), "2"),
        (&own("retry-backoff"), "1s"),
        (&own("on-unknown"), "Retry"),
    ]);
    assert_eq!(
        (hook.retry.limit(), hook.retry.backoff.to_string()),
        (2, "1s".to_owned())
    );
    assert_eq!((hook.retry.on_unknown, hook.error), (OnUnknown::Retry, None));
    // Without a number an unknown end is still not retried for ever; a failure never is.
    let command = ("post.hook.restore.velero.io/command", "true");
    assert_eq!(post(&[command, (&own("on-unknown"), "Retry")]).retry.limit(), 3);
    assert_eq!(post(&[command]).retry.limit(), 0);
    let read = read(
        &annotations(&[command, ("post.hook.restore.velero.io/retries", "2")]),
        false,
    );
    assert_eq!(read.post.expect("a hook").retry.limit(), 0);
    assert!(
        read.problems[0].message.contains("reveille.dev/retries"),
        "{:?}",
        read.problems
    );
}

#[test]
fn defaults() {
    let hook = post(&[
        ("post.hook.restore.velero.io/command", "true"),
        ("post.hook.restore.velero.io/exec-timeout", "0"),
    ]);
    assert_eq!(hook.on_error, OnError::Continue);
    assert_eq!(hook.exec_timeout, DEFAULT_EXEC_TIMEOUT);
    assert!(hook.wait_timeout.is_zero() && !hook.wait_for_ready && hook.container.is_empty());
}

#[test]
fn bad_values_are_errors_that_name_key_and_value() {
    for (key, value) in [
        ("exec-timeout", "300"),
        ("exec-timeout", "-5s"),
        ("wait-timeout", "5 minutes"),
        ("on-error", "fail"),
        ("wait-for-ready", "yes"),
        ("retries", "often"),
        ("retry-backoff", "5"),
        ("on-unknown", "again"),
    ] {
        let own = OWN_POST_KEYS.contains(&key);
        let domain = if own { "reveille.dev" } else { "velero.io" };
        let key = format!("post.hook.restore.{domain}/{key}");
        let read = read(
            &annotations(&[("post.hook.restore.velero.io/command", "true"), (&key, value)]),
            false,
        );
        let error = read.post.expect("it still silences the spec").error.expect("an error");
        assert!(error.contains(&key) && error.contains(value), "{error}");
        assert_eq!(read.problems.len(), 1);
    }
}

#[test]
fn an_unreadable_error_mode_is_the_strict_one() {
    let hook = post(&[
        ("post.hook.restore.velero.io/command", "true"),
        ("post.hook.restore.velero.io/on-error", "fail"),
    ]);
    assert_eq!(hook.on_error, OnError::Fail);
}

#[test]
fn an_empty_list_is_an_error() {
    assert!(post(&[("post.hook.restore.velero.io/command", "[]")]).error.is_some());
}

#[test]
fn no_command_no_hook_but_a_warning() {
    let read = read(&annotations(&[("post.hook.restore.velero.io/container", "db")]), false);
    assert_eq!(read.post, None);
    assert!(read.problems[0].message.contains("post.hook.restore.velero.io/command"));
}

#[test]
fn reveille_keys_win_one_by_one_with_a_warning() {
    let read = read(
        &annotations(&[
            ("post.hook.restore.velero.io/command", "theirs"),
            ("post.hook.restore.velero.io/container", "db"),
            ("post.hook.restore.reveille.dev/command", "ours"),
        ]),
        false,
    );
    let hook = read.post.expect("a hook");
    assert_eq!((hook.command, hook.container.as_str()), (vec!["ours".to_owned()], "db"));
    assert_eq!(read.problems.len(), 1);
    assert_eq!(read.problems[0].source, "post.hook.restore.velero.io/command");
}

#[test]
fn what_velero_reads_is_left_to_it_when_it_owns_the_hooks() {
    let pairs = annotations(&[
        ("post.hook.restore.velero.io/command", "theirs"),
        ("init.hook.restore.velero.io/container-image", "busybox"),
        ("init.hook.restore.velero.io/initContainers", "- {name: a, image: b}"),
    ]);
    let read = read(&pairs, true);
    assert_eq!(read.post, None);
    let init = read.init.expect("initContainers is not Velero's");
    assert_eq!(init.iter().map(InitHook::container_name).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn image_first_then_the_list() {
    let read = read(
        &annotations(&[
            ("init.hook.restore.velero.io/container-image", "postgres:15"),
            ("init.hook.restore.velero.io/container-name", "prepare"),
            ("init.hook.restore.velero.io/command", r#"["cp","a","b"]"#),
            ("init.hook.restore.velero.io/timeout", "2m"),
            (
                "init.hook.restore.velero.io/initContainers",
                r#"[{"name":"second","image":"x","volumeMounts":[{"name":"v","mountPath":"/v"}]}]"#,
            ),
        ]),
        false,
    );
    let init = read.init.expect("init hooks");
    assert_eq!(
        init[0].container,
        json!({"name": "prepare", "image": "postgres:15", "command": ["cp", "a", "b"]})
    );
    assert_eq!(init[1].container["volumeMounts"][0]["mountPath"], "/v");
    assert_eq!(init[1].timeout.to_string(), "2m0s");
    assert_eq!(read.problems, []);
}

#[test]
fn a_generated_name_is_always_the_same_and_valid() {
    let pairs = annotations(&[("init.hook.restore.velero.io/container-image", "busybox")]);
    let names: Vec<String> = (0..2)
        .map(|_| read(&pairs, false).init.expect("init")[0].container_name().to_owned())
        .collect();
    assert_eq!(names[0], names[1]);
    assert!(names[0].starts_with("reveille-init-") && names[0].len() == 22);
}

#[test]
fn bad_lists_are_errors_and_silence_the_spec() {
    for text in [
        "{",
        "name: x",
        "just text",
        "- {name: a}",
        "- {image: a}",
        "- 5",
        "[{]",
        "- {name: a, image: b, command: c}",
        "- {name: a, image: b, env: {A: b}}",
    ] {
        let read = read(
            &annotations(&[("init.hook.restore.velero.io/initContainers", text)]),
            false,
        );
        let usable = read
            .init
            .expect("it silences the spec")
            .into_iter()
            .filter(|hook| hook.error.is_none())
            .count();
        assert_eq!(usable, 0, "{text}");
        assert!(
            read.problems
                .iter()
                .any(|p| p.severity == super::super::Severity::Error),
            "{text}"
        );
    }
}

#[test]
fn quantities_may_be_numbers() {
    let list = "[{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}}}]";
    let read = read(
        &annotations(&[("init.hook.restore.velero.io/initContainers", list)]),
        false,
    );
    assert_eq!(
        (read.init.expect("init").remove(0).error, read.problems),
        (None, vec![])
    );
}

#[test]
fn misspelled_keys_are_named_with_the_right_one() {
    let read = read(
        &annotations(&[
            ("post.hook.restore.velero.io/command", "true"),
            ("post.hook.restore.velero.io/timeout", "5m"),
        ]),
        false,
    );
    assert!(
        read.problems[0]
            .message
            .contains("post.hook.restore.velero.io/exec-timeout")
    );
    assert_eq!(read.post.expect("the hook still runs").error, None);
}

proptest::proptest! {
    #[test]
    fn never_panics(key in "(post|init)\\.hook\\.restore\\.(velero\\.io|reveille\\.dev)/(command|container|on-error|exec-timeout|wait-timeout|wait-for-ready|container-image|initContainers|timeout|x)", value in "\\PC*", owned: bool) {
        let _ = read(&annotations(&[("post.hook.restore.velero.io/command", "x"), ("init.hook.restore.velero.io/container-image", "x"), (&key, &value)]), owned);
    }
}

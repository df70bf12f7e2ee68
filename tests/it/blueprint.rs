//! `reveille blueprint check` with files as users have them (`tests/blueprints/`): the two examples of the vendor's document word
//! for word, and Blueprints written after published ones.
//!
//! `REVEILLE_UPDATE_CASES=1 cargo test --test it blueprint` writes the expected texts.

use std::{fs, path::PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "blueprints", name]
        .iter()
        .collect()
}

/// The exit code and what was printed.
fn check(file: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("reveille").unwrap();
    command
        .current_dir(path(""))
        .args(["blueprint", "check", file])
        .args(arguments);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The same text as in the file of that name.
fn prints(expected: &str, code: i32, file: &str, arguments: &[&str]) {
    let (found, stdout, stderr) = check(file, arguments);
    assert_eq!((found, stderr.as_str()), (code, ""), "{stdout}");
    let expected = path(expected);
    if std::env::var_os("REVEILLE_UPDATE_CASES").is_some() {
        fs::write(&expected, &stdout).unwrap();
    }
    assert_eq!(stdout, fs::read_to_string(&expected).unwrap(), "{}", expected.display());
}

const DB: [&str; 4] = ["--subject", "statefulset/shop/db", "--objects", "subject-db.yaml"];

fn with_db(action: &str) -> Vec<&str> {
    [&["--action", action], &DB[..]].concat()
}

#[test]
fn the_documents_examples_are_good_and_rendered() {
    let namespace = ["--action", "post-export", "--subject", "namespace/shop"];
    prints("document-post-export.txt", 0, "document-post-export.yaml", &namespace);
    prints(
        "document-post-restore.txt",
        0,
        "document-post-restore.yaml",
        &with_db("post-restore"),
    );
}

#[test]
fn blueprints_after_published_ones_are_good_and_rendered() {
    for file in [
        "database-after-restore",
        "operator-with-templates",
        "operator-steps",
        "echo-artifacts",
        "scale-down-up",
    ] {
        let (code, stdout, stderr) = check(&format!("{file}.yaml"), &[]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{file}: {stdout}");
    }
    let shop = |action: &'static str| ["--action", action, "--subject", "Namespace/shop"];
    prints(
        "operator-with-templates.txt",
        0,
        "operator-with-templates.yaml",
        &shop("backup-posthook"),
    );
    prints("operator-steps.txt", 0, "operator-steps.yaml", &shop("post-restore"));
    prints(
        "database-after-restore.txt",
        0,
        "database-after-restore.yaml",
        &with_db("post-restore"),
    );
    prints("echo-artifacts.txt", 0, "echo-artifacts.yaml", &with_db("before"));
    prints("scale-down-up.txt", 0, "scale-down-up.yaml", &with_db("up"));
}

#[test]
fn what_is_wrong_is_named_with_action_phase_and_argument() {
    prints("wrong.txt", 1, "wrong.yaml", &[]);
    let (code, stdout, _) = check("wrong.yaml", &["--action", "good"]);
    assert_eq!(code, 0, "{stdout}");
    let (code, stdout, _) = check("wrong.yaml", &["--action", "none"]);
    assert_eq!(code, 1);
    assert!(
        stdout.contains("action none: the Blueprint \"wrong\" has no action of this name; it has bad, good"),
        "{stdout}"
    );
}

#[test]
fn a_subject_that_does_not_fit_is_an_error() {
    let (code, stdout, _) = check("document-post-export.yaml", &with_db("post-export"));
    assert_eq!(code, 1);
    assert!(
        stdout.contains(
            "phase hookPhase: argument command[2]: .Namespace.Name can't be read: the subject is no Namespace"
        ),
        "{stdout}"
    );
}

#[test]
fn programs_read_json_and_yaml() {
    let (code, stdout, _) = check("wrong.yaml", &["--action", "bad", "-o", "json"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["good"]), (1, &json!(false)));
    let first = &report["blueprints"][0]["findings"][0];
    assert_eq!(
        (&first["severity"], &first["action"], &first["phase"]),
        (&json!("error"), &json!("bad"), &json!("move"))
    );
    let (_, stdout, _) = check("wrong.yaml", &["--action", "bad", "-o", "yaml"]);
    let yaml: Value = serde_saphyr::from_str(&stdout).unwrap();
    assert_eq!(yaml, report);
}

#[test]
fn what_can_not_be_read_is_said() {
    for (file, arguments, word) in [
        ("none.yaml", vec![], "can't read none.yaml"),
        ("subject-db.yaml", vec![], "subject-db.yaml holds no Blueprint"),
        (
            "wrong.yaml",
            vec!["--action", "good", "--subject", "db"],
            "KIND/NAMESPACE/NAME",
        ),
        (
            "wrong.yaml",
            vec![
                "--action",
                "good",
                "--subject",
                "deployment/shop/db",
                "--objects",
                "subject-db.yaml",
            ],
            "holds no deployment shop/db",
        ),
    ] {
        let (code, _, stderr) = check(file, &arguments);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(word), "{stderr}");
    }
}

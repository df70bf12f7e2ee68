//! Kinds of others that the chart can make objects of. Their definitions come from the Go modules of their projects, at test
//! time; none is kept here.

use std::{env, fs, path::PathBuf};

use super::{kubectl, root, run};

/// Teaches the cluster the kinds of `cert-manager` or `prometheus-operator` that the chart knows. They stay: Velero, which looks up
/// all kinds every few minutes, calls a backup incomplete if one is gone.
pub(crate) fn apply_third_party_crds(project: &str) {
    for file in files(project) {
        kubectl(&["apply", "--server-side", "-f", &file]);
        kubectl(&["wait", "-f", &file, "--for=condition=Established", "--timeout=60s"]);
        fs::remove_file(file).unwrap();
    }
}

/// Copies of the files with the definitions.
fn files(project: &str) -> Vec<String> {
    let (module, folder, wanted): (_, _, &[&str]) = match project {
        "cert-manager" => (
            "github.com/cert-manager/cert-manager",
            "deploy/crds",
            &["crd-certificates.yaml", "crd-issuers.yaml"],
        ),
        "prometheus-operator" => (
            "github.com/prometheus-operator/prometheus-operator",
            "example/prometheus-operator-crd",
            &[
                "monitoring.coreos.com_servicemonitors.yaml",
                "monitoring.coreos.com_prometheusrules.yaml",
            ],
        ),
        other => panic!("{other}"),
    };
    let modules = root().join("tests/cluster/tools/crds");
    // sudo may have cut the path.
    let go = ["go", "/usr/local/go/bin/go"]
        .into_iter()
        .find(|go| run(go, &["version"]).status.success());
    let output = run(
        go.expect("Go is installed: it has built the cluster"),
        &["-C", &modules.to_string_lossy(), "mod", "download", "-json", module],
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let folder = PathBuf::from(answer["Dir"].as_str().unwrap_or_else(|| panic!("{answer}"))).join(folder);
    wanted
        .iter()
        .map(|name| {
            let file = folder.join(name);
            // cert-manager's are templates; apart from labels and annotations nothing is filled in.
            let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let plain: Vec<&str> = text.lines().filter(|line| !line.contains("{{")).collect();
            let copy = env::temp_dir().join(format!("reveille-{}-{name}", std::process::id()));
            fs::write(&copy, plain.join("\n")).unwrap();
            copy.to_string_lossy().into_owned()
        })
        .collect()
}

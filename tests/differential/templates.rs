//! The table that templates, `JSONPath`s and conditions are held against (`tests/it/templates.rs`) is what Go says today.

use std::{fs, path::Path, process::Command};

#[test]
fn the_table_of_templates_is_what_go_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
    let path = format!("{}:/usr/local/go/bin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-c", "go run . cases.json"])
        .current_dir(&folder)
        .env("PATH", path)
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let today = String::from_utf8(output.stdout).unwrap();
    let table = fs::read_to_string(folder.join("table.json")).unwrap();
    assert!(
        today == table,
        "tests/templates/table.json is out of date: cd tests/templates && go run . cases.json >table.json"
    );
}

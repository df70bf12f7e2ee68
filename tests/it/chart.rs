//! The chart against the code.

/// The chart's CRDs are generated: `make crds`.
#[test]
fn the_charts_crds_are_what_the_code_says() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/reveille/files/crds");
    let all = reveille::cli::crd::all().unwrap();
    for (name, text) in &all {
        let chart = std::fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap_or_default();
        assert!(
            *text == chart,
            "the chart's CRD {name} is not that of the code: run `make crds`"
        );
    }
    assert_eq!(
        std::fs::read_dir(folder).unwrap().count(),
        all.len(),
        "files in files/crds"
    );
}

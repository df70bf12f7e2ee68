//! The chart against the code.

/// The chart's CRD is generated: `make crds`.
#[test]
fn the_charts_crd_is_what_the_code_says() {
    let chart = include_str!("../../charts/reveille/files/crds/hookruns.reveille.dev.yaml");
    assert!(
        reveille::cli::crd::yaml().unwrap() == chart,
        "the chart's CRD is not that of the code: run `make crds`"
    );
}

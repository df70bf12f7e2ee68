use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use proptest::prelude::*;
use serde_json::json;

use super::{
    super::{
        model::Artifact,
        params::{Params, PhaseParams},
        subject::{Subject, SubjectKind, WorkloadPod},
    },
    *,
};

fn params() -> Params {
    let subject = Subject {
        kind: SubjectKind::StatefulSet,
        name: "db".to_owned(),
        namespace: "shop".to_owned(),
        pods: vec![WorkloadPod {
            name: "db-0".to_owned(),
            containers: vec!["main".to_owned(), "proxy".to_owned()],
            claims: BTreeMap::from([("data-db-0".to_owned(), "/data".to_owned())]),
        }],
        object: Some(json!({
            "kind": "StatefulSet",
            "metadata": {"name": "db", "labels": {"a": "1", "b": "2"}},
            "spec": {"replicas": 3, "nothing": null, "ratio": 0.5, "sets": [{"count": 2}]},
        })),
    };
    let mut params = Params::new("2026-03-04T05:06:07.120Z".parse().unwrap(), subject);
    params.options.insert("mode".to_owned(), "fast".to_owned());
    let key_value = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    params.artifacts_in.insert(
        "in".to_owned(),
        Artifact {
            key_value,
            ..Artifact::default()
        },
    );
    let mut secret = Secret::default();
    secret.metadata.name = Some("creds".to_owned());
    secret.data = Some(BTreeMap::from([(
        "password".to_owned(),
        ByteString(b"hunter2".to_vec()),
    )]));
    let config_map = ConfigMap {
        data: Some(BTreeMap::from([("k".to_owned(), "v".to_owned())])),
        ..ConfigMap::default()
    };
    params.phases.insert(
        "first".to_owned(),
        PhaseParams {
            output: BTreeMap::from([("out".to_owned(), json!("text")), ("count".to_owned(), json!(3))]),
            secrets: BTreeMap::from([("s".to_owned(), secret)]),
            config_maps: BTreeMap::from([("c".to_owned(), config_map)]),
        },
    );
    params
}

fn render(text: &str) -> Result<String, String> {
    Template::parse(text, Mode::Params)?.render(&Environment::of(&params()))
}

fn gives(text: &str, expected: &str) {
    assert_eq!(render(text).as_deref(), Ok(expected), "{text}");
}

fn fails(text: &str, word: &str) {
    let error = render(text).expect_err(text);
    assert!(error.contains(word), "{text}: {error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn the_params() {
    gives("{{ .StatefulSet.Name }} in {{ .StatefulSet.Namespace }}", "db in shop");
    gives(
        "{{ index .StatefulSet.Pods 0 }} {{ index .StatefulSet.Containers 0 1 }}",
        "db-0 proxy",
    );
    gives(
        "{{ range $pod, $claims := .StatefulSet.PersistentVolumeClaims }}{{ $pod }}{{ $claims }}{{ end }}",
        "db-0map[data-db-0:/data]",
    );
    gives(
        "{{ .Object.metadata.name }} {{ .Object.spec.replicas }} {{ .Object.spec.ratio }}",
        "db 3 0.5",
    );
    gives(
        "{{ .Options.mode }} {{ .ArtifactsIn.in.KeyValue.key }} {{ .Time }}",
        "fast value 2026-03-04T05:06:07.12Z",
    );
    gives(
        "{{ .Phases.first.Output.out }} {{ .Phases.first.Output.count }}",
        "text 3",
    );
    gives(
        "{{ .Phases.first.Secrets.s.Data.password | toString }} {{ .Phases.first.Secrets.s.Name }}",
        "hunter2 creds",
    );
    gives("{{ .Phases.first.ConfigMaps.c.Data.k }}", "v");
    gives("{{ (index .Object.spec.sets 0).count }}", "2");
    gives(
        "{{ range $k, $v := .Object.metadata.labels }}{{ $k }}={{ $v }},{{ end }}",
        "a=1,b=2,",
    );
}

#[test]
fn what_is_missing_is_what_go_makes_of_it() {
    fails("{{ .Options.x }}", "\"x\" not found in .Options");
    gives("[{{ index .Options \"x\" }}]", "[]");
    gives("{{ if index .Options \"x\" }}yes{{ else }}no{{ end }}", "no");
    gives("{{ index .Object.metadata.labels \"zz\" }}", "<no value>");
    gives("{{ index .Object.metadata.labels \"zz\" | toString }}", "<nil>");
    gives("[{{ index .Phases.first.Secrets.s.Data \"zz\" | toString }}]", "[]");
    gives("[{{ (index .ArtifactsIn \"other\").KopiaSnapshot }}]", "[]");
    fails(
        "{{ .Phases.first.Output.k }}",
        "\"k\" not found in .Phases.first.Output",
    );
    fails("{{ .Phases.other.Output.k }}", "\"other\" not found in .Phases");
    fails(
        "{{ .Namespace.Name }}",
        ".Namespace.Name can't be read: the subject is no Namespace",
    );
    gives("{{ if .Namespace }}yes{{ else }}no{{ end }}", "no");
    fails("{{ .Profile.Location.Bucket }}", "hooks have no location profile");
    gives("{{ if .Profile }}yes{{ else }}no{{ end }}", "no");
    fails("{{ index .StatefulSet.Pods 1 }}", "index out of range");
    fails("{{ .NoSuchField }}", "\"NoSuchField\" not found");
    fails("{{ .Options.hello-world }}", "line 1");
    gives("{{ .Object.spec.nothing }}", "<no value>");
    fails("{{ .Object.spec.nothing.more }}", ".Object.spec.nothing is null");
    fails("{{ $x := .Object.spec }}{{ $x.other }}", "\"other\" not found");
    fails("{{ .StatefulSet.Name.x }}", "a string has no field \"x\"");
    fails("{{ .DeferPhase.Output.x }}", "only the deferred phase has it");
}

#[test]
fn only_actions_are_touched() {
    let shell = "a=$(x) ${x//[\\[\\]\"]} {.spec.x} {1..10} -o go-template='{.a}' }} { { }\n\ttab";
    gives(shell, shell);
    gives("{{\"{{\"}} .x {{\"}}\"}}", "{{ .x }}");
    gives("a {{- /* comment */ -}} b", "ab");
    gives("{{ `raw \"text\"` }}", "raw \"text\"");
}

#[test]
fn functions_that_are_not_there_are_named_before_anything_is_rendered() {
    let refused = |text: &str, word: &str| {
        let error = Template::parse(text, Mode::Params).expect_err(text);
        assert!(error.contains(word), "{error}");
    };
    refused(
        "{{ if false }}{{ env \"HOME\" }}{{ end }}",
        "the function env is refused: it would show the controller's environment",
    );
    refused("{{ expandenv \"$HOME\" }}", "expandenv is refused");
    refused("{{ randAlphaNum 5 }}", "randAlphaNum is refused");
    refused("{{ .x | toYaml }}", "there is no function toYaml");
    refused("{{ define \"x\" }}{{ seq 3 }}{{ end }}", "there is no function seq");
}

#[test]
fn time_stands_still() {
    gives(
        "{{ now | date \"2006-01-02\" }} {{ date \"15:04\" .Time }}",
        "2026-03-04 05:06",
    );
    gives(
        "{{ toDate \"2006-01-02T15:04:05.999999999Z07:00\" .Time | date \"2006-01-02t15-04-05z07-00\" }}",
        "2026-03-04t05-06-07z07-00",
    );
    gives(
        "{{ toDate \"2006-01-02\" \"nonsense\" }}",
        "0001-01-01 00:00:00 +0000 UTC",
    );
    fails(
        "{{ dateInZone \"15:04\" now \"Europe/Berlin\" }}",
        "no time zone but UTC",
    );
}

#[test]
fn a_secret_is_in_no_message() {
    fails(
        "{{ .Phases.first.Secrets.s.Data.password | trim }}",
        "wants a string, not a list",
    );
    fails(
        "{{ index (.Phases.first.Secrets.s.Data.password | toString) \"x\" }}",
        "string",
    );
    fails("{{ template .Phases.first.Secrets.s.Data.password }}", "");
    fails(
        "{{ printf .Phases.first.Secrets.s.Data.password }}",
        "string as its format",
    );
    fails("{{ b64dec \"hunter2!\" }}", "not base64");
    gives("{{ printf \"%s\" .Phases.first.Secrets.s.Data.password }}", "hunter2");
}

#[test]
fn everything_comes_to_an_end() {
    fails("{{ range 10000000 }}x{{ end }}", "rounds");
    fails(
        "{{ define \"a\" }}{{ template \"a\" }}{{ end }}{{ template \"a\" }}",
        "recursion limit",
    );
    let bomb = "{{ define \"a\" }}{{ if . }}{{ template \"a\" (slice . 1) }}{{ template \"a\" (slice . 1) }}{{ end }}{{ end }}";
    fails(&format!("{bomb}{{{{ template \"a\" \"{}\" }}}}", "x".repeat(80)), "");
    fails(
        "{{ $x := \"ab\" }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}",
        "larger than",
    );
    fails(
        "{{ $x := \"ab\" }}{{ range 15 }}{{ $x = print $x $x }}{{ end }}{{ replace \"a\" $x $x }}",
        "larger than",
    );
    fails(
        "{{ $x := \"ab\" }}{{ range 15 }}{{ $x = print $x $x }}{{ end }}{{ printf \"%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s\" $x }}",
        "larger than",
    );
    fails("{{ indent 1000000000 \"a\" }}", "larger than");
    fails(
        "{{ range 100 }}{{ printf \"%60000d\" 1 }}{{ end }}",
        "rendered text is longer",
    );
    fails(&"{{ if true }}".repeat(5_000), "nesting depth");
    fails(&format!("{{{{ {} }}}}", "(".repeat(5_000)), "");
}

proptest! {
    #[test]
    fn any_template_is_rendered_or_refused(
        text in any::<String>(),
        near in "(\\{\\{-? ?|-?\\}\\}|\\.[A-Z][a-z]{0,6}|\\$x|:=|if |else|end|range |with |define |\"a\"|\\(|\\)| \\| |index |toString|printf |eq | |0|nil|break){0,25}",
    ) {
        for text in [text, near] {
            let _ = render(&text);
        }
    }

    #[test]
    fn layouts_read_what_they_write(seconds in -62_135_596_800_i64..253_402_300_799, nanos in 0..1_000_000_000) {
        let time = jiff::Timestamp::new(seconds, nanos).unwrap_or_default();
        for layout in ["2006-01-02T15:04:05.999999999Z07:00", "Mon, 2 Jan 2006 3:04:05.000000000 PM -0700", go_time::DEFAULT_LAYOUT] {
            let text = go_time::format(layout, time);
            prop_assert_eq!(go_time::parse(layout, &text), Some(time), "{}", text);
        }
    }

    #[test]
    fn any_layout_is_read(layout in any::<String>(), near in "(2006|01|Jan|_2|Z07:00|-07|\\.0|\\.9|PM|MST|002| |1|x){0,8}", text in "[0-9JanPM:. +Z-]{0,12}") {
        for layout in [layout, near] {
            let written = go_time::format(&layout, jiff::Timestamp::UNIX_EPOCH);
            let _ = go_time::parse(&layout, &written);
            let _ = go_time::parse(&layout, &text);
        }
    }
}

use proptest::prelude::*;

use super::*;

fn pod() -> Value {
    json!({
        "metadata": {"labels": {"app.kubernetes.io/name": "db", "b": "<&>"}, "generation": 3, "empty": {}},
        "status": {
            "phase": "Running",
            "ratio": 0.5,
            "none": null,
            "list": [],
            "containerStatuses": [
                {"name": "a", "ready": true, "restarts": 0},
                {"name": "b", "ready": false, "restarts": 7, "extra": {"x": 1}},
            ],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}],
        },
    })
}

fn prints(path: &str, expected: &str) {
    let parsed = Path::parse(path).unwrap_or_else(|error| panic!("{path} {error}"));
    assert_eq!(parsed.print(&pod()), Ok(expected.to_owned()), "{path}");
}

fn fails(path: &str, word: &str) {
    let error = match Path::parse(path) {
        Err(error) => error.to_string(),
        Ok(parsed) => parsed.print(&pod()).unwrap_err().to_string(),
    };
    assert!(error.contains(word), "{path}: {error}");
}

#[test]
fn the_printing_rules() {
    // Empty brackets are the first element, as the document's example needs.
    prints(".status.containerStatuses[].ready", "true");
    prints(".status.containerStatuses[*].ready", "true false");
    prints(".status.containerStatuses[-1].name", "b");
    prints(".status.containerStatuses[0].restarts", "0");
    prints(".status.list[*]", "");
    prints(".status.conditions[?(@.type==\"None\")].status", "");
    prints(".status.none", "null");
    prints(".metadata.generation", "3");
    prints(".status.ratio", "0.5");
    prints(
        ".metadata.labels",
        r#"{"app.kubernetes.io/name":"db","b":"\u003c\u0026\u003e"}"#,
    );
    prints(".metadata.empty", "{}");
    prints(".status.list", "[]");
    prints(".status.phase", "Running");
}

#[test]
fn ways_to_write_a_path() {
    prints("['status'].phase", "Running");
    prints(".metadata.labels.app\\.kubernetes\\.io/name", "db");
    prints(".metadata.labels['app\\.kubernetes\\.io/name']", "db");
    prints(".status.conditions[?(@.type==\"Ready\")].status", "True");
    prints(".status.conditions[?(@.type=='Ready')].status", "True");
    prints(".status.containerStatuses[?(@.restarts>0)].name", "b");
    prints(".status.containerStatuses[?(@.ready==true)].name", "a");
    prints(".status.containerStatuses[?(@.ready!=true)].name", "b");
    prints(".status.containerStatuses[?(@.extra)].name", "b");
    prints(".status.containerStatuses[0,1].name", "a b");
    prints(".status.containerStatuses[0:1].name", "a");
    prints(".status.containerStatuses[::2].name", "a");
    prints(".status.containerStatuses[1:].name", "b");
    prints("..restarts", "0 7");
    prints(".status.conditions[0].*", "True Ready");
}

#[test]
fn what_can_not_be_found() {
    fails(".status.nothing", "nothing is not found");
    fails(".status.list[]", "out of bounds");
    fails(".status.list[].ready", "out of bounds");
    fails(".status.containerStatuses[2].name", "out of bounds");
    fails(".status.phase[0]", "a string is not a list");
    fails(".status.containerStatuses[?(@.extra.x==1)].name", "extra is not found");
    fails(
        ".status.containerStatuses[?(@.restarts==\"0\")].name",
        "can't compare a number with a string",
    );
    fails(".status.containerStatuses[?(@.ready<true)]", "which boolean is less");
    fails(".status.containerStatuses[::0]", "step");
}

#[test]
fn what_is_no_path() {
    fails(".a[", "without its ]");
    fails(".a[x]", "[x]");
    fails(".a[1:2:3:4]", "[1:2:3:4]");
    fails(".a[?(@.b]", "without its )]");
    fails(".a[?(@.b=~\"x\")]", "\"=\"");
    fails(".a[?(@.b===\"x\")]", "\"===\"");
    fails(".a b", "\"b\"");
    fails("....a", "twice");
    fails(".a \"x", "without its end");
    fails("x := 1", "\"x\"");
}

proptest! {
    #[test]
    fn any_text_is_a_path_or_is_refused(text in any::<String>(), near in "[.$@\\[\\]?()'\"*:,=<>!a0 \\-\\\\]{0,40}") {
        for text in [text, near] {
            if let Ok(path) = Path::parse(&text) {
                let _ = path.print(&pod());
            }
        }
    }

    #[test]
    fn a_text_prints_as_itself(text in any::<String>()) {
        let found = Path::parse(".a[0]").unwrap().print(&json!({"a": [text]}));
        prop_assert_eq!(found, Ok(text));
    }

    #[test]
    fn all_elements_print_in_order_and_the_first_one_alone(numbers in proptest::collection::vec(any::<i64>(), 1..8)) {
        let object = json!({"a": numbers});
        let words: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        let print = |path: &str| Path::parse(path).unwrap().print(&object).unwrap();
        prop_assert_eq!(print(".a[*]"), words.join(" "));
        prop_assert_eq!(Some(&print(".a[]")), words.first());
        prop_assert_eq!(Some(&print(".a[-1]")), words.last());
        for (index, word) in words.iter().enumerate() {
            prop_assert_eq!(&print(&format!(".a[{index}]")), word);
        }
        let behind = Path::parse(&format!(".a[{}]", words.len())).unwrap();
        prop_assert!(behind.print(&object).is_err());
    }

    #[test]
    fn any_field_is_found_by_its_escaped_name(name in "[^\n\\\\]{1,10}") {
        let escaped: String = name.chars().flat_map(|character| ['\\', character]).collect();
        let found = Path::parse(&format!(".{escaped}")).unwrap().print(&json!({ name: 1 }));
        prop_assert_eq!(found, Ok("1".to_owned()));
    }
}

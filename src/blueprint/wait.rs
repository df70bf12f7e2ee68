//! `Wait` and `WaitV2`: conditions on an object of the cluster.

use serde_json::Value;
use thiserror::Error;

use super::{
    jsonpath::Path,
    model::ObjectReference,
    template::{Environment, Mode, Template},
};
use crate::duration::GoDuration;

/// Which language a condition is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `Wait`: `{ $.path }` is replaced by what the JSONPath finds, then the text is a template without data.
    JsonPath,
    /// `WaitV2`: a template whose data is the object.
    Template,
}

/// One condition on one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which language.
    pub dialect: Dialect,
    /// True if this renders to `true`, white space aside. Never rendered with the action's params.
    pub text: String,
    /// The object, still as templates: they are rendered ([`super::render::reference`]) for each round.
    pub reference: ObjectReference,
}

/// What `Wait` and `WaitV2` wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// How long, from the phase's start.
    pub timeout: GoDuration,
    /// One of these is enough.
    pub any_of: Vec<Condition>,
    /// All of these; looked at when none of `any_of` is true.
    pub all_of: Vec<Condition>,
}

/// Why a condition has no value. Kanister tries again in all cases.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ConditionError {
    /// No later state of the object can heal it. Only for a condition that [`Condition::check`] refuses.
    pub permanent: bool,
    /// What is wrong.
    pub message: String,
}

impl Condition {
    /// What is wrong with it whatever the object says: bad syntax, a function that does not exist.
    pub fn check(&self) -> Result<(), String> {
        match self.dialect {
            // Any number fits wherever a path may stand, in quotes and without.
            Dialect::JsonPath => {
                let text = replace_paths(&self.text, |_| Ok("0".to_owned()))?;
                Template::parse(&text, Mode::Wait)?;
            }
            Dialect::Template => {
                Template::parse(&self.text, Mode::WaitV2)?;
            }
        }
        Ok(())
    }
}

/// Is the condition true for this object?
pub fn evaluate(condition: &Condition, object: &Value) -> Result<bool, ConditionError> {
    render_condition(condition, object).map(|text| text.trim() == "true")
}

/// The text that a condition gives for this object.
pub fn render_condition(condition: &Condition, object: &Value) -> Result<String, ConditionError> {
    render(condition, object).map_err(|message| ConditionError {
        permanent: condition.check().is_err(),
        message,
    })
}

fn render(condition: &Condition, object: &Value) -> Result<String, String> {
    match condition.dialect {
        Dialect::JsonPath => {
            let find = |(path, source): (Path, &str)| path.print(object).map_err(|error| format!("{source}: {error}"));
            let text = replace_paths(&condition.text, find)?;
            Template::parse(&text, Mode::Wait)?.render(&Environment::object(None))
        }
        Dialect::Template => Template::parse(&condition.text, Mode::WaitV2)?.render(&Environment::object(Some(object))),
    }
}

/// Replaces each `{ $.path }`. It stands in quotes (`"{ $.status.phase }"`, the form of Kanister since 0.86), or without
/// (the older form, `{{ if { $.ready } }}`).
///
/// A `{ $name` that is no path stays: it is a template's variable. Kanister takes it for a path, and breaks the template.
fn replace_paths(text: &str, mut value: impl FnMut((Path, &str)) -> Result<String, String>) -> Result<String, String> {
    let mut output = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        let (before, braced) = rest.split_at(start);
        output.push_str(before);
        let Some((source, path, after)) = path_at(braced) else {
            output.push('{');
            rest = braced.get(1..).unwrap_or_default();
            continue;
        };
        let path = Path::parse(path).map_err(|error| format!("{source} {error}"))?;
        output.push_str(&value((path, source))?);
        rest = after;
    }
    output.push_str(rest);
    Ok(output)
}

/// `{ $.path }` at the start of a text: all of it, the path, what follows.
fn path_at(braced: &str) -> Option<(&str, &str, &str)> {
    let end = braced.find('}')?;
    let (source, after) = braced.split_at_checked(end + 1)?;
    let inner = source.get(1..end)?.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    let path = inner.strip_prefix('$')?.trim();
    path.starts_with(['.', '[']).then_some((source, path, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn condition(dialect: Dialect, text: &str) -> Condition {
        Condition {
            dialect,
            text: text.to_owned(),
            reference: ObjectReference::default(),
        }
    }

    fn old(text: &str, object: Value) -> Result<bool, String> {
        let condition = condition(Dialect::JsonPath, text);
        condition.check()?;
        evaluate(&condition, &object).map_err(|error| error.to_string())
    }

    fn new(text: &str, object: Value) -> Result<bool, String> {
        let condition = condition(Dialect::Template, text);
        condition.check()?;
        evaluate(&condition, &object).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documents_example_in_both_spellings() {
        let text = "{{ if { $.status.containerStatuses[].ready } }}true{{ else }}false{{ end }}";
        let pod = |ready: bool| json!({"status": {"containerStatuses": [{"ready": ready}, {"ready": false}]}});
        assert_eq!(old(text, pod(true)), Ok(true));
        assert_eq!(old(text, pod(false)), Ok(false));
        let error = old(text, json!({"status": {"containerStatuses": []}})).unwrap_err();
        assert!(error.starts_with("{ $.status.containerStatuses[].ready }: "), "{error}");

        let quoted = "{{ if eq \"{ $.status.phase }\" \"Running\" }}true{{ else }}false{{ end }}";
        assert_eq!(old(quoted, json!({"status": {"phase": "Running"}})), Ok(true));
        assert_eq!(old(quoted, json!({"status": {"phase": "Pending"}})), Ok(false));
    }

    #[test]
    fn conditions_with_jsonpath() {
        let object = json!({"spec": {"replicas": 3}, "status": {"ready": 3, "names": ["a"], "state": ""}});
        let check = |text: &str, expected| assert_eq!(old(text, object.clone()), Ok(expected), "{text}");
        check(
            "{{ if and (eq {$.spec.replicas} {$.status.ready}) (gt {  $.spec.replicas} 1) }} true {{ end }}",
            true,
        );
        // A text that is not empty is true, whatever it is.
        check("{{ if \"{$.status.names[]}\" }}true{{ end }}", true);
        check("{{ if \"$.status.nothing\" }}true{{ end }}", true);
        check("{{ if \"{ $.status.state }\" }}true{{ end }}", false);
        check(
            "{{ $x := \"{ $.status.ready }\" }}{{ if eq $x \"3\" }}true{{ end }}",
            true,
        );
        check("{{ eq (\"{ $.status.names[] }\" | upper) \"A\" }}", true);
        check("{ $.spec.replicas }", false);
        check("yes", false);
    }

    #[test]
    fn conditions_that_are_templates() {
        let ready = "{{ $ok := false }}{{ range .status.conditions }}{{ if and (eq .type \"Ready\") (eq .status \"True\") }}\
                     {{ $ok = true }}{{ end }}{{ end }}{{ $ok }}";
        let object = |status: &str| json!({"status": {"conditions": [{"type": "A", "status": "x"}, {"type": "Ready", "status": status}]}});
        assert_eq!(new(ready, object("True")), Ok(true));
        assert_eq!(new(ready, object("False")), Ok(false));
        // What is not there is no error.
        assert_eq!(new(ready, json!({})), Ok(false));
        assert_eq!(new("{{ .a.b.c }}", json!({})), Ok(false));
        assert_eq!(
            new("{{ if exists . \"a\" \"b\" }}true{{ end }}", json!({"a": {"b": null}})),
            Ok(true)
        );
        assert_eq!(
            new("{{ if eq (base64decode .a) \"x\" }}true{{ end }}", json!({"a": "eA=="})),
            Ok(true)
        );
        assert_eq!(new("{{ if eq .n 3 }}true{{ end }}", json!({"n": 3})), Ok(true));
    }

    #[test]
    fn what_never_can_be_true_is_found_beforehand() {
        let check = |dialect, text: &str, word: &str| {
            let error = condition(dialect, text).check().expect_err(text);
            assert!(error.contains(word), "{error}");
        };
        check(Dialect::JsonPath, "{{ if { $.a[ } }}true{{ end }}", "without its ]");
        check(Dialect::JsonPath, "{{ if { $.a } }}true", "this if has no {{ end }}");
        check(Dialect::JsonPath, "{{ env \"HOME\" }}", "env is refused");
        check(
            Dialect::Template,
            "{{ .a | toString }}",
            "toString is not there in conditions of WaitV2",
        );
        check(Dialect::Template, "{{ if { $.a } }}true{{ end }}", "line 1");
    }

    proptest! {
        #[test]
        fn any_condition_is_evaluated_or_refused(text in any::<String>(), near in "(\\{\\{|\\}\\}|\\{ \\$\\.a|\\}|if |end|\"| |x|\\.a){0,12}") {
            for text in [text, near] {
                let _ = old(&text, json!({"a": [1]}));
                let _ = new(&text, json!({"a": [1]}));
            }
        }
    }
}

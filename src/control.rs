//! What people ask of runs that are under way: cancel, pause, run again.
//!
//! A request is an annotation. `reveille cancel`, `pause` and `rerun` write it, the waiter acts on it, so it survives both.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest;

/// How much of a request's words is kept, in characters.
const TEXT_LIMIT: usize = 300;

/// Who asked for something, when, and why.
///
/// What stands here is what the annotation says: whoever may write the annotation may write another's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Tells this request from every other.
    pub id: String,
    /// The user name, as the API server knows it; empty if the request does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// When, by the clock of whoever asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub at: Option<Timestamp>,
    /// Why, in their own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Request {
    /// Reads an annotation; `None` if it asks for nothing.
    ///
    /// Any text but an empty one and `false` counts, for a brake must work when it is set by hand: what is not JSON is the
    /// reason.
    pub fn read(annotation: &str) -> Option<Self> {
        let annotation = annotation.trim();
        if annotation.is_empty() || annotation == "false" {
            return None;
        }
        let text = Text::read(annotation).unwrap_or_else(|| Text {
            reason: annotation.to_owned(),
            ..Text::default()
        });
        let id = match clean(&text.id) {
            id if id.is_empty() => digest::hex(annotation, 8),
            id => id,
        };
        Some(Self {
            id,
            by: clean(&text.by),
            at: text.at.parse().ok(),
            reason: clean(&text.reason),
        })
    }

    /// The annotation's value.
    pub fn to_annotation(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for Request {
    /// In words that follow a verb: "by alice at 2026-05-01T10:00:00Z: wrong cluster".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.by.is_empty() {
            "somebody (the request does not say who)"
        } else {
            &self.by
        };
        write!(f, "by {by}")?;
        if let Some(at) = self.at {
            write!(f, " at {at:.0}")?;
        }
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

/// A request as it is written. Read strictly: the chart's policies see to it that `by` is there with the right name, and a
/// second `by` anywhere must not get past them.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Text {
    id: String,
    by: String,
    at: String,
    reason: String,
    hook: Option<String>,
}

impl Text {
    fn read(annotation: &str) -> Option<Self> {
        // serde takes a list for a struct, too. The policies look for `by` where they see an object, and nowhere else.
        let annotation = annotation.trim();
        annotation
            .starts_with('{')
            .then(|| serde_json::from_str(annotation).ok())
            .flatten()
    }
}

/// A request to run again what did not succeed in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RerunRequest {
    /// Who, when and why.
    pub request: Request,
    /// Only the hooks of this name.
    pub hook: Option<String>,
}

impl RerunRequest {
    /// Reads an annotation; `None` if it asks for nothing.
    pub fn read(annotation: &str) -> Option<Self> {
        let request = Request::read(annotation)?;
        let hook = Text::read(annotation).and_then(|text| text.hook);
        Some(Self { request, hook })
    }

    /// The annotation's value.
    pub fn to_annotation(&self) -> String {
        let mut value = serde_json::to_value(&self.request).unwrap_or_default();
        if let (Some(fields), Some(hook)) = (value.as_object_mut(), &self.hook) {
            fields.insert("hook".to_owned(), Value::from(hook.as_str()));
        }
        value.to_string()
    }
}

/// All that people ask of one run at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controls {
    /// Cancel what has not started: said on the run, on its Restore, or on both.
    pub cancel: Vec<Request>,
    /// Start nothing new.
    pub pause: Option<Request>,
    /// Run again what did not succeed.
    pub rerun: Option<RerunRequest>,
}

/// One line of harmless text.
fn clean(text: &str) -> String {
    let flat = text.chars().take(TEXT_LIMIT).map(|c| match c {
        '\n' | '\t' => ' ',
        c => c,
    });
    crate::waiter::output::escape(&flat.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_were_written() {
        let request = Request {
            id: "i".to_owned(),
            by: "alice".to_owned(),
            at: Some("2026-05-01T10:00:00Z".parse().unwrap()),
            reason: "wrong cluster".to_owned(),
        };
        assert_eq!(Request::read(&request.to_annotation()), Some(request.clone()));
        assert_eq!(request.to_string(), "by alice at 2026-05-01T10:00:00Z: wrong cluster");
        for hook in [None, Some("h".to_owned())] {
            let rerun = RerunRequest {
                request: request.clone(),
                hook,
            };
            assert_eq!(RerunRequest::read(&rerun.to_annotation()), Some(rerun));
        }
    }

    #[test]
    fn what_is_written_by_hand_counts_too() {
        let request = Request::read("look at \u{1b}[31m this\nfirst").unwrap();
        assert_eq!(request.reason, "look at \\u{1b}[31m this first");
        assert_eq!(
            request.to_string(),
            "by somebody (the request does not say who): look at \\u{1b}[31m this first"
        );
        // Without an id the text itself is one: the same text is the same request.
        assert_eq!(Request::read("x").unwrap().id, Request::read(" x ").unwrap().id);
        assert_ne!(Request::read("x").unwrap().id, Request::read("y").unwrap().id);
        assert_eq!(Request::read(r#"{"by":"bob","at":"never"}"#).unwrap().by, "bob");
        for two_names in [
            r#"{"by":"mallory","by":"admin"}"#,
            r#"{"by":"mallory","b\u0079":"admin"}"#,
            r#"{"by":"admin","x":{"by":"mallory"}}"#,
            r#"["1","admin"]"#,
            r#" ["1","admin","2026-05-01T10:00:00Z","x",null]"#,
        ] {
            assert_eq!(Request::read(two_names).unwrap().by, "", "{two_names}");
        }
        assert_eq!(RerunRequest::read("true").unwrap().hook, None);
        assert_eq!(RerunRequest::read(r#"["1","a","","","h"]"#).unwrap().hook, None);
        assert!(Request::read(&"x".repeat(100_000)).unwrap().reason.len() < 1000);
    }

    #[test]
    fn nothing_and_false_ask_for_nothing() {
        assert_eq!((Request::read(" "), Request::read("false")), (None, None));
    }
}

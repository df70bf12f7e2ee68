//! Arguments as loose as Kanister takes them (`mapstructure.WeakDecode`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{super::model::ObjectReference, CallError, Function};
use crate::duration::GoDuration;

/// The arguments of one call: none is unknown, all required ones are there.
pub(super) struct Arguments<'a>(&'a Map<String, Value>);

impl<'a> Arguments<'a> {
    pub(super) fn new(function: Function, args: &'a Map<String, Value>) -> Result<Self, CallError> {
        let (required, optional) = function.arguments();
        for name in args.keys() {
            if !required.contains(&name.as_str()) && !optional.contains(&name.as_str()) {
                let known = [required, optional].concat().join(", ");
                let message = format!("{} does not know it; it knows {known}", function.name());
                return Err(CallError::argument(name, message));
            }
        }
        let args = Self(args);
        for name in required {
            if args.get(name).is_none() {
                let message = format!("is missing; {} needs it", function.name());
                return Err(CallError::argument(*name, message));
            }
        }
        Ok(args)
    }

    /// `null` counts as absent.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A text that must not be empty.
    pub(super) fn filled_text(&self, name: &str) -> Result<String, CallError> {
        match self.get(name) {
            None => Err(CallError::argument(name, "is missing")),
            Some(value) => match text(name, value)? {
                text if text.is_empty() => Err(CallError::argument(name, "is empty")),
                text => Ok(text),
            },
        }
    }

    /// A text; the empty one counts as absent.
    pub(super) fn optional_text(&self, name: &str) -> Result<Option<String>, CallError> {
        let text = self.get(name).map(|value| text(name, value)).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// A list of texts; a single one is a list of one.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>, CallError> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let items = items.iter().enumerate();
                items
                    .map(|(index, item)| text(&format!("{name}[{index}]"), item))
                    .collect()
            }
            Some(single) => Ok(vec![text(name, single)?]),
        }
    }

    pub(super) fn map(&self, name: &str) -> Result<Map<String, Value>, CallError> {
        match self.get(name) {
            None => Ok(Map::new()),
            Some(value) => Ok(map(name, value)?.clone()),
        }
    }

    pub(super) fn text_map(&self, name: &str) -> Result<BTreeMap<String, String>, CallError> {
        let map = self.map(name)?;
        let entries = map
            .iter()
            .map(|(key, value)| Ok((key.clone(), text(&format!("{name}.{key}"), value)?)));
        entries.collect()
    }

    pub(super) fn boolean(&self, name: &str, default: bool) -> Result<bool, CallError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(Value::Number(number)) => Ok(number.as_f64() != Some(0.0)),
            Some(Value::String(text)) => match text.as_str() {
                "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
                "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
                _ => Err(CallError::argument(name, "is not a boolean: write true or false")),
            },
            Some(_) => Err(CallError::argument(name, "is not a boolean: write true or false")),
        }
    }

    /// A whole number, or the text of one.
    pub(super) fn replicas(&self, name: &str) -> Result<i32, CallError> {
        let number = match self.get(name) {
            Some(Value::Number(number)) => number.as_i64().and_then(|number| i32::try_from(number).ok()),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        number
            .filter(|number| *number >= 0)
            .ok_or_else(|| CallError::argument(name, "is not a whole number from 0 on"))
    }

    pub(super) fn duration(&self, name: &str) -> Result<GoDuration, CallError> {
        let text = self.filled_text(name)?;
        let parsed = text.parse::<GoDuration>();
        let duration = parsed.map_err(|error| CallError::argument(name, format!("is {error}")))?;
        if duration.is_negative() {
            return Err(CallError::argument(name, "is negative"));
        }
        Ok(duration)
    }

    /// The conditions of one of the two lists. Kanister finds the keys in any case.
    pub(super) fn conditions(&self, name: &str, list: &str) -> Result<Vec<(String, ObjectReference)>, CallError> {
        let Some(value) = self.get(name) else {
            return Ok(Vec::new());
        };
        let path = format!("{name}.{list}");
        let conditions = match any_case(map(name, value)?, list) {
            None => return Ok(Vec::new()),
            Some(Value::Array(conditions)) => conditions,
            Some(_) => return Err(CallError::argument(path, "is not a list")),
        };
        let conditions = conditions.iter().enumerate();
        conditions
            .map(|(index, one)| condition(&format!("{path}[{index}]"), one))
            .collect()
    }

    pub(super) fn reference(&self, name: &str) -> Result<ObjectReference, CallError> {
        match self.get(name) {
            None => Err(CallError::argument(name, "is missing")),
            Some(value) => reference(name, map(name, value)?),
        }
    }
}

fn condition(path: &str, value: &Value) -> Result<(String, ObjectReference), CallError> {
    let fields = map(path, value)?;
    let text = match any_case(fields, "condition") {
        Some(value) => text(&format!("{path}.condition"), value)?,
        None => return Err(CallError::argument(format!("{path}.condition"), "is missing")),
    };
    let path = format!("{path}.objectReference");
    let Some(object) = any_case(fields, "objectReference") else {
        return Err(CallError::argument(path, "is missing"));
    };
    let reference = reference(&path, map(&path, object)?)?;
    for (field, value) in [("resource", &reference.resource), ("name", &reference.name)] {
        if value.is_empty() {
            return Err(CallError::argument(format!("{path}.{field}"), "is missing"));
        }
    }
    Ok((text, reference))
}

fn reference(path: &str, fields: &Map<String, Value>) -> Result<ObjectReference, CallError> {
    let field = |name: &str| match any_case(fields, name) {
        Some(value) => text(&format!("{path}.{name}"), value),
        None => Ok(String::new()),
    };
    Ok(ObjectReference {
        api_version: field("apiVersion")?,
        group: field("group")?,
        resource: field("resource")?,
        kind: field("kind")?,
        name: field("name")?,
        namespace: field("namespace")?,
    })
}

/// The exact key first. `null` counts as absent.
fn any_case<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let similar = || {
        map.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    };
    map.get(name).or_else(similar).filter(|value| !value.is_null())
}

fn map<'a>(name: &str, value: &'a Value) -> Result<&'a Map<String, Value>, CallError> {
    value
        .as_object()
        .ok_or_else(|| CallError::argument(name, "is not a map"))
}

/// A text, or what stands for one. That true is `1` is Kanister's doing.
fn text(name: &str, value: &Value) -> Result<String, CallError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(if *value { "1" } else { "0" }.to_owned()),
        Value::Null => Ok(String::new()),
        Value::Array(_) => Err(CallError::argument(name, "is a list, not a text")),
        Value::Object(_) => Err(CallError::argument(
            name,
            "is a map, not a text (behind `|-` it would be one)",
        )),
    }
}

/// All documents of a text of YAML or JSON, without empty ones.
pub(super) fn documents(name: &str, text: &str) -> Result<Vec<Value>, CallError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let place = error.location().map_or_else(String::new, |location| {
            format!(" at line {}, column {}", location.line(), location.column())
        });
        // Not the error's own words: they repeat the text, and that may hold a secret.
        CallError::argument(name, format!("is not readable as YAML{place}"))
    })?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The one document of a text.
pub(super) fn single_document(name: &str, text: &str) -> Result<Value, CallError> {
    match <[Value; 1]>::try_from(documents(name, text)?) {
        Ok([document]) if document.is_object() => Ok(document),
        Ok(_) => Err(CallError::argument(name, "is not a map")),
        Err(documents) => Err(CallError::argument(
            name,
            format!("holds {} documents, not one", documents.len()),
        )),
    }
}

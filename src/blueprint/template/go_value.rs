//! Values as Go has them, and their texts: Go's `%v` and Go's JSON.

use std::{collections::BTreeMap, fmt::Write, ops::Range, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use gotmpl::Value;
use jiff::Timestamp;
use serde_json::Value as Json;

use super::go_time;

/// A string.
pub(super) fn text(text: &str) -> Value {
    Value::String(text.into())
}

/// A `[]byte`: a list of unsigned numbers, which nothing else is.
pub(super) fn bytes(bytes: &[u8]) -> Value {
    Value::List(bytes.iter().map(|byte| Value::Uint(u64::from(*byte))).collect())
}

/// The bytes of a `[]byte`. An empty list is one too.
pub(super) fn as_bytes(value: &Value) -> Option<Vec<u8>> {
    let Value::List(items) = value else { return None };
    let byte = |item: &Value| match item {
        Value::Uint(number) => u8::try_from(*number).ok(),
        _ => None,
    };
    items.iter().map(byte).collect()
}

/// A map.
pub(super) fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let entries = entries.into_iter().map(|(key, value)| (Arc::from(key), value));
    Value::Map(Arc::new(entries.collect::<BTreeMap<Arc<str>, Value>>()))
}

/// A `time.Time`. The engine knows no times, so it carries them as functions, which it passes on and never calls.
pub(super) fn time(time: Timestamp) -> Value {
    let (seconds, nanos) = (time.as_second(), i64::from(time.subsec_nanosecond()));
    Value::Function(Arc::new(move |_| {
        Ok(Value::List([Value::Int(seconds), Value::Int(nanos)].into()))
    }))
}

/// The time that [`time`] packed.
pub(super) fn as_time(value: &Value) -> Option<Timestamp> {
    let Value::Function(function) = value else { return None };
    let Ok(Value::List(parts)) = function(&[]) else {
        return None;
    };
    match &*parts {
        [Value::Int(seconds), Value::Int(nanos)] => Timestamp::new(*seconds, i32::try_from(*nanos).ok()?).ok(),
        _ => None,
    }
}

/// A value of an object as Kubernetes' clients read it: numbers are `int64` where they fit.
pub(in crate::blueprint) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(value) => text(value),
        Json::Array(items) => Value::List(items.iter().map(from_json).collect()),
        Json::Object(fields) => map(fields.iter().map(|(key, value)| (key.clone(), from_json(value)))),
    }
}

/// Go's `%v`.
pub(in crate::blueprint) fn print(value: &Value) -> String {
    let mut text = String::new();
    print_to(&mut text, value);
    text
}

// Writing to a String can't fail.
fn print_to(output: &mut String, value: &Value) {
    match value {
        Value::Float(number) => output.push_str(&float(*number, -4..6)),
        Value::List(items) => {
            output.push('[');
            for (index, item) in items.iter().enumerate() {
                output.push_str(if index > 0 { " " } else { "" });
                print_to(output, item);
            }
            output.push(']');
        }
        Value::Map(fields) => {
            output.push_str("map[");
            for (index, (key, item)) in fields.iter().enumerate() {
                output.push_str(if index > 0 { " " } else { "" });
                output.push_str(key);
                output.push(':');
                print_to(output, item);
            }
            output.push(']');
        }
        Value::Function(_) => match as_time(value) {
            Some(time) => output.push_str(&go_time::format(go_time::DEFAULT_LAYOUT, time)),
            None => output.push_str("<func>"),
        },
        plain => {
            let _ = write!(output, "{plain}");
        }
    }
}

/// Go's shortest form of a float; with an exponent if that is not among the `plain` ones.
fn float(number: f64, plain: Range<i32>) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if plain.contains(&exponent) || number == 0.0 {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Go's `json.Marshal`: no blanks, sorted keys, and `<`, `>`, `&` escaped.
pub(in crate::blueprint) fn to_json(value: &Value) -> Result<String, String> {
    let mut output = String::new();
    json_to(&mut output, value)?;
    Ok(output)
}

fn json_to(output: &mut String, value: &Value) -> Result<(), String> {
    match value {
        Value::Nil => output.push_str("null"),
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) => print_to(output, value),
        Value::Float(number) if !number.is_finite() => return Err("is no number that JSON can hold".to_owned()),
        Value::Float(number) => {
            // JSON's exponents have no leading zero.
            let text = float(*number, -6..21);
            output.push_str(&text.replace("e-0", "e-"));
        }
        Value::String(text) => json_text(output, text),
        Value::List(items) => match as_bytes(value) {
            Some(bytes) if !bytes.is_empty() => json_text(output, &BASE64_STANDARD.encode(bytes)),
            _ => {
                output.push('[');
                for (index, item) in items.iter().enumerate() {
                    output.push_str(if index > 0 { "," } else { "" });
                    json_to(output, item)?;
                }
                output.push(']');
            }
        },
        Value::Map(fields) => {
            output.push('{');
            for (index, (key, item)) in fields.iter().enumerate() {
                output.push_str(if index > 0 { "," } else { "" });
                json_text(output, key);
                output.push(':');
                json_to(output, item)?;
            }
            output.push('}');
        }
        Value::Function(_) => match as_time(value) {
            Some(time) => json_text(output, &time.to_string()),
            None => return Err("is no value that JSON can hold".to_owned()),
        },
    }
    Ok(())
}

fn json_text(output: &mut String, text: &str) {
    output.push('"');
    for character in text.chars() {
        match character {
            '"' => output.push_str("\\\""),
            '\\' => output.push_str("\\\\"),
            '\u{8}' => output.push_str("\\b"),
            '\u{c}' => output.push_str("\\f"),
            '\n' => output.push_str("\\n"),
            '\r' => output.push_str("\\r"),
            '\t' => output.push_str("\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(output, "\\u{:04x}", u32::from(character));
            }
            plain => output.push(plain),
        }
    }
    output.push('"');
}

/// How much there is of a value, roughly in bytes.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::List(items) => items.iter().map(|item| size(item) + 1).sum(),
        Value::Map(fields) => fields.iter().map(|(key, item)| key.len() + size(item) + 1).sum(),
        _ => 1,
    }
}

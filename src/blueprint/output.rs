//! Phase outputs: what a command hands to later phases by writing marked lines to its log.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Stands before the JSON of one output, anywhere in a line.
const MARKER: &[u8] = b"###Phase-output###:";

/// Why an output can't be read. It fails the phase, also when its command succeeded. The value is not repeated: it may be
/// a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "line {line} of the log holds an output that can't be read: {reason} (expected {{\"key\": \"...\", \"value\": \"...\"}})"
)]
pub struct OutputError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// As Kanister's `kando output KEY VALUE` prints it. Other keys are ignored.
#[derive(Deserialize)]
struct Output {
    key: String,
    value: String,
}

/// The outputs in a command's log; the last one of a key wins.
pub fn parse(log: &[u8]) -> Result<BTreeMap<String, Value>, OutputError> {
    let mut outputs = BTreeMap::new();
    for (index, line) in log.split(|&byte| byte == b'\n').enumerate() {
        let Some(json) = after_marker(line) else { continue };
        let json = json.trim_ascii();
        if json.is_empty() {
            continue;
        }
        let output: Output = serde_json::from_slice(json).map_err(|error| OutputError {
            line: index + 1,
            reason: reason(&error),
        })?;
        outputs.insert(output.key, Value::String(output.value));
    }
    Ok(outputs)
}

/// What follows the first marker of a line.
fn after_marker(line: &[u8]) -> Option<&[u8]> {
    let start = line.windows(MARKER.len()).position(|window| window == MARKER)?;
    line.get(start + MARKER.len()..)
}

/// serde names the place and the type, but a wrong value too: that part goes.
fn reason(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => "key or value is missing or is not a string".to_owned(),
        _ => format!("it is not JSON, at column {} after the marker", error.column()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(log: &str) -> Vec<(String, String)> {
        let outputs = parse(log.as_bytes()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        outputs.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn marked_lines_are_outputs() {
        assert_eq!(parsed("hello\n"), pairs(&[]));
        assert_eq!(
            parsed("###Phase-output###: {\"key\":\"k\",\"value\":\"v\"}\n"),
            pairs(&[("k", "v")])
        );
        // Text before the marker, a carriage return behind it, no newline at the end, other keys.
        assert_eq!(
            parsed(
                "+ kando ###Phase-output###:{\"key\":\"a\",\"value\":\"\",\"x\":1}\r\n###Phase-output###: {\"key\":\"b\",\"value\":\"ü\"}"
            ),
            pairs(&[("a", ""), ("b", "ü")])
        );
        // The last one wins; an empty rest is skipped.
        assert_eq!(
            parsed(
                "###Phase-output###: {\"key\":\"a\",\"value\":\"1\"}\n###Phase-output###:  \n###Phase-output###: {\"key\":\"a\",\"value\":\"2\"}\n"
            ),
            pairs(&[("a", "2")])
        );
    }

    #[test]
    fn long_lines_are_read_whole() {
        let value = "x".repeat(500_000);
        let log = format!("{value}###Phase-output###: {{\"key\":\"k\",\"value\":\"{value}\"}}\n");
        assert_eq!(parsed(&log), pairs(&[("k", &value)]));
    }

    #[test]
    fn bad_outputs_fail_without_telling_the_value() {
        for bad in [
            "{\"key\":\"k\",\"value\":4711}",
            "hunter2",
            "{\"key\":\"k\"}",
            "[\"hunter2\"]",
            "{\"key\":\"k\",\"value\":\"hunter2\"} x",
        ] {
            let error = parse(format!("first\n###Phase-output###: {bad}\n").as_bytes()).unwrap_err();
            assert_eq!(error.line, 2, "{bad}");
            let text = error.to_string();
            assert!(!text.contains("hunter2") && !text.contains("4711"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_log_is_read_or_refused(log in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&log);
        }

        #[test]
        fn what_kando_prints_is_read_back(before in "[^\n#]{0,20}", key in "[A-Za-z0-9_]{1,8}", value in any::<String>()) {
            let json = serde_json::json!({"key": key, "value": value});
            let log = format!("{before}###Phase-output###: {json}\n");
            let outputs = parse(log.as_bytes()).unwrap();
            prop_assert_eq!(outputs.get(&key), Some(&Value::String(value)));
        }
    }
}

//! Single values as users write them, read by Go's rules. Errors are sentences that name the value.

use serde_json::Value;

use super::hook::{MAX_RETRIES, OnError, OnUnknown};
use crate::duration::GoDuration;

/// The longest part of a bad value that a message repeats.
const QUOTED: usize = 80;

/// A value quoted for a message: escaped, and cut when it is long.
pub(super) fn quote(value: &str) -> String {
    let cut: String = value.chars().take(QUOTED).collect();
    let dots = if cut.len() < value.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

/// A limit: a Go duration that is not negative.
pub(super) fn limit(text: &str) -> Result<GoDuration, String> {
    let duration: GoDuration = text.parse().map_err(|error| format!("{} is {error}", quote(text)))?;
    if duration.is_negative() {
        return Err(format!("{} is negative; leave it out for no limit", quote(text)));
    }
    Ok(duration)
}

/// Go's `strconv.ParseBool`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("{} is not a boolean: write true or false", quote(text))),
    }
}

/// The two error modes, case-sensitive as in Velero.
pub(super) fn on_error(text: &str) -> Result<OnError, String> {
    match text {
        "Continue" => Ok(OnError::Continue),
        "Fail" => Ok(OnError::Fail),
        _ => Err(format!("{} is neither Fail nor Continue", quote(text))),
    }
}

/// What to do about an unknown end; case-sensitive likewise.
pub(super) fn on_unknown(text: &str) -> Result<OnUnknown, String> {
    match text {
        "Fail" => Ok(OnUnknown::Fail),
        "Retry" => Ok(OnUnknown::Retry),
        _ => Err(format!("{} is neither Fail nor Retry", quote(text))),
    }
}

/// How often to try again.
pub(super) fn retries(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number <= MAX_RETRIES);
    number.ok_or_else(|| format!("{} is not a whole number from 0 to {MAX_RETRIES}", quote(text)))
}

/// A folder in a container.
pub(super) fn folder(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is not an absolute path", quote(text)))
    }
}

/// A command from an annotation: a JSON array of strings, or the whole text as one argument.
///
/// A text that starts with `[` but is no such array is one argument too, as in Velero (a shell's `[ -f x ]`); the second
/// value then warns about it.
pub(super) fn command(text: &str) -> (Vec<String>, Option<String>) {
    if !text.starts_with('[') {
        return (vec![text.to_owned()], None);
    }
    match serde_json::from_str::<Vec<Option<String>>>(text) {
        // Go decodes null into a string as the empty string.
        Ok(arguments) => (arguments.into_iter().map(Option::unwrap_or_default).collect(), None),
        Err(error) => (
            vec![text.to_owned()],
            Some(format!(
                "{} starts like a JSON array but is none ({error}); the whole text is taken as one argument",
                quote(text)
            )),
        ),
    }
}

/// One document of YAML or JSON.
pub(super) fn document(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(json) if text.trim_start().starts_with(['{', '[']) => {
            // Flow-style YAML also starts like this; if it is neither, the JSON error is the better one.
            serde_saphyr::from_str(text).map_err(|_| format!("not readable as JSON or YAML: {json}"))
        }
        Err(_) => serde_saphyr::from_str(text).map_err(|error| {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            format!("not readable as YAML: {first}")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_follow_velero() {
        let check = |text: &str, expected: &[&str], warned: bool| {
            let (arguments, warning) = command(text);
            assert_eq!(arguments, expected, "{text}");
            assert_eq!(warning.is_some(), warned, "{text}");
        };
        check("/bin/true", &["/bin/true"], false);
        check("echo a b", &["echo a b"], false);
        check(r#"["a","b c"]"#, &["a", "b c"], false);
        check(r#"["a",null] "#, &["a", ""], false);
        check(r#" ["a"]"#, &[r#" ["a"]"#], false);
        check("[1,2]", &["[1,2]"], true);
        check("[ -f /x ]", &["[ -f /x ]"], true);
        check("[]", &[], false);
    }

    #[test]
    fn limits_are_not_negative() {
        assert_eq!(limit("0"), Ok(GoDuration::ZERO));
        assert!(limit("-5s").unwrap_err().contains("negative"));
        assert!(limit("300").unwrap_err().contains("\"300\""));
    }

    #[test]
    fn retries_are_bounded_and_folders_absolute() {
        assert_eq!((retries("0"), retries("20")), (Ok(0), Ok(20)));
        for bad in ["21", "-1", "1.5", "many", ""] {
            assert!(retries(bad).is_err(), "{bad}");
        }
        assert_eq!(folder("/tmp/x y"), Ok("/tmp/x y".to_owned()));
        assert!(folder("tmp").is_err() && folder("/a\nb").is_err());
        assert!(on_unknown("retry").unwrap_err().contains("\"retry\""));
    }

    #[test]
    fn quotes_are_short_and_escaped() {
        assert_eq!(quote("a\nb"), "\"a\\nb\"");
        assert!(quote(&"x".repeat(500)).chars().count() < 90);
    }
}

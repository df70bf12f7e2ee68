//! The functions that templates can call: Go's own, and those of sprig 2.22 that published Blueprints use.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use gotmpl::{FuncMap, TemplateError, Value};

use super::{
    Context, MAX_TEXT, Mode, go_time,
    go_value::{as_bytes, as_time, print, size, text, time, to_json},
    rewrite::{FIELD, PRINT, STEP},
};

type Function = fn(&[Value], &Context) -> Result<Value, String>;

/// Go's built-in functions that the engine brings.
const OF_THE_ENGINE: [&str; 12] = [
    "and", "call", "eq", "ge", "gt", "le", "len", "lt", "ne", "not", "or", "slice",
];

/// Go's built-in functions that need to know more than the engine does, or whose result must have bounds.
const BUILT_IN: [(&str, Function); 7] = [
    ("html", |args, _| escaped(args, gotmpl::html_escape)),
    ("index", index),
    ("js", |args, _| escaped(args, gotmpl::js_escape)),
    ("print", |args, _| Ok(text(&printed(args)))),
    ("printf", printf),
    ("println", |args, _| {
        let words: Vec<String> = args.iter().map(print).collect();
        Ok(text(&(words.join(" ") + "\n")))
    }),
    ("urlquery", |args, _| escaped(args, gotmpl::url_encode)),
];

/// What [`super::rewrite`] puts into trees.
const INTERNAL: [(&str, Function); 3] = [(FIELD, field), (PRINT, printed_value), (STEP, |_, _| Ok(text("")))];

/// Of sprig.
const SPRIG: [(&str, Function); 32] = [
    ("b64dec", b64dec),
    ("b64enc", |args, _| {
        let [plain] = texts(args)?;
        Ok(text(&BASE64_STANDARD.encode(plain)))
    }),
    ("coalesce", |args, _| {
        Ok(args
            .iter()
            .find(|value| !is_empty(value))
            .cloned()
            .unwrap_or(Value::Nil))
    }),
    ("contains", |args, _| {
        let [part, whole] = texts(args)?;
        Ok(Value::Bool(whole.contains(part)))
    }),
    ("date", |args, context| {
        let [layout, moment] = exactly(args)?;
        formatted(layout, moment, context)
    }),
    ("dateInZone", date_in_zone),
    ("date_in_zone", date_in_zone),
    ("default", |args, _| match args {
        [default] => Ok(default.clone()),
        [default, given, ..] => Ok(if is_empty(given) {
            default.clone()
        } else {
            given.clone()
        }),
        [] => Err("wants an argument".to_owned()),
    }),
    ("empty", |args, _| {
        let [value] = exactly(args)?;
        Ok(Value::Bool(is_empty(value)))
    }),
    ("first", |args, _| {
        Ok(items(args)?.first().cloned().unwrap_or(Value::Nil))
    }),
    ("hasPrefix", |args, _| {
        let [part, whole] = texts(args)?;
        Ok(Value::Bool(whole.starts_with(part)))
    }),
    ("hasSuffix", |args, _| {
        let [part, whole] = texts(args)?;
        Ok(Value::Bool(whole.ends_with(part)))
    }),
    ("indent", |args, _| Ok(text(&indented(args)?))),
    ("int", int),
    ("int64", int),
    ("join", join),
    ("last", |args, _| Ok(items(args)?.last().cloned().unwrap_or(Value::Nil))),
    ("lower", |args, _| {
        let [plain] = texts(args)?;
        Ok(text(&plain.to_lowercase()))
    }),
    ("nindent", |args, _| Ok(text(&format!("\n{}", indented(args)?)))),
    ("now", |args, context| {
        let [] = exactly(args)?;
        Ok(time(context.now))
    }),
    ("quote", |args, _| {
        let quoted: Result<Vec<String>, String> = not_nil(args)
            .map(|value| sprintf("%q", &[text(&string(value)?)]))
            .collect();
        Ok(text(&quoted?.join(" ")))
    }),
    ("replace", replace),
    ("splitList", |args, _| {
        let [separator, whole] = texts(args)?;
        let parts: Vec<Value> = match separator {
            // Go splits into characters then; Rust would add empty texts at both ends.
            "" => whole.chars().map(|character| text(&character.to_string())).collect(),
            _ => whole.split(separator).map(text).collect(),
        };
        Ok(Value::List(parts.into()))
    }),
    ("squote", |args, _| {
        let quoted: Vec<String> = not_nil(args).map(|value| format!("'{}'", print(value))).collect();
        Ok(text(&quoted.join(" ")))
    }),
    ("ternary", |args, _| match exactly(args)? {
        [yes, _, Value::Bool(true)] => Ok(yes.clone()),
        [_, no, Value::Bool(false)] => Ok(no.clone()),
        [_, _, other] => Err(format!(
            "wants a bool as its last argument, not a {}",
            other.type_name()
        )),
    }),
    ("toDate", |args, _| {
        let [layout, plain] = texts(args)?;
        // What does not fit is Go's zero time.
        Ok(time(go_time::parse(layout, plain).unwrap_or_else(zero_time)))
    }),
    ("toJson", |args, _| {
        let [value] = exactly(args)?;
        Ok(text(&to_json(value)?))
    }),
    ("toString", |args, _| {
        let [value] = exactly(args)?;
        Ok(text(&string(value)?))
    }),
    ("trim", |args, _| {
        let [plain] = texts(args)?;
        Ok(text(plain.trim()))
    }),
    ("trimPrefix", |args, _| {
        let [part, whole] = texts(args)?;
        Ok(text(whole.strip_prefix(part).unwrap_or(whole)))
    }),
    ("trimSuffix", |args, _| {
        let [part, whole] = texts(args)?;
        Ok(text(whole.strip_suffix(part).unwrap_or(whole)))
    }),
    ("upper", |args, _| {
        let [plain] = texts(args)?;
        Ok(text(&plain.to_uppercase()))
    }),
];

/// What `kubectl`'s templates, and so conditions of `WaitV2`, have beside Go's functions.
const KUBECTL: [(&str, Function); 2] = [("base64decode", b64dec), ("exists", exists)];

/// Functions of sprig that must not be there: they would show a Blueprint's author the controller's own surroundings, or give
/// another result when an action is taken up again after a restart.
const REFUSED: [(&str, &str); 17] = [
    ("env", "it would show the controller's environment"),
    ("expandenv", "it would show the controller's environment"),
    ("getHostByName", "it would ask the network"),
    ("ago", "its result changes with each attempt"),
    ("bcrypt", "its result changes with each attempt"),
    ("buildCustomCert", "keys do not belong into a template"),
    ("decryptAES", "keys do not belong into a template"),
    ("derivePassword", "keys do not belong into a template"),
    ("encryptAES", "its result changes with each attempt"),
    ("genCA", "its result changes with each attempt"),
    ("genPrivateKey", "its result changes with each attempt"),
    ("genSelfSignedCert", "its result changes with each attempt"),
    ("genSignedCert", "its result changes with each attempt"),
    ("htpasswd", "its result changes with each attempt"),
    ("randAlphaNum", "its result changes with each attempt"),
    ("shuffle", "its result changes with each attempt"),
    ("uuidv4", "its result changes with each attempt"),
];

fn own(mode: Mode) -> impl Iterator<Item = (&'static str, Function)> {
    let (sprig, kubectl): (&[_], &[_]) = match mode {
        Mode::Params | Mode::Wait => (&SPRIG, &[]),
        Mode::WaitV2 => (&[], &KUBECTL),
    };
    [&BUILT_IN[..], sprig, kubectl].into_iter().flatten().copied()
}

/// An error for a name that is no function, as Go has it: when the template is parsed.
pub(super) fn known(name: &str, mode: Mode) -> Result<(), String> {
    if OF_THE_ENGINE.contains(&name) || own(mode).any(|(known, _)| known == name) {
        return Ok(());
    }
    let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
    if let Some((_, why)) = refused {
        return Err(format!("the function {name} is refused: {why}"));
    }
    if mode == Mode::WaitV2 && own(Mode::Params).any(|(known, _)| known == name) {
        return Err(format!(
            "the function {name} is not there in conditions of WaitV2, as in Kanister"
        ));
    }
    Err(format!("there is no function {name} in the templates of Reveille"))
}

/// The functions for one rendering. Each call is counted, and is refused values that are too large.
pub(super) fn table(mode: Mode, context: &Arc<Context>) -> FuncMap {
    let functions = own(mode).chain(INTERNAL);
    let entries = functions.map(|(name, function)| {
        let context = Arc::clone(context);
        let guarded = move |args: &[Value]| {
            let size: usize = if name == FIELD { 1 } else { args.iter().map(size).sum() };
            let result = bounded(size)
                .and_then(|()| context.work.take(size))
                .and_then(|()| function(args, &context));
            result.map_err(|message| {
                let internal = name.starts_with('(');
                TemplateError::Exec(if internal {
                    message
                } else {
                    format!("{name}: {message}")
                })
            })
        };
        (name.to_owned(), Arc::new(guarded) as gotmpl::ValueFunc)
    });
    entries.collect()
}

/// An error for what would be too large.
fn bounded(size: usize) -> Result<(), String> {
    if size > MAX_TEXT {
        return Err(format!("a value is larger than {MAX_TEXT} bytes"));
    }
    Ok(())
}

fn exactly<const N: usize>(args: &[Value]) -> Result<&[Value; N], String> {
    args.try_into()
        .map_err(|_| format!("wants {N} arguments, not {}", args.len()))
}

/// That many strings. As in Go nothing else is taken for one, bytes neither.
fn texts<const N: usize>(args: &[Value]) -> Result<[&str; N], String> {
    let args: &[Value; N] = exactly(args)?;
    let mut found = [""; N];
    for (place, value) in found.iter_mut().zip(args) {
        *place = value
            .as_str()
            .ok_or_else(|| format!("wants a string, not a {} (toString makes one)", value.type_name()))?;
    }
    Ok(found)
}

fn items(args: &[Value]) -> Result<&[Value], String> {
    match exactly(args)? {
        [Value::List(items)] => Ok(items),
        [other] => Err(format!("wants a list, not a {}", other.type_name())),
    }
}

fn not_nil(args: &[Value]) -> impl Iterator<Item = &Value> {
    args.iter().filter(|value| !matches!(value, Value::Nil))
}

/// sprig's `toString`: bytes are their text.
fn string(value: &Value) -> Result<String, String> {
    match as_bytes(value) {
        Some(bytes) if matches!(value, Value::List(items) if !items.is_empty()) => {
            String::from_utf8(bytes).map_err(|_| "the bytes are no text in UTF-8".to_owned())
        }
        // Without elements a list of bytes can't be told from another one. Bytes are what occurs.
        Some(_) => Ok(String::new()),
        None => Ok(print(value)),
    }
}

/// Go's zero value of its type.
fn is_empty(value: &Value) -> bool {
    !value.is_truthy()
}

/// Go's `fmt.Sprint`: a blank between two values that are both no strings.
fn printed(args: &[Value]) -> String {
    let mut output = String::new();
    let mut text_before = true;
    for value in args {
        let is_text = matches!(value, Value::String(_));
        if !text_before && !is_text {
            output.push(' ');
        }
        output.push_str(&print(value));
        text_before = is_text;
    }
    output
}

/// Nil stays nil: the engine prints it as `<no value>`.
fn printed_value(args: &[Value], _: &Context) -> Result<Value, String> {
    match exactly(args)? {
        [value @ (Value::Nil | Value::String(_))] => Ok(value.clone()),
        [value] => Ok(text(&print(value))),
    }
}

fn escaped(args: &[Value], escape: fn(&str) -> String) -> Result<Value, String> {
    let [value] = exactly(args)?;
    let plain = match value {
        Value::Nil => "<no value>".to_owned(),
        value => print(value),
    };
    Ok(text(&escape(&plain)))
}

fn field(args: &[Value], _: &Context) -> Result<Value, String> {
    let (value, path) = args.split_first().ok_or("no value")?;
    let mut value = value.clone();
    let path: Vec<&str> = path.iter().filter_map(Value::as_str).collect();
    for (index, name) in path.iter().enumerate() {
        let before = path.get(..index).unwrap_or_default();
        value = match (value.field(name), &value) {
            (Some(found), _) => found.clone(),
            (None, Value::Nil) => return Err(nothing(before, name)),
            (None, Value::Map(_)) if before.is_empty() => return Err(format!("{name:?} not found")),
            (None, Value::Map(_)) => return Err(format!("{name:?} not found in .{}", before.join("."))),
            (None, other) => return Err(format!("a {} has no field {name:?}", other.type_name())),
        };
    }
    Ok(value)
}

/// Why there is nothing of which a field could be read.
fn nothing(before: &[&str], name: &str) -> String {
    let path = before.join(".");
    let why = match before {
        [] => return format!("there is nothing of which .{name} could be read"),
        ["Profile"] => "execution hooks have no location profile".to_owned(),
        ["Object"] => "the subject's object is not there".to_owned(),
        [kind @ ("Namespace" | "StatefulSet" | "Deployment" | "DeploymentConfig" | "PVC")] => {
            format!("the subject is no {kind}")
        }
        ["DeferPhase"] => "only the deferred phase has it".to_owned(),
        _ => format!(".{path} is null"),
    };
    format!(".{path}.{name} can't be read: {why}")
}

/// Go's `index`, which knows the zero value of a typed map.
fn index(args: &[Value], context: &Context) -> Result<Value, String> {
    let (value, keys) = args.split_first().ok_or("wants a value")?;
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::Map(map), Value::String(key)) => match map.get(key) {
                Some(found) => found.clone(),
                None => context.zeros.of(map),
            },
            _ => value.index(key).map_err(|error| super::describe(&error))?,
        };
    }
    Ok(value)
}

fn exists(args: &[Value], _: &Context) -> Result<Value, String> {
    let (value, keys) = args.split_first().ok_or("wants a value")?;
    let mut value = value.clone();
    for key in keys {
        let found = match (&value, key) {
            (Value::Map(map), Value::String(key)) => map.get(key).cloned(),
            (Value::List(_), _) => value.index(key).ok(),
            _ => None,
        };
        match found {
            Some(found) => value = found,
            None => return Ok(Value::Bool(false)),
        }
    }
    Ok(Value::Bool(true))
}

/// Go's `printf`. A Secret's bytes count as their text.
fn printf(args: &[Value], _: &Context) -> Result<Value, String> {
    let (format, args) = args.split_first().ok_or("wants a format")?;
    let format = format.as_str().ok_or("wants a string as its format")?;
    let args: Result<Vec<Value>, String> = args.iter().map(printable).collect();
    let args = args?;
    // Each verb can print the largest argument, and can ask for a width.
    let verbs = format.matches('%').count();
    let largest = args.iter().map(size).max().unwrap_or_default();
    bounded(format.len() + verbs * (largest + widest(format, &args)))?;
    sprintf(format, &args).map(|printed| text(&printed))
}

fn printable(value: &Value) -> Result<Value, String> {
    match value {
        Value::List(items) if !items.is_empty() && as_bytes(value).is_some() => string(value).map(|plain| text(&plain)),
        Value::Function(_) => Ok(text(&print(value))),
        other => Ok(other.clone()),
    }
}

/// The largest number that could be a width; the engine cuts widths at 65535.
fn widest(format: &str, args: &[Value]) -> usize {
    let written = format.split(|character: char| !character.is_ascii_digit());
    let written = written.map(|digits| {
        if digits.is_empty() {
            0
        } else {
            digits.parse().unwrap_or(usize::MAX)
        }
    });
    let given = args
        .iter()
        .filter_map(Value::as_int)
        .map(|number| usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX));
    let given = if format.contains('*') { given.max() } else { None };
    written
        .max()
        .unwrap_or_default()
        .max(given.unwrap_or_default())
        .min(usize::from(u16::MAX))
}

/// The engine's own `printf`, which it lends only to templates.
fn sprintf(format: &str, args: &[Value]) -> Result<String, String> {
    let places: Vec<String> = (0..args.len()).map(|index| format!("(index .args {index})")).collect();
    let places = places.join(" ");
    let template = gotmpl::Template::new("").parse(&format!("{{{{printf .format {places}}}}}"));
    let data = super::go_value::map([
        ("format".to_owned(), text(format)),
        ("args".to_owned(), Value::List(args.into())),
    ]);
    let printed = template.and_then(|template| template.execute_to_string(&data));
    printed.map_err(|error| super::describe(&error))
}

/// sprig would give the error's text as if it were the value.
fn b64dec(args: &[Value], _: &Context) -> Result<Value, String> {
    let [encoded] = texts(args)?;
    let plain: String = encoded
        .chars()
        .filter(|character| !matches!(character, '\r' | '\n'))
        .collect();
    let bytes = BASE64_STANDARD
        .decode(plain)
        .map_err(|_| "the value is not base64".to_owned())?;
    let decoded = String::from_utf8(bytes).map_err(|_| "the decoded value is no text in UTF-8".to_owned())?;
    Ok(text(&decoded))
}

fn join(args: &[Value], _: &Context) -> Result<Value, String> {
    let [separator, list] = exactly(args)?;
    let separator = separator.as_str().ok_or("wants a string as its separator")?;
    let parts: Vec<String> = match list {
        Value::List(items) => not_nil(items).map(string).collect::<Result<_, _>>()?,
        Value::Nil => Vec::new(),
        single => vec![string(single)?],
    };
    bounded(separator.len().saturating_mul(parts.len()))?;
    Ok(text(&parts.join(separator)))
}

fn replace(args: &[Value], _: &Context) -> Result<Value, String> {
    let [old, new, whole] = texts(args)?;
    bounded(whole.matches(old).count().saturating_mul(new.len()))?;
    Ok(text(&whole.replace(old, new)))
}

fn indented(args: &[Value]) -> Result<String, String> {
    let [spaces, whole] = exactly(args)?;
    let (Value::Int(spaces), Some(whole)) = (spaces, whole.as_str()) else {
        return Err("wants a number and a string".to_owned());
    };
    let spaces = usize::try_from(*spaces).map_err(|_| "wants a number that is not negative".to_owned())?;
    bounded(spaces.saturating_mul(whole.matches('\n').count() + 1))?;
    let pad = " ".repeat(spaces);
    Ok(format!("{pad}{}", whole.replace('\n', &format!("\n{pad}"))))
}

/// sprig's `int`: what is no number is 0.
fn int(args: &[Value], _: &Context) -> Result<Value, String> {
    let [value] = exactly(args)?;
    Ok(Value::Int(match value {
        Value::String(plain) => plain.parse().unwrap_or(0),
        Value::Bool(value) => i64::from(*value),
        other => other.as_int().unwrap_or(0),
    }))
}

fn date_in_zone(args: &[Value], context: &Context) -> Result<Value, String> {
    let [layout, moment, zone] = exactly(args)?;
    match zone.as_str() {
        Some("" | "UTC" | "Local") => formatted(layout, moment, context),
        _ => Err("knows no time zone but UTC".to_owned()),
    }
}

/// What is neither a time nor a number of seconds means now, as in sprig.
fn formatted(layout: &Value, moment: &Value, context: &Context) -> Result<Value, String> {
    let layout = layout.as_str().ok_or("wants a string as its layout")?;
    let moment = match moment {
        Value::Int(seconds) => {
            jiff::Timestamp::from_second(*seconds).map_err(|_| "the time is out of range".to_owned())?
        }
        other => as_time(other).unwrap_or(context.now),
    };
    Ok(text(&go_time::format(layout, moment)))
}

fn zero_time() -> jiff::Timestamp {
    // 1 January of the year 1.
    jiff::Timestamp::from_second(-62_135_596_800).unwrap_or_default()
}

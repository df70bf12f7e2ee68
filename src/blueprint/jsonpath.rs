//! `kubectl`'s dialect of JSONPath, as conditions of `Wait` use it: `.status.phase`, `.items[0].name`, `.x[*].ready`,
//! `.conditions[?(@.type=="Ready")].status`. Without `range`, which can't occur inside of one path.

use std::cmp::Ordering;

use serde_json::{Value, json};
use thiserror::Error;

use super::template::{from_json, print, to_json};

/// How many values a path may find, so that `..` behind `..` comes to an end.
const MAX_VALUES: usize = 100_000;
/// How deeply filters and unions may be nested.
const MAX_DEPTH: usize = 20;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct Path(Vec<Step>);

/// A text is no path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ParseError(String);

/// A path can't be followed in this object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct FindError(String);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `.name`
    Field(String),
    /// `[3]`, `[-1]`, `[1:3]`, `[*]`, and `[]`, which is the first element
    Slice(Slice),
    /// `.*`
    Wildcard,
    /// `..`
    Recursive,
    /// `[0,2]`
    Union(Vec<Path>),
    /// `[?(@.a)]`
    Exists(Path),
    /// `[?(@.a=="b")]`
    Compare(Path, Operator, Path),
    /// A text, number or boolean to compare with.
    Literal(Value),
}

/// Bounds of a slice; absent ones are the list's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slice {
    start: i64,
    end: Option<i64>,
    /// The end was not written, but comes from a single index.
    derived: bool,
    step: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Path {
    /// Parses what stands between the braces, without the leading `$`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse(text, 0)
    }

    /// The text of all values that the path finds, with blanks between them. A field that is not there is an error.
    pub fn print(&self, object: &Value) -> Result<String, FindError> {
        let values = find(vec![object], &self.0)?;
        let texts: Result<Vec<String>, FindError> = values.into_iter().map(text_of).collect();
        Ok(texts?.join(" "))
    }
}

/// Lists and maps as JSON, all else as Go prints it.
fn text_of(value: &Value) -> Result<String, FindError> {
    match value {
        Value::Null => Ok("null".to_owned()),
        Value::Array(_) | Value::Object(_) => to_json(&from_json(value)).map_err(FindError),
        plain => Ok(print(&from_json(plain))),
    }
}

fn parse(text: &str, depth: usize) -> Result<Path, ParseError> {
    if depth > MAX_DEPTH {
        return Err(ParseError(format!("is nested more than {MAX_DEPTH} deep")));
    }
    let mut parser = Parser { rest: text, depth };
    let mut steps = Vec::new();
    while !parser.rest.is_empty() {
        parser.next(&mut steps)?;
    }
    Ok(Path(steps))
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self, steps: &mut Vec<Step>) -> Result<(), ParseError> {
        if self.take("[?(") {
            steps.push(self.filter()?);
        } else if self.take("..") {
            if steps.last() == Some(&Step::Recursive) {
                return Err(ParseError("has .. twice in a row".to_owned()));
            }
            steps.push(Step::Recursive);
            if self.rest.starts_with(is_word) {
                steps.push(self.field());
            }
        } else if self.take("[") {
            let (inner, rest) = self
                .rest
                .split_once(']')
                .filter(|(inner, _)| !inner.contains('\n'))
                .ok_or_else(|| ParseError("has a [ without its ]".to_owned()))?;
            self.rest = rest;
            steps.extend(self.brackets(inner)?);
        } else if self.take(".") {
            steps.push(self.field());
        } else if self.rest.starts_with(['"', '\'']) {
            steps.push(Step::Literal(Value::String(self.quoted()?)));
        } else if self
            .rest
            .starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-'))
        {
            steps.push(Step::Literal(self.number()?));
        } else if self.rest.starts_with(is_word) {
            let word = self.until(is_terminator);
            let value = match word {
                "true" => true,
                "false" => false,
                _ => {
                    return Err(ParseError(format!(
                        "holds the word {word:?}, which means nothing there"
                    )));
                }
            };
            steps.push(Step::Literal(Value::Bool(value)));
        } else if !(self.take(" ") || self.take("@") || self.take("$")) {
            let first = self.rest.chars().next().unwrap_or_default();
            return Err(ParseError(format!("holds a {first:?} where none may be")));
        }
        Ok(())
    }

    fn take(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Takes all characters up to one that ends it.
    fn until(&mut self, end: fn(char) -> bool) -> &'a str {
        let at = self.rest.find(end).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(at);
        self.rest = rest;
        taken
    }

    /// A field's name; a backslash takes the meaning from the character behind it.
    fn field(&mut self) -> Step {
        let mut name = String::new();
        let mut characters = self.rest.char_indices();
        let end = loop {
            match characters.next() {
                Some((_, '\\')) => name.extend(characters.next().map(|(_, escaped)| escaped)),
                Some((index, character)) if is_terminator(character) => break index,
                Some((_, character)) => name.push(character),
                None => break self.rest.len(),
            }
        };
        let written = self.rest.get(..end).unwrap_or_default();
        self.rest = self.rest.get(end..).unwrap_or_default();
        if written == "*" {
            Step::Wildcard
        } else {
            Step::Field(name.replace('\\', ""))
        }
    }

    fn number(&mut self) -> Result<Value, ParseError> {
        let signed = usize::from(self.rest.starts_with(['+', '-']));
        let digits = self
            .rest
            .bytes()
            .skip(signed)
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.');
        let (number, rest) = self.rest.split_at(signed + digits.count());
        self.rest = rest;
        if let Ok(integer) = number.parse::<i64>() {
            return Ok(json!(integer));
        }
        let float = number.parse::<f64>().map(|float| json!(float));
        float.map_err(|_| ParseError(format!("holds {number:?}, which is no number")))
    }

    /// A quoted text. Only a quote and a backslash can be escaped.
    fn quoted(&mut self) -> Result<String, ParseError> {
        let unclosed = || ParseError("has a quote without its end".to_owned());
        let mut characters = self.rest.char_indices();
        let (_, quote) = characters.next().ok_or_else(unclosed)?;
        let mut text = String::new();
        loop {
            match characters.next().ok_or_else(unclosed)? {
                (_, '\n') => return Err(unclosed()),
                (_, '\\') => match characters.next().ok_or_else(unclosed)? {
                    (_, escaped) if escaped == quote || escaped == '\\' => text.push(escaped),
                    (_, other) => {
                        return Err(ParseError(format!(
                            "holds the escape \\{other}, which is not supported"
                        )));
                    }
                },
                (index, character) if character == quote => {
                    self.rest = self.rest.get(index + 1..).unwrap_or_default();
                    return Ok(text);
                }
                (_, character) => text.push(character),
            }
        }
    }

    fn brackets(&self, inner: &str) -> Result<Vec<Step>, ParseError> {
        let inner = if inner == "*" { ":" } else { inner };
        if inner.contains(',') {
            let parts = inner
                .split(',')
                .map(|part| parse(&format!("[{}]", part.trim_matches(' ')), self.depth + 1));
            return Ok(vec![Step::Union(parts.collect::<Result<_, _>>()?)]);
        }
        // `['a.b']` is `.a.b`; a dot of a name is escaped here too.
        let key = inner.strip_prefix('\'').and_then(|inner| inner.strip_suffix('\''));
        if let Some(key) = key.filter(|key| !key.contains('\'')) {
            return parse(&format!(".{key}"), self.depth + 1).map(|path| path.0);
        }
        slice(inner).map(|slice| vec![Step::Slice(slice)])
    }

    /// Behind `[?(`: up to the `)]` that is in no quotes.
    fn filter(&mut self) -> Result<Step, ParseError> {
        let inner = filter_text(self.rest).ok_or_else(|| ParseError("has a [?( without its )]".to_owned()))?;
        self.rest = self.rest.get(inner.len() + 2..).unwrap_or_default();
        let is_operator = |character: char| matches!(character, '!' | '<' | '>' | '=');
        let comparison = inner.find(is_operator).filter(|start| *start > 0).and_then(|start| {
            let (left, rest) = inner.split_at(start);
            let right = rest.trim_start_matches(is_operator);
            let operator = rest.get(..rest.len() - right.len())?;
            (!right.is_empty()).then_some((left, operator, right))
        });
        let Some((left, operator, right)) = comparison else {
            return parse(inner, self.depth + 1).map(Step::Exists);
        };
        let operator = match operator {
            "==" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            other => return Err(ParseError(format!("holds the operator {other:?}, which is none"))),
        };
        Ok(Step::Compare(
            parse(left, self.depth + 1)?,
            operator,
            parse(right, self.depth + 1)?,
        ))
    }
}

/// The text of a filter: as in `kubectl` it may hold one quoted text.
fn filter_text(rest: &str) -> Option<&str> {
    let mut quote = None;
    let mut closed = false;
    let mut before = '\0';
    for (index, character) in rest.char_indices() {
        match character {
            '\n' => return None,
            '"' | '\'' if quote.is_none() => quote = Some(character),
            _ if Some(character) == quote && before != '\\' => closed = true,
            ')' if quote.is_some() == closed => {
                let after = rest.get(index + 1..)?;
                return if after.starts_with(']') {
                    rest.get(..index)
                } else {
                    None
                };
            }
            _ => {}
        }
        before = character;
    }
    None
}

/// `3`, `-1`, `1:3`, `:`, `::2` or nothing at all.
fn slice(text: &str) -> Result<Slice, ParseError> {
    let bad = || ParseError(format!("holds the index [{text}], which is none"));
    let parts: Vec<&str> = text.split(':').collect();
    let number = |part: &&str| match *part {
        "" => Ok(None),
        digits if digits.starts_with('+') => Err(bad()),
        digits => digits
            .parse::<i32>()
            .map(|number| Some(i64::from(number)))
            .map_err(|_| bad()),
    };
    let numbers = parts.iter().map(number).collect::<Result<Vec<_>, _>>()?;
    let slice = match numbers.as_slice() {
        [start] => Slice {
            start: start.unwrap_or(0),
            end: Some(start.unwrap_or(0) + 1),
            derived: true,
            step: None,
        },
        [start, end] => Slice {
            start: start.unwrap_or(0),
            end: *end,
            ..Slice::default()
        },
        [start, end, step] => Slice {
            start: start.unwrap_or(0),
            end: *end,
            step: *step,
            ..Slice::default()
        },
        _ => return Err(bad()),
    };
    Ok(slice)
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

fn is_terminator(character: char) -> bool {
    matches!(
        character,
        ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}'
    )
}

fn find<'a>(values: Vec<&'a Value>, steps: &'a [Step]) -> Result<Vec<&'a Value>, FindError> {
    let mut values = values;
    for step in steps {
        values = one_step(&values, step)?;
        if values.len() > MAX_VALUES {
            return Err(FindError(format!("it finds more than {MAX_VALUES} values")));
        }
    }
    Ok(values)
}

fn one_step<'a>(values: &[&'a Value], step: &'a Step) -> Result<Vec<&'a Value>, FindError> {
    let mut found = Vec::new();
    match step {
        Step::Field(name) => {
            found.extend(values.iter().filter_map(|value| value.as_object()?.get(name)));
            if found.is_empty() && !values.is_empty() {
                return Err(FindError(format!("{name} is not found")));
            }
        }
        Step::Slice(slice) => {
            for value in values.iter().filter(|value| !value.is_null()) {
                found.extend(part(list(value)?, *slice)?);
            }
        }
        Step::Wildcard => found.extend(values.iter().flat_map(|value| children(value))),
        Step::Recursive => {
            for value in values {
                descend(value, &mut found)?;
            }
        }
        Step::Union(paths) => {
            for path in paths {
                found.extend(find(values.to_vec(), &path.0)?);
            }
        }
        Step::Exists(path) => {
            for value in values {
                let has = |item: &&Value| find(vec![*item], &path.0).is_ok_and(|found| !found.is_empty());
                found.extend(list(value)?.iter().filter(has));
            }
        }
        Step::Compare(left, operator, right) => {
            for value in values {
                for item in list(value)? {
                    if compare(item, left, *operator, right)? {
                        found.push(item);
                    }
                }
            }
        }
        Step::Literal(value) => found.push(value),
    }
    Ok(found)
}

fn list(value: &Value) -> Result<&Vec<Value>, FindError> {
    value
        .as_array()
        .ok_or_else(|| FindError(format!("{} is not a list", kind(value))))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

/// The lists and maps in a value, itself first, each before what is in it.
fn descend<'a>(value: &'a Value, found: &mut Vec<&'a Value>) -> Result<(), FindError> {
    let children = children(value);
    if children.is_empty() {
        return Ok(());
    }
    found.push(value);
    if found.len() > MAX_VALUES {
        return Err(FindError(format!("it finds more than {MAX_VALUES} values")));
    }
    children.into_iter().try_for_each(|child| descend(child, found))
}

fn part(items: &[Value], slice: Slice) -> Result<impl Iterator<Item = &Value>, FindError> {
    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let start = if slice.start < 0 {
        slice.start + length
    } else {
        slice.start
    };
    let end = match slice.end {
        None => length,
        Some(end) if end < 0 || (end == 0 && slice.derived) => end + length,
        Some(end) => end,
    };
    let out = |index: i64| {
        FindError(format!(
            "the index {index} is out of bounds: there are {length} elements"
        ))
    };
    let step = match slice.step {
        Some(step) if step <= 0 => return Err(FindError("the step of a slice must be positive".to_owned())),
        step => step.unwrap_or(1),
    };
    if start != end {
        if !(0..length).contains(&start) {
            return Err(out(start));
        }
        if !(0..=length).contains(&end) {
            return Err(out(end - 1));
        }
        if start > end {
            return Err(FindError(format!("the slice starts at {start}, behind its end {end}")));
        }
    }
    // Both are within the list here, or they are equal and there is nothing to take.
    let bounds = (usize::try_from(start), usize::try_from(end));
    let part = match bounds {
        (Ok(start), Ok(end)) if start != end => items.get(start..end).unwrap_or_default(),
        _ => &[],
    };
    Ok(part.iter().step_by(usize::try_from(step).unwrap_or(1)))
}

fn compare(item: &Value, left: &Path, operator: Operator, right: &Path) -> Result<bool, FindError> {
    let (lefts, rights) = (find(vec![item], &left.0)?, find(vec![item], &right.0)?);
    let (left, right) = match (lefts.as_slice(), rights.as_slice()) {
        ([], _) | (_, []) => return Ok(false),
        ([left], [right]) => (*left, *right),
        _ => return Err(FindError("a filter can only compare one value with one".to_owned())),
    };
    let ordering = order(left, right)
        .ok_or_else(|| FindError(format!("a filter can't compare {} with {}", kind(left), kind(right))))?;
    if left.is_boolean() && !matches!(operator, Operator::Equal | Operator::NotEqual) {
        return Err(FindError("a filter can't say which boolean is less".to_owned()));
    }
    Ok(match operator {
        Operator::Equal => ordering.is_eq(),
        Operator::NotEqual => ordering.is_ne(),
        Operator::Less => ordering.is_lt(),
        Operator::LessOrEqual => ordering.is_le(),
        Operator::Greater => ordering.is_gt(),
        Operator::GreaterOrEqual => ordering.is_ge(),
    })
}

/// Nothing for values that Go does not compare: of two kinds, also an integer and a float.
fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => Some(left.cmp(&right)),
            (None, None) => left.as_f64()?.partial_cmp(&right.as_f64()?),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests;

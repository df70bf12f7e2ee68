//! Does each block have its end? The engine does not ask: it takes a missing `{{ end }}` for the end of the text, and drops
//! what follows one too many.

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    If,
    With,
    Range,
    Define,
}

/// A block that is open.
struct Block {
    kind: Kind,
    line: usize,
    has_else: bool,
}

/// An error with its line if blocks don't fit. The text is one that the engine can read.
pub(super) fn check(source: &str) -> Result<(), String> {
    let mut open: Vec<Block> = Vec::new();
    let mut rest = source;
    while let Some((_, behind)) = rest.split_once("{{") {
        let inside = behind_trim_marker(behind);
        let action = inside.trim_start();
        let line = 1 + newlines(source.get(..source.len() - action.len()).unwrap_or_default());
        if action.starts_with("/*") && !inside.starts_with("/*") {
            return Err(format!(
                "line {line}: a comment begins right behind its braces, without a blank"
            ));
        }
        word(action, &mut open).map_err(|problem| format!("line {line}: {problem}"))?;
        if let Some(block) = open.last_mut().filter(|block| block.line == 0) {
            block.line = line;
        }
        rest = after_action(behind);
    }
    match open.last() {
        Some(block) => Err(format!(
            "line {}: this {} has no {{{{ end }}}}",
            block.line,
            block.kind.word()
        )),
        None => Ok(()),
    }
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::If => "if",
            Self::With => "with",
            Self::Range => "range",
            Self::Define => "define or block",
        }
    }
}

/// What follows a `- ` that trims the text before it.
fn behind_trim_marker(text: &str) -> &str {
    let trimmed = text
        .strip_prefix('-')
        .and_then(|rest| rest.strip_prefix([' ', '\t', '\r', '\n']));
    trimmed.unwrap_or(text)
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// What the first word of an action does to the open blocks.
fn word(action: &str, open: &mut Vec<Block>) -> Result<(), String> {
    let (word, rest) = first_word(action);
    let kind = match word {
        "if" => Kind::If,
        "with" => Kind::With,
        "range" => Kind::Range,
        "define" if !open.is_empty() => return Err("a define stands in no other block".to_owned()),
        "define" | "block" => Kind::Define,
        "else" => return or_else(first_word(rest).0, open),
        "end" => {
            return open
                .pop()
                .map(drop)
                .ok_or_else(|| "this end is one too many".to_owned());
        }
        "break" | "continue" => {
            let define = open.iter().rposition(|block| block.kind == Kind::Define).unwrap_or(0);
            let in_range = open.iter().skip(define).any(|block| block.kind == Kind::Range);
            return if in_range {
                Ok(())
            } else {
                Err(format!("this {word} stands in no range"))
            };
        }
        _ => return Ok(()),
    };
    open.push(Block {
        kind,
        line: 0,
        has_else: false,
    });
    Ok(())
}

/// `else if` and `else with` go on with the block, which has one end.
fn or_else(next: &str, open: &mut [Block]) -> Result<(), String> {
    let block = open
        .last_mut()
        .filter(|block| block.kind != Kind::Define && !block.has_else);
    let block = block.ok_or_else(|| "this else belongs to no if, with or range".to_owned())?;
    block.has_else = match (block.kind, next) {
        (Kind::If, "if") | (Kind::With, "with") => false,
        (_, "if" | "with") => return Err(format!("this else {next} belongs to no {next}")),
        _ => true,
    };
    Ok(())
}

fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let is_word = |character: char| character == '_' || character.is_alphanumeric();
    text.split_at(text.find(|character| !is_word(character)).unwrap_or(text.len()))
}

/// What follows the end of an action; texts in quotes and comments may hold braces.
fn after_action(action: &str) -> &str {
    let trimmed = behind_trim_marker(action);
    if trimmed.starts_with("/*") {
        let comment_end = trimmed.split_once("*/").map_or("", |(_, rest)| rest);
        return comment_end.split_once("}}").map_or("", |(_, rest)| rest);
    }
    let mut quote = None;
    let mut characters = trimmed.char_indices();
    while let Some((index, character)) = characters.next() {
        match (quote, character) {
            (None, '"' | '`' | '\'') => quote = Some(character),
            (None, '}') if trimmed.get(index..).is_some_and(|rest| rest.starts_with("}}")) => {
                return trimmed.get(index + 2..).unwrap_or_default();
            }
            (Some('"' | '\''), '\\') => {
                characters.next();
            }
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_fit() {
        for text in [
            "",
            "{ } }}",
            "{{ if .a }}{{ else if .b }}{{ else }}{{ end }}",
            "{{- range .a -}}{{ if . }}{{ break }}{{ end }}{{- end -}}",
            "{{ with .a }}{{ else with .b }}{{ end }}",
            "{{ define \"a\" }}{{ range . }}{{ continue }}{{ end }}{{ end }}{{ block \"b\" . }}{{ end }}",
            "{{ `{{ end }}` }}{{ \"}} {{ end }} \\\" {{ if\" }}{{ '}' }}{{/* }} {{ if */}}{{- /* }} */ -}}",
            "{{ .end }}{{ ending }}{{ $if }}",
            "{{-\nif .a }}{{-\tend }}",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn blocks_that_do_not() {
        let fails = |text: &str, expected: &str| assert_eq!(check(text), Err(expected.to_owned()), "{text}");
        fails("a\n{{ if .a }}b", "line 2: this if has no {{ end }}");
        fails("a\n\n{{ end }}b", "line 3: this end is one too many");
        fails(
            "\n{{ /* x */ }}",
            "line 2: a comment begins right behind its braces, without a blank",
        );
        fails("{{ else }}", "line 1: this else belongs to no if, with or range");
        fails(
            "{{ if .a }}{{ else }}{{ else }}{{ end }}",
            "line 1: this else belongs to no if, with or range",
        );
        fails(
            "{{ if .a }}{{ break }}{{ end }}",
            "line 1: this break stands in no range",
        );
        fails(
            "{{ if .a }}{{ define \"x\" }}{{ end }}{{ end }}",
            "line 1: a define stands in no other block",
        );
        fails(
            "{{ range .a }}{{ else if .b }}{{ end }}",
            "line 1: this else if belongs to no if",
        );
    }
}

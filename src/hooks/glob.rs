//! Velero's patterns for namespaces, as its library (gobwas/glob) reads them.
//!
//! Own code because the dialect is that library's alone: see `docs/ARCHITECTURE.md`, "Own code".

use std::collections::BTreeSet;

/// How deep braces may be nested; deeper ones could exhaust the stack.
const DEPTH: usize = 16;

/// A pattern: `*` and `**` any run of characters, `?` one, `[abc]` `[a-z]` `[!a]` `[!a-z]` one of a set, `{a,b}` either,
/// `\` takes the next character as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Any,
    Set { negated: bool, ranges: Vec<(char, char)> },
    Either(Vec<Vec<Token>>),
}

impl Glob {
    /// Reads a pattern; the error is half a sentence.
    pub fn parse(pattern: &str) -> Result<Self, &'static str> {
        let mut rest = pattern.chars();
        sequence(&mut rest, 0).map(Self)
    }

    /// Whether the whole of `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        ends(&self.0, &name, BTreeSet::from([0])).contains(&name.len())
    }
}

/// Up to the end of the pattern or, inside braces, up to a comma or the closing brace, which are left in `rest`.
fn sequence(rest: &mut std::str::Chars, depth: usize) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    loop {
        let before = rest.clone();
        let Some(letter) = rest.next() else { return Ok(tokens) };
        tokens.push(match letter {
            ',' | '}' if depth > 0 => {
                *rest = before;
                return Ok(tokens);
            }
            '*' => Token::Any,
            '?' => Token::One,
            '[' => set(rest)?,
            '{' if depth == DEPTH => return Err("its braces are nested too deeply"),
            '{' => either(rest, depth + 1)?,
            '\\' => Token::Literal(rest.next().ok_or("it ends with a backslash")?),
            other => Token::Literal(other),
        });
    }
}

/// Behind an opening brace.
fn either(rest: &mut std::str::Chars, depth: usize) -> Result<Token, &'static str> {
    let mut alternatives = Vec::new();
    loop {
        alternatives.push(sequence(rest, depth)?);
        match rest.next() {
            Some(',') => {}
            Some(_) => return Ok(Token::Either(alternatives)),
            None => return Err("a brace is not closed"),
        }
    }
}

/// Behind an opening bracket: one range, or a list of characters; not both.
fn set(rest: &mut std::str::Chars) -> Result<Token, &'static str> {
    const OPEN: &str = "a bracket is not closed";
    let negated = rest.as_str().starts_with('!');
    if negated {
        rest.next();
    }
    let mut ahead = rest.clone();
    if let (Some(low), Some('-')) = (ahead.next(), ahead.next()) {
        *rest = ahead;
        let high = rest.next().ok_or(OPEN)?;
        return match rest.next() {
            None => Err(OPEN),
            Some(']') if low <= high => Ok(Token::Set {
                negated,
                ranges: vec![(low, high)],
            }),
            Some(']') => Err("a range ends before it begins"),
            Some(_) => Err("a range stands in brackets with something else"),
        };
    }
    let mut ranges = Vec::new();
    loop {
        let letter = match rest.next().ok_or(OPEN)? {
            ']' if ranges.is_empty() => return Err("brackets with nothing in them"),
            ']' => return Ok(Token::Set { negated, ranges }),
            '\\' => rest.next().ok_or(OPEN)?,
            other => other,
        };
        ranges.push((letter, letter));
    }
}

/// Where the tokens can end if they begin at any of `starts`. No backtracking: the work is bounded by the product of both lengths.
fn ends(tokens: &[Token], name: &[char], starts: BTreeSet<usize>) -> BTreeSet<usize> {
    let mut places = starts;
    for token in tokens {
        let one = |fits: &dyn Fn(char) -> bool| {
            let fitting = places
                .iter()
                .filter(|place| name.get(**place).is_some_and(|letter| fits(*letter)));
            fitting.map(|place| place + 1).collect()
        };
        places = match token {
            Token::Literal(letter) => one(&|other| other == *letter),
            Token::One => one(&|_| true),
            Token::Set { negated, ranges } => {
                one(&|letter| *negated != ranges.iter().any(|(low, high)| (*low..=*high).contains(&letter)))
            }
            Token::Any => places
                .first()
                .map_or_else(BTreeSet::new, |first| (*first..=name.len()).collect()),
            Token::Either(alternatives) => alternatives
                .iter()
                .flat_map(|tokens| ends(tokens, name, places.clone()))
                .collect(),
        };
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(
                Glob::parse(pattern).unwrap().matches(name),
                expected,
                "{pattern} {name}"
            );
        };
        for (pattern, name) in [
            ("*", ""),
            ("**", "ab"),
            ("a*", "a"),
            ("*-db", "prod-db"),
            ("a*b*c", "axbxbc"),
            ("te?m", "team"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[abc]", "c"),
            ("[!abc]", "d"),
            ("{prod,stage}-db", "stage-db"),
            ("{a,}", ""),
            ("{a*,{b,c}d}", "cd"),
            ("{}x", "x"),
            (r"\*", "*"),
            (r"[\]]", "]"),
            ("a}", "a}"),
            ("a,b", "a,b"),
            (r"{\,}", ","),
            ("[^a]", "a"),
            ("[[a]", "["),
        ] {
            check(pattern, name, true);
        }
        for (pattern, name) in [
            ("", "a"),
            ("a*", "ba"),
            ("te?m", "teaam"),
            ("[a-c]", "d"),
            ("[!a]", "a"),
            ("{prod,stage}", "prodstage"),
            ("[^a]", "b"),
            (r"\*", "a"),
            ("ab*ab", "ab"),
            ("?", ""),
        ] {
            check(pattern, name, false);
        }
    }

    #[test]
    fn what_is_no_pattern() {
        for pattern in [
            "[", "[]", "[!]", "[a", "[c-a]", "[a-cx]", "[a-", "{a", "{a,{b}", "a\\", "[\\",
        ] {
            assert!(Glob::parse(pattern).is_err(), "{pattern}");
        }
        assert!(Glob::parse(&"{".repeat(100_000)).is_err());
    }

    #[test]
    fn hostile_patterns_take_no_time() {
        let glob = Glob::parse(&format!("{}b", "*a".repeat(2000))).unwrap();
        assert!(!glob.matches(&"a".repeat(63)));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(pattern in "[\\PC{}\\[\\]\\\\*?!,-]{0,20}", name in "\\PC{0,10}") {
            let _ = Glob::parse(&pattern).map(|glob| glob.matches(&name));
        }
    }
}

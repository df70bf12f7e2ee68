//! A command's output: read to the end, kept only at its end, cleaned of secrets, and made harmless for terminals, logs and
//! JSON.

use std::collections::VecDeque;

use clap::Args;

use super::redact::{BadPattern, PLACEHOLDER, Redactor};

/// How much before that is held so that a secret is known although its beginning is not shown. Longer ones are private keys
/// and single words, which are known by their end.
const LOOK_BACK: usize = 8192;

/// What the command line says about commands' output.
#[derive(Args, Debug)]
pub struct OutputArgs {
    /// How many bytes of each command's standard output and error are kept: its end, without secrets. 0 keeps none.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    output_bytes: u32,
    /// A further regular expression for what must not be kept of output: its first group, or all that it matches (may be
    /// given several times).
    #[arg(long = "redact", value_name = "REGEX")]
    redact: Vec<String>,
}

impl OutputArgs {
    /// What becomes of output by these settings.
    pub fn rules(&self) -> Result<OutputRules, BadPattern> {
        Ok(OutputRules {
            tail: self.output_bytes as usize,
            redactor: Redactor::new(&self.redact)?,
        })
    }
}

/// What becomes of commands' output.
#[derive(Clone, Debug)]
pub struct OutputRules {
    /// How many bytes of each stream are shown; with 0 none are.
    pub tail: usize,
    /// Takes secrets out.
    pub redactor: Redactor,
}

impl OutputRules {
    /// Words of somebody else (the kubelet, the container runtime), which may quote what was run.
    pub fn words(&self, text: &str) -> String {
        escape(&self.redactor.clean(text))
    }
}

/// The last bytes of a stream.
#[derive(Debug)]
pub struct Tail {
    held: VecDeque<u8>,
    room: usize,
    total: u64,
}

impl Tail {
    /// An empty one that can show this many bytes.
    pub fn new(shown: usize) -> Self {
        Self {
            held: VecDeque::new(),
            room: if shown == 0 { 0 } else { shown.saturating_add(LOOK_BACK) },
            total: 0,
        }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        let kept = chunk.get(chunk.len().saturating_sub(self.room)..).unwrap_or(chunk);
        self.held.extend(kept);
        let surplus = self.held.len().saturating_sub(self.room);
        self.held.drain(..surplus);
        self.total = self.total.saturating_add(chunk.len() as u64);
    }

    /// Only the end of the stream was told; it had this many bytes in all.
    pub fn was(&mut self, total: u64) {
        self.total = self.total.max(total);
    }

    /// The text for people: without secrets; half characters and what is no UTF-8 become `\u{fffd}`, control characters but
    /// new lines and tabs are escaped, and what was left out is said.
    pub fn text(&self, rules: &OutputRules) -> String {
        if rules.tail == 0 || self.held.is_empty() {
            return String::new();
        }
        let held: Vec<u8> = self.held.iter().copied().collect();
        let (before, shown) = held.split_at(held.len().saturating_sub(rules.tail));
        let mut text = String::from_utf8_lossy(before).into_owned();
        let mut start = text.len();
        text.push_str(&String::from_utf8_lossy(shown));
        let is_whole = self.total == held.len() as u64;
        let in_a_word = !is_whole && !text.get(..start).unwrap_or_default().contains(char::is_whitespace);
        if in_a_word {
            // Its beginning, which might say that it is a secret, is gone.
            let rest = text.get(start..).unwrap_or_default();
            start += rest.find(char::is_whitespace).unwrap_or(rest.len());
        }
        let mut clean = rules.redactor.clean_from(&text, start);
        if in_a_word {
            clean.insert_str(0, PLACEHOLDER);
        }
        let clean = escape(&clean);
        match self.total.saturating_sub(shown.len() as u64) {
            0 => clean,
            missing => format!("… ({missing} bytes before this are not kept)\n{clean}"),
        }
    }
}

/// Escapes control characters other than new lines and tabs.
pub fn escape(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => clean.push(c),
            c if c.is_control() => clean.extend(c.escape_default()),
            // Marks that turn the direction of writing can hide what a line says.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                clean.extend(c.escape_unicode());
            }
            c => clean.push(c),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(tail: usize) -> OutputRules {
        OutputRules {
            tail,
            redactor: Redactor::new(&[]).unwrap(),
        }
    }

    fn shown(chunks: &[&[u8]], tail: usize) -> String {
        let mut stream = Tail::new(tail);
        for chunk in chunks {
            stream.push(chunk);
        }
        stream.text(&rules(tail))
    }

    #[test]
    fn keeps_the_end_and_says_what_is_missing() {
        let lines = "0123456789\n".repeat(1000);
        let text = shown(&[lines.as_bytes(), b"end"], 4096);
        assert!(text.ends_with("89\nend") && text.starts_with("… (6907 bytes"), "{text}");
        assert_eq!(text.split_once('\n').unwrap().1.len(), 4096);
        assert_eq!(shown(&[b"all"], 4096), "all");
        assert_eq!(shown(&[b"12 3456"], 5), "… (2 bytes before this are not kept)\n 3456");
        assert_eq!(
            shown(&[lines.as_bytes()], 0),
            "",
            "nothing is kept where nothing is asked for"
        );
    }

    #[test]
    fn hostile_bytes_are_harmless() {
        assert_eq!(
            shown(&[b"a\x1b[31mred\0\r\n\tb\xff\xc3"], 100),
            "a\\u{1b}[31mred\\u{0}\\r\n\tb\u{fffd}\u{fffd}"
        );
        assert_eq!(escape("\u{202e}x"), "\\u{202e}x");
        // Half a character at the beginning of what is shown.
        assert!(shown(&["x ".as_bytes(), "ää".repeat(50).as_bytes()], 9).ends_with("\u{fffd}ääää"));
    }

    #[test]
    fn no_half_of_a_secret_survives_the_cut() {
        let secret = "s3cr3t".repeat(4);
        // Wherever the cut falls in it.
        for after in 0..60 {
            let text = format!("{} password={secret} {}", "x ".repeat(20), "y".repeat(after));
            assert!(!shown(&[text.as_bytes()], 48).contains("s3cr3t"), "{after}");
        }
        // A word and a key that begin before everything that is held.
        let word = format!("token={} rest", "s3cr3t".repeat(4000));
        assert!(shown(&[word.as_bytes()], 4096).ends_with("\n<redacted> rest"));
        let key = format!(
            "-----BEGIN PRIVATE KEY-----\n{}-----END PRIVATE KEY-----\nrest",
            "s3cr3ts3cr3t\n".repeat(2000)
        );
        assert!(shown(&[key.as_bytes()], 4096).ends_with("\n<redacted>\nrest"));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn never_more_than_the_limit(chunks in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..9000), 0..4), shown in 0_usize..5000) {
            let mut tail = Tail::new(shown);
            let total: usize = chunks.iter().map(Vec::len).sum();
            for chunk in &chunks {
                tail.push(chunk);
            }
            proptest::prop_assert!(tail.held.len() <= shown + LOOK_BACK);
            proptest::prop_assert_eq!(tail.total, total as u64);
            // A byte becomes ten characters at most: one escaped, or a secret of one letter.
            proptest::prop_assert!(tail.text(&rules(shown)).len() <= 60 + shown * 10 + PLACEHOLDER.len());
        }
    }
}

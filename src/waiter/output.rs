//! A command's output: read to the end, kept only at its end, and made harmless for terminals, logs and JSON.

use std::collections::VecDeque;

/// How much of each stream is kept, in bytes.
pub const TAIL_BYTES: usize = 4096;

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl Tail {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        let kept = chunk.get(chunk.len().saturating_sub(TAIL_BYTES)..).unwrap_or(chunk);
        self.bytes.extend(kept);
        let surplus = self.bytes.len().saturating_sub(TAIL_BYTES);
        self.bytes.drain(..surplus);
        self.dropped += (surplus + chunk.len() - kept.len()) as u64;
    }

    /// The text for people: the first cut character and what is no UTF-8 become `\u{fffd}`, control characters but new lines
    /// and tabs are escaped, and what was left out is said.
    pub fn text(&self) -> String {
        let (a, b) = self.bytes.as_slices();
        let text = escape(&String::from_utf8_lossy(&[a, b].concat()));
        if self.dropped == 0 {
            text
        } else {
            format!("… ({} bytes before this are not kept)\n{text}", self.dropped)
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

    #[test]
    fn keeps_the_end_and_says_what_is_missing() {
        let mut tail = Tail::default();
        for _ in 0..1000 {
            tail.push(b"0123456789");
        }
        tail.push(b"end");
        assert!(tail.text().ends_with("89end") && tail.text().starts_with("… (5907 bytes"));
        let mut one = Tail::default();
        one.push(&vec![b'x'; 100_000]);
        assert!(one.text().contains("95904 bytes") && one.bytes.len() == TAIL_BYTES);
    }

    #[test]
    fn hostile_bytes_are_harmless() {
        let mut tail = Tail::default();
        tail.push(b"a\x1b[31mred\0\r\n\tb\xff\xc3");
        assert_eq!(tail.text(), "a\\u{1b}[31mred\\u{0}\\r\n\tb\u{fffd}\u{fffd}");
        assert_eq!(escape("\u{202e}x"), "\\u{202e}x");
    }

    proptest::proptest! {
        #[test]
        fn never_more_than_the_limit(chunks in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..9000), 0..6)) {
            let mut tail = Tail::default();
            let total: usize = chunks.iter().map(Vec::len).sum();
            for chunk in &chunks {
                tail.push(chunk);
            }
            proptest::prop_assert!(tail.bytes.len() <= TAIL_BYTES);
            proptest::prop_assert_eq!(tail.bytes.len() as u64 + tail.dropped, total as u64);
            let _ = tail.text();
        }
    }
}

//! Short digests for names that must be the same each time.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// The first `bytes` bytes (at most 32) of the SHA-256 of a text, as two hex digits each.
pub fn hex(text: &str, bytes: usize) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .take(bytes)
        .fold(String::with_capacity(bytes * 2), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}"); // writing to a String can't fail
            hex
        })
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_sha256() {
        assert_eq!(super::hex("", 4), "e3b0c442");
        assert_eq!(super::hex("", 99).len(), 64);
    }
}

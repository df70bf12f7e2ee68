//! Takes secrets out of text that commands wrote. Pure, and linear in the text: the `regex` crate never backtracks.
//!
//! It is a net, not a wall: what does not look like a secret stays. Where even that is too much, `--output-bytes 0` keeps
//! no output at all.

use std::{ops::Range, sync::LazyLock};

use regex::{Regex, RegexBuilder};

/// What stands in a secret's place.
pub const PLACEHOLDER: &str = "<redacted>";
/// How large a user's pattern may get when it is compiled, in bytes.
const PATTERN_SIZE: usize = 1 << 20;
/// How often text that has been cleaned is looked at again, at most.
const MORE_ROUNDS: usize = 4;

/// Words in the names of things that are secret.
const KEY: &str = r"(?:pass(?:word|wd|phrase|code)[0-9A-Za-z_.-]*|pwd[0-9A-Za-z_.-]*|secret[0-9A-Za-z_.-]*|token[0-9A-Za-z_.-]*|credential[0-9A-Za-z_.-]*|(?:api|access|account|private|encryption|signing|shared)[_-]?key[0-9A-Za-z_.-]*|[_-]pass|(?-u:\b)pass|(?-u:\b)pw)";

/// What follows such a name. The first group is the secret.
const AFTER_KEY: [&str; 7] = [
    // key: "value"
    r#"["']?[ \t]*(?::=|=>|[=:])[ \t]*"((?:[^"\\\r\n]|\\[^\r\n])*)"#,
    // key: \"value\", in a string of JSON
    r#"(?:\\*["'])?[ \t]*(?::=|=>|[=:])[ \t]*\\+"((?:[^"\\\r\n]|\\[^"\r\n])*)"#,
    // key: 'value'
    r#"["']?[ \t]*(?::=|=>|[=:])[ \t]*'([^'\r\n]*)"#,
    // key=value: one word, and the next one if this is a key again
    r#"(?:\\*["'])?[ \t]*(?::=|=>|[=:])[ \t]*((?:[^\s\x00"'\\{\[]|\\[^\s\x00"'])(?:[^\s\x00]*[:=][ \t]+)*[^\s\x00]*)"#,
    // key: [value, value]
    r#"["']?[ \t]*(?::=|=>|[=:])[ \t]*\[([^\[\]\r\n][^\]\r\n]*)"#,
    // key: | and lines that are indented (YAML)
    r#"["']?[ \t]*:[ \t]*[|>][-+\d]*[ \t]*((?:\r?\n[ \t]+[^\r\n]*)+)"#,
    // <key>value</key>
    r"[^<>\r\n]*>([^<\r\n]+)<",
];

/// Patterns that need no such name, or have it (`<KEY>`) elsewhere. The first group, or else the whole match, is the secret.
const PATTERNS: [&str; 13] = [
    // A private key, to its end or that of the text; and the end of one whose beginning is not kept.
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\z)",
    r"\A[0-9A-Za-z_+/=\s\\]*-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    // HTTP headers
    r#"(?i)(?-u:\b)(?:authorization|cookie)\\*["']?[ \t]*[:=][ \t]*\\*"([^"\r\n]*)"#,
    r#"(?i)(?-u:\b)(?:authorization|cookie)['"]?[ \t]*[:=][ \t]*([^\s"'\\][^\r\n]*)"#,
    r"(?i)(?-u:\b)bearer[ \t]+([0-9A-Za-z_.~+/=-]{8,})",
    // scheme://user:password@host; the last form is for passwords with a slash
    r#"://([^\s/"'@:?#]*:[^\s/"'?#]*|[^\s/"'@?#]+|[^\s/"'@:]*:[^\s"']+)@"#,
    // JSON Web Tokens
    r"eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}(?:\.[0-9A-Za-z_-]*)*",
    // Keys that tell their issuer: AWS, GitHub, GitLab, Slack, Stripe, Google, Vault, npm
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",
    r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[0-9A-Za-z_]{20,}|glpat-[0-9A-Za-z_-]{20,}|xox[abeprs]-[0-9A-Za-z_-]{10,}|[rs]k_live_[0-9A-Za-z_]{10,}|AIza[0-9A-Za-z_-]{35}|hvs\.[0-9A-Za-z_-]{20,}|npm_[A-Za-z0-9]{36})",
    // SQL
    r"(?i)(?-u:\b)(?:identified[ \t]+by|password)[ \t]+E?'([^'\r\n]*)",
    // .netrc
    r"(?i)(?-u:\b)login[ \t]+\S+[ \t]+password[ \t]+(\S+)",
    // A line of YAML: the value may have blanks in it. And an option of a command.
    r#"(?im)^[ \t]*(?:-[ \t]+)?["']?[0-9A-Za-z_.-]*<KEY>["']?[ \t]*:[ \t]+([^\s"'{\[|>][^\r\n]*)"#,
    r#"(?im)(?:^|[\s"'])--?[0-9A-Za-z_-]*<KEY>[ \t]+["']?([^\s"'-][^\s"']*)"#,
];

/// A pattern that a user gave and that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{pattern:?} is no regular expression that can be used: {reason}")]
pub struct BadPattern {
    /// As given.
    pattern: String,
    /// What is wrong with it.
    reason: regex::Error,
}

/// Finds secrets in text.
#[derive(Clone, Debug)]
pub struct Redactor {
    patterns: Vec<Regex>,
}

impl Redactor {
    /// The patterns of this build and those of the user. Of a pattern with a group, only what its first group matches is
    /// taken out.
    pub fn new(more: &[String]) -> Result<Self, BadPattern> {
        let own = PATTERNS.iter().map(|pattern| pattern.replace("<KEY>", KEY));
        let after_key = AFTER_KEY.iter().map(|after| format!("(?i){KEY}{after}"));
        let all = own.chain(after_key).chain(more.iter().cloned());
        let patterns = all.map(compile).collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// The patterns of this build alone.
    pub fn built_in() -> &'static Self {
        static BUILT_IN: LazyLock<Redactor> =
            LazyLock::new(|| Redactor::new(&[]).unwrap_or(Redactor { patterns: Vec::new() }));
        &BUILT_IN
    }

    /// The text with all secrets replaced. Again changes nothing.
    pub fn clean(&self, text: &str) -> String {
        self.clean_from(text, 0)
    }

    /// The same from the byte `start` on, which must be a character's first: secrets that begin before it are known, too.
    pub fn clean_from(&self, text: &str, start: usize) -> String {
        let mut clean = self.replace(text, start);
        // What stands between two secrets may look like one only now.
        for _ in 0..MORE_ROUNDS {
            let again = self.replace(&clean, 0);
            if again == clean {
                break;
            }
            clean = again;
        }
        clean
    }

    fn replace(&self, text: &str, start: usize) -> String {
        let mut clean = String::with_capacity(text.len());
        let mut at = start;
        for secret in self.secrets(text).into_iter().filter(|secret| secret.end > start) {
            // Nothing, where a secret has begun before the start.
            clean.push_str(text.get(at..secret.start).unwrap_or_default());
            clean.push_str(PLACEHOLDER);
            at = secret.end;
        }
        clean.push_str(text.get(at..).unwrap_or_default());
        clean
    }

    /// Where secrets stand: in order, and no two touch.
    fn secrets(&self, text: &str) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = self
            .patterns
            .iter()
            .flat_map(|pattern| pattern.captures_iter(text))
            .filter_map(|found| found.get(1).or_else(|| found.get(0)))
            .map(|secret| secret.range())
            .filter(|secret| !secret.is_empty())
            .collect();
        found.sort_by_key(|secret| secret.start);
        let mut merged: Vec<Range<usize>> = Vec::with_capacity(found.len());
        for secret in found {
            match merged.last_mut() {
                Some(last) if secret.start <= last.end => last.end = last.end.max(secret.end),
                _ => merged.push(secret),
            }
        }
        merged
    }
}

fn compile(pattern: String) -> Result<Regex, BadPattern> {
    let built = RegexBuilder::new(&pattern).size_limit(PATTERN_SIZE).build();
    built.map_err(|reason| BadPattern { pattern, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise nothing would be redacted where only they are used.
    #[test]
    fn the_built_in_patterns_compile() {
        assert_eq!(
            Redactor::built_in().patterns.len(),
            Redactor::new(&[]).unwrap().patterns.len()
        );
        assert!(!Redactor::built_in().patterns.is_empty());
    }

    fn clean(text: &str) -> String {
        Redactor::built_in().clean(text)
    }

    /// What is written as `{{secret}}` is to be taken out, and nothing else.
    fn check(marked: &str) {
        let mut given = String::new();
        let mut expected = String::new();
        for (index, part) in marked.split("{{").enumerate() {
            let (secret, open) = if index == 0 {
                ("", part)
            } else {
                part.split_once("}}").unwrap()
            };
            given += secret;
            given += open;
            expected += if index == 0 { "" } else { PLACEHOLDER };
            expected += open;
        }
        assert_eq!(clean(&given), expected, "of {given:?}");
        assert_eq!(clean(&expected), expected, "a second time");
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for marked in [
            "nothing to hide: 3 rows, 42 passed, /etc/passwd, keyboard, tokio 1.0",
            "PGPASSWORD={{hunter2}} psql",
            "export DB_PASS='{{correct horse}}' X=1",
            "password := {{hunter2}}",
            r#"{"user": "u", "password": "{{a \" b}}", "port": 1}"#,
            r#"{"client_secret":"{{x}}","apiKey":"{{y}}","n":[1]}"#,
            r#"{"credentials": {"password": "{{x y}}"}}"#,
            r#"msg="{\"token\":\"{{abc def}}\"}""#,
            "user: me\n  password: {{correct horse battery}}\nhost: db",
            "token: {{password: x}}",
            "secrets: [{{a, b}}]",
            "<bean><dbPassword>{{p w}}</dbPassword></bean>",
            "Server=db;User Id=sa;Pwd={{x;Encrypt=no}}",
            "mysql --password {{hunter2}} --user me",
            "mysql --user me --password={{hunter2}} db",
            "ALTER ROLE app WITH PASSWORD '{{s3 cret}}' LOGIN",
            "machine h login me password {{x}}",
            "> Authorization: {{Basic dTpw}}\r\n> Host: h",
            "curl -H 'Authorization: {{Bearer abc' https://h}}",
            r#"{"Authorization": "{{Bearer abc}}", "a": 1}"#,
            "Set-Cookie: {{sid=1; Path=/}}\nBody",
            "sent bearer {{abcdefgh.ij}} to it",
            "postgres://{{app:p@ss}}@db:5432/app?x=1",
            "https://{{ghp}}@example.com/r.git and http://example.com:80/",
            "redis://{{:p/w}}@cache",
            "jwt {{eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_-1}} ok",
            "id {{AKIAIOSFODNN7EXAMPLE}} in",
            "aws_secret_access_key = {{wJalrXUtnFEMI/K7MDENG}}",
            "a\n{{-----BEGIN RSA PRIVATE KEY-----\nMIIB\n+/=\n-----END RSA PRIVATE KEY-----}}\nb",
            "{{-----BEGIN PRIVATE KEY-----\nMIIB}}",
            "{{MIIB+/\nabc=\n-----END PRIVATE KEY-----}}\nafter",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        ] {
            check(marked);
        }
        assert_eq!(
            clean("data:\n  token: |\n    abc\n    def\nkind: S")
                .matches("abc")
                .count(),
            0
        );
        assert!(clean("data:\n  token: |\n    abc\n    def\nkind: S").ends_with("\nkind: S"));
    }

    #[test]
    fn a_users_patterns_count_too_and_a_bad_one_is_named() {
        let redactor = Redactor::new(&["IBAN ([A-Z0-9]+)".to_owned(), "[0-9]{16}".to_owned()]).unwrap();
        assert_eq!(
            redactor.clean("IBAN DE12, card 1234123412341234"),
            "IBAN <redacted>, card <redacted>"
        );
        let error = Redactor::new(&["(".to_owned()]).unwrap_err().to_string();
        assert!(error.contains(r#""(""#), "{error}");
        assert!(
            Redactor::new(&[r"\w{1000}{1000}".to_owned()]).is_err(),
            "too large when compiled"
        );
    }

    #[test]
    fn a_secret_that_begins_before_the_part_that_is_shown_does_not_survive() {
        let text = "password=hunter2-hunter2 and more";
        for start in 0..text.len() {
            let out = Redactor::built_in().clean_from(text, start);
            assert!(!out.contains("hunter") && !out.contains("ter2"), "from {start}: {out}");
        }
    }

    mod any_text {
        use super::*;
        use proptest::prelude::*;

        /// Text in which much looks like a secret.
        fn text() -> impl Strategy<Value = String> {
            let words = vec![
                "password",
                "token",
                "secret",
                "PRIVATE KEY",
                "-----BEGIN PRIVATE KEY-----",
                "-----END PRIVATE KEY-----",
                "Authorization",
                "Bearer ",
                "Cookie",
                "://",
                "@",
                ":",
                "=",
                "=>",
                "\"",
                "'",
                "\\",
                "[",
                "]",
                "{",
                "}",
                "<",
                ">",
                "|",
                ",",
                " ",
                "\n",
                "\r\n",
                "\t",
                "\0",
                "-",
                "--",
                "eyJabcdefgh.abcdefgh.x",
                "AKIAIOSFODNN7EXAMPLE",
                "abcdefgh",
                "x",
                "ä",
                "\u{202e}",
                "login ",
                "identified by",
                "<redacted>",
            ];
            let piece = prop_oneof![6 => proptest::sample::select(words).prop_map(str::to_owned), 1 => any::<String>()];
            proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(200))]
            #[test]
            fn never_panics_and_grows_within_bounds(text in text(), start in 0_usize..200) {
                let once = Redactor::built_in().clean(&text);
                // Each placeholder stands for at least one byte.
                prop_assert!(once.len() <= text.len() * PLACEHOLDER.len());
                let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
                prop_assert!(Redactor::built_in().clean_from(&text, start).len() <= text.len() * PLACEHOLDER.len());
                prop_assert_eq!(Redactor::built_in().clean(&once), once, "of {:?}", text);
            }
        }
    }
}

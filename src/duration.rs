//! Go's durations, for they are what users write in annotations and what Velero prints.
//!
//! Own code because no library both follows Go's grammar and survives hostile input: see `docs/ARCHITECTURE.md`, "Own code".

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A signed duration in nanoseconds, read and printed as Go's `time.Duration` (`1h0m0s`, `45s`, `1.5ms`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// Why a text is no Go duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration such as 30s, 5m or 1h30m ({0})")]
pub struct ParseDurationError(&'static str);

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// No time at all; as a limit it means "not set".
    pub const ZERO: Self = Self(0);

    /// A whole number of seconds, saturating at what 64 bits of nanoseconds hold (about 292 years).
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// A whole number of milliseconds, saturating likewise.
    pub const fn from_millis(milliseconds: i64) -> Self {
        Self(milliseconds.saturating_mul(1_000_000))
    }

    /// True for zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// True below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// The same length for a clock of the standard library; `None` below zero.
    pub fn to_std(self) -> Option<std::time::Duration> {
        u64::try_from(self.0).ok().map(std::time::Duration::from_nanos)
    }

    /// The same length for a clock of `jiff`.
    pub fn to_signed(self) -> jiff::SignedDuration {
        jiff::SignedDuration::from_nanos(self.0)
    }
}

impl GoDuration {
    /// Reads one that is longer than nothing. For command lines: the error is a sentence.
    pub fn positive(text: &str) -> Result<Self, String> {
        let duration: Self = text.parse().map_err(|error: ParseDurationError| error.to_string())?;
        if duration.is_zero() || duration.is_negative() {
            return Err("it must be longer than nothing".to_owned());
        }
        Ok(duration)
    }
}

impl FromStr for GoDuration {
    type Err = ParseDurationError;

    /// Go's `time.ParseDuration`: an optional sign, then `0` or a chain of decimal numbers with units.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(ParseDurationError("it is empty"));
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let (nanos, tail) = leading_element(rest)?;
            total = total.saturating_add(nanos);
            rest = tail;
        }
        let signed = if negative { -total } else { total };
        i64::try_from(signed)
            .map(Self)
            .map_err(|_| ParseDurationError("it is too large"))
    }
}

/// Splits one `<number><unit>` off the front and returns its length in nanoseconds.
fn leading_element(text: &str) -> Result<(i128, &str), ParseDurationError> {
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or(ParseDurationError("a unit is missing"))?;
    let (number, rest) = text.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return Err(ParseDurationError("a number is missing"));
    }
    if fraction.contains('.') {
        return Err(ParseDurationError("two decimal points in one number"));
    }
    let unit_end = rest
        .find(|c: char| c.is_ascii_digit() || c == '.')
        .unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(unit_end);
    let scale = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, scale)| i128::from(*scale))
        .ok_or(ParseDurationError("its unit is none of ns, us, ms, s, m, h"))?;
    let whole: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| ParseDurationError("it is too large"))?
    };
    let mut nanos = whole.checked_mul(scale).ok_or(ParseDurationError("it is too large"))?;
    nanos += fraction_nanos(fraction, scale);
    if nanos > i128::from(i64::MAX) + 1 {
        return Err(ParseDurationError("it is too large"));
    }
    Ok((nanos, tail))
}

/// The part behind the decimal point, with Go's own floating-point arithmetic: `0.3333333333333333333h` is 20 minutes there.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "what Go does"
)]
fn fraction_nanos(digits: &str, scale: i128) -> i128 {
    let mut value: i64 = 0;
    let mut divisor = 1.0_f64;
    for digit in digits.bytes() {
        // Go drops the digits that its integer can't hold.
        let Some(next) = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
        else {
            break;
        };
        value = next;
        divisor *= 10.0;
    }
    (value as f64 * (scale as f64 / divisor)) as i128
}

impl fmt::Display for GoDuration {
    /// Go's `Duration.String`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000_000_000 {
            let (unit, digits) = match nanos {
                0..1_000 => ("ns", 0),
                1_000..1_000_000 => ("\u{b5}s", 3),
                _ => ("ms", 6),
            };
            return write!(f, "{sign}{}{unit}", decimal(nanos, digits));
        }
        let seconds = nanos / 1_000_000_000;
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        let rest = decimal(nanos % 60_000_000_000, 9);
        match (hours, minutes) {
            (0, 0) => write!(f, "{sign}{rest}s"),
            (0, m) => write!(f, "{sign}{m}m{rest}s"),
            (h, m) => write!(f, "{sign}{h}h{m}m{rest}s"),
        }
    }
}

/// `value / 10^digits` without trailing zeros.
fn decimal(value: u64, digits: u32) -> String {
    let scale = 10_u64.pow(digits);
    let fraction = value % scale;
    if fraction == 0 {
        return (value / scale).to_string();
    }
    let width = usize::try_from(digits).unwrap_or_default();
    let text = format!("{}.{fraction:0width$}", value / scale);
    text.trim_end_matches('0').to_owned()
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for GoDuration {
    fn schema_name() -> Cow<'static, str> {
        "GoDuration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "description": "A duration as Go prints it, for example 1m30s."})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        // From Go's own table in time/time_test.go, plus what users write.
        let table: &[(&str, i64)] = &[
            ("0", 0),
            ("5s", 5_000_000_000),
            ("30s", 30_000_000_000),
            ("1478s", 1_478_000_000_000),
            ("-5s", -5_000_000_000),
            ("+5s", 5_000_000_000),
            ("-0", 0),
            ("+0", 0),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("13ms", 13_000_000),
            ("3h30m", 12_600_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("-2m3.4s", -123_400_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("39h9m14.425s", 140_954_425_000_000),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.830103483285477580700h", 2_988_372_539_827),
        ];
        for (text, nanos) in table {
            assert_eq!(text.parse(), Ok(GoDuration(*nanos)), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "300",
            "5 minutes",
            "1h-5m",
            "1..2s",
            " 5s",
            "5s ",
            "3000000h",
            "9223372036854775808ns",
            "\u{ffff}",
            "1\u{e9}",
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn prints_as_go() {
        let table: &[(i64, &str)] = &[
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
            (3_600_000_000_000, "1h0m0s"),
            (30_000_000_000, "30s"),
        ];
        for (nanos, text) in table {
            assert_eq!(GoDuration(*nanos).to_string(), *text);
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = text.parse::<GoDuration>();
        }
        #[test]
        fn round_trips(nanos: i64) {
            proptest::prop_assert_eq!(GoDuration(nanos).to_string().parse(), Ok(GoDuration(nanos)));
        }
    }
}

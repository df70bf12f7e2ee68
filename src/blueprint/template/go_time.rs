//! Go's time layouts (`2006-01-02T15:04:05Z07:00`), for the one zone that there is: UTC.

use std::fmt::Write;

use jiff::{Timestamp, civil, tz::Offset};

/// How Go prints a time that nobody formatted.
pub(super) const DEFAULT_LAYOUT: &str = "2006-01-02 15:04:05.999999999 -0700 MST";

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// One element of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    LongYear,
    ShortYear,
    LongMonth,
    ShortMonth,
    Month {
        pad: bool,
    },
    LongWeekday,
    ShortWeekday,
    Day {
        pad: Option<char>,
    },
    YearDay {
        pad: char,
    },
    Hour,
    Hour12 {
        pad: bool,
    },
    Minute {
        pad: bool,
    },
    Second {
        pad: bool,
    },
    /// `trim`: written with nines, trailing zeros go.
    Fraction {
        digits: usize,
        trim: bool,
        separator: char,
    },
    HalfDay {
        upper: bool,
    },
    ZoneName,
    Offset(OffsetForm),
}

/// How an offset from UTC is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OffsetForm {
    /// `Z` for UTC itself.
    z: bool,
    colon: bool,
    /// Only hours, minutes too, or seconds too.
    parts: u8,
}

/// Elements that are always read when their text is there, the longest first.
const PLAIN: [(&str, Part); 21] = [
    ("January", Part::LongMonth),
    ("Monday", Part::LongWeekday),
    ("MST", Part::ZoneName),
    ("01", Part::Month { pad: true }),
    ("002", Part::YearDay { pad: '0' }),
    ("02", Part::Day { pad: Some('0') }),
    ("03", Part::Hour12 { pad: true }),
    ("04", Part::Minute { pad: true }),
    ("05", Part::Second { pad: true }),
    ("06", Part::ShortYear),
    ("15", Part::Hour),
    ("1", Part::Month { pad: false }),
    ("2006", Part::LongYear),
    ("2", Part::Day { pad: None }),
    ("__2", Part::YearDay { pad: ' ' }),
    ("_2", Part::Day { pad: Some(' ') }),
    ("3", Part::Hour12 { pad: false }),
    ("4", Part::Minute { pad: false }),
    ("5", Part::Second { pad: false }),
    ("PM", Part::HalfDay { upper: true }),
    ("pm", Part::HalfDay { upper: false }),
];

/// The first element of a layout: what stands before it, the element, what stands behind it.
fn next_part(layout: &str) -> (&str, Option<(Part, &str)>) {
    for (index, _) in layout.char_indices() {
        let (before, rest) = layout.split_at(index);
        // `_2006` is an underscore before a year, not a day.
        if rest.starts_with("_2006") {
            let (before, year) = layout.split_at(index + 1);
            return (before, year.strip_prefix("2006").map(|after| (Part::LongYear, after)));
        }
        let found = part_at(rest);
        if found.is_some() {
            return (before, found);
        }
    }
    (layout, None)
}

fn part_at(rest: &str) -> Option<(Part, &str)> {
    for (name, part) in PLAIN {
        if let Some(after) = rest.strip_prefix(name) {
            return Some((part, after));
        }
    }
    // `Jan` and `Mon`, unless a longer word begins with them.
    for (name, part) in [("Jan", Part::ShortMonth), ("Mon", Part::ShortWeekday)] {
        if let Some(after) = rest.strip_prefix(name)
            && !after.starts_with(|next: char| next.is_ascii_lowercase())
        {
            return Some((part, after));
        }
    }
    for z in [false, true] {
        let Some(digits) = rest.strip_prefix(if z { 'Z' } else { '-' }) else {
            continue;
        };
        for (form, colon, parts) in [
            ("070000", false, 3),
            ("07:00:00", true, 3),
            ("0700", false, 2),
            ("07:00", true, 2),
            ("07", false, 1),
        ] {
            if let Some(after) = digits.strip_prefix(form) {
                return Some((Part::Offset(OffsetForm { z, colon, parts }), after));
            }
        }
    }
    fraction_at(rest)
}

/// `.000` or `,999`, not followed by another digit.
fn fraction_at(rest: &str) -> Option<(Part, &str)> {
    let separator = rest.chars().next().filter(|first| matches!(first, '.' | ','))?;
    let digits = rest.get(1..)?;
    let first = digits.chars().next().filter(|first| matches!(first, '0' | '9'))?;
    let after = digits.trim_start_matches(first);
    if after.starts_with(|next: char| next.is_ascii_digit()) {
        return None;
    }
    let part = Part::Fraction {
        digits: digits.len() - after.len(),
        trim: first == '9',
        separator,
    };
    Some((part, after))
}

/// A time in UTC by a layout.
pub(super) fn format(layout: &str, time: Timestamp) -> String {
    let time = Offset::UTC.to_datetime(time);
    let mut output = String::new();
    let mut layout = layout;
    loop {
        let (before, found) = next_part(layout);
        output.push_str(before);
        let Some((part, after)) = found else { return output };
        format_part(&mut output, part, time);
        layout = after;
    }
}

fn format_part(output: &mut String, part: Part, time: civil::DateTime) {
    let month = name(&MONTHS, time.month() - 1);
    let weekday = name(&WEEKDAYS, time.weekday().to_sunday_zero_offset());
    let half_day = time.hour() >= 12;
    let hour12 = match time.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    // Writing to a String can't fail.
    let _ = match part {
        Part::LongYear => write!(output, "{:04}", time.year()),
        Part::ShortYear => write!(output, "{:02}", time.year().rem_euclid(100)),
        Part::LongMonth => write!(output, "{month}"),
        Part::ShortMonth => write!(output, "{month:.3}"),
        Part::LongWeekday => write!(output, "{weekday}"),
        Part::ShortWeekday => write!(output, "{weekday:.3}"),
        Part::Day { pad: Some(' ') } => write!(output, "{:2}", time.day()),
        Part::Day { pad } => padded(output, time.day(), pad.is_some()),
        Part::YearDay { pad: '0' } => write!(output, "{:03}", time.day_of_year()),
        Part::YearDay { .. } => write!(output, "{:3}", time.day_of_year()),
        Part::Month { pad } => padded(output, time.month(), pad),
        Part::Hour => padded(output, time.hour(), true),
        Part::Hour12 { pad } => padded(output, hour12, pad),
        Part::Minute { pad } => padded(output, time.minute(), pad),
        Part::Second { pad } => padded(output, time.second(), pad),
        Part::HalfDay { upper } => output.write_str(match (half_day, upper) {
            (false, true) => "AM",
            (true, true) => "PM",
            (false, false) => "am",
            (true, false) => "pm",
        }),
        Part::Fraction {
            digits,
            trim,
            separator,
        } => {
            let nanos = format!("{:09}", time.subsec_nanosecond());
            let mut kept = nanos.get(..digits.min(9)).unwrap_or(&nanos).to_owned();
            kept.extend(std::iter::repeat_n('0', digits.saturating_sub(9)));
            if trim {
                kept.truncate(kept.trim_end_matches('0').len());
            }
            if kept.is_empty() {
                Ok(())
            } else {
                write!(output, "{separator}{kept}")
            }
        }
        Part::ZoneName => output.write_str("UTC"),
        Part::Offset(form) if form.z => output.write_char('Z'),
        Part::Offset(form) => {
            let colon = if form.colon { ":" } else { "" };
            let minutes = format!("{colon}00").repeat(usize::from(form.parts.saturating_sub(1)));
            write!(output, "+00{minutes}")
        }
    };
}

fn padded(output: &mut String, number: i8, pad: bool) -> std::fmt::Result {
    if pad {
        write!(output, "{number:02}")
    } else {
        write!(output, "{number}")
    }
}

fn name(names: &'static [&'static str], index: i8) -> &'static str {
    let index = usize::try_from(index).unwrap_or_default();
    names.get(index).copied().unwrap_or_default()
}

/// Reads a time by a layout; a text without a zone is in UTC. Nothing if it does not fit.
pub(super) fn parse(layout: &str, text: &str) -> Option<Timestamp> {
    let mut read = Read::default();
    let (mut layout, mut text) = (layout, text);
    loop {
        let (before, found) = next_part(layout);
        text = skip(text, before)?;
        let Some((part, after)) = found else {
            return if text.is_empty() { read.finish() } else { None };
        };
        layout = after;
        text = read.part(part, text, layout)?;
    }
}

/// What a layout found so far. Absent parts count as Go counts them: the year 0, its first day, midnight.
#[derive(Default)]
struct Read {
    year: i16,
    month: Option<i8>,
    day: Option<i8>,
    year_day: Option<i16>,
    hour: i8,
    minute: i8,
    second: i8,
    nanos: i32,
    afternoon: Option<bool>,
    offset: i32,
}

impl Read {
    /// Reads one element, and gives what is left of the text.
    fn part<'a>(&mut self, part: Part, text: &'a str, layout: &str) -> Option<&'a str> {
        let (number, rest): (i32, &str) = match part {
            Part::LongYear => digits(text, 4, 4)?,
            Part::ShortYear => digits(text, 2, 2)?,
            Part::Month { pad } | Part::Hour12 { pad } | Part::Minute { pad } | Part::Second { pad } => {
                digits(text, if pad { 2 } else { 1 }, 2)?
            }
            // A day is read with or without its zero; the underscore stands for a blank.
            Part::Day { pad } => {
                let text = if pad == Some(' ') {
                    text.strip_prefix(' ').unwrap_or(text)
                } else {
                    text
                };
                digits(text, 1, 2)?
            }
            Part::YearDay { pad } => {
                let text = if pad == ' ' { text.trim_start_matches(' ') } else { text };
                digits(text, if pad == ' ' { 1 } else { 3 }, 3)?
            }
            Part::Hour => digits(text, 1, 2)?,
            Part::LongMonth => lookup(&MONTHS, text, usize::MAX)?,
            Part::ShortMonth => lookup(&MONTHS, text, 3)?,
            Part::LongWeekday => lookup(&WEEKDAYS, text, usize::MAX)?,
            Part::ShortWeekday => lookup(&WEEKDAYS, text, 3)?,
            Part::HalfDay { upper } => half_day(text, upper)?,
            Part::Fraction { digits, trim, .. } => fraction(text, digits, trim)?,
            Part::ZoneName => (0, zone_name(text)?),
            Part::Offset(form) => offset(text, form)?,
        };
        let small = i8::try_from(number);
        match part {
            Part::LongYear => self.year = i16::try_from(number).ok()?,
            Part::ShortYear => self.year = i16::try_from(number).ok()? + if number >= 69 { 1900 } else { 2000 },
            Part::Month { .. } => self.month = Some(small.ok()?),
            Part::LongMonth | Part::ShortMonth => self.month = Some(small.ok()? + 1),
            Part::Day { .. } => self.day = Some(small.ok()?),
            Part::YearDay { .. } => self.year_day = Some(i16::try_from(number).ok()?),
            Part::Hour => self.hour = small.ok()?,
            Part::Hour12 { .. } => self.hour = small.ok().filter(|hour| *hour <= 12)?,
            Part::Minute { .. } => self.minute = small.ok()?,
            Part::Second { .. } => {
                self.second = small.ok()?;
                return self.undeclared_fraction(rest, layout);
            }
            Part::Fraction { .. } => self.nanos = number,
            Part::HalfDay { .. } => self.afternoon = Some(number == 1),
            Part::Offset(_) => self.offset = number,
            Part::LongWeekday | Part::ShortWeekday | Part::ZoneName => {}
        }
        Some(rest)
    }

    /// Go reads a fraction behind the seconds also where the layout has none.
    fn undeclared_fraction<'a>(&mut self, text: &'a str, layout: &str) -> Option<&'a str> {
        let declared = matches!(next_part(layout), (_, Some((Part::Fraction { .. }, _))));
        let fraction_follows = text
            .strip_prefix(['.', ','])
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if declared || !fraction_follows {
            return Some(text);
        }
        let (nanos, rest) = fraction(text, 0, true)?;
        self.nanos = nanos;
        Some(rest)
    }

    fn finish(self) -> Option<Timestamp> {
        let hour = match self.afternoon {
            Some(true) if self.hour < 12 => self.hour + 12,
            Some(false) if self.hour == 12 => 0,
            _ => self.hour,
        };
        let first = civil::Date::new(self.year, 1, 1).ok()?;
        let date = match self.year_day {
            Some(day) => {
                let date = first.with().day_of_year(day).build().ok()?;
                let fits = self.month.is_none_or(|month| month == date.month())
                    && self.day.is_none_or(|day| day == date.day());
                fits.then_some(date)?
            }
            None => civil::Date::new(self.year, self.month.unwrap_or(1), self.day.unwrap_or(1)).ok()?,
        };
        let time = civil::Time::new(hour, self.minute, self.second, self.nanos).ok()?;
        Offset::from_seconds(self.offset)
            .ok()?
            .to_timestamp(date.to_datetime(time))
            .ok()
    }
}

/// Takes away what a layout says literally; a blank stands for any number of them.
fn skip<'a>(text: &'a str, literal: &str) -> Option<&'a str> {
    let (mut text, mut literal) = (text, literal);
    while let Some(first) = literal.chars().next() {
        if first == ' ' {
            if !text.is_empty() && !text.starts_with(' ') {
                return None;
            }
            literal = literal.trim_start_matches(' ');
            text = text.trim_start_matches(' ');
            continue;
        }
        text = text.strip_prefix(first)?;
        literal = literal.get(first.len_utf8()..)?;
    }
    Some(text)
}

/// A number of that many digits.
fn digits(text: &str, least: usize, most: usize) -> Option<(i32, &str)> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(count)?;
    if count < least {
        None
    } else {
        Some((number.parse().ok()?, rest))
    }
}

/// One of the names, in any case, cut to some length.
fn lookup<'a>(names: &[&str], text: &'a str, length: usize) -> Option<(i32, &'a str)> {
    for (index, name) in names.iter().enumerate() {
        let name = name.get(..length.min(name.len()))?;
        if let Some((start, rest)) = text.split_at_checked(name.len())
            && start.eq_ignore_ascii_case(name)
        {
            return Some((i32::try_from(index).ok()?, rest));
        }
    }
    None
}

fn half_day(text: &str, upper: bool) -> Option<(i32, &str)> {
    let (morning, afternoon) = if upper { ("AM", "PM") } else { ("am", "pm") };
    let morning = text.strip_prefix(morning).map(|rest| (0, rest));
    morning.or_else(|| text.strip_prefix(afternoon).map(|rest| (1, rest)))
}

/// A fraction of a second in nanoseconds. With nines it may be absent, and has any number of digits.
fn fraction(text: &str, wanted: usize, any: bool) -> Option<(i32, &str)> {
    let Some(start) = text.strip_prefix(['.', ',']) else {
        return any.then_some((0, text));
    };
    let count = start.bytes().take_while(u8::is_ascii_digit).count();
    if any && count == 0 {
        return Some((0, text));
    }
    let count = if any { count } else { wanted };
    let (number, rest) = start.split_at_checked(count)?;
    let nine: String = number.chars().chain(std::iter::repeat('0')).take(9).collect();
    let all_digits = number.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits {
        Some((nine.parse().ok()?, rest))
    } else {
        None
    }
}

/// An abbreviation. Go knows only its own zone's; another one counts as UTC.
fn zone_name(text: &str) -> Option<&str> {
    let count = text.bytes().take_while(u8::is_ascii_uppercase).count();
    if (3..=5).contains(&count) {
        text.get(count..)
    } else {
        None
    }
}

fn offset(text: &str, form: OffsetForm) -> Option<(i32, &str)> {
    if form.z
        && let Some(rest) = text.strip_prefix('Z')
    {
        return Some((0, rest));
    }
    let (sign, text) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(rest), _) => (1, rest),
        (_, Some(rest)) => (-1, rest),
        _ => return None,
    };
    let (hours, mut rest) = digits(text, 2, 2)?;
    let mut seconds = hours * 3600;
    for (part, unit) in [(2, 60), (3, 1)] {
        if form.parts >= part {
            let text = if form.colon { rest.strip_prefix(':')? } else { rest };
            let (number, after) = digits(text, 2, 2)?;
            if number >= 60 {
                return None;
            }
            seconds += number * unit;
            rest = after;
        }
    }
    Some((sign * seconds, rest))
}

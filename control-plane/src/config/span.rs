//! Spans of time as settings write them: a whole number and one unit.

use std::{fmt, str::FromStr, time::Duration};

pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Longest span: certificates end before the year 9999, and sums of spans must not overflow.
const MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60 * 1000),
    ("h", 3600 * 1000),
    ("d", 24 * 3600 * 1000),
];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let millis = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, millis)| number.parse::<u64>().ok()?.checked_mul(*millis))
            .map(Duration::from_millis)
            .filter(|span| *span <= MAX);
        millis
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is not a time such as 500ms, 20s, 10m, 24h or 7d"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (name, unit) = UNITS
            .iter()
            .rev()
            .map(|(name, unit)| (*name, u128::from(*unit)))
            .find(|(_, unit)| millis.is_multiple_of(*unit) && millis >= *unit)
            .unwrap_or(("ms", 1));
        write!(f, "{}{name}", millis / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_as_it_prints() {
        for text in ["500ms", "20s", "10m", "25h", "7d", "0ms"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "10", "s", "1.5s", "-1s", "1w", "99999999999d", "1 s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}

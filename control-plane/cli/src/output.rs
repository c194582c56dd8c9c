//! The only file that prints. One result type in three formats; messages go to standard error.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

use crate::failure::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

/// Rows under a heading, and the same as data.
pub(crate) struct Report {
    pub(crate) heading: &'static [&'static str],
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) data: Value,
    /// Printed instead of an empty table.
    pub(crate) when_empty: &'static str,
}

pub(crate) fn print(format: Format, report: &Report) -> Result<(), Failure> {
    let text = match format {
        Format::Table if report.rows.is_empty() => format!("{}\n", report.when_empty),
        Format::Table => table(report.heading, &report.rows),
        Format::Json | Format::Yaml => data(format, &report.data)?,
    };
    write(&text);
    Ok(())
}

/// Prints what was done: in words, or as data.
pub(crate) fn done(format: Format, said: &str, value: &Value) -> Result<(), Failure> {
    match format {
        Format::Table => line(said),
        Format::Json | Format::Yaml => line(data(format, value)?.trim_end()),
    }
    Ok(())
}

/// Prints one line of text, whatever the format.
pub(crate) fn line(text: &str) {
    write(&format!("{text}\n"));
}

fn write(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough (`head`) is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => complain(&format!("writing the result: {error}")),
        Ok(()) => {}
    }
}

/// Prints a message for the person at the terminal.
#[expect(clippy::print_stderr, reason = "messages belong on standard error")]
pub(crate) fn complain(message: &str) {
    let lines: Vec<_> = message.split('\n').map(harmless).collect();
    eprintln!("heddle: {}", lines.join("\n"));
}

/// A value as JSON or YAML text; a table has no such form and is given as YAML.
pub(crate) fn data(format: Format, value: &Value) -> Result<String, Failure> {
    match format {
        Format::Json => serde_json::to_string_pretty(value)
            .map(|text| escape_in_json(&text) + "\n")
            .map_err(|error| Failure::Local(error.to_string())),
        Format::Yaml | Format::Table => {
            serde_saphyr::to_string(value).map_err(|error| Failure::Local(error.to_string()))
        }
    }
}

/// Columns as wide as their widest cell, two spaces apart.
fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| harmless(cell)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([heading[column].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut heading.iter().copied());
    for row in &rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A text that others chose, without what a terminal would obey: control characters, and those
/// that turn the direction of what follows.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_obeyed(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

/// The same for JSON, where such a character is part of a string; line ends and indentation stay.
fn escape_in_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c != '\n' && is_obeyed(c) {
            true => shown += &format!("\\u{:04x}", u32::from(c)),
            false => shown.push(c),
        }
    }
    shown
}

fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Milliseconds since the epoch as a duration from now, such as `23h59m` or `-5s`.
pub(crate) fn from_now(unix_ms: i64) -> String {
    span(unix_ms - now_ms())
}

/// Milliseconds since the epoch as a duration up to now.
pub(crate) fn ago(unix_ms: i64) -> String {
    span(now_ms() - unix_ms)
}

fn now_ms() -> i64 {
    heddle_shell::clock::unix_ms(heddle_shell::clock::wall())
}

fn span(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "" };
    let seconds = ms.unsigned_abs() / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{sign}{seconds}s"),
        (0, 0, minutes) => format!("{sign}{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{sign}{hours}h{minutes}m"),
        (days, hours, _) => format!("{sign}{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long name".to_owned(), "23".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "N"], &rows),
            "NAME       N\na          1\nlong name  23\n"
        );
    }

    #[test]
    fn a_terminal_obeys_nothing_that_others_wrote() {
        let evil = "a\u{1b}]0;x\u{7}b\u{9b}2J\u{202e}c\nd";
        let row = vec![evil.to_owned()];
        let text = table(&["NODE"], &[row]);
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(!text.replace('\n', "").contains(is_obeyed), "{text:?}");
        let value = serde_json::json!({ "node": evil });
        let json = data(Format::Json, &value).unwrap();
        assert!(!json.replace('\n', "").contains(is_obeyed), "{json:?}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value);
        // Its writer escapes control characters by itself.
        let yaml = data(Format::Yaml, &value).unwrap();
        assert!(!yaml.replace('\n', "").contains(char::is_control));
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), value);
    }

    #[test]
    fn times_are_told_from_now() {
        let now = now_ms();
        assert_eq!(from_now(now + 90_500), "1m30s");
        assert_eq!(from_now(now + 2 * 86_400_000 + 3_600_500), "2d1h");
        assert!(from_now(now - 5_500).starts_with("-5"));
        assert_eq!(ago(now - 90_500), "1m30s");
    }
}

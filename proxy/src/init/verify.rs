//! Compares the rules that should be in force with those that are, chain by chain. Pure.

use std::{collections::BTreeSet, fmt};

use super::Line;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A line that should be there, in words where it is a rule.
    Missing { chain: String, line: String },
    /// A line in a chain of ours that we did not write.
    Unexpected { chain: String, line: String },
    /// All lines are there; the first that is not in its place.
    OutOfOrder { chain: String, line: String },
}

/// Differences in the order of the chains, within a chain missing lines first.
pub(super) fn compare(expected: &[Line], found: &[Line]) -> Vec<Difference> {
    let chains: BTreeSet<&str> = expected
        .iter()
        .chain(found)
        .map(|line| line.chain.as_str())
        .collect();
    chains
        .into_iter()
        .flat_map(|chain| {
            let expected: Vec<&Line> = expected.iter().filter(|line| line.chain == chain).collect();
            let found: Vec<&Line> = found.iter().filter(|line| line.chain == chain).collect();
            compare_chain(chain, &expected, &found)
        })
        .collect()
}

fn compare_chain(chain: &str, expected: &[&Line], found: &[&Line]) -> Vec<Difference> {
    let missing = subtract(expected, found)
        .into_iter()
        .map(|line| Difference::Missing {
            chain: chain.into(),
            line: line.meaning.as_ref().unwrap_or(&line.text).clone(),
        });
    let unexpected = subtract(found, expected)
        .into_iter()
        .map(|line| Difference::Unexpected {
            chain: chain.into(),
            line: line.text.clone(),
        });
    let differences: Vec<Difference> = missing.chain(unexpected).collect();
    if !differences.is_empty() {
        return differences;
    }
    let misplaced = expected
        .iter()
        .zip(found)
        .find(|(expected, found)| expected.text != found.text);
    misplaced
        .map(|(expected, _)| Difference::OutOfOrder {
            chain: chain.into(),
            line: expected.text.clone(),
        })
        .into_iter()
        .collect()
}

/// The lines of `these` beyond those in `others`, each counted as often as it occurs.
fn subtract<'a>(these: &[&'a Line], others: &[&Line]) -> Vec<&'a Line> {
    let mut others: Vec<&str> = others.iter().map(|line| line.text.as_str()).collect();
    these
        .iter()
        .copied()
        .filter(
            |line| match others.iter().position(|other| *other == line.text) {
                Some(index) => {
                    others.swap_remove(index);
                    false
                }
                None => true,
            },
        )
        .collect()
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { chain, line } => write!(f, "missing in {chain}: {line}"),
            Self::Unexpected { chain, line } => write!(f, "unexpected in {chain}: {line}"),
            Self::OutOfOrder { chain, line } => write!(f, "out of order in {chain}: {line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of one chain, a letter each.
    #[track_caller]
    fn check(expected: &str, found: &str, differences: &[&str]) {
        let lines = |text: &str| -> Vec<Line> {
            text.chars()
                .map(|letter| Line::chain("c".into(), letter.into()))
                .collect()
        };
        let texts: Vec<String> = compare(&lines(expected), &lines(found))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(texts, differences);
    }

    #[test]
    fn equal_lines_do_not_differ() {
        check("abc", "abc", &[]);
        check("", "", &[]);
    }

    #[test]
    fn missing_and_unexpected_lines_are_named_each() {
        check("abc", "ab", &["missing in c: c"]);
        check("abc", "abxc", &["unexpected in c: x"]);
        check("abc", "xbc", &["missing in c: a", "unexpected in c: x"]);
        check("ab", "", &["missing in c: a", "missing in c: b"]);
    }

    #[test]
    fn a_line_that_occurs_twice_is_one_too_many() {
        check("ab", "aba", &["unexpected in c: a"]);
        check("aab", "ab", &["missing in c: a"]);
    }

    #[test]
    fn order_counts() {
        check("abc", "acb", &["out of order in c: b"]);
    }
}

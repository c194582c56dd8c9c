//! Which of many patterns cover a text: whole texts, beginnings and ends, found by one walk
//! along the text from either end, however many patterns there are.
//!
//! Built once from configuration, then only read. Memory is linear in the patterns' bytes. What
//! a text costs is bounded by its own length and by the longest pattern's: what a client sends
//! cannot make it cost more, since no hash is involved.

mod radix;

use std::{collections::BTreeMap, fmt};

use radix::{Back, Front, Radix};

/// A condition on a text that an index can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pattern<'a> {
    /// The whole text.
    Exact(&'a str),
    /// How it begins.
    Prefix(&'a str),
    /// How it ends.
    Suffix(&'a str),
}

/// Patterns, each with what is kept for it.
#[derive(Clone)]
pub(crate) struct Patterns<T> {
    front: Radix<Front, Kept<T>>,
    back: Radix<Back, T>,
}

/// What is kept for one text of a pattern.
#[derive(Clone)]
pub(crate) struct Kept<T> {
    /// For the pattern [`Pattern::Exact`].
    pub(crate) whole: Option<T>,
    /// For the pattern [`Pattern::Prefix`].
    pub(crate) begin: Option<T>,
}

impl<T: Default> Patterns<T> {
    /// What comes with a pattern is added to what is kept for it; equal patterns share it.
    pub(crate) fn new<'a, A>(patterns: impl IntoIterator<Item = (Pattern<'a>, A)>) -> Self
    where
        T: Extend<A>,
    {
        let mut front: BTreeMap<_, Kept<T>> = BTreeMap::new();
        let mut back: BTreeMap<_, T> = BTreeMap::new();
        for (pattern, one) in patterns {
            let kept = match pattern {
                Pattern::Exact(text) => {
                    let kept = front.entry(text).or_default();
                    kept.whole.get_or_insert_default()
                }
                Pattern::Prefix(text) => {
                    let kept = front.entry(text).or_default();
                    kept.begin.get_or_insert_default()
                }
                Pattern::Suffix(text) => back.entry(text).or_default(),
            };
            kept.extend([one]);
        }
        Self {
            front: Radix::new(front),
            back: Radix::new(back),
        }
    }
}

impl<T> Patterns<T> {
    /// Calls `visit` with what is kept for each pattern that covers `text`.
    pub(crate) fn visit(&self, text: &str, mut visit: impl FnMut(&T)) {
        self.front.walk(text.as_bytes(), |kept, left| {
            if let Some(begin) = &kept.begin {
                visit(begin);
            }
            if left == 0
                && let Some(whole) = &kept.whole
            {
                visit(whole);
            }
        });
        self.back.walk(text.as_bytes(), |end, _left| visit(end));
    }

    /// Calls `visit` with what is kept for each beginning of `text`, the shortest first, and
    /// how many bytes are left behind it.
    pub(crate) fn beginnings<'a>(&'a self, text: &str, visit: impl FnMut(&'a Kept<T>, usize)) {
        self.front.walk(text.as_bytes(), visit);
    }

    /// What is kept for the longest pattern [`Pattern::Suffix`] that is shorter than `text`.
    pub(crate) fn longest_end(&self, text: &str) -> Option<&T> {
        let mut longest = None;
        self.back.walk(text.as_bytes(), |end, left| {
            if left > 0 {
                longest = Some(end);
            }
        });
        longest
    }
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self {
            front: Radix::default(),
            back: Radix::default(),
        }
    }
}

/// Not the tree: what it was built of is shown elsewhere.
impl<T> fmt::Debug for Patterns<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patterns").finish_non_exhaustive()
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            whole: None,
            begin: None,
        }
    }
}

/// The first of `ascending` that is below `bound` and fits, else the bound: of several lists,
/// the lowest that fits, when each is bounded by what those before it gave.
pub(crate) fn lowest(
    ascending: &[usize],
    bound: usize,
    mut fits: impl FnMut(usize) -> bool,
) -> usize {
    let mut below = ascending.iter().copied().take_while(|one| *one < bound);
    below.find(|one| fits(*one)).unwrap_or(bound)
}

#[cfg(test)]
mod tests;

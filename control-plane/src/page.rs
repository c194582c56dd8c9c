//! Listings a page at a time: what fits into one answer, and where the next one begins.

use prost::Message;
use tonic::Status;

/// What one answer carries.
#[derive(Debug)]
pub struct Page<T> {
    items: Vec<T>,
    items_max: usize,
    bytes: usize,
}

impl<T: Message> Page<T> {
    /// An empty page for at most so many items, and at least one.
    pub fn new(items_max: usize) -> Self {
        Self {
            items: Vec::new(),
            items_max,
            bytes: 0,
        }
    }

    /// Takes an item, unless it belongs on the next page: then this one is full. The first always
    /// fits, or nobody would ever see it.
    pub fn take(&mut self, item: T) -> bool {
        self.bytes += item.encoded_len();
        let is_full = self.bytes > BYTES_MAX || self.items.len() >= self.items_max;
        if is_full && !self.items.is_empty() {
            return false;
        }
        self.items.push(item);
        true
    }

    /// What it took.
    pub fn into_items(self) -> Vec<T> {
        self.items
    }
}

/// The key that a page token is: the last of the page before, below `prefix`; empty for the first.
///
/// # Errors
/// INVALID_ARGUMENT for what no answer had.
pub fn key<'a>(token: &'a str, prefix: &str) -> Result<&'a str, Status> {
    if token.is_empty() || token.starts_with(prefix) {
        return Ok(token);
    }
    Err(not_given_out())
}

/// The refusal of a page token that no answer had.
pub fn not_given_out() -> Status {
    Status::invalid_argument("the page token is not one that was given out")
}

/// Of a page, but for a single item that is larger; clients take 4 MiB.
const BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these items each page has.
    #[track_caller]
    fn check(items_max: usize, items: &[usize], expected: &[usize]) {
        let mut pages = vec![Page::new(items_max)];
        for bytes in items {
            let item = "x".repeat(*bytes);
            if !pages.last_mut().unwrap().take(item.clone()) {
                pages.push(Page::new(items_max));
                assert!(pages.last_mut().unwrap().take(item), "{bytes}");
            }
        }
        let counts: Vec<_> = pages
            .into_iter()
            .map(|page| page.into_items().len())
            .collect();
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_page_is_bounded_in_items_and_in_bytes() {
        check(2, &[1, 1, 1, 1, 1], &[2, 2, 1]);
        check(100, &[BYTES_MAX / 2; 5], &[1, 1, 1, 1, 1]);
        check(100, &[BYTES_MAX / 2 - 10; 5], &[2, 2, 1]);
        check(100, &[2 * BYTES_MAX, 1, 2 * BYTES_MAX], &[1, 1, 1]);
        check(1, &[], &[0]);
    }
}

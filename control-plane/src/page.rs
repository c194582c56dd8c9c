//! Listings a page at a time: what fits into one answer, and where the next one begins.

use prost::Message;
use tonic::Status;

/// The first items, as many as fit and at most `items_max`, each given with its place in the
/// listing; and the place of the last, if there are more. The first always fits, or nobody would
/// ever see it.
pub fn fill<P, T: Message>(
    items_max: usize,
    items: impl IntoIterator<Item = (P, T)>,
) -> (Vec<T>, Option<P>) {
    let mut page = Vec::new();
    let mut last = None;
    let mut bytes = 0;
    for (place, item) in items {
        bytes += item.encoded_len();
        if (bytes > BYTES_MAX || page.len() >= items_max) && !page.is_empty() {
            return (page, last);
        }
        page.push(item);
        last = Some(place);
    }
    (page, None)
}

/// The token of the page after a place; empty when there is none.
pub fn token(place: Option<impl ToString>) -> String {
    place.map(|place| place.to_string()).unwrap_or_default()
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

    /// How many of the items of these sizes each page has.
    #[track_caller]
    fn check(items_max: usize, sizes: &[usize], expected: &[usize]) {
        let mut counts = Vec::new();
        let mut begin = 0;
        loop {
            let rest = sizes.iter().enumerate().skip(begin);
            let (page, last) = fill(
                items_max,
                rest.map(|(place, bytes)| (place, "x".repeat(*bytes))),
            );
            counts.push(page.len());
            match last {
                Some(last) => begin = last + 1,
                None => break,
            }
        }
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_page_is_bounded_in_items_and_in_bytes() {
        check(2, &[1, 1, 1, 1, 1], &[2, 2, 1]);
        check(2, &[1, 1], &[2]);
        check(100, &[BYTES_MAX / 2; 5], &[1, 1, 1, 1, 1]);
        check(100, &[BYTES_MAX / 2 - 10; 5], &[2, 2, 1]);
        check(100, &[2 * BYTES_MAX, 1, 2 * BYTES_MAX], &[1, 1, 1]);
        check(1, &[], &[0]);
    }
}

//! Errors for one line of text: what failed, and what it failed for.

use std::error::Error;

/// The error, then each of its causes that the text so far does not say already: many libraries
/// repeat a cause in the text of what it caused.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        #[source]
        cause: Option<Box<Link>>,
    }

    #[test]
    fn a_cause_is_said_once() {
        for (texts, expected) in [
            (&["read"][..], "read"),
            (&["read", "open", "denied"], "read: open: denied"),
            (&["read: open", "open", "denied"], "read: open: denied"),
            (&["denied", "denied", "denied"], "denied"),
        ] {
            let link = texts
                .iter()
                .rev()
                .fold(None, |cause, text| Some(Box::new(Link { text, cause })));
            assert_eq!(link.map(|link| chain(&*link)).as_deref(), Some(expected));
        }
    }
}

//! What a policy sees of a request: borrowed, protocol neutral, and in the very form that is
//! forwarded.

/// The parts of a request that policies judge.
///
/// Made once per request by the data path. `path` is already in its normal form
/// ([`crate::path`]), and the same form is routed, authorised and forwarded.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Such as `GET`; case-sensitive (RFC 9110 section 9.1).
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// `:authority` or `Host`, lower case, with the port if the client sent one.
    pub authority: &'a str,
    /// The normalised path without query.
    pub path: &'a str,
    /// Header look-up.
    pub headers: &'a dyn Headers,
}

/// Header look-up, implemented by each data path over its own representation.
pub trait Headers {
    /// Calls `visit` with each value of `name` (lower case) in order, until it returns `false`.
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool);

    /// The first value of `name`, if it is valid UTF-8.
    fn first(&self, name: &str) -> Option<String> {
        let mut found = None;
        self.visit(name, &mut |value| {
            found = std::str::from_utf8(value).ok().map(str::to_owned);
            false
        });
        found
    }
}

impl<'a> RequestHead<'a> {
    /// The part that a pseudo-header of HTTP/2 names (RFC 9113 section 8.3.1), for conditions
    /// on headers; `None` when `name` is an ordinary header's.
    pub fn pseudo(&self, name: &str) -> Option<&'a str> {
        match name {
            ":method" => Some(self.method),
            ":authority" => Some(self.authority),
            ":scheme" => Some(self.scheme),
            ":path" => Some(self.path),
            _ => None,
        }
    }
}

impl std::fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("authority", &self.authority)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A list of pairs, for tests and for callers without a header map of their own.
impl Headers for &[(&str, &[u8])] {
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        for (_, value) in self.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)) {
            if !visit(value) {
                return;
            }
        }
    }
}

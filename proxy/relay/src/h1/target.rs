//! The target of a request (RFC 9112 section 3.2), in its four forms.

use super::fault::Fault;

/// A target, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// `/path?query`, or `*` of OPTIONS: the authority is in `Host`.
    Origin(&'a [u8]),
    /// `http://authority/path?query`, which overrules `Host`.
    Absolute {
        scheme: &'static [u8],
        authority: &'a [u8],
        /// With its slash; empty when there was none.
        path: &'a [u8],
    },
    /// `host:port` of CONNECT.
    Authority(&'a [u8]),
}

impl<'a> Target<'a> {
    /// Takes `target` apart. What the path means is not looked at: that is for whoever routes.
    pub(super) fn parse(method: &[u8], target: &'a [u8]) -> Result<Self, Fault> {
        if method == b"CONNECT" {
            check_authority(target)?;
            let colon = target.iter().rposition(|byte| *byte == b':');
            let (host, port) = target.split_at(colon.unwrap_or(0));
            if host.is_empty() || port.len() < 2 || !port[1..].iter().all(u8::is_ascii_digit) {
                return Err(Fault::bad("the target of CONNECT is not a host and a port"));
            }
            return Ok(Self::Authority(target));
        }
        match target {
            [b'/', ..] => Ok(Self::Origin(target)),
            b"*" if method == b"OPTIONS" => Ok(Self::Origin(target)),
            _ => Self::parse_absolute(target),
        }
    }

    fn parse_absolute(target: &'a [u8]) -> Result<Self, Fault> {
        const NOT_A_TARGET: Fault = Fault::bad("the target is neither a path nor an http URI");
        let colon = target.iter().position(|byte| *byte == b':');
        let (scheme, rest) = target.split_at(colon.ok_or(NOT_A_TARGET)?);
        let scheme: &[u8] = match scheme {
            _ if scheme.eq_ignore_ascii_case(b"http") => b"http",
            _ if scheme.eq_ignore_ascii_case(b"https") => b"https",
            _ => return Err(NOT_A_TARGET),
        };
        let rest = rest.strip_prefix(b"://").ok_or(NOT_A_TARGET)?;
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
        let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(NOT_A_TARGET);
        }
        check_authority(authority)?;
        Ok(Self::Absolute {
            scheme,
            authority,
            path,
        })
    }
}

/// A host with or without a port; empty is allowed (RFC 9112 section 3.2). User information is not
/// (RFC 9110 section 4.2.4).
pub(super) fn check_authority(authority: &[u8]) -> Result<(), Fault> {
    let is_allowed = |byte: &u8| AUTHORITY[usize::from(*byte)];
    if !authority.iter().all(is_allowed) {
        return Err(Fault::bad("the authority is not a host and a port"));
    }
    Ok(())
}

/// What a host and a port are made of (RFC 3986 section 3.2).
static AUTHORITY: [bool; 256] = alphanumerics_and(b"-._~%!$&'()*+,;=:[]");

/// Which bytes are ASCII letters, digits, or in `others`.
pub(super) const fn alphanumerics_and(others: &[u8]) -> [bool; 256] {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 128_u8 {
        allowed[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        allowed[others[at] as usize] = true;
        at += 1;
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, target: &str, expected: Option<Target<'_>>) {
        let parsed = Target::parse(method.as_bytes(), target.as_bytes());
        assert_eq!(parsed.ok(), expected, "{method} {target}");
    }

    fn absolute<'a>(scheme: &'static str, authority: &'a str, path: &'a str) -> Option<Target<'a>> {
        Some(Target::Absolute {
            scheme: scheme.as_bytes(),
            authority: authority.as_bytes(),
            path: path.as_bytes(),
        })
    }

    #[test]
    fn each_method_has_its_forms() {
        check("GET", "/", Some(Target::Origin(b"/")));
        check(
            "GET",
            "//a?b=http://c",
            Some(Target::Origin(b"//a?b=http://c")),
        );
        check("OPTIONS", "*", Some(Target::Origin(b"*")));
        check("GET", "*", None);
        check("GET", "http://a:80/b?c", absolute("http", "a:80", "/b?c"));
        check(
            "GET",
            "HTTPS://[::1]:8?c",
            absolute("https", "[::1]:8", "?c"),
        );
        check("OPTIONS", "http://a", absolute("http", "a", ""));
        check("CONNECT", "a:80", Some(Target::Authority(b"a:80")));
    }

    #[test]
    fn what_names_no_host_is_refused() {
        for target in [
            "a",
            "a/b",
            "?b",
            "http:/a",
            "http:///a",
            "ftp://a/",
            "http://u@a/",
        ] {
            check("GET", target, None);
        }
        for target in [
            "http://a b/",
            "http://a\\b/",
            "http://a#b",
            "http://\u{e4}/",
            "://a",
        ] {
            check("GET", target, None);
        }
        for target in ["a", "a:", "a:x", ":80", "/a", "http://a:80", "u@a:80", "*"] {
            check("CONNECT", target, None);
        }
    }
}

//! The static table (RFC 7541 appendix A).

use super::Token;

/// The field of an index from 1 to [`LEN`].
pub(super) fn get(index: usize) -> Option<(Token, &'static str)> {
    FIELDS.get(index.wrapping_sub(1)).copied()
}

/// The index of a whole field.
pub(super) fn find(token: Token, value: &[u8]) -> Option<usize> {
    let first = name(token)?;
    let same_name = FIELDS[first - 1..].iter().take_while(|of| of.0 == token);
    let mut indexed = same_name.zip(first..);
    let found = indexed.find(|(of, _)| of.1.as_bytes() == value);
    found.map(|(_, index)| index)
}

/// The first index with the name.
pub(super) fn name(token: Token) -> Option<usize> {
    let first = usize::from(FIRST[token as usize]);
    (first > 0).then_some(first)
}

pub(super) const LEN: usize = FIELDS.len();

/// 0 for what is not in the table.
#[expect(clippy::cast_possible_truncation, reason = "there are 61")]
static FIRST: [u8; Token::Other as usize + 1] = {
    let mut first = [0; Token::Other as usize + 1];
    let mut at = FIELDS.len();
    while at > 0 {
        first[FIELDS[at - 1].0 as usize] = at as u8;
        at -= 1;
    }
    first
};

static FIELDS: [(Token, &str); 61] = [
    (Token::Authority, ""),
    (Token::Method, "GET"),
    (Token::Method, "POST"),
    (Token::Path, "/"),
    (Token::Path, "/index.html"),
    (Token::Scheme, "http"),
    (Token::Scheme, "https"),
    (Token::Status, "200"),
    (Token::Status, "204"),
    (Token::Status, "206"),
    (Token::Status, "304"),
    (Token::Status, "400"),
    (Token::Status, "404"),
    (Token::Status, "500"),
    (Token::AcceptCharset, ""),
    (Token::AcceptEncoding, "gzip, deflate"),
    (Token::AcceptLanguage, ""),
    (Token::AcceptRanges, ""),
    (Token::Accept, ""),
    (Token::AccessControlAllowOrigin, ""),
    (Token::Age, ""),
    (Token::Allow, ""),
    (Token::Authorization, ""),
    (Token::CacheControl, ""),
    (Token::ContentDisposition, ""),
    (Token::ContentEncoding, ""),
    (Token::ContentLanguage, ""),
    (Token::ContentLength, ""),
    (Token::ContentLocation, ""),
    (Token::ContentRange, ""),
    (Token::ContentType, ""),
    (Token::Cookie, ""),
    (Token::Date, ""),
    (Token::Etag, ""),
    (Token::Expect, ""),
    (Token::Expires, ""),
    (Token::From, ""),
    (Token::Host, ""),
    (Token::IfMatch, ""),
    (Token::IfModifiedSince, ""),
    (Token::IfNoneMatch, ""),
    (Token::IfRange, ""),
    (Token::IfUnmodifiedSince, ""),
    (Token::LastModified, ""),
    (Token::Link, ""),
    (Token::Location, ""),
    (Token::MaxForwards, ""),
    (Token::ProxyAuthenticate, ""),
    (Token::ProxyAuthorization, ""),
    (Token::Range, ""),
    (Token::Referer, ""),
    (Token::Refresh, ""),
    (Token::RetryAfter, ""),
    (Token::Server, ""),
    (Token::SetCookie, ""),
    (Token::StrictTransportSecurity, ""),
    (Token::TransferEncoding, ""),
    (Token::UserAgent, ""),
    (Token::Vary, ""),
    (Token::Via, ""),
    (Token::WwwAuthenticate, ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_by_its_value_and_by_its_name() {
        for index in 1..=LEN {
            let (token, value) = get(index).unwrap();
            let by_name = name(token).unwrap();
            assert_eq!(get(by_name).unwrap().0, token);
            assert!(by_name <= index);
            assert_eq!(find(token, value.as_bytes()), Some(index));
            assert_eq!(find(token, b"another"), None);
        }
        assert!(get(0).is_none() && get(LEN + 1).is_none());
        assert_eq!(name(Token::Traceparent), None);
        assert_eq!(find(Token::Other, b""), None);
    }
}

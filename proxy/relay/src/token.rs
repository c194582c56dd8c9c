//! Names that a relay knows: compared and stored as one byte.

/// Defines [`Token`] with the names, which are in lower case.
macro_rules! tokens {
    ($($token:ident $name:literal,)*) => {
        /// A field name that is known, or that it is none of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Token {
            $(#[doc = concat!("`", $name, "`")] $token,)*
            /// Any other name.
            Other,
        }

        /// All that are known.
        const KNOWN: &[(Token, &str)] = &[$((Token::$token, $name),)*];
    };
}

tokens! {
    // Pseudo-headers (RFC 9113 section 8.3, RFC 8441 section 4); `is_pseudo` relies on the order.
    Authority ":authority",
    Method ":method",
    Path ":path",
    Protocol ":protocol",
    Scheme ":scheme",
    Status ":status",
    // The static table's (RFC 7541 appendix A).
    Accept "accept",
    AcceptCharset "accept-charset",
    AcceptEncoding "accept-encoding",
    AcceptLanguage "accept-language",
    AcceptRanges "accept-ranges",
    AccessControlAllowOrigin "access-control-allow-origin",
    Age "age",
    Allow "allow",
    Authorization "authorization",
    CacheControl "cache-control",
    ContentDisposition "content-disposition",
    ContentEncoding "content-encoding",
    ContentLanguage "content-language",
    ContentLength "content-length",
    ContentLocation "content-location",
    ContentRange "content-range",
    ContentType "content-type",
    Cookie "cookie",
    Date "date",
    Etag "etag",
    Expect "expect",
    Expires "expires",
    From "from",
    Host "host",
    IfMatch "if-match",
    IfModifiedSince "if-modified-since",
    IfNoneMatch "if-none-match",
    IfRange "if-range",
    IfUnmodifiedSince "if-unmodified-since",
    LastModified "last-modified",
    Link "link",
    Location "location",
    MaxForwards "max-forwards",
    ProxyAuthenticate "proxy-authenticate",
    ProxyAuthorization "proxy-authorization",
    Range "range",
    Referer "referer",
    Refresh "refresh",
    RetryAfter "retry-after",
    Server "server",
    SetCookie "set-cookie",
    StrictTransportSecurity "strict-transport-security",
    TransferEncoding "transfer-encoding",
    UserAgent "user-agent",
    Vary "vary",
    Via "via",
    WwwAuthenticate "www-authenticate",
    // Of one connection (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2).
    Connection "connection",
    Http2Settings "http2-settings",
    KeepAlive "keep-alive",
    ProxyConnection "proxy-connection",
    Te "te",
    Trailer "trailer",
    Upgrade "upgrade",
    // gRPC over HTTP/2.
    GrpcAcceptEncoding "grpc-accept-encoding",
    GrpcEncoding "grpc-encoding",
    GrpcMessage "grpc-message",
    GrpcRetryPushbackMs "grpc-retry-pushback-ms",
    GrpcStatus "grpc-status",
    GrpcTimeout "grpc-timeout",
    // W3C trace context, and what proxies tell each other.
    Baggage "baggage",
    Forwarded "forwarded",
    Traceparent "traceparent",
    Tracestate "tracestate",
    XForwardedClientCert "x-forwarded-client-cert",
    XForwardedFor "x-forwarded-for",
    XForwardedHost "x-forwarded-host",
    XForwardedProto "x-forwarded-proto",
    XHeddleReason "x-heddle-reason",
    XRequestId "x-request-id",
}

impl Token {
    /// Bytes of the longest known name, at most.
    pub const NAME_BYTES_MAX: usize = 40;

    /// What `name`, in lower case, is.
    pub fn of(name: &[u8]) -> Self {
        let found = BY_HASH[usize::from(hash(name))];
        match found {
            Some((token, known)) if known.as_bytes() == name => token,
            _ => Self::Other,
        }
    }

    /// The name, if it is known.
    pub fn name(self) -> Option<&'static str> {
        KNOWN.get(self as usize).map(|(_, name)| *name)
    }

    /// Whether it is a pseudo-header.
    pub fn is_pseudo(self) -> bool {
        (self as u8) <= (Self::Status as u8)
    }

    /// Whether it says something about one connection only, so that HTTP/2 forbids it
    /// (RFC 9113 section 8.2.2).
    pub fn is_of_connection(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::Http2Settings
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }
}

/// One place per known name: [`SEED`] was found by trying, and a name that is added may need
/// another (the build says so).
static BY_HASH: [Option<(Token, &str)>; 1 << HASH_BITS] = {
    let mut places = [None; 1 << HASH_BITS];
    let mut i = 0;
    while i < KNOWN.len() {
        let place = hash(KNOWN[i].1.as_bytes()) as usize;
        assert!(
            places[place].is_none(),
            "two names share a place: try another SEED"
        );
        places[place] = Some(KNOWN[i]);
        i += 1;
    }
    places
};

const HASH_BITS: u32 = 10;
const SEED: u64 = 4608;

/// Of the length, the first two and the last two bytes, and one in the middle.
const fn hash(name: &[u8]) -> u16 {
    let n = name.len();
    if n < 2 {
        return 0;
    }
    let bytes = [name[0], name[1], name[n / 2], name[n - 2], name[n - 1]];
    let mut word = n as u64;
    let mut i = 0;
    while i < bytes.len() {
        word = (word << 8) | bytes[i] as u64;
        i += 1;
    }
    let mixed = word.wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ (SEED << 1));
    (mixed >> (64 - HASH_BITS)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_found_and_others_are_not() {
        for &(token, name) in KNOWN {
            assert_eq!(Token::of(name.as_bytes()), token);
            assert_eq!(token.name(), Some(name));
            assert_eq!(Token::of(&name.as_bytes()[1..]), Token::Other);
            assert_eq!(token.is_pseudo(), name.starts_with(':'));
            assert!(name.len() <= Token::NAME_BYTES_MAX);
            assert_eq!(name, name.to_ascii_lowercase());
        }
        for other in ["", "x", "accepu", "Accept", ":stat"] {
            assert_eq!(Token::of(other.as_bytes()), Token::Other);
        }
        assert_eq!(Token::Other.name(), None);
    }
}

//! The head of a request on its way through: checked, brought to its one form, stripped of what
//! belongs to one hop (RFC 9110 section 7.6.1), with its request id and trace context.

use std::sync::Arc;

use heddle_policy::{
    deadline::GrpcTimeout,
    head::{Headers, RequestHead},
    path::Normal,
    snapshot::ClusterProtocol,
};
use heddle_relay::{cluster::LiveCluster, error::ProxyError};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use rand::{Rng, RngExt};

use crate::{
    body::Body,
    exchange::{Record, Spoken, Trace},
    settings::Bounds,
    tls::Carries,
};

/// A request's head, ready to be judged and forwarded.
#[derive(Debug)]
pub struct Head {
    /// As it is forwarded, but for the form that HTTP/1 and HTTP/2 each want.
    pub parts: Parts,
    /// Lower case; empty only in HTTP/1, see [`Head::name_if_nameless`].
    pub authority: String,
    /// Normalised, without query.
    pub path: String,
    /// An upgrade that the client asks for.
    pub upgrade: Option<Upgrade>,
    /// `x-request-id`.
    pub request_id: Arc<str>,
    /// This hop's span.
    pub trace: Trace,
}

/// An upgrade that is passed on.
#[derive(Debug)]
pub struct Upgrade {
    /// The client's side of it.
    pub client: OnUpgrade,
    /// The one protocol that was asked for.
    protocol: HeaderValue,
}

/// What a policy sees of a header map.
struct Map<'a>(&'a HeaderMap);

impl Headers for Map<'_> {
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        for value in self.0.get_all(name) {
            if !visit(value.as_bytes()) {
                return;
            }
        }
    }
}

/// What a request speaks, whatever else is wrong with it.
pub fn spoken(request: &Request<Incoming>) -> Spoken {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    match request.version() {
        Version::HTTP_2 if content_type.is_some_and(is_grpc) => Spoken::Grpc,
        Version::HTTP_2 => Spoken::Http2,
        _ => Spoken::Http1,
    }
}

impl Head {
    /// Checks a request and takes it apart.
    pub fn read(
        mut request: Request<Incoming>,
        bounds: &Bounds,
        rng: &mut impl Rng,
    ) -> Result<(Self, Incoming), ProxyError> {
        if request.method() == Method::CONNECT {
            return Err(ProxyError::ConnectRefused);
        }
        check_size(request.headers())?;
        check_framing(request.headers())?;
        let authority = authority(&request)?;
        let raw = request
            .uri()
            .path_and_query()
            .map_or("/", |raw| raw.as_str());
        let normal = Normal::parse(raw, bounds.paths)
            .map_err(|_unsafe| ProxyError::BadRequest("the path has no safe normal form"))?;
        let target = PathAndQuery::try_from(normal.target().as_ref())
            .map_err(|_invalid| ProxyError::BadRequest("the path is not valid"))?;
        let path = normal.path.into_owned();
        let upgrade = asked_upgrade(&request).map(|protocol| Upgrade {
            client: hyper::upgrade::on(&mut request),
            protocol,
        });

        let (mut parts, body) = request.into_parts();
        strip(&mut parts.headers, upgrade.is_some());
        strip_ours(&mut parts.headers);
        parts.uri = forwarded_uri(&authority, target)?;
        // For what is added here and by hyper: one growth, copied to every attempt.
        parts.headers.reserve(HEADERS_ADDED);
        let request_id = request_id(&mut parts.headers, rng);
        let trace = trace(&mut parts.headers, bounds.sampled_share, rng);
        let head = Self {
            parts,
            authority,
            path,
            upgrade,
            request_id,
            trace,
        };
        Ok((head, body))
    }

    /// A client that named no authority meant what it dialled.
    pub fn name_if_nameless(&mut self, name: &str) -> Result<(), ProxyError> {
        if self.authority.is_empty() {
            let target = self.parts.uri.path_and_query().cloned();
            let target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
            self.parts.uri = forwarded_uri(name, target)?;
            name.clone_into(&mut self.authority);
        }
        Ok(())
    }

    /// For policies.
    pub fn judged<T>(&self, judge: impl FnOnce(&RequestHead<'_>) -> T) -> T {
        judge(&RequestHead {
            method: self.parts.method.as_str(),
            scheme: "http",
            authority: &self.authority,
            path: &self.path,
            headers: &Map(&self.parts.headers),
        })
    }

    /// Whether this is gRPC.
    pub fn is_grpc(&self) -> bool {
        let content_type = self.parts.headers.get(header::CONTENT_TYPE);
        self.parts.version == Version::HTTP_2 && content_type.is_some_and(is_grpc)
    }

    /// What a connection for this request carries. An upgrade is HTTP/1.1's own.
    pub fn carries(&self, cluster: &LiveCluster) -> Carries {
        match (self.parts.version, cluster.config.protocol) {
            (Version::HTTP_2, _) => Carries::Http2,
            (_, ClusterProtocol::Http2) if self.upgrade.is_none() => Carries::Http1OrForeignHttp2,
            _ => Carries::Http1,
        }
    }

    /// The caller's own time.
    pub fn grpc_timeout(&self) -> Option<std::time::Duration> {
        let value = self.parts.headers.get(GRPC_TIMEOUT)?;
        GrpcTimeout::parse(value.as_bytes()).ok().map(|t| t.0)
    }

    /// The request of one attempt. `timeout` replaces the caller's.
    pub fn request(&self, body: Body, timeout: Option<GrpcTimeout>) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() = self.parts.headers.clone();
        if let Some(timeout) = timeout {
            let value = HeaderValue::try_from(timeout.to_string());
            let value = value.expect("digits and a letter");
            request.headers_mut().insert(GRPC_TIMEOUT, value);
        }
        request
    }

    /// Writes down what the record takes from the head.
    pub fn describe(&self, record: &mut Record) {
        record.method = self.parts.method.as_str().into();
        record.path = self.path.as_str().into();
        record.request_id = Arc::clone(&self.request_id);
        record.trace = Some(self.trace);
    }
}

impl Upgrade {
    /// Whether the endpoint switches to what was asked for, and to nothing else.
    pub fn is_answered_by(&self, headers: &HeaderMap) -> bool {
        let asked = self.protocol.as_bytes();
        only_upgrade(headers)
            .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(asked))
    }
}

/// What peers say about their own or others' certificates (Envoy's and Istio's header). The
/// application may believe it from its sidecar, and ours says nothing.
pub fn strip_claims(headers: &mut HeaderMap) {
    headers.remove(FORWARDED_CLIENT_CERT);
}

/// The form of HTTP/2: pseudo-headers instead of `Host`, nothing of the connection.
pub fn to_http2(request: &mut Request<Body>) {
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(header::HOST);
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
}

/// The form of HTTP/1.1: origin-form, `Host`, and a body whose end can be told.
pub fn to_http1(request: &mut Request<Body>) {
    *request.version_mut() = Version::HTTP_11;
    let body = request.body();
    let is_unmeasured =
        !http_body::Body::is_end_stream(body) && http_body::Body::size_hint(body).exact().is_none();
    if is_unmeasured && !request.headers().contains_key(header::CONTENT_LENGTH) {
        // Without it hyper leaves out the body of methods that seldom have one.
        let chunked = HeaderValue::from_static("chunked");
        request
            .headers_mut()
            .insert(header::TRANSFER_ENCODING, chunked);
    }
    let uri = std::mem::take(request.uri_mut());
    let host = uri.authority().map_or("", Authority::as_str);
    let host = HeaderValue::try_from(host).expect("an authority is printable ASCII");
    request.headers_mut().insert(header::HOST, host);
    let origin = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(origin);
}

/// Readies a response head for the client. The reason word of a sidecar is passed on.
pub fn clean_response<B>(response: &mut Response<B>, is_from_sidecar: bool) {
    let is_upgrade = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
    strip(response.headers_mut(), is_upgrade);
    if !is_from_sidecar {
        strip_ours(response.headers_mut());
    }
}

/// Exactly one `Host` in HTTP/1.1 (RFC 9112 section 3.2), overruled by absolute-form;
/// `:authority` or `Host` in HTTP/2.
fn authority(request: &Request<Incoming>) -> Result<String, ProxyError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(ProxyError::BadRequest("there is more than one Host"));
    }
    let authority = match (request.uri().authority(), host) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host
            .to_str()
            .map_err(|_invalid| ProxyError::BadRequest("Host is not printable"))?
            .trim(),
        (None, None) if request.version() == Version::HTTP_10 => "",
        (None, None) => return Err(ProxyError::BadRequest("there is no Host")),
    };
    if authority.is_empty() && request.version() == Version::HTTP_2 {
        return Err(ProxyError::BadRequest("there is no authority"));
    }
    if authority.contains('@') {
        return Err(ProxyError::BadRequest("the authority has user information"));
    }
    Ok(authority.to_ascii_lowercase())
}

fn forwarded_uri(authority: &str, target: PathAndQuery) -> Result<Uri, ProxyError> {
    let mut parts = http::uri::Parts::default();
    if !authority.is_empty() {
        let authority = Authority::try_from(authority);
        let invalid = |_invalid| ProxyError::BadRequest("the authority is not valid");
        parts.authority = Some(authority.map_err(invalid)?);
        parts.scheme = Some(Scheme::HTTP);
    }
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).map_err(|_invalid| ProxyError::BadRequest("the target is not valid"))
}

/// What an HTTP/1.1 request wants to become. What would carry requests that nobody judges, and a
/// choice of several, is declined by ignoring it (RFC 9110 section 7.8).
fn asked_upgrade(request: &Request<Incoming>) -> Option<HeaderValue> {
    let headers = request.headers();
    let protocol = only_upgrade(headers)?;
    let is_asked = request.version() == Version::HTTP_11
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    (is_asked && !is_http_again(protocol.as_bytes())).then(|| protocol.clone())
}

/// The one protocol of the one `Upgrade` header.
fn only_upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else {
        return None;
    };
    let bytes = protocol.as_bytes();
    let is_one = !bytes.is_empty() && !bytes.iter().any(|b| matches!(b, b',' | b' ' | b'\t'));
    is_one.then_some(protocol)
}

/// HTTP in another form, in clear or behind TLS (`h2c`, RFC 7540; `TLS/1.0`, RFC 2817).
fn is_http_again(protocol: &[u8]) -> bool {
    let (name, _version) = protocol.split_at(
        protocol
            .iter()
            .position(|b| *b == b'/')
            .unwrap_or(protocol.len()),
    );
    [&b"h2c"[..], b"h2", b"http", b"tls"]
        .iter()
        .any(|other| name.eq_ignore_ascii_case(other))
}

/// Removes what is for this hop only. An upgrade is passed on.
fn strip(headers: &mut HeaderMap, keeps_upgrade: bool) {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
        .filter(|name| *name != header::UPGRADE && *name != header::TE)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    // Whether trailers are welcome holds end to end for gRPC (RFC 9113 section 8.2.2).
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
    if keeps_upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::UPGRADE);
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Nobody else sets `x-heddle-*`.
fn strip_ours(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| name.as_str().starts_with("x-heddle-");
    let names: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn check_size(headers: &HeaderMap) -> Result<(), ProxyError> {
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD)
        .sum();
    let bytes_max = crate::channel::HEADER_BYTES_MAX as usize;
    if headers.len() > crate::channel::HEADERS_MAX || bytes > bytes_max {
        return Err(ProxyError::HeadersTooLarge);
    }
    Ok(())
}

/// Between `Transfer-Encoding` and `Content-Length` hyper lets the former win and closes the
/// connection after the answer (RFC 9112 section 6.3); another coding than `chunked` would be lost
/// on the way, because it belongs to this hop.
fn check_framing(headers: &HeaderMap) -> Result<(), ProxyError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let (coding, second) = (codings.next(), codings.next());
    let Some(coding) = coding else { return Ok(()) };
    if second.is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        let error = "no transfer coding but chunked is understood";
        return Err(ProxyError::BadRequest(error));
    }
    Ok(())
}

fn request_id(headers: &mut HeaderMap, rng: &mut impl Rng) -> Arc<str> {
    if let Some(id) = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok())
        && (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
    {
        return id.into();
    }
    let id = format!("{:032x}", rng.random::<u128>());
    let value = HeaderValue::try_from(&id).expect("hexadecimal digits");
    headers.insert(REQUEST_ID, value);
    id.into()
}

/// Continues the caller's trace, or begins one, and puts this hop's span into the headers.
fn trace(headers: &mut HeaderMap, sampled_share: f64, rng: &mut impl Rng) -> Trace {
    let mut callers = headers.get_all(TRACEPARENT).iter();
    let caller = match (callers.next(), callers.next()) {
        (Some(only), None) => only.to_str().ok().and_then(parse_traceparent),
        _ => None,
    };
    let span_id = rng.random_range(1..=u64::MAX);
    let trace = match caller {
        Some((trace_id, parent_id, is_sampled)) => Trace {
            trace_id,
            span_id,
            parent_id: Some(parent_id),
            is_sampled,
        },
        None => Trace {
            trace_id: rng.random_range(1..=u128::MAX),
            span_id,
            parent_id: None,
            is_sampled: rng.random::<f64>() < sampled_share,
        },
    };
    if caller.is_none() {
        // The state of a trace that is not continued means nothing.
        headers.remove("tracestate");
    }
    let flags = u8::from(trace.is_sampled);
    let text = format!("00-{:032x}-{span_id:016x}-{flags:02x}", trace.trace_id);
    let value = HeaderValue::try_from(text).expect("hexadecimal digits and hyphens");
    headers.insert(TRACEPARENT, value);
    trace
}

/// Version 00, and what later versions keep of it (W3C trace context section 3.2).
fn parse_traceparent(text: &str) -> Option<(u128, u64, bool)> {
    let mut fields = text.split('-');
    let (version, trace, parent, flags) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let is_hex = |field: &str, len| {
        let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        field.len() == len && field.bytes().all(is_digit)
    };
    let has_rest = version == "00" && fields.next().is_some();
    if !is_hex(version, 2) || version == "ff" || has_rest {
        return None;
    }
    if !is_hex(trace, 32) || !is_hex(parent, 16) || !is_hex(flags, 2) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
    let parent = u64::from_str_radix(parent, 16).ok().filter(|id| *id != 0)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some((trace, parent, flags & 1 == 1))
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    let rest = content_type.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::TRANSFER_ENCODING,
];

/// What each header counts besides its bytes (RFC 9113 section 6.5.2).
const HEADER_OVERHEAD: usize = 32;
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Identifier, trace, timeout and length.
const HEADERS_ADDED: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_only_if_it_is_well_formed() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = "b7ad6b7169203331";
        let good = Some((
            0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            0xb7ad_6b71_6920_3331,
        ));
        let check = |text: String, expected: Option<(u128, u64)>| {
            let parsed = parse_traceparent(&text).map(|(t, p, _)| (t, p));
            assert_eq!(parsed, expected, "{text}");
        };
        check(format!("00-{trace}-{parent}-01"), good);
        check(format!("cc-{trace}-{parent}-01-more"), good);
        check(format!("00-{trace}-{parent}-01-more"), None);
        check(format!("ff-{trace}-{parent}-01"), None);
        check(format!("00-{}-{parent}-01", "0".repeat(32)), None);
        check(format!("00-{}-{parent}-01", trace.to_uppercase()), None);
        check(format!("00-{trace}-{parent}"), None);
    }

    #[test]
    fn what_belongs_to_one_hop_does_not_pass() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip(&mut headers, false);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-kept"]);
    }
}

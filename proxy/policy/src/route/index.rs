//! Finds a virtual host and a route without looking at all of them.
//!
//! Built with the table, in time and memory linear in its texts. Domains, whole paths and
//! beginnings of paths are [`Patterns`]: one walk along the authority and one along the path
//! give those that cover them. Expressions have no such order and are tried one after the
//! other, but only those before the best route found so far: never one that a scan in the
//! order of the configuration would not have tried.

use std::sync::Arc;

use super::{PathMatch, Route, VirtualHost};
use crate::{
    head::RequestHead,
    patterns::{Pattern, Patterns, lowest},
};

/// Where virtual hosts and their routes are, by their positions in the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// Hosts by domain but `*`. Each list ascends: of equal domains the first counts.
    domains: Patterns<Vec<usize>>,
    /// The first host with the domain `*`.
    any: Option<usize>,
    /// The routes of each host.
    paths: Vec<Paths>,
}

/// The routes of one host.
#[derive(Clone, Debug)]
struct Paths {
    count: usize,
    /// Those with a text for a condition, in ascending lists.
    texts: Patterns<Vec<usize>>,
    /// Those with an expression, in order.
    expressions: Vec<usize>,
}

impl Index {
    pub(super) fn new(hosts: &[VirtualHost]) -> Self {
        let domains = || {
            let hosts = hosts.iter().enumerate();
            hosts.flat_map(|(i, host)| host.domains.iter().map(move |domain| (&**domain, i)))
        };
        let specific = domains().filter(|(domain, _)| *domain != "*");
        let patterns = specific.flat_map(|(domain, host)| {
            // As a whole, a domain with a `*` covers an authority that has the `*` too.
            let wildcard = wildcard(domain).map(|pattern| (pattern, host));
            [(Pattern::Exact(domain), host)].into_iter().chain(wildcard)
        });
        let any = domains().find(|(domain, _)| *domain == "*");
        Self {
            domains: Patterns::new(patterns),
            any: any.map(|(_, host)| host),
            paths: hosts.iter().map(Paths::new).collect(),
        }
    }

    /// The positions of the request's host, and of its route in there.
    pub(super) fn find(
        &self,
        hosts: &[VirtualHost],
        head: &RequestHead<'_>,
    ) -> Option<(usize, usize)> {
        let host = self.host(head.authority)?;
        let route = self.paths[host].find(&hosts[host].routes, head)?;
        Some((host, route))
    }

    /// By the authority as it is: the host with this domain, else the longest `*.suffix`, else
    /// the longest `prefix.*`; then the same by the name without its port; then `*`.
    fn host(&self, authority: &str) -> Option<usize> {
        let name = without_port(authority);
        let port = authority.len() - name.len();
        let (mut whole, mut whole_name, mut begin) = (None, None, None);
        self.domains.beginnings(authority, |kept, left| {
            if left == 0 {
                whole = kept.whole.as_ref();
            } else {
                begin = kept.begin.as_ref().or(begin);
            }
            if left == port {
                whole_name = kept.whole.as_ref();
            }
        });
        let host = whole
            .or_else(|| self.domains.longest_end(authority))
            // What begins the name begins the authority too: there is no second one.
            .or(begin)
            .or(whole_name)
            .or_else(|| self.domains.longest_end(name));
        let host = host.and_then(|equal| equal.first());
        host.copied().or(self.any)
    }
}

impl Paths {
    fn new(host: &VirtualHost) -> Self {
        let paths = || {
            let routes = host.routes.iter().enumerate();
            routes.map(|(i, route)| (i, text(&route.matches.path)))
        };
        let texts = paths().filter_map(|(i, text)| Some((text?, i)));
        let expressions = paths().filter(|(_, text)| text.is_none());
        Self {
            count: host.routes.len(),
            texts: Patterns::new(texts),
            expressions: expressions.map(|(i, _)| i).collect(),
        }
    }

    fn find(&self, routes: &[Arc<Route>], head: &RequestHead<'_>) -> Option<usize> {
        let mut best = self.count;
        self.texts.visit(head.path, |of_path| {
            best = lowest(of_path, best, |i| routes[i].matches.fits_headers(head));
        });
        best = lowest(&self.expressions, best, |i| routes[i].matches.fits(head));
        (best < self.count).then_some(best)
    }
}

/// The pattern of a domain with a `*` and more. The `*` stands for at
/// least one character, as in Envoy.
fn wildcard(domain: &str) -> Option<Pattern<'_>> {
    match domain.strip_prefix('*') {
        Some(suffix) => Some(Pattern::Suffix(suffix)),
        None => domain.strip_suffix('*').map(Pattern::Prefix),
    }
}

/// `None` for an expression.
fn text(path: &PathMatch) -> Option<Pattern<'_>> {
    match path {
        PathMatch::Any => Some(Pattern::Prefix("")),
        PathMatch::Exact(text) => Some(Pattern::Exact(text)),
        PathMatch::Prefix(text) => Some(Pattern::Prefix(text)),
        PathMatch::Regex(_) => None,
    }
}

/// `name:port` and `[v6]:port` without the port.
fn without_port(authority: &str) -> &str {
    let digits = authority.bytes().rev().take_while(u8::is_ascii_digit);
    let before = authority.len() - digits.count();
    match authority[..before].strip_suffix(':') {
        Some(name) if before < authority.len() && (name.ends_with(']') || !name.contains(':')) => {
            name
        }
        _ => authority,
    }
}

//! Which cluster a request goes to: the first route whose match fits.
//!
//! The virtual host is chosen as Envoy does: an exact domain, else the longest `*.suffix`, else
//! the longest `prefix.*`, else `*`. Before `*` the authority is looked up a second time
//! without its port. A virtual host none of whose routes fits is not left for another.
//!
//! Conditions on headers see one text per name: several values are joined with `,` (RFC 9110
//! section 5.3, and Envoy). A header that is missing, or is not UTF-8, fulfils no condition;
//! inverted, the condition then holds, so "without `x: a`" includes "without `x`".
//!
//! A sidecar's table has one virtual host, or few: both steps are scans.

use std::{sync::Arc, time::Duration};

use regex::Regex;

use crate::{
    head::{Headers, RequestHead},
    retry::RetryPolicy,
    snapshot::WeightedClusters,
};

/// The routes of one destination, by authority.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// Name of the configuration it came from; for reports.
    pub name: Arc<str>,
    /// In the order of the configuration.
    pub hosts: Vec<VirtualHost>,
}

/// Routes of a set of domains.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// Exact names, `*.suffix`, `prefix.*` or `*`; lower case.
    pub domains: Vec<Arc<str>>,
    /// First match wins.
    pub routes: Vec<Arc<Route>>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Route {
    /// As the user named it, or empty.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: RouteMatch,
    /// Where it leads.
    pub clusters: WeightedClusters,
    /// Whole-request deadline, retries included. `None`: only the caller's own.
    pub timeout: Option<Duration>,
    /// Retries. `None`: none; re-pick still applies.
    pub retry: Option<RetryPolicy>,
}

/// All conditions must hold.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// Condition on the normalised path.
    pub path: PathMatch,
    /// Conditions on headers; `:method`, `:authority` and `:scheme` are allowed names.
    pub headers: Vec<HeaderMatch>,
}

/// Condition on a path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Every path.
    Any,
    /// The whole path.
    Exact(Arc<str>),
    /// The beginning of the path.
    Prefix(Arc<str>),
    /// The whole path, by a linear-time expression.
    Regex(Regex),
}

/// Condition on a header.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: Arc<str>,
    /// What its value must be.
    pub value: ValueMatch,
    /// Turns the result round.
    pub is_inverted: bool,
}

/// Condition on a value. A value that is not UTF-8 matches nothing but `Present`.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// The header is there.
    Present,
    /// Equal.
    Exact(Arc<str>),
    /// Begins with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Contains.
    Contains(Arc<str>),
    /// The whole value, by a linear-time expression.
    Regex(Regex),
}

impl RouteTable {
    /// Where everything goes when nobody wrote a route: to the cluster of the table's own name,
    /// without a condition, a deadline or retries. Bytes lose nothing by going there unread.
    pub fn unwritten(&self) -> Option<&WeightedClusters> {
        let [host] = &*self.hosts else { return None };
        let ([domain], [route]) = (&*host.domains, &*host.routes) else {
            return None;
        };
        let Route {
            name,
            matches: RouteMatch { path, headers },
            clusters,
            timeout,
            retry,
        } = &**route;
        let takes_all = **domain == *"*" && matches!(path, PathMatch::Any) && headers.is_empty();
        let asks_nothing = name.is_empty() && timeout.is_none() && retry.is_none();
        let mut split = clusters.iter();
        let is_own = split.next().is_some_and(|(only, _)| only.0 == self.name);
        let is_one = is_own && split.next().is_none();
        (takes_all && asks_nothing && is_one).then_some(clusters)
    }

    /// The route of a request, or `None` when no virtual host or no route of it fits.
    pub fn find(&self, head: &RequestHead<'_>) -> Option<&Arc<Route>> {
        let host = self.host(head.authority)?;
        host.routes.iter().find(|route| route.matches.fits(head))
    }

    fn host(&self, authority: &str) -> Option<&VirtualHost> {
        let name = without_port(authority);
        let specific = self.closest(authority);
        let specific = specific.or_else(|| (name != authority).then(|| self.closest(name))?);
        specific.or_else(|| {
            let mut hosts = self.hosts.iter();
            hosts.find(|host| host.domains.iter().any(|domain| **domain == *"*"))
        })
    }

    /// The host with the closest domain but `*`; of equals the first.
    fn closest(&self, name: &str) -> Option<&VirtualHost> {
        let mut best: Option<(Closeness, &VirtualHost)> = None;
        for host in &self.hosts {
            let closeness = host.domains.iter().filter_map(|d| closeness(d, name)).max();
            if let Some(closeness) = closeness
                && best.is_none_or(|(other, _)| other < closeness)
            {
                best = Some((closeness, host));
            }
        }
        best.map(|(_, host)| host)
    }
}

impl RouteMatch {
    /// Whether all conditions hold.
    pub fn fits(&self, head: &RequestHead<'_>) -> bool {
        self.path.fits(head.path) && self.headers.iter().all(|header| header.fits(head))
    }
}

impl PathMatch {
    /// Whether the normalised path fulfils the condition.
    pub fn fits(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(text) => path == &**text,
            Self::Prefix(text) => path.starts_with(&**text),
            Self::Regex(regex) => is_whole_match(regex, path),
        }
    }
}

impl HeaderMatch {
    /// Whether the condition holds.
    pub fn fits(&self, head: &RequestHead<'_>) -> bool {
        let holds = match head.pseudo(&self.name) {
            Some(text) => self.value.fits(text.as_bytes()),
            None => self.value.fits_header(head.headers, &self.name),
        };
        holds != self.is_inverted
    }
}

impl ValueMatch {
    /// Whether a value fulfils the condition; one that is not UTF-8 fulfils only `Present`.
    pub fn fits(&self, value: &[u8]) -> bool {
        std::str::from_utf8(value)
            .map_or(matches!(self, Self::Present), |text| self.fits_text(text))
    }

    /// Whether a text fulfils the condition.
    pub fn fits_text(&self, text: &str) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(other) => text == &**other,
            Self::Prefix(other) => text.starts_with(&**other),
            Self::Suffix(other) => text.ends_with(&**other),
            Self::Contains(other) => text.contains(&**other),
            Self::Regex(regex) => is_whole_match(regex, text),
        }
    }

    /// Several values of one name are joined only when there are several, so the usual look-up
    /// copies nothing.
    fn fits_header(&self, headers: &dyn Headers, name: &str) -> bool {
        let mut count = 0;
        let mut holds = false;
        headers.visit(name, &mut |value| {
            count += 1;
            holds = self.fits(value);
            count < 2
        });
        if count < 2 {
            return holds;
        }
        let mut joined = Vec::new();
        headers.visit(name, &mut |value| {
            if !joined.is_empty() {
                joined.push(b',');
            }
            joined.extend_from_slice(value);
            true
        });
        self.fits(&joined)
    }
}

/// How close a domain is to a name: later variants are closer, longer texts too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    Prefix(usize),
    Suffix(usize),
    Exact,
}

/// `None` when the domain does not cover the name, or is `*`. The `*` stands for at least one
/// character, as in Envoy.
fn closeness(domain: &str, name: &str) -> Option<Closeness> {
    if domain == name {
        return Some(Closeness::Exact);
    }
    if domain == "*" {
        return None;
    }
    if let Some(suffix) = domain.strip_prefix('*') {
        let fits = name.len() > suffix.len() && name.ends_with(suffix);
        return fits.then_some(Closeness::Suffix(suffix.len()));
    }
    let prefix = domain.strip_suffix('*')?;
    let fits = name.len() > prefix.len() && name.starts_with(prefix);
    fits.then_some(Closeness::Prefix(prefix.len()))
}

/// `name:port` and `[v6]:port` without the port.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port))
            if !port.is_empty()
                && port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => authority,
    }
}

/// Whether an expression covers the whole text, whether or not it is anchored itself.
fn is_whole_match(regex: &Regex, text: &str) -> bool {
    // An anchored expression, as configuration makes them, has one match or none.
    regex
        .find(text)
        .is_some_and(|found| found.len() == text.len())
}

#[cfg(test)]
mod tests;

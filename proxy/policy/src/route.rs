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
//! What a request costs does not grow with hosts and routes, but for routes with expressions
//! and for those that differ in nothing but headers ([`index`]).

mod index;

use std::{sync::Arc, time::Duration};

use index::Index;
use regex::Regex;

use crate::{
    head::{Headers, RequestHead},
    patterns::Pattern,
    retry::RetryPolicy,
    snapshot::WeightedClusters,
};

/// The routes of one destination, by authority.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    name: Arc<str>,
    hosts: Vec<VirtualHost>,
    /// Of `hosts`, which therefore never change.
    index: Index,
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
    /// With virtual hosts in the order of the configuration. Takes time and memory linear in
    /// their texts: build it off the request path.
    pub fn new(name: impl Into<Arc<str>>, hosts: Vec<VirtualHost>) -> Self {
        Self {
            name: name.into(),
            index: Index::new(&hosts),
            hosts,
        }
    }

    /// Name of the configuration it came from; for reports.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// In the order of the configuration.
    pub fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }

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
        let (host, route) = self.index.find(&self.hosts, head)?;
        Some(&self.hosts[host].routes[route])
    }
}

impl RouteMatch {
    /// Whether all conditions hold.
    pub fn fits(&self, head: &RequestHead<'_>) -> bool {
        self.path.fits(head.path) && self.fits_headers(head)
    }

    fn fits_headers(&self, head: &RequestHead<'_>) -> bool {
        self.headers.iter().all(|header| header.fits(head))
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

    /// The same for an index; `None` when only [`Self::fits_text`] can tell.
    pub(crate) fn pattern(&self) -> Option<Pattern<'_>> {
        match self {
            Self::Present => Some(Pattern::Prefix("")),
            Self::Exact(text) => Some(Pattern::Exact(text)),
            Self::Prefix(text) => Some(Pattern::Prefix(text)),
            Self::Suffix(text) => Some(Pattern::Suffix(text)),
            Self::Contains(_) | Self::Regex(_) => None,
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

/// Whether an expression covers the whole text, whether or not it is anchored itself.
fn is_whole_match(regex: &Regex, text: &str) -> bool {
    // An anchored expression, as configuration makes them, has one match or none.
    regex
        .find(text)
        .is_some_and(|found| found.len() == text.len())
}

#[cfg(test)]
mod tests;

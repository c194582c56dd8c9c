//! Authorization: deny before allow, and a rule that cannot be judged denies.
//!
//! A condition is judged to one of three answers: it holds, it does not, or that cannot be told.
//! Not to be told is: a condition on HTTP where no HTTP was parsed, a header value that is not
//! UTF-8, and a header whose values disagree. A DENY rule denies unless it certainly does not
//! hold; an ALLOW rule allows only if it certainly holds. `Not` keeps "cannot be told". What
//! follows from that one rule:
//!
//! - a header with several values: any of them denies, all of them must allow;
//! - a value that is not UTF-8 denies under a DENY rule, positive or negative, and never allows;
//! - on TCP a DENY rule decides by its other conditions as if those on HTTP held, as in Istio.
//!
//! Besides, on TCP an ALLOW rule with any condition on HTTP allows nothing (Istio), even if
//! another of its alternatives would.
//!
//! Values are whole field lines: `a, b` on one line is the one value `a, b`.
//!
//! Only rules that may hold are judged, found by the texts they ask for ([`index`]): a thousand
//! rules, each for another peer, cost little more than ten.

mod index;
mod judge;

use std::{net::IpAddr, sync::Arc};

use index::Indexed;
use ipnet::IpNet;
use judge::{Facts, Test, Truth};

use crate::{head::RequestHead, route::ValueMatch, spiffe::Peer};

/// The rules of one port. `Default` has none and allows every admitted peer.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Judged first; one that holds denies.
    deny: Indexed,
    /// `None`: no ALLOW policy, everything else is allowed. `Some` and empty: an ALLOW policy
    /// without rules, nothing is allowed.
    allow: Option<Indexed>,
    /// Whether any of them has a condition on HTTP.
    needs_http: bool,
}

/// One rule of a policy.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Policy and rule, such as `ns[shop]-policy[web]-rule[0]`: for the reason given and logs.
    name: Arc<str>,
    /// When it holds, as it was written.
    when: Condition,
    /// The same as it is judged.
    test: Test,
    /// Whether it has a condition on HTTP.
    needs_http: bool,
}

/// When a rule holds. Texts are compared as [`ValueMatch`] does.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Always.
    Always,
    /// All of them hold; none: always.
    All(Vec<Self>),
    /// One of them holds; none: never.
    Any(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// The peer's whole id, `spiffe://` included. `Present` is any meshed peer; an anonymous
    /// peer fulfils none.
    Principal(ValueMatch),
    /// The namespace of the peer's id; an anonymous peer has none.
    Namespace(ValueMatch),
    /// The connection comes from this block.
    SourceIp(IpNet),
    /// The workload's port.
    Port(u16),
    /// HTTP: the method, case-sensitive.
    Method(ValueMatch),
    /// HTTP: the normalised path, without query.
    Path(ValueMatch),
    /// HTTP: `Host` or `:authority`, lower case, with the port if the client sent one.
    Authority(ValueMatch),
    /// HTTP: a header, by its name in lower case.
    Header(Arc<str>, ValueMatch),
}

/// What is decided. The rule is the one that decided; `None` is the absence of one.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'a> {
    /// By an ALLOW rule, or because there is no ALLOW policy.
    Allow(Option<&'a Rule>),
    /// By a DENY rule, or because no ALLOW rule holds.
    Deny(Option<&'a Rule>),
}

impl Rules {
    /// `allow` is `None` when no ALLOW policy selects the workload. Takes time and memory about
    /// linear in the texts of all conditions: build it off the request path.
    pub fn new(deny: Vec<Rule>, allow: Option<Vec<Rule>>) -> Self {
        let mut rules = deny.iter().chain(allow.iter().flatten());
        Self {
            needs_http: rules.any(|rule| rule.needs_http),
            deny: Indexed::new(deny),
            allow: allow.map(Indexed::new),
        }
    }

    /// Judges a request, or a connection when `head` is `None`.
    pub fn decide(
        &self,
        peer: &Peer,
        source: IpAddr,
        port: u16,
        head: Option<&RequestHead<'_>>,
    ) -> Decision<'_> {
        let facts = Facts::new(peer, source, port, head);
        let denies = |rule: &Rule| rule.test.judge(&facts) != Truth::No;
        if let Some(rule) = self.deny.first(&facts, denies) {
            return Decision::Deny(Some(rule));
        }
        let Some(allow) = &self.allow else {
            return Decision::Allow(None);
        };
        let allows = |rule: &Rule| {
            (facts.is_http() || !rule.needs_http) && rule.test.judge(&facts) == Truth::Yes
        };
        match allow.first(&facts, allows) {
            Some(rule) => Decision::Allow(Some(rule)),
            None => Decision::Deny(None),
        }
    }

    /// Whether any rule looks at HTTP: then bytes that did not parse as HTTP are refused on an
    /// HTTP port.
    pub fn needs_http(&self) -> bool {
        self.needs_http
    }

    /// Whether there is no rule and no ALLOW policy.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_none()
    }
}

impl Rule {
    /// A rule of this name.
    pub fn new(name: impl Into<Arc<str>>, when: Condition) -> Self {
        Self {
            name: name.into(),
            needs_http: when.needs_http(),
            test: Test::new(&when),
            when,
        }
    }

    /// Policy and rule.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Condition {
    /// Whether it can only be judged over HTTP.
    pub fn needs_http(&self) -> bool {
        match self {
            Self::All(all) | Self::Any(all) => all.iter().any(Self::needs_http),
            Self::Not(other) => other.needs_http(),
            Self::Method(_) | Self::Path(_) | Self::Authority(_) | Self::Header(..) => true,
            Self::Always
            | Self::Principal(_)
            | Self::Namespace(_)
            | Self::SourceIp(_)
            | Self::Port(_) => false,
        }
    }
}

impl<'a> Decision<'a> {
    /// Whether the request may pass.
    pub fn is_allowed(&self) -> bool {
        match self {
            Self::Allow(_) => true,
            Self::Deny(_) => false,
        }
    }

    /// The rule that decided, for logs and for the reason given.
    pub fn rule(&self) -> Option<&'a str> {
        match self {
            Self::Allow(rule) | Self::Deny(rule) => rule.map(Rule::name),
        }
    }
}

#[cfg(test)]
mod tests;

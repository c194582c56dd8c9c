//! Which cluster a request goes to: the first route whose match fits.

use std::{sync::Arc, time::Duration};

use regex::Regex;

use crate::{retry::RetryPolicy, snapshot::WeightedClusters};

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

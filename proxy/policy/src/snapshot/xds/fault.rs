//! Collected faults of one resource, each with the path of its field.

use std::fmt;

use thiserror::Error;

use super::{Decoded, Piece};

/// One reason why a resource was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Such as `filter_chains[0].filter_chain_match.server_names`; empty for the whole resource.
    pub path: String,
    /// Why; lower case, without a final stop.
    pub why: String,
}

/// A resource that was refused, with every fault (at most [`FAULTS_MAX`]).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{resource}: {}", Listed(faults))]
pub struct Rejected {
    /// Name of the resource.
    pub resource: String,
    /// At least one.
    pub faults: Vec<Fault>,
}

impl Rejected {
    /// One fault of the whole resource.
    pub(super) fn whole(resource: &str, why: impl Into<String>) -> Self {
        Self {
            resource: resource.to_owned(),
            faults: vec![Fault {
                path: String::new(),
                why: why.into(),
            }],
        }
    }
}

/// Collects while a resource is read.
#[derive(Debug, Default)]
pub(super) struct Faults {
    list: Vec<Fault>,
    ignored: u32,
}

impl Faults {
    /// Notes a fault. Beyond [`FAULTS_MAX`] they are dropped: the resource is refused anyway.
    pub(super) fn refuse(&mut self, at: &Path<'_>, why: impl Into<String>) {
        if self.list.len() < FAULTS_MAX {
            self.list.push(Fault {
                path: at.to_string(),
                why: why.into(),
            });
        }
    }

    /// Notes an unsupported security field if it is set.
    pub(super) fn refuse_set<T: Default + PartialEq>(&mut self, value: &T, at: &Path<'_>) {
        if *value != T::default() {
            self.refuse(at, "is not supported");
        }
    }

    /// Counts a message with fields outside the subset.
    pub(super) fn ignore_if(&mut self, has_more: bool) {
        self.ignored = self.ignored.saturating_add(u32::from(has_more));
    }

    pub(super) fn finish(self, name: &str, piece: Option<Piece>) -> Result<Decoded, Rejected> {
        match piece {
            Some(piece) if self.list.is_empty() => Ok(Decoded {
                piece,
                ignored: self.ignored,
            }),
            Some(_) | None => {
                debug_assert!(!self.list.is_empty(), "a reader gave up without a fault");
                Err(Rejected {
                    resource: name.to_owned(),
                    faults: self.list,
                })
            }
        }
    }
}

/// Where a field is; borrowed, so that a path costs nothing until there is a fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    pub(super) fn field<'a>(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    pub(super) fn index(&self, index: usize) -> Path<'_> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Path::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.why)
        } else {
            write!(f, "{} {}", self.path, self.why)
        }
    }
}

struct Listed<'a>(&'a [Fault]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

/// Most faults kept of one resource, so that a NACK stays readable and small.
pub(super) const FAULTS_MAX: usize = 32;

//! Why a command failed, in the words for a person, and its exit code.

use std::{fmt, io, process::ExitCode};

use tonic::{Code, Status};

#[derive(Debug)]
pub(crate) enum Failure {
    /// The control plane answered no.
    Refused(Status),
    /// It did not answer.
    Unreachable { server: String, status: Status },
    /// Stored, but not active everywhere in time.
    Late(Status),
    /// Something on this side, already worded.
    Local(String),
}

impl Failure {
    /// Sorts a status: what the transport could not do is `Unreachable`.
    pub(crate) fn of(server: &str) -> impl Fn(Status) -> Self {
        move |status| match status.code() {
            Code::Unavailable => Self::Unreachable {
                server: server.to_owned(),
                status,
            },
            _ => Self::Refused(status),
        }
    }

    pub(crate) fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Local(format!("{what}: {error}"))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Refused(_) | Self::Local(_) => 1,
            Self::Unreachable { .. } => 3,
            Self::Late(_) => 4,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) | Self::Late(status) => f.write_str(status.message()),
            Self::Unreachable { server, status } => {
                write!(
                    f,
                    "the control plane at {server} cannot be reached: {}",
                    deepest(status)
                )
            }
            Self::Local(message) => f.write_str(message),
        }
    }
}

/// The innermost source: the outer ones of a transport failure only say "transport error".
fn deepest(status: &Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    if std::ptr::addr_eq(error, status) {
        return status.message().to_owned();
    }
    error.to_string()
}

//! Why a command failed, in the words for a person, and its exit code.

use std::{error::Error, fmt, io, process::ExitCode};

use heddle_proto::{
    v1::{Fault, Faults},
    xds::google,
};
use prost::Message;
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
    /// Sorts a status: what the transport could not do is `Unreachable`. A status that the
    /// control plane itself sent has no source, also when it says UNAVAILABLE.
    pub(crate) fn of(server: &str) -> impl Fn(Status) -> Self {
        move |status| match status.code() {
            Code::Unavailable if status.source().is_some() => Self::Unreachable {
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
            Self::Refused(status) | Self::Late(status) => match faults(status).as_slice() {
                [] => f.write_str(status.message()),
                [one] => f.write_str(&described(one)),
                several => {
                    let lines: Vec<_> = several.iter().map(described).collect();
                    write!(f, "refused:\n{}", lines.join("\n"))
                }
            },
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

/// Every fault of a refusal. The message has only as many as fit into it.
fn faults(status: &Status) -> Vec<Fault> {
    let details = google::rpc::Status::decode(status.details()).unwrap_or_default();
    let faults = details
        .details
        .iter()
        .find(|any| any.type_url == FAULTS_TYPE_URL)
        .and_then(|any| Faults::decode(any.value.as_slice()).ok());
    faults.unwrap_or_default().faults
}

/// Such as `shop.yaml:12:7: spec.hosts: must not be empty`.
fn described(fault: &Fault) -> String {
    let mut text = String::new();
    if !fault.file.is_empty() {
        text += &format!("{}:", fault.file);
    }
    if fault.line > 0 {
        text += &format!("{}:{}:", fault.line, fault.column);
    }
    if !text.is_empty() {
        text.push(' ');
    }
    if !fault.path.is_empty() {
        text += &format!("{}: ", fault.path);
    }
    text + &fault.message
}

/// The innermost source: the outer ones of a transport failure only say "transport error".
fn deepest(status: &Status) -> String {
    let mut error: &dyn Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    if std::ptr::addr_eq(error, status) {
        return status.message().to_owned();
    }
    error.to_string()
}

/// What `Any` calls a list of faults.
const FAULTS_TYPE_URL: &str = "type.googleapis.com/heddle.v1.Faults";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_the_transport_can_fail_to_reach_the_control_plane() {
        let answered = Status::unavailable("the authority cannot issue now; see its log");
        let failure = Failure::of("127.0.0.1:1")(answered);
        assert!(matches!(failure, Failure::Refused(_)), "{failure:?}");
        assert_eq!(
            failure.to_string(),
            "the authority cannot issue now; see its log"
        );
        let mut broken = Status::unavailable("transport error");
        broken.set_source(Arc::new(io::Error::other("connection refused")));
        let failure = Failure::of("127.0.0.1:1")(broken);
        assert!(
            matches!(failure, Failure::Unreachable { .. }),
            "{failure:?}"
        );
        assert!(failure.to_string().ends_with("connection refused"));
    }

    #[test]
    fn every_fault_is_told_not_only_those_in_the_message() {
        let fault = |line| Fault {
            file: "shop.yaml".to_owned(),
            line,
            column: 3,
            path: "spec.hosts".to_owned(),
            message: "must not be empty".to_owned(),
        };
        let faults = Faults {
            faults: (1..=30).map(fault).collect(),
        };
        let details = google::rpc::Status {
            details: vec![google::protobuf::Any {
                type_url: FAULTS_TYPE_URL.to_owned(),
                value: faults.encode_to_vec(),
            }],
            ..google::rpc::Status::default()
        };
        let details = details.encode_to_vec().into();
        let status = Status::with_details(Code::InvalidArgument, "torn..", details);
        let text = Failure::Refused(status).to_string();
        assert_eq!(text.lines().count(), 31, "{text}");
        let last = "shop.yaml:30:3: spec.hosts: must not be empty";
        assert_eq!(text.lines().last(), Some(last));
    }
}

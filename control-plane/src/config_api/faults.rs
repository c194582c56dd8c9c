//! Refusals as gRPC statuses, with every fault in the details.

use heddle_proto::{v1, xds::google};
use prost::Message;
use tonic::{Code, Status};
use tracing::error;

use super::Refusal;
use crate::{model::Fault, store::StoreError};

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Faults(faults) => with_faults(Code::InvalidArgument, faults),
            Refusal::InUse(faults) => with_faults(Code::FailedPrecondition, faults),
            Refusal::Changed { id, revision } => Self::aborted(format!(
                "{id} is at revision {revision}, not at the expected one; read it again"
            )),
            Refusal::NotFound(id) => Self::not_found(format!("there is no {id}")),
            Refusal::Contended => Self::aborted("other changes kept coming in between; try again"),
            Refusal::NoAddress => Self::resource_exhausted("no address is left to allot"),
            Refusal::Store(StoreError::Compacted { oldest }) => Self::out_of_range(format!(
                "changes up to revision {oldest} are no longer kept; list again"
            )),
            Refusal::Store(StoreError::Refused(why)) => {
                Self::invalid_argument(format!("the store refuses the transaction: {why}"))
            }
            Refusal::Store(error) => {
                error!(error = &error as &dyn std::error::Error, "the store failed");
                Self::unavailable(error.to_string())
            }
        }
    }
}

/// The message repeats what the details say, for clients that do not read them.
fn with_faults(code: Code, faults: Vec<Fault>) -> Status {
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    let mut message = lines.join("\n");
    if message.len() > MESSAGE_BYTES_MAX {
        let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        message.truncate(end);
        message.push_str("..");
    }
    let faults = bounded(faults);
    let details = google::rpc::Status {
        code: code.into(),
        message: message.clone(),
        details: vec![google::protobuf::Any {
            type_url: FAULTS_TYPE_URL.to_owned(),
            value: faults.encode_to_vec(),
        }],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// As many faults as a status can carry, and how many there are besides.
fn bounded(faults: Vec<Fault>) -> v1::Faults {
    let count = faults.len();
    let mut bytes = 0;
    let mut faults: Vec<_> = faults
        .into_iter()
        .map(v1::Fault::from)
        .take_while(|fault| {
            bytes += fault.encoded_len() + FAULT_HEAD_BYTES;
            bytes <= FAULTS_BYTES_MAX
        })
        .collect();
    if faults.len() < count {
        let message = format!("and {} more faults", count - faults.len());
        faults.push(v1::Fault {
            message,
            ..v1::Fault::default()
        });
    }
    v1::Faults { faults }
}

/// The faults in a status, for clients.
pub fn faults_of(status: &Status) -> Option<v1::Faults> {
    let details = google::rpc::Status::decode(status.details()).ok()?;
    let any = details
        .details
        .into_iter()
        .find(|any| any.type_url == FAULTS_TYPE_URL)?;
    v1::Faults::decode(any.value.as_slice()).ok()
}

impl From<Fault> for v1::Fault {
    fn from(fault: Fault) -> Self {
        Self {
            file: fault.file,
            line: fault.at.line,
            column: fault.at.column,
            path: fault.path,
            message: fault.message,
        }
    }
}

/// What `Any` calls the details.
const FAULTS_TYPE_URL: &str = "type.googleapis.com/heddle.v1.Faults";
/// A status travels in headers, of which HTTP/2 peers take 16 KiB: the message percent-encoded
/// (at most three times as long), the details in base64 with the message once more.
const MESSAGE_BYTES_MAX: usize = 1024;
/// See [`MESSAGE_BYTES_MAX`].
const FAULTS_BYTES_MAX: usize = 7 * 1024;
/// Tag and length of a fault in its list.
const FAULT_HEAD_BYTES: usize = 4;

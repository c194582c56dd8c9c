//! What a caller asks to be registered as, against what it has proven. Pure.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU32, time::Duration};

use heddle_proto::v1::{RegisterRequest, WorkloadState};
use tonic::Status;

use super::record::{Record, State};
use crate::{authn::Workload as Proven, model::Labels, world::WorkloadName};

/// Port mappings of one registration.
const PORTS_MAX: usize = 64;
/// As a DNS name, and as Kubernetes bounds a pod's.
const NAME_BYTES_MAX: usize = 253;
/// The largest weight: sums of the largest mesh stay within 32 bits.
const WEIGHT_MAX: u32 = 1000;

/// The registration a request means.
///
/// # Errors
/// INVALID_ARGUMENT for what nobody could register, PERMISSION_DENIED for what this caller's
/// token does not have.
pub(super) fn check(
    request: RegisterRequest,
    proven: &Proven,
    peer: IpAddr,
    grace: Duration,
    registered_at_ms: i64,
) -> Result<(WorkloadName, Record), Status> {
    let state = match request.state() {
        WorkloadState::Ready => State::Ready,
        WorkloadState::Draining => State::Draining,
        WorkloadState::Unspecified => {
            return Err(Status::invalid_argument("state must be READY or DRAINING"));
        }
    };
    let weight = match request.weight {
        0 => NonZeroU32::MIN,
        weight => NonZeroU32::new(weight)
            .filter(|weight| weight.get() <= WEIGHT_MAX)
            .ok_or_else(|| Status::invalid_argument(format!("weight must be 1 to {WEIGHT_MAX}")))?,
    };
    let record = Record {
        identity: proven.id.to_string(),
        address: address(&request.address, proven, peer)?,
        ports: ports(&request)?,
        labels: labels(&request, proven)?,
        state,
        weight,
        is_meshed: request.is_meshed,
        registered_at_ms,
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    };
    if !is_name(&request.name) {
        return Err(Status::invalid_argument(format!(
            "name {:?} is not lower-case letters, digits, '-' and '.', at most {NAME_BYTES_MAX}",
            shown(&request.name)
        )));
    }
    let name = (proven.id.namespace().into(), request.name.into());
    Ok((name, record))
}

fn address(text: &str, proven: &Proven, peer: IpAddr) -> Result<IpAddr, Status> {
    let peer = peer.to_canonical();
    if text.is_empty() {
        return Ok(peer);
    }
    let address: IpAddr = text.parse().map_err(|_malformed| {
        Status::invalid_argument(format!("address {:?} is not an IP address", shown(text)))
    })?;
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_multicast() {
        return Err(Status::invalid_argument(format!(
            "nothing can be dialled at {address}"
        )));
    }
    let is_listed = proven.addresses.iter().any(|net| net.contains(&address));
    if address == peer || is_listed {
        return Ok(address);
    }
    Err(Status::permission_denied(format!(
        "address {address} is neither the one this connection comes from ({peer}) nor listed in \
         the token of {}",
        proven.id
    )))
}

fn ports(request: &RegisterRequest) -> Result<BTreeMap<u16, u16>, Status> {
    if request.ports.len() > PORTS_MAX {
        return Err(Status::invalid_argument(format!(
            "ports has more than {PORTS_MAX} entries"
        )));
    }
    let number = |number: u32| match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Status::invalid_argument(format!(
            "ports has {number}, which is no port"
        ))),
    };
    let pairs = request.ports.iter();
    pairs
        .map(|(port, at)| Ok((number(*port)?, number(*at)?)))
        .collect()
}

fn labels(request: &RegisterRequest, proven: &Proven) -> Result<Labels, Status> {
    if request.labels.is_empty() {
        return Ok(proven.labels.clone());
    }
    for (name, value) in &request.labels {
        if proven.labels.get(name) != Some(value) {
            return Err(Status::permission_denied(format!(
                "label {}={} is not in the token of {}",
                shown(name),
                shown(value),
                proven.id
            )));
        }
    }
    let labels = request.labels.iter();
    Ok(labels.map(|(n, v)| (n.clone(), v.clone())).collect())
}

/// It is part of a key, and of messages.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
}

/// The beginning of a caller's text, for a message.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::SystemTime};

    use tonic::Code;

    use super::*;
    use crate::authn::Proof;

    fn proven() -> Proven {
        Proven {
            id: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            labels: [("app", "web"), ("version", "v1")]
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .into(),
            addresses: vec!["10.1.0.0/16".parse().unwrap()],
            proof_expires: SystemTime::UNIX_EPOCH,
            token_proven_at: SystemTime::UNIX_EPOCH,
            via: Proof::Token,
        }
    }

    fn request() -> RegisterRequest {
        RegisterRequest {
            name: "web-1".to_owned(),
            state: WorkloadState::Ready.into(),
            is_meshed: true,
            ..RegisterRequest::default()
        }
    }

    fn checked(request: RegisterRequest) -> Result<(WorkloadName, Record), Status> {
        let peer = "::ffff:192.0.2.7".parse().unwrap();
        check(request, &proven(), peer, Duration::from_secs(10), 5)
    }

    #[track_caller]
    fn refused(request: RegisterRequest, code: Code, part: &str) {
        let status = checked(request).unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(part), "{status:?}");
    }

    #[test]
    fn what_is_not_said_comes_from_the_proof_and_the_connection() {
        let (name, record) = checked(request()).unwrap();
        assert_eq!((&*name.0, &*name.1), ("shop", "web-1"));
        assert_eq!(record.address, IpAddr::from([192, 0, 2, 7]));
        assert_eq!(record.labels, proven().labels);
        assert_eq!(record.weight.get(), 1);
    }

    #[test]
    fn an_address_is_the_connections_or_the_tokens() {
        let at = |address: &str| RegisterRequest {
            address: address.to_owned(),
            ..request()
        };
        for good in ["10.1.2.3", "192.0.2.7"] {
            assert_eq!(checked(at(good)).unwrap().1.address.to_string(), good);
        }
        refused(at("10.2.0.1"), Code::PermissionDenied, "10.2.0.1");
        refused(at("0.0.0.0"), Code::InvalidArgument, "0.0.0.0");
        refused(at("web"), Code::InvalidArgument, "web");
    }

    #[test]
    fn labels_are_some_of_the_tokens() {
        let with = |name: &str, value: &str| RegisterRequest {
            labels: HashMap::from([(name.to_owned(), value.to_owned())]),
            ..request()
        };
        assert_eq!(checked(with("app", "web")).unwrap().1.labels.len(), 1);
        refused(
            with("app", "user-service"),
            Code::PermissionDenied,
            "app=user-service",
        );
        refused(with("team", "a"), Code::PermissionDenied, "team=a");
    }

    #[test]
    fn what_nobody_could_register_is_refused() {
        let with = |edit: fn(&mut RegisterRequest)| {
            let mut request = request();
            edit(&mut request);
            request
        };
        for (request, part) in [
            (with(|r| r.state = 0), "state"),
            (with(|r| r.state = 99), "state"),
            (with(|r| r.weight = 1001), "weight"),
            (with(|r| r.name = String::new()), "name"),
            (with(|r| r.name = "a/b".to_owned()), "name"),
            (with(|r| r.name = "a".repeat(254)), "name"),
            (with(|r| r.ports = HashMap::from([(0, 1)])), "port"),
            (with(|r| r.ports = HashMap::from([(1, 65_536)])), "port"),
            (with(|r| r.ports = (1..=65).map(|p| (p, p)).collect()), "64"),
        ] {
            refused(request, Code::InvalidArgument, part);
        }
    }
}

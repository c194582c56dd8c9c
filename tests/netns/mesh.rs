//! What the end-to-end cases share: a control plane in a pod, and resources in the words of a
//! user.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use heddle_tests::{
    netns::{Family, Lab, Pod},
    node::{Answer, Call, ControlPlane, Failure, Wire, Workload},
    process::eventually,
};
use serde_json::json;

/// The pod of the control plane.
pub(crate) const PLANE: &str = "plane";

/// A control plane in its pod.
pub(crate) async fn control_plane(lab: &Lab) -> Result<ControlPlane<'_>> {
    ControlPlane::start(lab.pod(PLANE).into(), json!({})).await
}

/// A service of the test application: every [`Wire`] on its port.
pub(crate) struct Service<'a> {
    /// In the namespace `default`; also the service account and the label `app` of its pods.
    pub(crate) name: &'a str,
    /// Tells its addresses from others'.
    pub(crate) number: u8,
    /// Pods without a sidecar that serve it. Without any, registered workloads do.
    pub(crate) plain: &'a [&'a Pod],
}

impl<'a> Service<'a> {
    /// One that registered workloads serve.
    pub(crate) fn of_workloads(name: &'a str, number: u8) -> Self {
        Self {
            name,
            number,
            plain: &[],
        }
    }
}

impl Service<'_> {
    /// Where clients dial it.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 96, 0, self.number).into(),
            Family::V6 => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, self.number.into()).into(),
        }
    }

    /// As a `ServiceEntry`; its plain pods have addresses of this family.
    pub(crate) fn entry(&self, family: Family) -> String {
        let Self { name, plain, .. } = self;
        let (v4, v6) = (self.address(Family::V4), self.address(Family::V6));
        let (http, grpc) = (Wire::Http.port(), Wire::Grpc.port());
        let (tcp, greet) = (Wire::Tcp.port(), Wire::Greet.port());
        let endpoints = plain.iter().map(|pod| pod.address(family).to_string());
        let endpoints: Vec<_> = endpoints
            .map(|ip| format!("{{address: \"{ip}\"}}"))
            .collect();
        let endpoints = if endpoints.is_empty() {
            format!(
                "workloadSelector: {{labels: {{app: {name}}}}}\n  \
                 subjectAltNames: [spiffe://cluster.local/ns/default/sa/{name}]"
            )
        } else {
            format!("endpoints: [{}]", endpoints.join(", "))
        };
        format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}]
  addresses: [\"{v4}\", \"{v6}\"]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {{number: {http}, name: http, protocol: HTTP}}
    - {{number: {grpc}, name: grpc, protocol: GRPC}}
    - {{number: {tcp}, name: tcp, protocol: TCP}}
    - {{number: {greet}, name: greet, protocol: TCP}}
  {endpoints}
---
"
        )
    }
}

/// The mesh-wide mode of inbound connections: `STRICT`, `PERMISSIVE` or `DISABLE`.
pub(crate) fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: heddle-system}}
spec: {{mtls: {{mode: {mode}}}}}
---
"
    )
}

/// A workload of the account and label of its service, named like its pod.
pub(crate) fn workload<'a>(name: &'a str, label: &'a [&'a str], family: Family) -> Workload<'a> {
    Workload {
        family,
        ..Workload::new(name, name, label)
    }
}

/// A call to an address.
pub(crate) fn call<'a>(wire: Wire, to: IpAddr, say: &'a str) -> Call<'a> {
    let to = SocketAddr::new(to, wire.port()).to_string();
    Call { wire, to, say }
}

/// An error unless this application heard exactly this from this peer.
pub(crate) fn heard(
    outcome: &Result<Answer, Failure>,
    app: &str,
    said: &str,
    peer: IpAddr,
) -> Result<()> {
    match outcome {
        Ok(answer) => ensure!(
            answer.app == app && answer.said == said && answer.peer == peer,
            "{answer:?}, not {app} with {said:?} from {peer}"
        ),
        Err(failure) => anyhow::bail!("no answer: {failure:?}"),
    }
    Ok(())
}

/// What a counter says once it has reached `expected`, or when it had time enough to: records are
/// written when an exchange has ended on both sides, a moment after its caller has seen the end.
pub(crate) async fn settles(expected: f64, count: impl Fn() -> Result<f64>) -> Result<f64> {
    let reached = eventually(SETTLED, "a counter", || {
        let reached = count().is_ok_and(|now| now >= expected);
        async move { reached }
    });
    // What it says instead is the caller's to judge.
    drop(reached.await);
    count()
}

const SETTLED: Duration = Duration::from_secs(2);

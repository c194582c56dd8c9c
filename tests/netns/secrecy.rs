//! What is seen on the wire between pods, and the ways of a pod to itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Family, Lab},
    node::{Call, MeshedPod, Wire},
};

use crate::{
    Case,
    mesh::{PLANE, Service, call, control_plane, heard, peer_authentication, workload},
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        let case = |what: &str| format!("secrecy::{name}::{what}");
        cases.push(Case::new(
            case("nothing_said_between_meshed_pods_is_on_the_wire"),
            move || on_the_wire(family),
        ));
        cases.push(Case::new(case("a_workload_calls_itself"), move || {
            to_itself(family)
        }));
    }
    cases.push(Case::new(
        "secrecy::two_tcp_services_without_addresses_share_a_port".into(),
        addressless,
    ));
    cases
}

/// Captured at `b`, who hears a meshed and a plain caller: the latter proves that the capture
/// would have seen what it must not see.
async fn on_the_wire(family: Family) -> Result<()> {
    let lab = Lab::new(&[PLANE, "a", "b", "c"])?;
    let plane = control_plane(&lab).await?;
    let service = Service::of_workloads("b", 1);
    let mode = peer_authentication("PERMISSIVE");
    plane.apply(&format!("{}{mode}", service.entry(family)))?;
    let capture = lab.pod("b").capture("tcp").await?;
    let mut pods = Vec::new();
    for (name, label) in [("a", ["app=a"]), ("b", ["app=b"])] {
        let workload = workload(name, &label, family);
        pods.push(MeshedPod::start(&plane, lab.pod(name), &workload, &[]).await?);
    }
    let b = lab.pod("b").address(family);
    for wire in Wire::ALL {
        for to in [b, service.address(family)] {
            let outcome = call(wire, to, SECRET).from(lab.pod("a").into())?;
            heard(&outcome, "b", SECRET, b).with_context(|| format!("{wire:?} to {to}"))?;
        }
        let outcome = call(wire, b, PLAIN).from(lab.pod("c").into())?;
        heard(&outcome, "b", PLAIN, b).with_context(|| format!("plain {wire:?}"))?;
    }
    let bytes = capture.finish().await?;
    let count = |text: &str| {
        let text = text.as_bytes();
        bytes
            .windows(text.len())
            .filter(|seen| *seen == text)
            .count()
    };
    // Said and repeated, by each protocol.
    ensure!(
        count(PLAIN) >= 2 * Wire::ALL.len(),
        "the capture saw the plain caller {} times",
        count(PLAIN)
    );
    ensure!(count(SECRET) == 0, "{} times on the wire", count(SECRET));
    Ok(())
}

/// By its service's address through its own sidecar, twice; by any address of its own directly.
async fn to_itself(family: Family) -> Result<()> {
    let lab = Lab::new(&[PLANE, "a"])?;
    let plane = control_plane(&lab).await?;
    let service = Service::of_workloads("a", 1);
    plane.apply(&service.entry(family))?;
    let pod = lab.pod("a");
    let workload = workload("a", &["app=a"], family);
    let a = MeshedPod::start(&plane, pod, &workload, &[]).await?;
    let own = pod.address(family);
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let seen = || -> Result<f64> {
        let inbound = &["direction=\"inbound\""];
        let opaque = a.sidecar.metric("heddle_tcp_connections_total", inbound)?;
        // Has no series before the first request.
        let requests = a.sidecar.metric("http_requests_total", inbound);
        Ok(opaque + requests.unwrap_or_default())
    };
    for wire in Wire::ALL {
        for (to, peer, is_meshed) in [
            (service.address(family), own, true),
            (own, own, false),
            (loopback, loopback, false),
        ] {
            let before = seen()?;
            let outcome = call(wire, to, "me").from(pod.into())?;
            heard(&outcome, "a", "me", peer)
                .with_context(|| format!("{wire:?} to {to}\n{}", a.sidecar.process().log()))?;
            let expected = before + f64::from(u8::from(is_meshed));
            let now = crate::mesh::settles(expected, &seen).await?;
            ensure!(
                now == expected,
                "{wire:?} to {to}: inbound counted {before}, then {now}"
            );
        }
    }
    Ok(())
}

/// Told apart by nothing but their names: the sidecar answers each with an address of its own.
async fn addressless() -> Result<()> {
    let lab = Lab::new(&[PLANE, "a", "b", "c"])?;
    let plane = control_plane(&lab).await?;
    let services: String = ["b", "c"].map(named_tcp_service).concat();
    plane.apply(&services)?;
    let mut pods = Vec::new();
    for (name, label) in [("a", ["app=a"]), ("b", ["app=b"]), ("c", ["app=c"])] {
        let workload = workload(name, &label, Family::V4);
        pods.push(MeshedPod::start(&plane, lab.pod(name), &workload, &[]).await?);
    }
    for wire in [Wire::Tcp, Wire::Greet] {
        for name in ["b", "c", "b"] {
            let to = format!("{name}.mesh.test:{}", wire.port());
            let call = Call {
                wire,
                to,
                say: "by name",
            };
            let outcome = call.from(lab.pod("a").into())?;
            heard(&outcome, name, "by name", lab.pod(name).v4.into())
                .with_context(|| format!("{call:?}\n{}", pods[0].sidecar.process().log()))?;
        }
    }
    Ok(())
}

fn named_tcp_service(name: &str) -> String {
    let (tcp, greet) = (Wire::Tcp.port(), Wire::Greet.port());
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.mesh.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {{number: {tcp}, name: tcp, protocol: TCP}}
    - {{number: {greet}, name: greet, protocol: TCP}}
  workloadSelector: {{labels: {{app: {name}}}}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/{name}]
---
"
    )
}

const SECRET: &str = "what-meshed-pods-say-to-each-other";
const PLAIN: &str = "what-a-plain-pod-says";

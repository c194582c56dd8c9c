//! Who reaches whom: pods with and without a sidecar, both families, every protocol, by service
//! address and by pod address. Pods `a` and `b` are meshed, `c` and `d` are plain.

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Family, Lab},
    node::{Answer, App, Failure, MeshedPod, Wire, init},
};

use crate::{
    Case,
    mesh::{PLANE, Service, call, control_plane, heard, peer_authentication, workload},
};

/// One direction.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    mode: &'static str,
    from: &'static str,
    to: &'static str,
    /// Whether the caller's sidecar knows addresses of services; the network does not.
    by_service: bool,
    /// What `init` makes the rules with; nothing for its own choice.
    backend: Option<&'static str>,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Expected {
    /// An answer; the application saw this pod.
    AnsweredTo(&'static str),
    /// Refused because it was plaintext: with the reason by HTTP, without a word otherwise.
    PlaintextRefused,
}

use Expected::{AnsweredTo, PlaintextRefused};

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "meshed_to_meshed", mode: "STRICT", from: "a", to: "b", by_service: true, backend: None, expected: AnsweredTo("b") },
    Row { name: "meshed_to_meshed_over_iptables", mode: "STRICT", from: "a", to: "b", by_service: true, backend: Some("iptables"), expected: AnsweredTo("b") },
    Row { name: "meshed_to_plain", mode: "STRICT", from: "a", to: "d", by_service: true, backend: None, expected: AnsweredTo("a") },
    Row { name: "plain_to_permissive", mode: "PERMISSIVE", from: "c", to: "b", by_service: false, backend: None, expected: AnsweredTo("b") },
    Row { name: "meshed_to_permissive", mode: "PERMISSIVE", from: "a", to: "b", by_service: true, backend: None, expected: AnsweredTo("b") },
    Row { name: "plain_to_strict_is_refused", mode: "STRICT", from: "c", to: "b", by_service: false, backend: None, expected: PlaintextRefused },
    Row { name: "plain_to_disabled", mode: "DISABLE", from: "c", to: "b", by_service: false, backend: None, expected: AnsweredTo("b") },
    Row { name: "plain_to_plain", mode: "STRICT", from: "c", to: "d", by_service: false, backend: None, expected: AnsweredTo("c") },
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, family_name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        for row in ROWS {
            let name = format!("connectivity::{family_name}::{}", row.name);
            cases.push(Case::new(name, move || check(*row, family)));
        }
    }
    cases
}

async fn check(row: Row, family: Family) -> Result<()> {
    let lab = Lab::new(&[PLANE, "a", "b", "c", "d"])?;
    let plane = control_plane(&lab).await?;
    let plain = [lab.pod("d")];
    let b = Service::of_workloads("b", 1);
    let d = Service {
        name: "d",
        number: 2,
        plain: &plain,
    };
    let mode = peer_authentication(row.mode);
    plane.apply(&format!("{}{}{mode}", b.entry(family), d.entry(family)))?;
    let mut running = Vec::new();
    for (name, label) in [("a", ["app=a"]), ("b", ["app=b"])] {
        if [row.from, row.to].contains(&name) {
            let workload = workload(name, &label, family);
            let pod = lab.pod(name);
            running.push(MeshedPod::start(&plane, pod, &workload, &[]).await?);
            if let Some(backend) = row.backend {
                let said = init(pod, "install", &["--capture-dns", "--backend", backend])?;
                ensure!(said.contains(backend), "{said}");
            }
        }
    }
    let _plain = App::start(lab.pod("d"), "d", &[]).await?;
    let (from, to) = (lab.pod(row.from), lab.pod(row.to));
    let mut ways = vec![("pod", to.address(family))];
    if row.by_service {
        let service = if row.to == "b" { &b } else { &d };
        ways.push(("service", service.address(family)));
    }
    for (way, address) in ways {
        for wire in Wire::ALL {
            let outcome = call(wire, address, "hello").from(from.into())?;
            judge(row, wire, &lab, family, &outcome)
                .with_context(|| format!("{} by {way} address", wire.as_str()))
                .with_context(|| logs(&running))?;
        }
    }
    Ok(())
}

fn judge(
    row: Row,
    wire: Wire,
    lab: &Lab,
    family: Family,
    outcome: &Result<Answer, Failure>,
) -> Result<()> {
    match row.expected {
        AnsweredTo(peer) => heard(outcome, row.to, "hello", lab.pod(peer).address(family)),
        PlaintextRefused => {
            let reason = match outcome {
                Ok(answer) => anyhow::bail!("{answer:?}"),
                Err(failure) => &failure.reason,
            };
            let expected: &[&str] = match wire {
                Wire::Http | Wire::Grpc => &["plaintext_refused"],
                Wire::Tcp => &["connection reset"],
                // Neither side speaks: this client waits for the server, and the sidecar for TLS,
                // both for ten seconds. Whoever gives up first decides.
                Wire::Greet => &["timeout", "connection reset"],
            };
            ensure!(expected.contains(&reason.as_str()), "{outcome:?}");
            Ok(())
        }
    }
}

/// For the report of a failed case.
fn logs(pods: &[MeshedPod<'_>]) -> String {
    let log = |pod: &MeshedPod<'_>| format!("{}:\n{}", pod.pod.name(), pod.sidecar.process().log());
    pods.iter().map(log).collect::<Vec<_>>().join("\n")
}

//! Names of the mesh, asked of whatever resolver an application knows: the rules lead each query
//! to the sidecar, in both families.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Family, Lab, NODE_V4, NODE_V6},
    node::{APP, MeshedPod},
    process::User,
};
use serde_json::json;

use crate::{
    Case,
    mesh::{PLANE, Service, control_plane, workload},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("dns::both_families_by_udp_and_tcp".into(), both_families),
        Case::new("dns::an_address_told_is_the_only_one".into(), one_address),
        Case::new(
            "dns::other_names_are_forwarded_as_they_came".into(),
            other_names,
        ),
    ]
}

/// The node has no resolver: only the sidecar can have answered.
async fn both_families() -> Result<()> {
    let lab = Lab::new(&[PLANE, "a"])?;
    let plane = control_plane(&lab).await?;
    let b = Service::of_workloads("b", 1);
    plane.apply(&b.entry(Family::V4))?;
    let workload = workload("a", &["app=a"], Family::V4);
    let a = MeshedPod::start(&plane, lab.pod("a"), &workload, &[]).await?;
    let expected = [Family::V4, Family::V6].map(|family| b.address(family).to_string());
    for resolver in [IpAddr::from(NODE_V4), NODE_V6.into()] {
        for way in [None, Some("--tcp")] {
            let answer = resolve(&a, resolver, way)
                .with_context(|| format!("{way:?} of {resolver}"))
                .with_context(|| a.sidecar.process().log())?;
            ensure!(answer == expected.join(" "), "{answer} from {resolver}");
        }
    }
    let answered = a
        .sidecar
        .metric("heddle_dns_queries_total", &["result=\"answered\""])?;
    ensure!(answered >= 8.0, "{answered} queries reached the sidecar");
    Ok(())
}

async fn one_address() -> Result<()> {
    let lab = Lab::new(&[PLANE, "a"])?;
    let plane = control_plane(&lab).await?;
    let b = Service::of_workloads("b", 1);
    plane.apply(&b.entry(Family::V4))?;
    let workload = workload("a", &["app=a"], Family::V4);
    let settings = json!({ "dns": { "listen": ["127.0.0.1:15053"] } });
    let a = MeshedPod::start_with(&plane, lab.pod("a"), &workload, &[], &settings, None).await?;
    resolve(&a, NODE_V4.into(), None)?;
    ensure!(resolve(&a, NODE_V6.into(), Some("--tcp")).is_err());
    Ok(())
}

/// A name that is not of the mesh is asked of the pod's own resolver: by UDP what came by UDP, by
/// TCP what came by TCP, and of the next where the first is dead.
async fn other_names() -> Result<()> {
    const BY_UDP: &str = "192.0.2.1";
    const BY_TCP: &str = "192.0.2.2";
    let lab = Lab::new(&[PLANE, "a", "c"])?;
    let plane = control_plane(&lab).await?;
    plane.apply(&Service::of_workloads("b", 1).entry(Family::V4))?;
    // One goes by its `/etc/resolv.conf`, the other by what it is told.
    let told = json!({ "dns": { "resolvers": [NODE_V6.to_string(), NODE_V4.to_string()] } });
    let mut pods = Vec::new();
    for (name, label, settings) in [("a", ["app=a"], json!({})), ("c", ["app=c"], told)] {
        let workload = workload(name, &label, Family::V4);
        let pod = lab.pod(name);
        pods.push(MeshedPod::start_with(&plane, pod, &workload, &[], &settings, None).await?);
    }
    let ask = |pod, way| resolve_name(pod, "elsewhere.example.", NODE_V4.into(), way);
    for pod in &pods {
        for way in [None, Some("--tcp")] {
            let answer = ask(pod, way);
            let refused = answer.err().context("nobody could be asked")?.to_string();
            ensure!(refused.contains("Server Failure"), "{refused}");
        }
    }
    let listen = SocketAddr::new(NODE_V4.into(), 53).to_string();
    let words = [
        PROBE, "resolver", &listen, "--by-udp", BY_UDP, "--by-tcp", BY_TCP,
    ];
    let mut resolver = lab.node.spawn("resolver", User::Root, &words)?;
    resolver.says("ready").await?;
    for pod in &pods {
        for (way, expected) in [(None, BY_UDP), (Some("--tcp"), BY_TCP)] {
            let answer = ask(pod, way).with_context(|| pod.sidecar.process().log())?;
            ensure!(
                answer == expected,
                "{way:?} in {}: {answer}",
                pod.pod.name()
            );
        }
        let count = |result| pod.sidecar.metric("heddle_dns_queries_total", &[result]);
        let forwarded = count("result=\"forwarded\"")?;
        // Two of each kind: an address of either family was asked for.
        ensure!(forwarded >= 4.0, "{forwarded} queries were forwarded");
    }
    Ok(())
}

fn resolve(a: &MeshedPod<'_>, resolver: IpAddr, way: Option<&str>) -> Result<String> {
    resolve_name(a, "b.", resolver, way)
}

fn resolve_name(
    a: &MeshedPod<'_>,
    name: &str,
    resolver: IpAddr,
    way: Option<&str>,
) -> Result<String> {
    let server = SocketAddr::new(resolver, 53).to_string();
    let mut words = vec![PROBE, "resolve", name, &server];
    words.extend(way);
    Ok(a.pod.namespace.output(APP, &words)?.trim_end().to_owned())
}

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

//! Names of the mesh, asked of whatever resolver an application knows: the rules lead each query
//! to the sidecar, in both families.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Family, Lab, NODE_V4, NODE_V6},
    node::{APP, MeshedPod},
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

fn resolve(a: &MeshedPod<'_>, resolver: IpAddr, way: Option<&str>) -> Result<String> {
    let server = SocketAddr::new(resolver, 53).to_string();
    let mut words = vec![PROBE, "resolve", "b.", &server];
    words.extend(way);
    Ok(a.pod.namespace.output(APP, &words)?.trim_end().to_owned())
}

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

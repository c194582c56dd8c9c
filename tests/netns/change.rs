//! Configuration that changes under load, by the command line and the real control plane.

use anyhow::{Context, Result};
use heddle_tests::{
    netns::{Family, Lab},
    node::{Load, MeshedPod, Wire, Workload},
};

use crate::{
    Case,
    mesh::{PLANE, Service, call, control_plane, workload},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case::new(
        "change::twenty_new_subsets_under_load_lose_nothing".into(),
        || Box::pin(new_subsets()),
    )]
}

/// Each change brings a subset, routes everything to it and takes the one before away. They serve
/// in turn by one of two pods, so who answers tells which of them serves.
async fn new_subsets() -> Result<()> {
    let lab = Lab::new(&[PLANE, "client", "v0", "v1"])?;
    let plane = control_plane(&lab).await?;
    let service = Service::of_workloads("shop", 1);
    plane.apply(&format!("{}{}", service.entry(Family::V4), subset(0)))?;
    let mut shops = Vec::new();
    for (name, label) in [("v0", "version=v0"), ("v1", "version=v1")] {
        let labels = ["app=shop", label];
        let workload = Workload::new(name, "shop", &labels);
        shops.push(MeshedPod::start(&plane, lab.pod(name), &workload, &[]).await?);
    }
    let client = workload("client", &[], Family::V4);
    let client = MeshedPod::start(&plane, lab.pod("client"), &client, &[]).await?;
    let to = service.address(Family::V4);
    let mut loads = Vec::new();
    for wire in [Wire::Http, Wire::Grpc] {
        let load = Load::start(client.pod.into(), RATE, &call(wire, to, "change"))?;
        load.answered_by("v0", 5).await?;
        loads.push(load);
    }
    for number in 1..=20 {
        plane.apply(&subset(number))?;
        let serving = format!("v{}", number % 2);
        for load in &loads {
            load.answered_by(&serving, 5)
                .await
                .with_context(|| client.sidecar.process().log())?;
        }
    }
    for load in loads {
        let report = load.finish().await?;
        report
            .without_failures()
            .with_context(|| client.sidecar.process().log())?;
    }
    Ok(())
}

fn subset(number: u32) -> String {
    let version = number % 2;
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: shop, namespace: default}}
spec:
  host: shop
  subsets: [{{name: s{number}, labels: {{version: v{version}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop, namespace: default}}
spec:
  hosts: [shop]
  http: [{{route: [{{destination: {{host: shop, subset: s{number}}}}}]}}]
"
    )
}

/// Requests per second and protocol.
const RATE: u32 = 50;

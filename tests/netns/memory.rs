//! What a sidecar weighs: the program on disk, at rest in memory, and under load. The harness holds
//! every sidecar that it starts, in all suites, to the same 128 MiB.

use std::{
    fs,
    io::{self, Write},
};

use anyhow::{Result, ensure};
use heddle_tests::{
    netns::{Family, Lab},
    node::{ControlPlane, Load, MEMORY_BYTES_MAX, MeshedPod, Wire, program},
    process::MemoryLimit,
};

use crate::{
    Case,
    mesh::{PLANE, Service, call, control_plane, heard, workload},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("memory::the_program".into(), || {
            Box::pin(async { the_program() })
        }),
        Case::new("memory::at_rest_with_20_destinations".into(), || {
            Box::pin(at_rest())
        }),
        Case::new("memory::under_load".into(), || Box::pin(under_load())),
        Case::new("memory::more_connections_than_fit".into(), || {
            Box::pin(more_connections_than_fit())
        }),
    ]
}

fn the_program() -> Result<()> {
    match shipped_bytes()? {
        Some(bytes) => within("the program", bytes, PROGRAM_BYTES_MAX),
        None => Ok(()),
    }
}

/// `None`, and said so, when the program is not the one that ships.
fn shipped_bytes() -> Result<Option<u64>> {
    let bytes = fs::metadata(program("heddle-proxy")?)?.len();
    if bytes > DEBUG_BYTES_MIN && std::env::var("CI").as_deref() != Ok("true") {
        writeln!(
            io::stdout(),
            "SKIP: this case needs `make binaries` and HEDDLE_BIN"
        )?;
        return Ok(None);
    }
    Ok(Some(bytes))
}

/// Says the value, and fails when it is too much.
fn within(what: &str, bytes: u64, bytes_max: u64) -> Result<()> {
    let (kib, kib_max) = (bytes >> 10, bytes_max >> 10);
    writeln!(io::stdout(), "{what}: {kib} KiB of {kib_max}")?;
    ensure!(bytes <= bytes_max, "{what}: {kib} KiB, more than {kib_max}");
    Ok(())
}

async fn at_rest() -> Result<()> {
    if shipped_bytes()?.is_none() {
        return Ok(());
    }
    let lab = Lab::new(&[PLANE, "a", "b"])?;
    let plane = control_plane(&lab).await?;
    let services: Vec<Service<'_>> = (1..=20)
        .map(|number| Service::of_workloads("b", number))
        .collect();
    let entries = services.iter().enumerate().map(|(i, service)| {
        // Each is a service of its own; the same workload serves them all.
        service
            .entry(Family::V4)
            .replacen("{name: b,", &format!("{{name: b-{i},"), 1)
            .replacen("hosts: [b]", &format!("hosts: [b-{i}]"), 1)
    });
    plane.apply(&entries.collect::<String>())?;
    let (labels, mut pods) = (["app=b"], Vec::new());
    for (name, labels) in [("b", &labels[..]), ("a", &[])] {
        let workload = workload(name, labels, Family::V4);
        pods.push(MeshedPod::start(&plane, lab.pod(name), &workload, &[]).await?);
    }
    for service in &services {
        let outcome =
            call(Wire::Grpc, service.address(Family::V4), "x").from(lab.pod("a").into())?;
        heard(&outcome, "b", "x", lab.pod("b").v4.into())?;
    }
    for pod in &pods {
        let resident = pod.sidecar.process().resident_bytes()?;
        let what = format!("{} at rest", pod.pod.name());
        within(&what, resident, RESIDENT_BYTES_MAX)?;
    }
    Ok(())
}

/// Both sidecars of a busy pair, with every protocol and many connections.
async fn under_load() -> Result<()> {
    let lab = Lab::new(&[PLANE, "a", "b"])?;
    let plane = control_plane(&lab).await?;
    let service = Service::of_workloads("b", 1);
    let mut pods = slow_pair(&lab, &plane, &service, 2000).await?;
    let to = service.address(Family::V4);
    let mut loads = Vec::new();
    for wire in Wire::ALL {
        loads.push(Load::start(
            lab.pod("a").into(),
            50,
            &call(wire, to, "busy"),
        )?);
    }
    for load in &loads {
        load.answers(150).await?;
    }
    for load in loads {
        load.finish().await?.without_failures()?;
    }
    peaks_are_within(&mut pods)
}

/// Connections that are held open, more than a sidecar with 128 MiB takes at once: the others
/// wait, and nothing is killed and nothing lost.
async fn more_connections_than_fit() -> Result<()> {
    if shipped_bytes()?.is_none() {
        return Ok(());
    }
    if let Err(why) = MemoryLimit::new(MEMORY_BYTES_MAX) {
        ensure!(std::env::var("CI").as_deref() != Ok("true"), "{why:#}");
        writeln!(io::stdout(), "SKIP: this case needs memory groups: {why:#}")?;
        return Ok(());
    }
    let lab = Lab::new(&[PLANE, "a", "b"])?;
    let plane = control_plane(&lab).await?;
    let service = Service::of_workloads("b", 1);
    let mut pods = slow_pair(&lab, &plane, &service, 5000).await?;
    for pod in &pods {
        let log = pod.sidecar.process().log();
        ensure!(
            log.contains("the memory limit of the cgroup limits"),
            "{log}"
        );
    }
    let to = call(Wire::Tcp, service.address(Family::V4), "held");
    // 300 a second for 5 s each are 1,500 at once.
    let load = Load::start(lab.pod("a").into(), 300, &to)?;
    load.answers(2_000).await?;
    load.finish().await?.without_failures()?;
    peaks_are_within(&mut pods)
}

/// A pod `b` that serves and a pod `a` that calls. Slow answers keep requests and connections open,
/// at a rate that any machine can carry.
async fn slow_pair<'lab>(
    lab: &'lab Lab,
    plane: &ControlPlane<'lab>,
    service: &Service<'_>,
    delay_ms: u32,
) -> Result<Vec<MeshedPod<'lab>>> {
    plane.apply(&service.entry(Family::V4))?;
    let (labels, think) = (["app=b"], format!("--delay-ms={delay_ms}"));
    let mut pods = Vec::new();
    for (name, labels) in [("b", &labels[..]), ("a", &[])] {
        let workload = workload(name, labels, Family::V4);
        pods.push(MeshedPod::start(plane, lab.pod(name), &workload, &[&think]).await?);
    }
    Ok(pods)
}

fn peaks_are_within(pods: &mut [MeshedPod<'_>]) -> Result<()> {
    for pod in pods {
        let peak = pod.sidecar.peak_bytes();
        within(
            &format!("{} at its peak", pod.pod.name()),
            peak,
            MEMORY_BYTES_MAX,
        )?;
    }
    Ok(())
}

/// Stripped.
const PROGRAM_BYTES_MAX: u64 = 12 << 20;

/// A program with debug information is several times as large.
const DEBUG_BYTES_MIN: u64 = 40 << 20;

const RESIDENT_BYTES_MAX: u64 = 15 << 20;

//! SIGKILL under load: of the control plane, of a sidecar, of an application. Each lost request
//! is accounted for: it was in flight when the process was killed, and at that process. A sidecar
//! that is told to stop loses none.
//!
//! `client` is under load towards the service `shop`, which `shop-1` and `shop-2` serve. No route
//! has retries, so what the mesh does not lose is by its own care.

use anyhow::{Context, Result, ensure};
use heddle_shell::clock;
use heddle_tests::{
    netns::{Family, Lab, NODE_V4},
    node::{App, ControlPlane, Load, MeshedPod, Report, Sidecar, Wire, Workload, init},
};
use serde_json::json;

use crate::{
    Case,
    mesh::{PLANE, Service, call, control_plane, heard, settles, workload},
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for wire in [Wire::Http, Wire::Grpc, Wire::Tcp] {
        let name = |what: &str| format!("crashes::{}::{what}", wire.as_str());
        cases.push(Case::new(
            name("a_sidecar_that_is_told_to_stop_loses_nothing"),
            move || Box::pin(sidecar_stops(wire)),
        ));
        cases.push(Case::new(
            name("a_dead_control_plane_costs_nothing"),
            move || Box::pin(control_plane_dies(wire)),
        ));
        cases.push(Case::new(
            name("a_dead_sidecar_costs_what_it_held"),
            move || Box::pin(sidecar_dies(wire)),
        ));
        // The client of bytes is connected before its endpoint's sidecar knows of the dead
        // application, and nothing in TCP says that nobody heard: such connections are reset.
        if wire != Wire::Tcp {
            cases.push(Case::new(
                name("a_dead_application_costs_what_it_held"),
                move || Box::pin(application_dies(wire)),
            ));
        }
    }
    cases.push(Case::new(
        "crashes::a_sidecar_comes_back_without_its_control_plane".into(),
        || Box::pin(sidecar_restarts_alone()),
    ));
    cases.push(Case::new(
        "crashes::a_sidecar_that_has_heard_nothing_lets_nothing_out".into(),
        || Box::pin(nothing_passes_unasked()),
    ));
    cases
}

/// The mesh of these cases.
struct Shop<'lab> {
    plane: ControlPlane<'lab>,
    client: MeshedPod<'lab>,
    shops: [MeshedPod<'lab>; 2],
    service: Service<'lab>,
}

impl<'lab> Shop<'lab> {
    async fn open(lab: &'lab Lab) -> Result<Self> {
        let plane = control_plane(lab).await?;
        let service = Service::of_workloads("shop", 1);
        plane.apply(&service.entry(Family::V4))?;
        let labels = ["app=shop"];
        // Long enough that some requests are in flight at any moment.
        let think = ["--delay-ms=60"];
        let shop = async |name| {
            let workload = Workload::new(name, "shop", &labels);
            MeshedPod::start(&plane, lab.pod(name), &workload, &think).await
        };
        let shops = [shop("shop-1").await?, shop("shop-2").await?];
        let client = workload("client", &[], Family::V4);
        let client = MeshedPod::start(&plane, lab.pod("client"), &client, &[]).await?;
        Ok(Self {
            plane,
            client,
            shops,
            service,
        })
    }

    /// A load on both of them, under way.
    async fn load(&self, wire: Wire) -> Result<Load> {
        let to = self.service.address(Family::V4);
        let load = Load::start(self.client.pod.into(), RATE, &call(wire, to, "buy"))?;
        load.answered_by("shop-1", 20).await?;
        load.answered_by("shop-2", 20).await?;
        Ok(load)
    }

    fn logs(&self) -> String {
        let all = self.shops.iter().chain([&self.client]);
        all.map(|pod| format!("{}:\n{}\n", pod.pod.name(), pod.sidecar.process().log()))
            .collect()
    }
}

const PODS: &[&str] = &[PLANE, "client", "shop-1", "shop-2"];

async fn control_plane_dies(wire: Wire) -> Result<()> {
    let lab = Lab::new(PODS)?;
    let mut shop = Shop::open(&lab).await?;
    let load = shop.load(wire).await?;
    shop.plane.kill()?;
    load.answers(u64::from(RATE) * 3).await?;
    shop.plane.restart().await?;
    shop.plane.connected(3).await?;
    load.answers(u64::from(RATE)).await?;
    let report = load.finish().await?;
    report.without_failures().with_context(|| shop.logs())
}

async fn sidecar_dies(wire: Wire) -> Result<()> {
    let lab = Lab::new(PODS)?;
    let mut shop = Shop::open(&lab).await?;
    let load = shop.load(wire).await?;
    let killed = Killed::by(|| shop.shops[0].sidecar.kill())?;
    load.answers(u64::from(RATE) * 3).await?;
    shop.shops[0].sidecar.restart()?;
    load.answered_by("shop-1", 20)
        .await
        .with_context(|| shop.logs())?;
    let report = load.finish().await?;
    let reason = match wire {
        Wire::Http | Wire::Grpc => "reset",
        Wire::Tcp | Wire::Greet => "connection reset",
    };
    killed
        .explains(&report, &shop.shops[1].app, reason, GRACE_MS)
        .with_context(|| shop.logs())
}

/// The whole chain of an update in place: the registration says DRAINING, callers hear of it and
/// confirm, connections say goodbye, the registration goes, the program ends, another comes.
async fn sidecar_stops(wire: Wire) -> Result<()> {
    let lab = Lab::new(PODS)?;
    let mut shop = Shop::open(&lab).await?;
    let load = shop.load(wire).await?;
    let stopped = shop.shops[0].sidecar.stop().await;
    stopped.with_context(|| shop.logs())?;
    load.answers(u64::from(RATE)).await?;
    shop.shops[0].sidecar.restart()?;
    load.answered_by("shop-1", 20)
        .await
        .with_context(|| shop.logs())?;
    let report = load.finish().await?;
    report.without_failures().with_context(|| shop.logs())
}

async fn application_dies(wire: Wire) -> Result<()> {
    let lab = Lab::new(PODS)?;
    let mut shop = Shop::open(&lab).await?;
    let load = shop.load(wire).await?;
    let killed = Killed::by(|| shop.shops[0].app.kill())?;
    load.answers(u64::from(RATE) * 3).await?;
    shop.shops[0].app.restart().await?;
    load.answered_by("shop-1", 20)
        .await
        .with_context(|| shop.logs())?;
    let report = load.finish().await?;
    // Its sidecar knew at once, and says of what came later that nobody heard it.
    killed
        .explains(&report, &shop.shops[1].app, "reset", 0)
        .with_context(|| shop.logs())
}

/// The caller's own sidecar: nothing goes past it while it is dead, and it needs nobody to come
/// back. It goes back by one state, because the last one may be what killed it.
async fn sidecar_restarts_alone() -> Result<()> {
    let lab = Lab::new(PODS)?;
    let mut shop = Shop::open(&lab).await?;
    let buy = call(Wire::Http, shop.service.address(Family::V4), "buy");
    let outcome = buy.from(shop.client.pod.into())?;
    ensure!(outcome.is_ok(), "{outcome:?}\n{}", shop.logs());
    // Each ordered stop leaves a state that is not on trial.
    for _ in 0..2 {
        shop.client.sidecar.stop().await?;
        shop.client.sidecar.restart()?;
        shop.client.sidecar.ready().await?;
    }
    shop.plane.kill()?;
    let capture = lab.pod("client").capture("tcp").await?;
    let load = shop.load(Wire::Http).await?;
    shop.client.sidecar.kill()?;
    load.fails(20).await?;
    shop.client.sidecar.restart()?;
    load.answers(u64::from(RATE))
        .await
        .with_context(|| shop.logs())?;
    let log = shop.client.sidecar.process().log();
    ensure!(log.contains("died within 30 s"), "{log}");
    let report = load.finish().await?;
    // Requests on connections that died with it, then connections that nobody took.
    let expected = [
        "connection refused",
        "connection reset",
        "unexpected end of file",
    ];
    let is_expected = |reason: &String| expected.contains(&reason.as_str()) || is_cut(reason);
    ensure!(report.failed.keys().all(is_expected), "{:?}", report.failed);
    ensure!(
        report.failed.contains_key("connection refused"),
        "{:?}",
        report.failed
    );
    let bytes = capture.finish().await?;
    let is_said = bytes.windows(4).any(|seen| seen == b" buy");
    ensure!(!is_said, "plaintext left the pod");
    Ok(())
}

/// Only the control plane knows what is mesh: a sidecar that could not ask it lets nothing out.
async fn nothing_passes_unasked() -> Result<()> {
    let lab = Lab::new(&[PLANE, "client", "plain"])?;
    let plane = control_plane(&lab).await?;
    let app = App::start(lab.pod("plain"), "plain", &[]).await?;
    let (pod, to) = (lab.pod("client"), lab.pod("plain").v4.into());
    init(pod, "install", &["--capture-dns"])?;
    let client = workload("client", &[], Family::V4);
    let nobody = json!({ "control_plane": { "addresses": [format!("{NODE_V4}:15012")] } });
    let mut lonely = Sidecar::start(&plane, pod.into(), &client, &nobody)?;
    lonely.started().await?;
    for wire in Wire::ALL {
        let outcome = call(wire, to, "1 unasked").from(pod.into())?;
        ensure!(outcome.is_err(), "{wire:?}: {outcome:?}");
    }
    ensure!(app.begun()?.is_empty(), "requests passed");
    let undescribed = &["direction=\"outbound\"", "reason=\"undescribed\""];
    let refused = || lonely.metric("heddle_own_answers_total", undescribed);
    let refused = settles(4.0, refused).await?;
    ensure!(refused == 4.0, "{refused} are recorded");
    drop(lonely);
    // It was not for another reason: the same calls, asked about.
    let mut sidecar = Sidecar::start(&plane, pod.into(), &client, &json!({}))?;
    sidecar.ready().await?;
    for wire in Wire::ALL {
        let outcome = call(wire, to, "asked").from(pod.into())?;
        heard(&outcome, "plain", "asked", pod.v4.into())
            .with_context(|| sidecar.process().log())?;
    }
    Ok(())
}

/// hyper's words for a connection that ended under a request.
fn is_cut(reason: &str) -> bool {
    reason.contains("connection closed before message completed")
}

/// When a process was killed, by the clock that a [`Report`] tells.
struct Killed {
    before_ms: i64,
    after_ms: i64,
}

impl Killed {
    fn by(kill: impl FnOnce() -> Result<()>) -> Result<Self> {
        let now = || clock::unix_ms(clock::wall());
        let before_ms = now();
        kill()?;
        Ok(Self {
            before_ms,
            after_ms: now(),
        })
    }

    /// An error unless every failure is of a request that was in flight at that moment or sent
    /// within `grace_ms`, not at the survivor, and has this reason.
    fn explains(
        &self,
        report: &Report,
        survivor: &App<'_>,
        reason: &str,
        grace_ms: i64,
    ) -> Result<()> {
        let answered_or_lost = report.answers() + report.failures();
        ensure!(
            report.sent == answered_or_lost,
            "not all counted: {report:?}"
        );
        ensure!(
            u64::try_from(report.lost.len())? == report.failures(),
            "too many to look at: {:?}",
            report.failed
        );
        let seen = survivor.begun()?;
        for lost in &report.lost {
            let was_in_flight =
                lost.sent_ms <= self.after_ms + grace_ms && lost.ended_ms >= self.before_ms;
            ensure!(
                was_in_flight,
                "lost {} ms after the kill: {lost:?} of {:?}",
                lost.sent_ms - self.after_ms,
                report.failed
            );
            ensure!(!seen.contains(&lost.id), "the survivor had it: {lost:?}");
            ensure!(lost.failure.reason == reason, "{lost:?}");
        }
        Ok(())
    }
}

/// Requests per second. They leave whether or not earlier ones were answered: more than the
/// machine can carry would be lost to overload, and HTTP/1.1 first, which opens a connection for
/// each request that waits.
const RATE: u32 = 50;

/// A sidecar's connections break for its callers in other pods when the kernel has closed them and
/// the caller has had its turn, which takes a moment on a busy machine.
const GRACE_MS: i64 = 250;

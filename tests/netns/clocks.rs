//! All wall clocks jump by 25 hours, past the end of every certificate, under load. Timers do not
//! jump: it is what a suspended machine or a corrected clock looks like.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_shell::clock;
use heddle_tests::{
    netns::{Family, Lab},
    node::{Call, Clock, ControlPlane, Load, MeshedPod, Sidecar, Wire, Workload},
    process::eventually,
};
use serde_json::{Value, json};

use crate::{
    Case,
    mesh::{PLANE, Service, call},
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![Case::new(
        "clocks::without_an_authority_the_reason_is_certificate_expired".into(),
        || Box::pin(jump_without_authority()),
    )];
    for (family, family_name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        let name = format!("clocks::{family_name}::a_jump_past_every_certificate_costs_no_request");
        cases.push(Case::new(name, move || Box::pin(jump_under_load(family))));
    }
    cases
}

/// `client` calls the service `shop`.
struct Mesh<'lab> {
    plane: ControlPlane<'lab>,
    client: MeshedPod<'lab>,
    shop: MeshedPod<'lab>,
    service: Service<'lab>,
    family: Family,
}

impl<'lab> Mesh<'lab> {
    async fn start(lab: &'lab Lab, clock: &'lab Clock, family: Family) -> Result<Self> {
        let place = lab.pod(PLANE).into();
        let plane = ControlPlane::start_with(place, json!({}), Some(clock)).await?;
        let service = Service::of_workloads("shop", 1);
        plane.apply(&service.entry(family))?;
        let labels = ["app=shop"];
        let pod = async |name, labels| {
            let workload = Workload {
                // They outlive the jump: a platform renews the tokens it projects.
                token_hours: 72,
                family,
                ..Workload::new(name, name, labels)
            };
            let pod = lab.pod(name);
            MeshedPod::start_with(&plane, pod, &workload, &[], &json!({}), Some(clock)).await
        };
        let shop = pod("shop", &labels[..]).await?;
        let client = pod("client", &[]).await?;
        Ok(Self {
            plane,
            client,
            shop,
            service,
            family,
        })
    }

    fn call(&self, wire: Wire) -> Call<'static> {
        call(wire, self.service.address(self.family), "time")
    }

    fn logs(&self) -> String {
        format!(
            "client:\n{}\nshop:\n{}\nplane:\n{}",
            self.client.sidecar.process().log(),
            self.shop.sidecar.process().log(),
            self.plane.process().log()
        )
    }
}

/// Loads of long-lived and of new connections.
async fn jump_under_load(family: Family) -> Result<()> {
    let lab = Lab::new(&[PLANE, "client", "shop"])?;
    let clock = Clock::new()?;
    let mesh = Mesh::start(&lab, &clock, family).await?;
    let mut loads = Vec::new();
    for wire in Wire::ALL {
        let load = Load::start(mesh.client.pod.into(), RATE, &mesh.call(wire))?;
        load.answers(20).await.with_context(|| mesh.logs())?;
        loads.push(load);
    }
    let before = [
        not_after(&mesh.client.sidecar)?,
        not_after(&mesh.shop.sidecar)?,
    ];
    let sidecars = [&mesh.client.sidecar, &mesh.shop.sidecar];
    let asked = sidecars.map(|sidecar| asked_ms(sidecar).map_or(0, |asked| asked.len()));
    let jumped_ms = clock::unix_ms(clock::wall()) + 25 * HOUR_MS;
    clock.jump("+25h")?;
    eventually(RENEWED, "both have a new certificate", || {
        let now = sidecars.map(not_after);
        let mut both = now.iter().zip(&before);
        let renewed = both.all(|(now, before)| now.as_ref().is_ok_and(|now| now > before));
        async move { renewed }
    })
    .await
    .with_context(|| mesh.logs())?;
    for (sidecar, asked) in sidecars.into_iter().zip(asked) {
        let first = *asked_ms(sidecar)?.get(asked).context("a renewal")?;
        let after_ms = (first - jumped_ms).rem_euclid(DAY_MS);
        ensure!(
            after_ms <= RENEWAL_STARTS_MS,
            "renewal began {after_ms} ms after the jump\n{}",
            mesh.logs()
        );
    }
    for load in &loads {
        load.answers(u64::from(RATE) * 3)
            .await
            .with_context(|| mesh.logs())?;
    }
    for load in loads {
        let report = load.finish().await?;
        report.without_failures().with_context(|| mesh.logs())?;
    }
    Ok(())
}

async fn jump_without_authority() -> Result<()> {
    let lab = Lab::new(&[PLANE, "client", "shop"])?;
    let clock = Clock::new()?;
    let mut mesh = Mesh::start(&lab, &clock, Family::V4).await?;
    // Otherwise a kept connection answers: it stays good, as TLS has it.
    mesh.plane.apply(ONE_REQUEST_PER_CONNECTION)?;
    let pod = mesh.client.pod.into();
    for wire in Wire::ALL {
        let outcome = mesh.call(wire).from(pod)?;
        ensure!(outcome.is_ok(), "{outcome:?}\n{}", mesh.logs());
    }
    mesh.plane.kill()?;
    clock.jump("+25h")?;
    for wire in Wire::ALL {
        let failure = match mesh.call(wire).from(pod)? {
            Ok(answer) => anyhow::bail!("{answer:?} with certificates that have ended"),
            Err(failure) => failure,
        };
        // Bytes have no words: for them the reason is in the records.
        let expected = match wire {
            Wire::Http | Wire::Grpc => "certificate_expired",
            Wire::Tcp | Wire::Greet => "connection reset",
        };
        ensure!(failure.reason == expected, "{failure:?}\n{}", mesh.logs());
        let is_unavailable = failure.detail.contains("status 503");
        ensure!(wire != Wire::Http || is_unavailable, "{failure:?}");
    }
    let recorded = || {
        let reason = &["direction=\"outbound\"", "reason=\"certificate_expired\""];
        mesh.client.sidecar.metric(REASONS, reason)
    };
    let every = f64::from(u8::try_from(Wire::ALL.len())?);
    let recorded = crate::mesh::settles(every, recorded).await?;
    ensure!(recorded == every, "{recorded} of {every} are recorded");
    let readiness = mesh.client.sidecar.health_page("/health/ready")?;
    ensure!(readiness.contains("certificate_expired"), "{readiness}");
    mesh.plane.restart().await?;
    eventually(RECOVERED, "new connections", || {
        let outcome = Wire::ALL.map(|wire| mesh.call(wire).from(pod));
        let answered = outcome.iter().all(|outcome| matches!(outcome, Ok(Ok(_))));
        async move { answered }
    })
    .await
    .with_context(|| mesh.logs())
}

/// When a sidecar's certificate ends, in Unix milliseconds.
fn not_after(sidecar: &Sidecar<'_>) -> Result<i64> {
    let page: Value = serde_json::from_str(&sidecar.health_page("/health/detailed")?)?;
    let at = &page["certificate"]["not_after_ms"];
    at.as_i64().with_context(|| page.to_string())
}

/// When it asked for certificates, in milliseconds of the day by its own clock.
fn asked_ms(sidecar: &Sidecar<'_>) -> Result<Vec<i64>> {
    let log = sidecar.process().log();
    let lines = log.lines().filter(|line| line.contains(ASKS));
    lines.map(of_day_ms).collect()
}

fn of_day_ms(line: &str) -> Result<i64> {
    let line: Value = serde_json::from_str(line)?;
    let at = line["timestamp"].as_str().context("a timestamp")?;
    let (_, time) = at.split_once('T').context("a time of the day")?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let mut next = || parts.next().context("hours, minutes, seconds");
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    let (seconds, micros) = seconds.split_once('.').context("a fraction")?;
    let number = |text: &str| text.parse::<i64>().with_context(|| at.to_owned());
    let whole = (number(hours)? * 60 + number(minutes)?) * 60 + number(seconds)?;
    Ok(whole * 1000 + number(micros)? / 1000)
}

/// Requests per second and protocol.
const RATE: u32 = 30;

const ASKS: &str = "asking for a certificate";

const RENEWAL_STARTS_MS: i64 = 2000;

/// For issuing, on a machine that does more.
const RENEWED: Duration = Duration::from_secs(10);

/// Back-off of a sidecar that has failed for a while.
const RECOVERED: Duration = Duration::from_secs(20);

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

const REASONS: &str = "heddle_own_answers_total";

const ONE_REQUEST_PER_CONNECTION: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: default}
spec: {host: shop, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}
";

//! The test application without a mesh between: if these fail, other cases say nothing.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Family, Lab},
    node::{App, Call, Load, Wire},
};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("application::pods_hear_each_other".into(), pods_hear),
        Case::new("application::lost_requests_are_counted".into(), counted),
    ]
}

async fn pods_hear() -> Result<()> {
    let lab = Lab::new(&["a", "b"])?;
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let _app = App::start(b, "b", &[]).await?;
    for family in [Family::V4, Family::V6] {
        for wire in Wire::ALL {
            let at = SocketAddr::new(b.address(family), wire.port());
            let call = Call {
                wire,
                to: at.to_string(),
                say: "hello",
            };
            let answer = call.from(a.into())?;
            let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"));
            let answer = answer.with_context(|| format!("{wire:?} to {at}"))?;
            let heard = (answer.app.as_str(), answer.said.as_str());
            ensure!(heard == ("b", "hello"), "{answer:?}");
            ensure!(
                (answer.local, answer.peer) == (at, a.address(family)),
                "{answer:?}"
            );
        }
    }
    Ok(())
}

async fn counted() -> Result<()> {
    let lab = Lab::new(&["a", "b"])?;
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    for wire in Wire::ALL {
        let mut app = App::start(b, "b", &[]).await?;
        let to = SocketAddr::new(b.v4.into(), wire.port()).to_string();
        let load = Load::start(
            a.into(),
            100,
            &Call {
                wire,
                to,
                say: "load",
            },
        )?;
        load.answers(50).await?;
        app.kill()?;
        load.fails(20).await?;
        app.restart().await?;
        load.answers(50).await?;
        let report = load.finish().await?;
        let failed = report.failures();
        ensure!(report.sent == report.answers() + failed, "{report:?}");
        ensure!(
            report.failed.contains_key("connection refused"),
            "{wire:?}: {report:?}"
        );
        let begun = app.begun()?;
        let unseen = |id| !begun.contains(&id);
        let refused = report.lost.iter();
        let refused = refused.filter(|lost| lost.failure.reason == "connection refused");
        ensure!(refused.map(|lost| lost.id).all(unseen), "{report:?}");
    }
    Ok(())
}

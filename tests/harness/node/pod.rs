//! A pod of the mesh, in the order of a Kubernetes pod: the rules, the sidecar, the application.

use anyhow::Result;
use serde_json::{Value, json};

use super::{App, Clock, ControlPlane, Sidecar, Workload, program};
use crate::{netns::Pod, process::User};

/// A pod with redirect rules, a sidecar and an application.
#[derive(Debug)]
pub struct MeshedPod<'lab> {
    /// Where it all runs.
    pub pod: &'lab Pod,
    /// Its sidecar.
    pub sidecar: Sidecar<'lab>,
    /// Its application.
    pub app: App<'lab>,
}

impl<'lab> MeshedPod<'lab> {
    /// Starts all of it and waits until it is ready. `serve` is what the application serves, see
    /// [`App::start`].
    pub async fn start(
        plane: &ControlPlane<'lab>,
        pod: &'lab Pod,
        workload: &Workload<'_>,
        serve: &[&str],
    ) -> Result<Self> {
        Self::start_with(plane, pod, workload, serve, &json!({}), None).await
    }

    /// As [`MeshedPod::start`], with settings of the sidecar and by another clock.
    pub async fn start_with(
        plane: &ControlPlane<'lab>,
        pod: &'lab Pod,
        workload: &Workload<'_>,
        serve: &[&str],
        settings: &Value,
        clock: Option<&'lab Clock>,
    ) -> Result<Self> {
        init(pod, "install", &["--capture-dns"])?;
        let mut sidecar = Sidecar::start_with(plane, pod.into(), workload, settings, clock)?;
        sidecar.ready().await?;
        sidecar.registered().await?;
        let app = App::start(pod, workload.name, serve).await?;
        Ok(Self { pod, sidecar, app })
    }
}

/// Runs `heddle-proxy init ACTION` in a pod as its init container would; what it printed.
pub fn init(pod: &Pod, action: &str, settings: &[&str]) -> Result<String> {
    let proxy = program("heddle-proxy")?.display().to_string();
    let mut words = vec![proxy.as_str(), "init", action];
    words.extend(settings);
    pod.namespace.output(User::Root, &words)
}

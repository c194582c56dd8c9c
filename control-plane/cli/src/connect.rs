//! A channel to the control plane: TLS by the administrator's certificate or a workload's token,
//! the control plane proven by the mesh's root.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use heddle_shell::{
    causes,
    tls::{self, Accept, Anchor, Identity, Trust},
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::failure::Failure;

/// Where the control plane is and how we prove ourselves.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// Address of the control plane's gRPC API.
    #[arg(
        long,
        global = true,
        env = "HEDDLE_SERVER",
        default_value = "127.0.0.1:15012"
    )]
    pub(crate) server: String,

    /// Directory with `certificate.pem`, `key.pem` and `root.pem`; the control plane writes the
    /// administrator's at its first start.
    #[arg(
        long,
        global = true,
        env = "HEDDLE_CREDENTIALS",
        default_value = "heddle-data/administrator"
    )]
    pub(crate) credentials: PathBuf,
}

impl Target {
    /// A channel that presents the administrator's certificate.
    pub(crate) async fn administrator(&self) -> Result<Channel, Failure> {
        let identity = self.identity()?;
        let root = Anchor::from_pem_file(&self.credentials.join("root.pem"))
            .map_err(|error| Failure::Local(causes::chain(&error)))?;
        self.channel(Some(&identity), root).await
    }

    /// A listing of this control plane, page by page: everything, or its first `items_max`.
    pub(crate) async fn pages<T>(
        &self,
        items_max: usize,
        mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Status>,
    ) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        let mut page_token = String::new();
        loop {
            let (more, next) = page(page_token).await.map_err(Failure::of(&self.server))?;
            items.extend(more);
            if next.is_empty() || items.len() >= items_max {
                items.truncate(items_max);
                return Ok(items);
            }
            page_token = next;
        }
    }

    /// A channel that presents `identity`, if any.
    pub(crate) async fn channel(
        &self,
        identity: Option<&Identity>,
        anchor: Anchor,
    ) -> Result<Channel, Failure> {
        let config = tls::client(
            identity,
            Trust::Anchor(anchor),
            Accept::ControlPlane,
            &[b"h2"],
        )
        .map_err(|error| Failure::Local(format!("setting up TLS: {error}")))?;
        let server = self.server.clone();
        let dial = tower::service_fn(move |_uri| {
            let (server, config) = (server.clone(), Arc::clone(&config));
            async move {
                tls::dial(&server, config)
                    .await
                    .map(hyper_util::rt::TokioIo::new)
            }
        });
        // The connector dials `server`; the URI only has to be one.
        Endpoint::from_static("http://control-plane")
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector(dial)
            .await
            .map_err(|error| Failure::of(&self.server)(Status::from_error(error.into())))
    }

    fn identity(&self) -> Result<Identity, Failure> {
        let (certificate, key) = (
            self.credentials.join("certificate.pem"),
            self.credentials.join("key.pem"),
        );
        let fault = |error: &dyn std::fmt::Display| {
            Failure::Local(format!(
                "reading {}: {error}; is --credentials the control plane's administrator directory?",
                self.credentials.display()
            ))
        };
        let chain = certificates(&certificate).map_err(|error| fault(&error))?;
        let key = PrivatePkcs8KeyDer::from_pem_file(&key).map_err(|error| fault(&error))?;
        Identity::new(chain, key).map_err(|error| fault(&error))
    }
}

fn certificates(
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_file_iter(file)?.collect()
}

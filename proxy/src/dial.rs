//! New connections to endpoints and to the application: TCP, and mutual TLS where the endpoint
//! speaks it.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use heddle_policy::snapshot::{EndpointKey, Transport};
use heddle_relay::error::ConnectError;
use heddle_shell::clock;
use tokio::time::timeout;

use crate::{
    detect::Rewound,
    error::of_io,
    intercept::{self, Leg},
    tls::{self, Agreed, Carries, Configs, Established},
};

/// Dials for one worker.
#[derive(Debug)]
pub struct Dialler {
    configs: Rc<RefCell<Configs>>,
}

/// Where to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The endpoint.
    pub endpoint: EndpointKey,
    /// Told to it as SNI.
    pub name: Arc<str>,
    /// What the connection carries.
    pub carries: Carries,
    /// For TCP and TLS together.
    pub timeout: Duration,
    /// Which side of the sidecar dials.
    pub leg: Leg,
}

impl Dialler {
    /// Who we are is asked of `configs` at each dial.
    pub fn new(configs: Rc<RefCell<Configs>>) -> Self {
        Self { configs }
    }

    /// A new connection.
    ///
    /// # Errors
    /// When there is none in time, or the other side is not who it should be.
    pub async fn dial(&self, target: &Target) -> Result<Established, ConnectError> {
        let within = target.timeout;
        self.certified(target, async || {
            let connected = timeout(within, Box::pin(self.connect(target)));
            connected
                .await
                .unwrap_or(Err(ConnectError::Timeout(within)))
        })
        .await
    }

    /// Connects with a certificate that lets us, and again when that has ended meanwhile: the
    /// other side may have looked after the end. Waiting for a renewal is not on the account of
    /// the endpoint's time.
    async fn certified<T>(
        &self,
        target: &Target,
        connect: impl AsyncFn() -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        if target.endpoint.transport == Transport::Plain {
            return connect().await;
        }
        tls::renewed(&self.configs).await;
        let ends = match self.configs.borrow_mut().identity() {
            Ok(identity) => identity.not_after(),
            Err(error) => return Err(error.into()),
        };
        let connected = connect().await;
        if clock::wall() < ends {
            return connected;
        }
        // What it holds may be all there is.
        drop(connected);
        tls::renewed(&self.configs).await;
        connect().await
    }

    async fn connect(&self, target: &Target) -> Result<Established, ConnectError> {
        let config = match &target.endpoint.transport {
            Transport::Plain => None,
            Transport::Mtls(accepted) => {
                let mut configs = self.configs.borrow_mut();
                Some(configs.client(accepted, target.carries)?)
            }
        };
        let stream = intercept::connect(target.endpoint.address, target.leg)
            .await
            .map_err(|error| of_io(&error))?;
        let stream = Rewound::new(stream);
        match config {
            None => {
                let agreed = Agreed::of_plaintext(target.carries);
                Ok(Established::in_plaintext(stream, agreed))
            }
            Some(config) => Ok(tls::connect(stream, config, &target.name).await?),
        }
    }
}

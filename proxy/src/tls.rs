//! TLS of the data path, made of the current [`Credentials`].

use std::sync::Arc;

use heddle_shell::tls::{Identity, TrustBundle};

/// Who we are and whom we trust, as of now. Published as `Published<Option<Credentials>>`;
/// `None` before the first certificate: nothing meshed is then accepted or dialled.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Our certificate and key.
    pub identity: Arc<Identity>,
    /// Roots and deny list.
    pub trust: Arc<TrustBundle>,
}

//! Logs: JSON lines on standard error, one subscriber per process, level changeable at run time.

use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Changes the level of a running process.
#[derive(Clone, Debug)]
pub struct Level {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Level {
    /// Applies filter directives such as `info,heddle_proxy=debug`.
    ///
    /// # Errors
    /// The parser's message; the old filter then stays.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let filter: EnvFilter = EnvFilter::builder()
            .parse(directives)
            .map_err(|error| error.to_string())?;
        self.handle
            .reload(filter)
            .map_err(|error| error.to_string())
    }
}

/// Installs the process's subscriber.
///
/// # Errors
/// When `directives` does not parse, or a subscriber is already installed.
pub fn install(directives: &str) -> Result<Level, String> {
    let filter = EnvFilter::builder()
        .parse(directives)
        .map_err(|error| error.to_string())?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(Level { handle })
}

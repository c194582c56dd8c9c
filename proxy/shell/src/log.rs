//! Logs: JSON lines on standard error, one subscriber per process, level changeable at run time.

use tracing_subscriber::{
    Registry, filter::Targets, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Changes the level of a running process.
#[derive(Clone, Debug)]
pub struct Level {
    handle: reload::Handle<Targets, Registry>,
}

impl Level {
    /// Applies filter directives such as `info,heddle_proxy=debug`.
    ///
    /// # Errors
    /// The parser's message; the old filter then stays.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let filter = parse(directives)?;
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
    let (filter, handle) = reload::Layer::new(parse(directives)?);
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

/// Targets and levels; not the crate's other filter, which looks into spans and brings a compiler
/// of expressions along.
fn parse(directives: &str) -> Result<Targets, String> {
    directives
        .parse()
        .map_err(|error: tracing_subscriber::filter::ParseError| error.to_string())
}

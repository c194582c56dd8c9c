//! `heddle-control-plane --config FILE`, `heddle-control-plane --config FILE config --print`.

use std::{env, io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use heddle_control_plane::{app::ControlPlane, config::Config};
use heddle_shell::{log, settings};
use tokio::signal::unix::{SignalKind, signal};

/// Heddle's control plane: certificate authority, registry, configuration API and xDS server.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings file (YAML). Every setting is also an environment variable, such as
    /// HEDDLE_LISTEN__GRPC.
    #[arg(long, env = "HEDDLE_CONFIG")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks the settings.
    Config {
        /// Prints those in force, defaults included.
        #[arg(long)]
        print: bool,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("heddle-control-plane: {error:#}\n");
            // Nobody is left to hear of a failure to write it.
            drop(std::io::stderr().write_all(text.as_bytes()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let raw = settings::read(arguments.config.as_deref(), env::vars())?;
    let config = Config::new(&raw)?;
    if let Some(Command::Config { print }) = arguments.command {
        if print {
            let text = serde_saphyr::to_string(&config.to_raw()).context("printing settings")?;
            std::io::stdout().write_all(text.as_bytes())?;
        }
        return Ok(());
    }
    log::install(&config.log)
        .map_err(anyhow::Error::msg)
        .context("setting up logs (setting log)")?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before the ports open: a signal that comes early must not kill.
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut control_plane = ControlPlane::start(config).await?;
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        what = control_plane.failed() => Some(what),
    };
    control_plane.stop().await;
    match failure {
        None => Ok(()),
        // Whoever started us starts us again.
        Some(what) => Err(anyhow::anyhow!("{what}; see the log")),
    }
}

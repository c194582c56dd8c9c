//! `heddle-proxy`: arguments in, exit code out.

use std::{
    env,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use heddle_proxy::{app, config, init};
use heddle_shell::log;

/// Heddle's sidecar.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Args),
    /// Serve; also without a subcommand.
    Run(Run),
    /// Check the settings.
    Config {
        #[command(flatten)]
        run: Run,
        /// Print each setting with its source.
        #[arg(long)]
        print: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Settings file; `HEDDLE_<SECTION>__<FIELD>` wins over it.
    #[arg(long, env = "HEDDLE_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Init(args)) => args.run(),
        Some(Command::Config { run, print }) => check(&run, print),
        Some(Command::Run(run)) => serve(&run),
        None => serve(&cli.run),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            _ = writeln!(io::stderr(), "heddle-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(run: &Run) -> anyhow::Result<()> {
    let config = config::read(run.config.as_deref(), env::vars())?;
    let level = log::install(&config.log)
        .map_err(anyhow::Error::msg)
        .context("installing the log")?;
    // One thread: traffic has its own, and this one sleeps most of the time. The blocking threads
    // are for the state directory and for host names of the control plane.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("starting the control runtime")?;
    runtime.block_on(Box::pin(app::run(config, level)))
}

fn check(run: &Run, print: bool) -> anyhow::Result<()> {
    if print {
        let environment: Vec<(String, String)> = env::vars().collect();
        let shown = config::show(run.config.as_deref(), &environment)?;
        io::stdout().write_all(shown.as_bytes())?;
    }
    config::read(run.config.as_deref(), env::vars()).map(|_valid| ())
}

//! `heddle-proxy`: arguments in, exit code out.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use heddle_proxy::init;

/// Heddle's sidecar.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Init(args) => args.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            _ = writeln!(io::stderr(), "heddle-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

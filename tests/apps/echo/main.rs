//! The application of the end-to-end cases: serves HTTP/1.1, gRPC, TCP and TCP that speaks first,
//! answers with its name and the peer it saw, calls another one, or keeps calling it.

mod call;
mod load;
mod serve;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Answers, until it is ended.
    Serve(serve::Args),
    /// Makes one call and prints what came of it.
    Call(call::Args),
    /// Calls at a rate and prints what came of it ten times a second, until SIGTERM.
    Load(load::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().role {
        Role::Serve(args) => serve::run(args).await,
        Role::Call(args) => call::run(args).await,
        Role::Load(args) => load::run(args).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            _ = writeln!(io::stderr(), "heddle-test-app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line at once, also into a file.
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

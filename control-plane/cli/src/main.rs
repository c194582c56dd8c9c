//! `heddle`: the command line of the mesh, over the control plane's gRPC API.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the control plane cannot be
//! reached, 4 stored but not active in time (`traffic set --wait`).

mod apply;
mod audit;
mod certs;
mod connect;
mod demo;
mod failure;
mod output;
mod proxies;
mod resources;
mod token;
mod traffic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{connect::Target, failure::Failure, output::Format};

/// Applies configuration, shifts traffic and looks into a Heddle mesh.
#[derive(Debug, Parser)]
#[command(name = "heddle", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    target: Target,

    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate and store resources from files, all or none.
    Apply(apply::Args),
    /// Show stored resources.
    Get(resources::GetArgs),
    /// Delete a resource.
    Delete(resources::DeleteArgs),
    /// Show or shift the weights of a service's subsets.
    Traffic(traffic::Args),
    /// Show connected proxies, what they run and what they refused.
    Proxies(proxies::Args),
    /// Show certificates, or keep one on disk for a peer without a sidecar.
    Certs(certs::Args),
    /// Show who changed what, and who was refused what.
    Audit(audit::Args),
    /// Mint a token that proves a workload's identity.
    Token(token::Args),
    /// Run the demonstration mesh of this repository.
    Demo(demo::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure.to_string());
            failure.exit_code()
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let (target, format) = (cli.target, cli.output);
    match cli.command {
        Command::Apply(args) => apply::run(&target, format, args).await,
        Command::Get(args) => resources::get(&target, format, args).await,
        Command::Delete(args) => resources::delete(&target, format, args).await,
        Command::Traffic(args) => traffic::run(&target, format, args).await,
        Command::Proxies(args) => proxies::run(&target, format, args).await,
        Command::Certs(args) => certs::run(&target, format, args).await,
        Command::Audit(args) => audit::run(&target, format, args).await,
        Command::Token(args) => token::run(&target, format, args).await,
        Command::Demo(args) => demo::run(&args),
    }
}

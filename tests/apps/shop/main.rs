//! The demonstration's application: a gRPC endpoint that counts every request it gets, calls the
//! next service if there is one, and can make load. It knows nothing of the mesh.
//!
//! ```text
//! load ──> client ──> web ──> user-service (v1, v1, v2) ──> catalog (2)
//!            each hop adds its name to the reply; each writes the request's id to its journal
//! ```
//!
//! The demonstration steers it over a Unix socket (see [`control`]).

mod call;
mod channel;
mod control;
mod endpoint;
mod journal;
mod load;
mod window;
mod wire;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::{Parser, Subcommand};
use heddle_shell::task::Tasks;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
};

use crate::{channel::Channel, endpoint::Endpoint, journal::Journal, load::Load, wire::Hop};

#[derive(Debug, Parser)]
#[command(name = "heddle-demo-app")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve until SIGTERM.
    Serve(Serve),
    /// Make one call and print what came of it as JSON.
    Call(call::Args),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Name of the service, as hops in replies show it.
    #[arg(long)]
    service: String,
    /// Name of this instance.
    #[arg(long)]
    instance: String,
    /// Version of this instance.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Where to serve gRPC; `[::]` takes both families.
    #[arg(long)]
    listen: SocketAddr,
    /// `host:port` of the service to call for each request.
    #[arg(long)]
    next: Option<String>,
    /// Address to dial instead of `next`'s, for sidecars without interception.
    #[arg(long, requires = "next")]
    via: Option<String>,
    /// Time to think about each request, in milliseconds.
    #[arg(long, default_value_t = 1)]
    delay_ms: u32,
    /// File that every request's beginning and end is appended to.
    #[arg(long)]
    journal: PathBuf,
    /// Unix socket for commands.
    #[arg(long)]
    control: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().role {
        Role::Serve(serve) => run(serve).await,
        Role::Call(args) => call::run(args).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Serve) -> anyhow::Result<()> {
    let next = args
        .next
        .map(|next| Channel::new(&next, args.via.as_deref()).map(Arc::new))
        .transpose()?;
    let hop = Hop {
        service: args.service,
        instance: args.instance,
        version: args.version,
    };
    let journal = Journal::open(&args.journal).context("opening the journal")?;
    let endpoint = Arc::new(Endpoint::new(hop, next.clone(), journal, args.delay_ms));
    let load = next.map(Load::new);

    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listening on {}", args.listen))?;
    // Left by a killed predecessor; when there is none, binding says what else is wrong.
    _ = std::fs::remove_file(&args.control);
    let commands = UnixListener::bind(&args.control)
        .with_context(|| format!("listening on {}", args.control.display()))?;

    let mut tasks = Tasks::new();
    tasks.spawn("endpoint", endpoint::serve(listener, Arc::clone(&endpoint)));
    tasks.spawn("control", control::serve(commands, endpoint, load));
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "messages belong on standard error")]
fn complain(message: &str) {
    eprintln!("heddle-demo-app: {message}");
}

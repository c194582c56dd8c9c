//! `heddle demo`: the same script as `make demo`.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command};

use crate::failure::Failure;

/// Path of the script inside the repository.
const SCRIPT: &str = "tests/demo/demo.py";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A checkout of Heddle's repository; the current directory or one above it when not given.
    #[arg(long)]
    repository: Option<PathBuf>,

    /// Leave the mesh running at the end and print how to call it.
    #[arg(long)]
    keep: bool,

    /// Use ports of this machine, also where network namespaces would work.
    #[arg(long)]
    ports: bool,

    /// End a mesh that was left running.
    #[arg(long)]
    stop: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let here = std::env::current_dir().map_err(Failure::io("reading the current directory"))?;
    let candidates: Vec<PathBuf> = match &args.repository {
        Some(repository) => vec![repository.join(SCRIPT)],
        None => here
            .ancestors()
            .map(|directory| directory.join(SCRIPT))
            .collect(),
    };
    let script = candidates.iter().find(|script| script.is_file()).ok_or_else(|| {
        Failure::Local(format!(
            "{SCRIPT} is not here; run it inside a checkout of Heddle or name one with --repository"
        ))
    })?;
    let mut command = Command::new("python3");
    command.arg(script);
    for (is_asked, word) in [
        (args.keep, "--keep"),
        (args.ports, "--ports"),
        (args.stop, "--stop"),
    ] {
        command.args(is_asked.then_some(word));
    }
    // Replaces this process, so that signals and the exit code are the script's own.
    let error = command.exec();
    Err(Failure::Local(format!(
        "starting python3 (Debian: apt-get install python3): {error}"
    )))
}

//! The README's "By hand", word for word: what a stranger pastes leads to what it says.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::Lab,
    node::program,
    process::{User, eventually},
};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![Case::new("quickstart::by_hand".into(), by_hand)]
}

async fn by_hand() -> Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the package is in the repository")?;
    let script = pasted(&fs::read_to_string(repository.join("README.md"))?)?;
    let lab = Lab::new(&["laptop"])?;
    let directory = tempfile::tempdir()?;
    symlink(repository.join("deploy"), directory.path().join("deploy"))?;
    let programs = program("heddle")?;
    let programs = programs.parent().context("it is in a directory")?;
    let script = format!(
        "cd {}; export PATH={}:$PATH\n{script}",
        directory.path().display(),
        programs.display()
    );
    let words = ["bash", "-euc", &script];
    let mut shell = lab.pod("laptop").spawn("shell", User::Root, &words)?;
    eventually(PATIENCE, "everything was pasted", || {
        let has_ended = shell.has_ended();
        async move { has_ended }
    })
    .await
    .with_context(|| shell.log())?;
    let status = shell.ended().await?;
    let printed = shell.log();
    ensure!(status.success(), "{status}: {printed}");
    let answers: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("hello from "))
        .collect();
    let (first, after) = answers.split_first().context("no answer")?;
    // All twenty alike are two chances in a million.
    let is_split = after.len() == 20 && after.contains(&"v1") && after.contains(&"v2");
    ensure!(*first == "v1" && is_split, "{printed}");
    ensure!(
        printed.contains("default/user-service/user-service-v2"),
        "{printed}"
    );
    Ok(())
}

/// The block without what the suite has done already.
fn pasted(readme: &str) -> Result<String> {
    let (_, rest) = readme.split_once("## By hand").context("its heading")?;
    let (_, rest) = rest.split_once("```sh\n").context("its block")?;
    let (block, _) = rest.split_once("```").context("the end of its block")?;
    let is_done = |line: &&str| line.starts_with("cargo build") || line.starts_with("export PATH");
    let lines = block.lines().filter(|line| !is_done(line));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// For a build machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

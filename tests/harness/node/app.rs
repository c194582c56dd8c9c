//! The application of the cases (`apps/echo`), which speaks every protocol and says whom it saw,
//! and the callers that go with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{Place, own_program, scratch};
use crate::{
    netns::Pod,
    process::{PATIENCE, Process, User, eventually},
};

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wire {
    /// HTTP/1.1 with keep-alive.
    Http,
    /// gRPC: HTTP/2 in clear text, trailers.
    Grpc,
    /// Bytes; the client speaks first.
    Tcp,
    /// Bytes; the server speaks first, as databases and mail do.
    Greet,
}

impl Wire {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Http, Self::Grpc, Self::Tcp, Self::Greet];

    /// As an argument.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Greet => "greet",
        }
    }

    /// Where [`App`] serves it.
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 8080,
            Self::Grpc => 9090,
            Self::Tcp => 7000,
            Self::Greet => 7001,
        }
    }
}

/// What an application says about a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its name.
    pub app: String,
    /// Where it took the call.
    pub local: SocketAddr,
    /// From whom, as its socket says.
    pub peer: IpAddr,
    /// What the caller said.
    pub said: String,
}

/// How a call ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A word of the mesh (`x-heddle-reason`), a status, or what happened to the connection.
    pub reason: String,
    /// Everything that was said about it.
    pub detail: String,
}

/// What came of a load so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Requests that left.
    pub sent: u64,
    /// By the application that answered.
    pub answered: BTreeMap<String, u64>,
    /// By reason.
    pub failed: BTreeMap<String, u64>,
    /// The first [`LOST_MAX`] failures.
    pub lost: Vec<Lost>,
    /// The longest an answer took.
    pub slowest_ms: i64,
    /// Whether it has ended, with nothing in flight.
    pub is_final: bool,
}

/// A request without an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Its number, which applications write into their journals.
    pub id: u64,
    /// Why.
    pub failure: Failure,
    /// Unix time.
    pub sent_ms: i64,
    /// Unix time.
    pub ended_ms: i64,
}

impl Report {
    /// How many were answered.
    pub fn answers(&self) -> u64 {
        self.answered.values().sum()
    }

    /// How many were not.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// An error unless every request was answered.
    pub fn without_failures(&self) -> Result<()> {
        let first = self.lost.first();
        ensure!(self.failed.is_empty(), "{:?}, first {first:?}", self.failed);
        ensure!(self.answers() > 0, "nothing was answered");
        Ok(())
    }
}

/// A running application.
#[derive(Debug)]
pub struct App<'lab> {
    place: Place<'lab>,
    words: Vec<String>,
    directory: TempDir,
    process: Process,
}

impl<'lab> App<'lab> {
    /// Starts one on every port of [`Wire::port`]. `more` are arguments of `heddle-test-app
    /// serve`, such as `--delay-ms=20`.
    pub async fn start(pod: &'lab Pod, name: &str, more: &[&str]) -> Result<Self> {
        let ports = Wire::ALL.map(|wire| format!("--{}=[::]:{}", wire.as_str(), wire.port()));
        let more = more.iter().map(|&word| word.to_owned());
        Self::start_at(pod.into(), name, ports.into_iter().chain(more).collect()).await
    }

    /// Starts one in any place, on the ports that `serve` says.
    pub async fn start_at(place: Place<'lab>, name: &str, serve: Vec<String>) -> Result<Self> {
        let directory = scratch(APP)?;
        let app = own_program("heddle-test-app")?.display().to_string();
        let journal = journal(directory.path()).display().to_string();
        let mut words = vec![app, "serve".into(), format!("--name={name}")];
        words.push(format!("--journal={journal}"));
        words.extend(serve);
        let mut process = place.start("app", APP, &words)?;
        process.says("ready").await?;
        Ok(Self {
            place,
            words,
            directory,
            process,
        })
    }

    /// Numbers of the requests that reached it, over all its lives.
    pub fn begun(&self) -> Result<BTreeSet<u64>> {
        let mut begun = BTreeSet::new();
        let text = fs::read_to_string(journal(self.directory.path())).unwrap_or_default();
        for line in text.lines() {
            let id = line.parse().with_context(|| line.to_owned())?;
            ensure!(begun.insert(id), "request {id} came twice");
        }
        Ok(begun)
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = self.place.start("app", APP, &self.words)?;
        self.process.says("ready").await
    }
}

fn journal(directory: &Path) -> std::path::PathBuf {
    directory.join("journal")
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// What to speak.
    pub wire: Wire,
    /// `host:port`.
    pub to: String,
    /// What to say; it comes back with the answer.
    pub say: &'a str,
}

impl Call<'_> {
    /// Makes it as an application of the pod.
    pub fn from(&self, place: Place<'_>) -> Result<Result<Answer, Failure>> {
        self.by(place, APP)
    }

    /// Makes it as some user.
    pub fn by(&self, place: Place<'_>, user: User) -> Result<Result<Answer, Failure>> {
        let app = own_program("heddle-test-app")?.display().to_string();
        let words = [
            &app,
            "call",
            self.wire.as_str(),
            &self.to,
            "--say",
            self.say,
        ];
        let printed = place.output(user, &words)?;
        serde_json::from_str(&printed).with_context(|| printed)
    }
}

/// Requests at a steady rate, whether or not earlier ones were answered.
#[derive(Debug)]
pub struct Load {
    process: Process,
}

impl Load {
    /// Starts one as an application of the pod: `rate` requests per second that say `say`.
    pub fn start(place: Place<'_>, rate: u32, call: &Call<'_>) -> Result<Self> {
        let app = own_program("heddle-test-app")?.display().to_string();
        let rate = rate.to_string();
        let mut words = vec![app.as_str(), "load", call.wire.as_str(), &call.to];
        words.extend(["--rate", &rate, "--say", call.say]);
        Ok(Self {
            process: place.start("load", APP, &words)?,
        })
    }

    /// What came of it until a tenth of a second ago.
    pub fn report(&self) -> Result<Report> {
        let log = self.process.log();
        // The last line may be half written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        match whole.lines().next_back() {
            None => Ok(Report::default()),
            Some(line) => serde_json::from_str(line).with_context(|| log.clone()),
        }
    }

    /// Waits until so many more requests were answered.
    pub async fn answers(&self, more: u64) -> Result<()> {
        self.more(more, "requests are answered", Report::answers)
            .await
    }

    /// Waits until this application has answered so many more.
    pub async fn answered_by(&self, app: &str, more: u64) -> Result<()> {
        let count = |report: &Report| report.answered.get(app).copied().unwrap_or_default();
        self.more(more, &format!("{app} answers"), count).await
    }

    /// Waits until so many more requests have failed.
    pub async fn fails(&self, more: u64) -> Result<()> {
        self.more(more, "requests fail", Report::failures).await
    }

    /// Waits until every request that had left by now has ended: for a moment none is in flight.
    pub async fn settles(&self) -> Result<()> {
        let told = || self.process.log().lines().count();
        // The next line may be older than this question.
        let enough = told() + 2;
        eventually(LOAD_PATIENCE, "no request is in flight", || {
            let has_settled = told() >= enough
                && self
                    .report()
                    .is_ok_and(|report| report.sent == report.answers() + report.failures());
            async move { has_settled }
        })
        .await
    }

    async fn more(&self, more: u64, what: &str, count: impl Fn(&Report) -> u64) -> Result<()> {
        let enough = count(&self.report()?) + more;
        let counted = eventually(LOAD_PATIENCE, what, || {
            let counted = self.report().map_or(0, |report| count(&report));
            async move { counted >= enough }
        })
        .await;
        counted.with_context(|| self.process.log().lines().last().unwrap_or("").to_owned())
    }

    /// Lets it send for a while.
    pub async fn run_for(&self, time: Duration) -> Result<()> {
        let until = heddle_shell::clock::now() + time;
        eventually(time + PATIENCE, "time passes", || async {
            heddle_shell::clock::now() >= until
        })
        .await
    }

    /// Ends it and waits for what is in flight.
    pub async fn finish(mut self) -> Result<Report> {
        self.process.signal("TERM")?;
        self.process.ended().await?;
        let report = self.report()?;
        ensure!(report.is_final, "it ended early: {}", self.process.log());
        Ok(report)
    }
}

/// As whom applications run.
pub const APP: User = User::Unprivileged(1000);

/// Failures kept one by one; all are counted.
pub const LOST_MAX: usize = 500;

const LOAD_PATIENCE: Duration = Duration::from_secs(30);

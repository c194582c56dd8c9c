//! Open-loop load: requests leave at their time, whether or not earlier ones were answered.

use std::{sync::Arc, time::Duration};

use heddle_shell::{clock, task::Tasks};
use heddle_tests::node::{Answer, Failure, LOST_MAX, Lost, Report, Wire};
use parking_lot::Mutex;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::call::{Link, call};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    wire: Wire,

    /// `host:port`.
    to: String,

    /// What to say behind the request's number.
    #[arg(long)]
    say: String,

    /// Requests per second.
    #[arg(long)]
    rate: u32,
}

struct Load {
    args: Args,
    report: Mutex<Report>,
    /// HTTP connections that take a request. One of HTTP/2 is enough.
    links: Mutex<Vec<Link>>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut send = interval(Duration::from_secs(1) / args.rate.max(1));
    send.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut tell = interval(REPORT_INTERVAL);
    let load = Arc::new(Load {
        args,
        report: Mutex::default(),
        links: Mutex::default(),
    });
    let mut requests = Tasks::new();
    let mut id = 0;
    loop {
        tokio::select! {
            biased; // The end first, and news before the next request.
            _ = terminate.recv() => break,
            _ = tell.tick() => load.tell()?,
            _ = send.tick() => {
                id += 1;
                requests.reap_ended();
                requests.spawn("request", Arc::clone(&load).request(id));
            }
        }
    }
    // Longer than the deadline of a request, so that each of them ends by itself.
    requests.finish(2 * crate::call::DEADLINE).await;
    load.report.lock().is_final = true;
    load.tell()
}

impl Load {
    async fn request(self: Arc<Self>, id: u64) {
        let say = format!("{id} {}", self.args.say);
        let mut link = self.link();
        let sent_ms = now_ms();
        self.report.lock().sent += 1;
        let outcome = call(self.args.wire, &self.args.to, &say, &mut link).await;
        if let Some(link) = link {
            self.keep(link);
        }
        self.note(id, sent_ms, outcome);
    }

    fn link(&self) -> Option<Link> {
        let mut links = self.links.lock();
        let link = links.pop()?;
        links.extend(link.share());
        Some(link)
    }

    fn keep(&self, link: Link) {
        let mut links = self.links.lock();
        if link.share().is_none() || links.is_empty() {
            links.push(link);
        }
    }

    fn note(&self, id: u64, sent_ms: i64, outcome: Result<Answer, Failure>) {
        let ended_ms = now_ms();
        let mut report = self.report.lock();
        match outcome {
            Ok(answer) => {
                *report.answered.entry(answer.app).or_default() += 1;
                report.slowest_ms = report.slowest_ms.max(ended_ms - sent_ms);
            }
            Err(failure) => {
                *report.failed.entry(failure.reason.clone()).or_default() += 1;
                if report.lost.len() < LOST_MAX {
                    report.lost.push(Lost {
                        id,
                        failure,
                        sent_ms,
                        ended_ms,
                    });
                }
            }
        }
    }

    fn tell(&self) -> anyhow::Result<()> {
        let line = serde_json::to_string(&*self.report.lock())?;
        Ok(crate::say(&line)?)
    }
}

fn now_ms() -> i64 {
    clock::unix_ms(clock::wall())
}

const REPORT_INTERVAL: Duration = Duration::from_millis(100);

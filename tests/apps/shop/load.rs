//! Open-loop load: requests leave at their time, whether or not earlier ones were answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use heddle_shell::{clock, task::Tasks};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    channel::Channel,
    endpoint,
    window::{Failure, Window},
    wire::{Call, Half, Hop, Kind, Reply, Request},
};

/// A request that takes longer has been lost.
const DEADLINE: Duration = Duration::from_secs(15);

/// Requests in flight; at the bound the load stops being open and says so by its rate.
const IN_FLIGHT_MAX: u64 = 2_000;

/// Windows kept for reports; the oldest is forgotten.
const WINDOWS_MAX: usize = 64;

const TICK: Duration = Duration::from_millis(2);

/// The load and what came of it.
#[derive(Debug)]
pub(crate) struct Load {
    next: Arc<Channel>,
    /// Requests per second; zero is a pause.
    rate: watch::Sender<u32>,
    origin: Instant,
    windows: Mutex<Vec<Arc<Mutex<Window>>>>,
    /// By half.
    begun: [AtomicU64; 2],
    ended: [AtomicU64; 2],
}

/// How a request failed.
struct Lost {
    status: Status,
    phase: &'static str,
}

impl Load {
    pub(crate) fn new(next: Arc<Channel>) -> Arc<Self> {
        Arc::new(Self {
            next,
            rate: watch::Sender::new(0),
            origin: clock::now(),
            windows: Mutex::new(vec![Arc::new(Mutex::new(Window::new(0, 0)))]),
            begun: Default::default(),
            ended: Default::default(),
        })
    }

    /// Sends until the process ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut requests = Tasks::new();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut owed = 0.0;
        let mut id = 0;
        loop {
            tick.tick().await;
            requests.reap_ended();
            owed += f64::from(*self.rate.borrow()) * TICK.as_secs_f64();
            while owed >= 1.0 && self.in_flight() < IN_FLIGHT_MAX {
                owed -= 1.0;
                id += 1;
                requests.spawn("request", Arc::clone(&self).request(id));
            }
        }
    }

    pub(crate) fn set_rate(&self, rate: u32) {
        self.rate.send_replace(rate);
    }

    /// Requests that begin from now on are counted apart. Returns the window's number.
    pub(crate) fn open_window(&self) -> u64 {
        let begun_us = self.now_us();
        let mut windows = self.windows.lock();
        let number = windows.last().map_or(0, |window| window.lock().number + 1);
        if windows.len() == WINDOWS_MAX {
            windows.remove(0);
        }
        windows.push(Arc::new(Mutex::new(Window::new(number, begun_us))));
        number
    }

    /// A window by number, or the current one.
    pub(crate) fn report(&self, number: Option<u64>) -> Option<Value> {
        let windows = self.windows.lock();
        let window = match number {
            None => windows.last()?,
            Some(number) => windows
                .iter()
                .find(|window| window.lock().number == number)?,
        };
        serde_json::to_value(window.lock().report(self.now_us())).ok()
    }

    /// The moment, what has begun by now and what of it has not ended.
    pub(crate) fn mark(&self) -> Value {
        let counts = Half::ALL.map(|half| {
            let begun = self.begun[half as usize].load(Relaxed);
            let ended = self.ended[half as usize].load(Relaxed);
            json!({ "begun": begun, "in_flight": begun - ended })
        });
        let [lookups, orders] = counts;
        json!({ "now_us": self.now_us(), "lookups": lookups, "orders": orders })
    }

    fn in_flight(&self) -> u64 {
        let sum = |counts: &[AtomicU64; 2]| -> u64 {
            counts.iter().map(|count| count.load(Relaxed)).sum()
        };
        sum(&self.begun) - sum(&self.ended)
    }

    fn now_us(&self) -> u64 {
        self.us(clock::now())
    }

    fn us(&self, at: Instant) -> u64 {
        u64::try_from((at - self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    async fn request(self: Arc<Self>, id: u64) {
        let call = Call::of_load(id);
        let window = self.windows.lock().last().map(Arc::clone);
        let Some(window) = window else { return };
        window.lock().sent(call);
        self.begun[call.half as usize].fetch_add(1, Relaxed);
        let begun = clock::now();
        let outcome = timeout(DEADLINE, make(&self.next, call, id)).await;
        let ended = clock::now();
        self.ended[call.half as usize].fetch_add(1, Relaxed);
        let outcome = outcome.unwrap_or_else(|_elapsed| {
            Err(Lost {
                status: Status::deadline_exceeded(format!("no answer in {DEADLINE:?}")),
                phase: "hung",
            })
        });
        match outcome {
            Ok(hops) => window.lock().succeeded(call, hops, ended - begun),
            Err(Lost { status, phase }) => window.lock().failed(
                call.half,
                Failure {
                    id,
                    half: call.half.as_str(),
                    kind: call.kind.as_str(),
                    code: format!("{:?}", status.code()),
                    reason: endpoint::reason(&status).map(str::to_owned),
                    message: status.message().to_owned(),
                    phase,
                    begun_us: self.us(begun),
                    ended_us: self.us(ended),
                },
            ),
        }
    }
}

/// Makes one call and checks its answer whole. Returns who served it.
async fn make(next: &Arc<Channel>, call: Call, id: u64) -> Result<Vec<Hop>, Lost> {
    let head = |status| Lost {
        status,
        phase: "head",
    };
    let body = |status| Lost {
        status,
        phase: "body",
    };
    let message = move |number| Request { id, number };
    let mut last = None;
    let mut count = 0;
    let mut check = |reply: Reply| {
        if reply.id != id || reply.number != count {
            let what = format!("{}/{} instead of {id}/{count}", reply.id, reply.number);
            return Err(body(Status::data_loss(what)));
        }
        count += 1;
        last = Some(reply.hops);
        Ok(count)
    };
    match (call.half, call.kind) {
        // Turn by turn: the next message leaves when the last one was answered.
        (Half::Orders, Kind::Chat) => {
            let (say, said) = mpsc::channel(1);
            _ = say.try_send(message(0));
            let replies = next.call(call, ReceiverStream::new(said)).await;
            let mut replies = replies.map_err(head)?;
            let mut say = Some(say);
            while let Some(reply) = replies.message().await.map_err(body)? {
                let number = check(reply)?;
                match say.take_if(|_| number == call.kind.requests()) {
                    Some(finished) => drop(finished),
                    None => {
                        if let Some(say) = &say {
                            _ = say.try_send(message(number));
                        }
                    }
                }
            }
        }
        _ => {
            let messages = stream::iter((0..call.kind.requests()).map(message));
            let mut replies = next.call(call, messages).await.map_err(head)?;
            while let Some(reply) = replies.next().await {
                check(reply.map_err(body)?)?;
            }
        }
    }
    match last {
        Some(hops) if count == call.kind.replies() => Ok(hops),
        _ => {
            let what = format!("{count} of {} messages", call.kind.replies());
            Err(body(Status::data_loss(what)))
        }
    }
}

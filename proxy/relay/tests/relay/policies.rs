//! Filters of the simulation: each exchange gets one of four treatments, by its number.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use heddle_policy::snapshot::ClusterName;
use heddle_relay::{
    head::{Head, Indexing},
    relay::{Answer, ExchangeId, Filter, Message, Plan, Verdict},
    token::Token,
};

use crate::{
    play, retrying,
    world::{Behaviour, Plan as Play},
};

/// What is done to an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// A verdict that comes after [`VERDICT_TIME`]: before routing, before sending, or before the
    /// answer is forwarded.
    Delayed(u32),
    /// Answered in place of an endpoint.
    Answered,
    /// Copied.
    Mirrored,
    /// Tried at another endpoint too, when the first takes its time.
    Hedged,
}

pub(crate) const VERDICT_TIME: Duration = Duration::from_millis(50);
pub(crate) const HEDGE_AFTER: Duration = Duration::from_millis(100);

/// What a test sees of the filter.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Those that are held and have not been seen by the world.
    pub(crate) held: Vec<ExchangeId>,
    pub(crate) holds: usize,
    pub(crate) trailers: usize,
}

#[derive(Debug)]
pub(crate) struct Treating {
    of: fn(u32) -> Treatment,
    known: HashMap<ExchangeId, Treatment>,
    ledger: Rc<RefCell<Ledger>>,
}

impl Treating {
    pub(crate) fn new(of: fn(u32) -> Treatment, ledger: &Rc<RefCell<Ledger>>) -> Self {
        Self {
            of,
            known: HashMap::new(),
            ledger: Rc::clone(ledger),
        }
    }

    fn at(&mut self, id: ExchangeId, point: u32) -> Verdict {
        if self.known.get(&id) != Some(&Treatment::Delayed(point)) {
            return Verdict::Pass;
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.held.push(id);
        ledger.holds += 1;
        Verdict::Hold
    }
}

impl Filter for Treating {
    fn request(&mut self, id: ExchangeId, head: &mut Head) -> Verdict {
        let path = head.get(Token::Path).expect("it has a path").to_vec();
        let number = String::from_utf8_lossy(&path);
        let number = number.rsplit('/').next().and_then(|id| id.parse().ok());
        let treatment = (self.of)(number.expect("it has a number"));
        self.known.insert(id, treatment);
        head.push(b"x-seen", b"1", Indexing::Allowed);
        if treatment == Treatment::Answered {
            let mut head = Head::new();
            head.push(b":status", b"200", Indexing::Allowed);
            head.push(b"content-type", b"application/grpc", Indexing::Allowed);
            head.push(b"grpc-status", b"7", Indexing::Allowed);
            return Verdict::Answer(Box::new(Answer { head, body: vec![] }));
        }
        self.at(id, 0)
    }

    fn sending(&mut self, id: ExchangeId, head: &mut Head) -> Verdict {
        assert!(head.iter().any(|field| field.name == b"x-seen"));
        self.at(id, 1)
    }

    fn plan(&mut self, id: ExchangeId) -> Plan {
        match self.known.get(&id) {
            Some(Treatment::Mirrored) => Plan {
                mirror: Some(ClusterName("echo".into())),
                ..Plan::default()
            },
            Some(Treatment::Hedged) => Plan {
                hedge_after: Some(HEDGE_AFTER),
                ..Plan::default()
            },
            Some(Treatment::Delayed(_) | Treatment::Answered) | None => Plan::default(),
        }
    }

    fn answer(&mut self, id: ExchangeId, _head: &mut Head) -> Verdict {
        self.at(id, 2)
    }

    fn trailers(&mut self, _id: ExchangeId, of: Message, head: &mut Head) {
        assert_eq!(of, Message::Answer);
        self.ledger.borrow_mut().trailers += 1;
        head.push(b"x-seen", b"1", Indexing::Allowed);
    }
}

#[test]
fn a_verdict_that_takes_its_time_holds_up_what_it_is_about() {
    play(
        |_| Play {
            requests: 30,
            body_bytes_max: 300_000,
            treatment: Some(|number| Treatment::Delayed(number % 3)),
            ..Play::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 30);
            assert_eq!(world.ledger.borrow().holds, 30);
            assert_eq!(world.ledger.borrow().trailers, 30);
            let quickest = world.records.iter().map(|record| record.duration).min();
            assert!(quickest >= Some(VERDICT_TIME), "{quickest:?}");
        },
    );
}

#[test]
fn what_a_filter_answers_goes_nowhere() {
    play(
        |_| Play {
            requests: 30,
            treatment: Some(|_| Treatment::Answered),
            ..Play::default()
        },
        |world| {
            assert_eq!(world.outcomes("status 7"), 30);
            assert_eq!(world.asked(), 0);
        },
    );
}

#[test]
fn a_mirror_gets_a_copy_and_nobody_waits_for_it() {
    play(
        |_| Play {
            requests: 30,
            body_bytes_max: 30_000,
            treatment: Some(|_| Treatment::Mirrored),
            ..Play::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 30);
            assert_eq!(world.records.len(), 30);
            assert_eq!(world.asked(), 60);
        },
    );
}

#[test]
fn of_a_hedge_the_first_answer_counts_and_the_other_is_cancelled() {
    play(
        |_| Play {
            requests: 20,
            body_bytes_max: 20_000,
            endpoints: vec![Behaviour::Echo, Behaviour::Late],
            treatment: Some(|_| Treatment::Hedged),
            ..Play::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 20);
            // Late ones take 1.5 s.
            let slowest = world.records.iter().map(|record| record.duration).max();
            assert!(slowest < Some(Duration::from_secs(1)), "{slowest:?}");
            let hedged = world.records.iter().filter(|record| record.attempts > 1);
            assert!(hedged.clone().count() > 0);
            assert!(hedged.clone().all(|record| record.duration >= HEDGE_AFTER));
        },
    );
}

#[test]
fn filters_leave_nothing_behind_in_a_world_that_breaks() {
    play(
        |_| Play {
            requests: 60,
            body_bytes_max: 200_000,
            endpoints: vec![
                Behaviour::Echo,
                Behaviour::Late,
                Behaviour::BreakInAnswer,
                Behaviour::RefuseStreams,
                Behaviour::ResetLongUploads,
            ],
            retry: retrying("5xx"),
            timeout: Some(Duration::from_secs(3)),
            cancels: 0.2,
            breaks: 0.01,
            treatment: Some(|number| match number % 6 {
                3 => Treatment::Answered,
                4 => Treatment::Mirrored,
                5 => Treatment::Hedged,
                point => Treatment::Delayed(point),
            }),
            ..Play::default()
        },
        |_| {},
    );
}

//! Filters of the simulation: each exchange gets one of four treatments, by its number.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use heddle_policy::snapshot::ClusterName;
use heddle_relay::{
    head::{Head, Indexing},
    relay::{Answer, ExchangeId, Filter, Message, Plan, Verdict},
    token::Token,
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

//! The end of what comes: in order, too early, or because nobody can understand it.

use crate::{
    event::{By, Code, Event, Then},
    h1::{Connection, Ending, Malformed, Reading, Role, Writing, fault::Fault, hop::Method},
    head::Head,
    input::Payload,
};

impl Connection {
    /// What the end of input means where we are.
    pub(super) fn receive_end(&mut self) -> Result<Option<Event<'static>>, Malformed> {
        let stream = self.stream;
        let ended = Event::Data {
            stream,
            data: Payload::Lent(b""),
            credit: 0,
            then: Then::End,
        };
        match self.reading {
            // They end with the connection, once what is kept of them has been told.
            Reading::UntilClose | Reading::Raw if !self.kept.is_empty() => Ok(None),
            Reading::UntilClose => {
                self.received();
                Ok(Some(ended))
            }
            Reading::Raw => {
                self.reading = Reading::Ended;
                self.settle();
                Ok(Some(ended))
            }
            Reading::Length(_) | Reading::Chunked(_) if !self.kept.is_empty() => Ok(None),
            Reading::Head if !self.kept.is_empty() => {
                // It may have been wrong as far as it came.
                let parsed = self.parse(self.kept.rest(), &mut Head::new());
                match (parsed, self.role) {
                    (Err(fault), _) => Err(self.broken(fault)),
                    (Ok(_), Role::Server) => {
                        Err(self.broken(Fault::bad("the connection ended inside the head")))
                    }
                    (Ok(_), Role::Client) => Ok(self.lost()),
                }
            }
            Reading::Head if self.writing == Writing::Idle => {
                self.finish();
                Ok(None)
            }
            Reading::Ended => Ok(None),
            Reading::Head
            | Reading::Length(_)
            | Reading::Chunked(_)
            | Reading::Trailers
            | Reading::Done => Ok(self.lost()),
        }
    }

    /// The other side is gone before the end of the exchange.
    fn lost(&mut self) -> Option<Event<'static>> {
        // A client gave up. An endpoint's answer is incomplete (RFC 9112 section 8), unless it had
        // not begun.
        let is_incomplete =
            self.role == Role::Client && self.is_answered() && self.reading != Reading::Done;
        let code = if is_incomplete {
            Code::PROTOCOL_ERROR
        } else {
            Code::CANCEL
        };
        let is_told = self.discards.is_none() && self.writing != Writing::Idle;
        let stream = self.stream;
        self.give_up();
        let by = By::Peer;
        is_told.then_some(Event::Reset { stream, code, by })
    }

    /// `fault` came: nothing behind it can be understood.
    pub(in crate::h1) fn broken(&mut self, fault: Fault) -> Malformed {
        let Fault { status, reason } = fault;
        if self.role == Role::Client {
            self.abort();
            return Malformed {
                status: 502,
                reason,
                answer: None,
            };
        }
        self.persists = false;
        if self.reading == Reading::Head {
            self.begin(Method::Other, None);
            self.writing = Writing::Head;
        }
        let (stream, writing) = (self.stream, self.writing);
        self.give_up();
        if writing != Writing::Head {
            return Malformed {
                status,
                reason,
                answer: None,
            };
        }
        self.writing = writing;
        Malformed {
            status,
            reason,
            answer: Some(stream),
        }
    }

    /// Ends the connection: in order, unless what was sent could pass for a whole message.
    pub(in crate::h1) fn give_up(&mut self) {
        let is_whole = match self.writing {
            Writing::Idle | Writing::Head | Writing::Done | Writing::Nothing => true,
            Writing::Length(_)
            | Writing::Chunked
            | Writing::UntilClose
            | Writing::Raw
            | Writing::RawEnded => false,
        };
        self.stop(if is_whole {
            Ending::Finishing
        } else {
            Ending::Aborted
        });
    }
}

//! What travels: gRPC messages (by hand: two of them, no generated code needed) and the calls.
//!
//! ```proto
//! package shop.v1;
//! service Lookups { rpc Get(Request) returns (Reply); rpc List(Request) returns (stream Reply);
//!                   rpc Chat(stream Request) returns (stream Reply); }
//! service Orders  { the same three }
//! message Request { uint64 id = 1; uint32 number = 2; }
//! message Reply   { uint64 id = 1; uint32 number = 2; repeated Hop hops = 3; }
//! message Hop     { string service = 1; string instance = 2; string version = 3; }
//! ```
//!
//! Lookups may be repeated: they answer in one piece when everything is there, because no mesh
//! can repeat a call whose answer has begun. Orders must not be: their streams answer message
//! by message.

use std::fmt;

/// One message of a call.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Request {
    /// Unique for the call, and the same on every hop.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// Position in the call's stream, from 0.
    #[prost(uint32, tag = "2")]
    pub(crate) number: u32,
}

/// One message of the answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Reply {
    /// The request's.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// Position in the answer's stream, from 0.
    #[prost(uint32, tag = "2")]
    pub(crate) number: u32,
    /// Who served it, the last service first.
    #[prost(message, repeated, tag = "3")]
    pub(crate) hops: Vec<Hop>,
}

/// An instance that took part.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub(crate) struct Hop {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) instance: String,
    #[prost(string, tag = "3")]
    pub(crate) version: String,
}

/// Whether a call may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Lookups,
    Orders,
}

/// The shape of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One message each way.
    Get,
    /// One message, answered by [`STREAM_MESSAGES`].
    List,
    /// [`STREAM_MESSAGES`] each way.
    Chat,
}

/// Which of the six methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) half: Half,
    pub(crate) kind: Kind,
}

impl Half {
    pub(crate) const ALL: [Self; 2] = [Self::Lookups, Self::Orders];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lookups => "lookups",
            Self::Orders => "orders",
        }
    }

    fn service(self) -> &'static str {
        match self {
            Self::Lookups => "shop.v1.Lookups",
            Self::Orders => "shop.v1.Orders",
        }
    }
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Get, Self::List, Self::Chat];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::List => "List",
            Self::Chat => "Chat",
        }
    }

    /// Messages of the caller.
    pub(crate) fn requests(self) -> u32 {
        match self {
            Self::Get | Self::List => 1,
            Self::Chat => STREAM_MESSAGES,
        }
    }

    /// Messages of the answer.
    pub(crate) fn replies(self) -> u32 {
        match self {
            Self::Get => 1,
            Self::List | Self::Chat => STREAM_MESSAGES,
        }
    }
}

impl Call {
    /// The call that requests number `id` of the load makes: the halves in turn, half of each
    /// unary, a quarter of each kind of streaming.
    pub(crate) fn of_load(id: u64) -> Self {
        let half = if id.is_multiple_of(2) {
            Half::Lookups
        } else {
            Half::Orders
        };
        let kind = match id / 2 % 4 {
            0 | 1 => Kind::Get,
            2 => Kind::List,
            _ => Kind::Chat,
        };
        Self { half, kind }
    }

    pub(crate) fn parse(path: &str) -> Option<Self> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let half = Half::ALL
            .into_iter()
            .find(|half| half.service() == service)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == method)?;
        Some(Self { half, kind })
    }

    pub(crate) fn path(self) -> String {
        format!("/{}/{}", self.half.service(), self.kind.as_str())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.half.as_str(), self.kind.as_str())
    }
}

/// Messages of a stream.
const STREAM_MESSAGES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_own_path() {
        for half in Half::ALL {
            for kind in Kind::ALL {
                let call = Call { half, kind };
                assert_eq!(Call::parse(&call.path()), Some(call));
            }
        }
        for path in ["", "/", "/shop.v1.Lookups", "/shop.v1.Lookups/Put", "x"] {
            assert_eq!(Call::parse(path), None, "{path}");
        }
    }

    #[test]
    fn load_is_half_lookups_and_half_unary() {
        let calls: Vec<Call> = (0..800).map(Call::of_load).collect();
        let count = |is: fn(&Call) -> bool| calls.iter().filter(|call| is(call)).count();
        assert_eq!(count(|call| call.half == Half::Lookups), 400);
        assert_eq!(count(|call| call.kind == Kind::Get), 400);
        assert_eq!(count(|call| call.kind == Kind::Chat), 200);
    }
}

//! Which queries are ours and what they are told. Pure.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, RData, Record, RecordType},
};

use super::{Over, query::Asked};

/// How long a mesh name may be remembered: addresses are allotted stably.
const TTL_SECONDS: u32 = 30;

/// What a client without EDNS takes by UDP (RFC 1035 section 2.3.4).
const PLAIN_UDP_BYTES: u16 = 512;

/// What we take by UDP, told to clients with EDNS (RFC 6891; the value of DNS flag day 2020).
const EDNS_UDP_BYTES: u16 = 1232;

/// Domains in which short names are looked up, in order.
#[derive(Clone, Debug)]
pub struct Search(Vec<String>);

impl Search {
    /// `web`, `web.shop`, `web.shop.svc` for a workload of `namespace`.
    pub fn of_namespace(namespace: &str) -> Self {
        Self(vec![
            format!("{namespace}.svc.{CLUSTER_DOMAIN}"),
            format!("svc.{CLUSTER_DOMAIN}"),
            CLUSTER_DOMAIN.to_owned(),
        ])
    }
}

/// What to do with a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Send this.
    Ours(Vec<u8>),
    /// Ask somebody else.
    Forward,
    /// Send nothing.
    NotDns,
}

pub(super) fn answer(
    query: &[u8],
    hosts: &HashMap<Arc<str>, Vec<IpAddr>>,
    search: &Search,
    over: Over,
) -> Answer {
    let Ok(asked) = Asked::read(query) else {
        return Answer::NotDns;
    };
    let header = &asked.metadata;
    if header.message_type != MessageType::Query {
        return Answer::NotDns;
    }
    let [question] = &asked.questions[..] else {
        return Answer::Forward;
    };
    if header.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
        return Answer::Forward;
    }
    let name = question.name().to_lowercase().to_ascii();
    let Some(addresses) = find(name.trim_end_matches('.'), hosts, search) else {
        return Answer::Forward;
    };
    let mut response = reply(&asked, ResponseCode::NoError);
    for address in addresses {
        let data = match (address, question.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A((*ip).into()),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA((*ip).into()),
            // The name exists: no data, which is not "no such name" (RFC 4074 section 4.2).
            _ => continue,
        };
        // Under the name as it was asked, upper case and all.
        response.add_answer(Record::from_rdata(
            question.name().clone(),
            TTL_SECONDS,
            data,
        ));
    }
    let limit = match (over, asked.edns_payload) {
        (Over::Tcp, _) => u16::MAX,
        (Over::Udp, Some(bytes)) => bytes.clamp(PLAIN_UDP_BYTES, EDNS_UDP_BYTES),
        (Over::Udp, None) => PLAIN_UDP_BYTES,
    };
    encode(response, limit).map_or(Answer::NotDns, Answer::Ours)
}

/// An error under the query's number.
pub(super) fn failure(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let asked = Asked::read(query).ok()?;
    encode(reply(&asked, code), PLAIN_UDP_BYTES)
}

fn find<'a>(
    name: &str,
    hosts: &'a HashMap<Arc<str>, Vec<IpAddr>>,
    search: &Search,
) -> Option<&'a Vec<IpAddr>> {
    if name.is_empty() {
        return None;
    }
    hosts.get(name).or_else(|| {
        search
            .0
            .iter()
            .find_map(|domain| hosts.get(format!("{name}.{domain}").as_str()))
    })
}

fn reply(asked: &Asked, code: ResponseCode) -> Message {
    let mut response = Message::response(asked.metadata.id, asked.metadata.op_code);
    response.metadata.recursion_desired = asked.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(asked.questions.iter().cloned());
    if asked.edns_payload.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_UDP_BYTES);
        response.set_edns(edns);
    }
    response
}

/// Within `limit`, or empty with the truncation bit: the client then asks by TCP.
fn encode(response: Message, limit: u16) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    let mut truncated = response;
    truncated.answers.clear();
    truncated.metadata.truncation = true;
    truncated.to_vec().ok()
}

/// Domain of short names, as on Kubernetes.
const CLUSTER_DOMAIN: &str = "cluster.local";

#[cfg(test)]
mod tests {
    use hickory_proto::{op::Query, rr::Name};

    use super::*;

    fn hosts() -> HashMap<Arc<str>, Vec<IpAddr>> {
        let many = (1..=100).map(|i| IpAddr::from([240, 240, 1, i])).collect();
        HashMap::from([
            (
                "web.shop.svc.cluster.local".into(),
                vec!["240.240.0.1".parse().unwrap()],
            ),
            (
                "db.data.svc.cluster.local".into(),
                vec!["fd00::1".parse().unwrap()],
            ),
            ("many.example".into(), many),
        ])
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(message: &Message, over: Over) -> Option<Message> {
        let search = Search::of_namespace("shop");
        match answer(&message.to_vec().unwrap(), &hosts(), &search, over) {
            Answer::Ours(bytes) => Some(Message::from_vec(&bytes).unwrap()),
            Answer::Forward => None,
            Answer::NotDns => unreachable!("the tests send DNS"),
        }
    }

    /// Addresses of the answer; `None` when it is somebody else's.
    #[track_caller]
    fn check(name: &str, kind: RecordType, expected: Option<&[&str]>) {
        let answered = ask(&query(name, kind), Over::Udp).map(|response| {
            assert_eq!(response.metadata.id, 7);
            assert_eq!(response.metadata.response_code, ResponseCode::NoError);
            assert!(response.metadata.recursion_available && response.metadata.recursion_desired);
            let records = response.answers.iter();
            records
                .map(|record| record.data.to_string())
                .collect::<Vec<_>>()
        });
        let expected = expected.map(|texts| texts.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(answered, expected, "{name}");
    }

    #[test]
    fn mesh_names_are_answered_also_short_ones() {
        for name in [
            "web.shop.svc.cluster.local.",
            "web.",
            "web.shop.",
            "web.shop.svc.",
        ] {
            check(name, RecordType::A, Some(&["240.240.0.1"]));
        }
        check("db.data.", RecordType::AAAA, Some(&["fd00::1"]));
    }

    #[test]
    fn the_other_family_has_no_data_but_exists() {
        check("web.", RecordType::AAAA, Some(&[]));
        check("db.data.", RecordType::A, Some(&[]));
        check("web.", RecordType::MX, Some(&[]));
    }

    #[test]
    fn everything_else_is_forwarded() {
        check("example.com.", RecordType::A, None);
        check("db.", RecordType::A, None);
        check(".", RecordType::NS, None);
    }

    #[test]
    fn the_answer_repeats_the_name_as_it_was_asked() {
        let response = ask(&query("WeB.Shop.", RecordType::A), Over::Udp).unwrap();
        assert_eq!(response.answers[0].name.to_ascii(), "WeB.Shop.");
        assert_eq!(response.answers[0].ttl, TTL_SECONDS);
    }

    #[test]
    fn an_answer_too_long_for_udp_sends_the_client_to_tcp() {
        let mut message = query("many.example.", RecordType::A);
        let plain = ask(&message, Over::Udp).unwrap();
        assert!(plain.metadata.truncation && plain.answers.is_empty());
        let mut edns = Edns::new();
        edns.set_max_payload(65_000);
        message.set_edns(edns);
        let with_edns = ask(&message, Over::Udp).unwrap();
        assert!(with_edns.metadata.truncation);
        assert_eq!(with_edns.edns.unwrap().max_payload(), EDNS_UDP_BYTES);
        let over_tcp = ask(&message, Over::Tcp).unwrap();
        assert!(!over_tcp.metadata.truncation);
        assert_eq!(over_tcp.answers.len(), 100);
    }

    #[test]
    fn only_the_question_of_a_query_is_read() {
        let mut bytes = query("web.", RecordType::A).to_vec().unwrap();
        // One additional record: of type 257, class IN, whose data is not what it should be.
        bytes[11] = 1;
        bytes.extend([0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 9, b'x']);
        let search = Search::of_namespace("shop");
        let answered = answer(&bytes, &hosts(), &search, Over::Udp);
        assert!(matches!(answered, Answer::Ours(_)), "{answered:?}");
        // A byte less than the record says.
        bytes.pop();
        let cut = answer(&bytes, &hosts(), &search, Over::Udp);
        assert_eq!(cut, Answer::NotDns);
    }

    #[test]
    fn what_is_not_a_query_gets_no_answer() {
        let search = Search::of_namespace("shop");
        let mut response = query("web.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        for bytes in [&b""[..], b"\0", &response.to_vec().unwrap()] {
            assert_eq!(answer(bytes, &hosts(), &search, Over::Udp), Answer::NotDns);
        }
    }
}

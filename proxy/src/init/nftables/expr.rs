//! Expressions of nf_tables: the steps of a rule's little program. Each loads something into
//! register 1, compares it there, or acts. Written to and read back from the kernel in the same
//! form, so that reading back proves what is installed.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use netlink_bindings::{
    nftables::{
        CmpOps, CtKeys, ExprOps, FibFlags, IterableDataAttrs, IterableExprAttrs, IterableRuleAttrs,
        MetaKeys, PayloadBase, PushExprAttrs, PushExprListAttrs, PushRuleAttrs, Registers,
        VerdictCode,
    },
    traits::Pusher,
    utils,
};

use crate::init::model::{Match, Rule, Verdict};

type PushExpressions<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;
type PushExpression<'a> = PushExprAttrs<PushExpressions<'a>>;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// Load a fact about the packet.
    Meta(u32),
    /// Load the state of the connection.
    CtState,
    /// Load the kind of route to the destination: local, unicast, ..
    DestinationType,
    /// Load bytes of a header.
    Payload { base: u32, offset: u32, len: u32 },
    /// Keep these bits.
    And(Vec<u8>),
    /// Go on if equal.
    Equal(Vec<u8>),
    /// Go on if different.
    Differs(Vec<u8>),
    /// Count what came this far, for `nft list ruleset`.
    Counter,
    /// Load a constant.
    Load(Vec<u8>),
    /// Redirect to the port in the register.
    Redirect,
    /// End with this verdict.
    Verdict(u32),
    /// Something we never write.
    Foreign(String),
}

/// The program of a rule.
pub(super) fn encode(rule: &Rule) -> Vec<Expr> {
    let mut program: Vec<Expr> = rule.matches.iter().flat_map(encode_match).collect();
    program.push(Expr::Counter);
    match rule.verdict {
        Verdict::Return => program.push(Expr::Verdict(VerdictCode::Return as u32)),
        Verdict::Drop => program.push(Expr::Verdict(VerdictCode::Drop as u32)),
        Verdict::Redirect(port) => {
            program.push(Expr::Load(port.to_be_bytes().to_vec()));
            program.push(Expr::Redirect);
        }
    }
    program
}

fn encode_match(one: &Match) -> Vec<Expr> {
    match one {
        Match::Source(net) => address(net, Side::Source, Expr::Equal),
        Match::Destination(net) => address(net, Side::Destination, Expr::Equal),
        Match::NotDestination(net) => address(net, Side::Destination, Expr::Differs),
        Match::FromLoopback => meta(MetaKeys::Iifname, loopback()),
        Match::ToLoopback => meta(MetaKeys::Oifname, loopback()),
        Match::ToOthers => vec![
            Expr::DestinationType,
            Expr::Differs(u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec()),
        ],
        Match::Tcp => protocol(libc::IPPROTO_TCP),
        Match::TcpPort(port) => with_port(libc::IPPROTO_TCP, *port),
        Match::UdpPort(port) => with_port(libc::IPPROTO_UDP, *port),
        Match::Uid(uid) => meta(MetaKeys::Skuid, uid.to_ne_bytes().to_vec()),
        Match::Invalid => vec![
            Expr::CtState,
            Expr::And(CT_STATE_INVALID.to_ne_bytes().to_vec()),
            Expr::Differs(0_u32.to_ne_bytes().to_vec()),
        ],
    }
}

fn meta(key: MetaKeys, value: Vec<u8>) -> Vec<Expr> {
    vec![Expr::Meta(key as u32), Expr::Equal(value)]
}

fn loopback() -> Vec<u8> {
    let mut name = b"lo".to_vec();
    name.resize(INTERFACE_NAME_BYTES, 0);
    name
}

fn protocol(number: libc::c_int) -> Vec<Expr> {
    meta(
        MetaKeys::L4Proto,
        vec![u8::try_from(number).expect("6 or 17")],
    )
}

fn with_port(number: libc::c_int, port: u16) -> Vec<Expr> {
    let mut program = protocol(number);
    program.push(Expr::Payload {
        base: PayloadBase::TransportHeader as u32,
        offset: 2,
        len: 2,
    });
    program.push(Expr::Equal(port.to_be_bytes().to_vec()));
    program
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Offsets are those of the addresses in the IPv4 and IPv6 headers (RFC 791, RFC 8200).
fn address(net: &IpNet, side: Side, compare: fn(Vec<u8>) -> Expr) -> Vec<Expr> {
    let (family, source_offset, network, mask) = match net {
        IpNet::V4(_) => (
            libc::NFPROTO_IPV4,
            12,
            octets(net.addr()),
            octets(net.netmask()),
        ),
        IpNet::V6(_) => (
            libc::NFPROTO_IPV6,
            8,
            octets(net.addr()),
            octets(net.netmask()),
        ),
    };
    let len = u32::from(net.max_prefix_len() / 8);
    let offset = match side {
        Side::Source => source_offset,
        Side::Destination => source_offset + len,
    };
    let mut program = meta(
        MetaKeys::Nfproto,
        vec![u8::try_from(family).expect("2 or 10")],
    );
    program.push(Expr::Payload {
        base: PayloadBase::NetworkHeader as u32,
        offset,
        len,
    });
    if net.prefix_len() < net.max_prefix_len() {
        program.push(Expr::And(mask));
    }
    program.push(compare(network));
    program
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl Expr {
    /// Appends the step to a rule.
    pub(super) fn push(self, list: PushExpressions<'_>) -> PushExpressions<'_> {
        let elem = list.nested_elem();
        match self {
            Self::Meta(key) => elem
                .nested_data_meta()
                .push_dreg(REGISTER)
                .push_key(key)
                .end_nested()
                .end_nested(),
            Self::CtState => elem
                .nested_data_ct()
                .push_dreg(REGISTER)
                .push_key(CtKeys::State as u32)
                .end_nested()
                .end_nested(),
            Self::DestinationType => elem
                .nested_data_fib()
                .push_dreg(REGISTER)
                .push_result(FIB_RESULT_ADDRTYPE)
                .push_flags(FibFlags::Daddr as u32)
                .end_nested()
                .end_nested(),
            Self::Payload { base, offset, len } => elem
                .nested_data_payload()
                .push_dreg(REGISTER)
                .push_base(base)
                .push_offset(offset)
                .push_len(len)
                .end_nested()
                .end_nested(),
            Self::And(mask) => elem
                .nested_data_bitwise()
                .push_sreg(REGISTER)
                .push_dreg(REGISTER)
                .push_len(u32::try_from(mask.len()).expect("at most 16"))
                .nested_mask()
                .push_value(&mask)
                .end_nested()
                .nested_xor()
                .push_value(&vec![0; mask.len()])
                .end_nested()
                .end_nested()
                .end_nested(),
            Self::Equal(value) => push_compare(elem, CmpOps::Eq, &value),
            Self::Differs(value) => push_compare(elem, CmpOps::Neq, &value),
            Self::Counter => elem.nested_data_counter().end_nested().end_nested(),
            Self::Load(value) => elem
                .nested_data_immediate()
                .push_dreg(REGISTER)
                .nested_data()
                .push_value(&value)
                .end_nested()
                .end_nested()
                .end_nested(),
            Self::Redirect => push_redirect(elem),
            Self::Verdict(code) => elem
                .nested_data_immediate()
                .push_dreg(Registers::RegVerdict as u32)
                .nested_data()
                .nested_verdict()
                .push_code(code)
                .end_nested()
                .end_nested()
                .end_nested()
                .end_nested(),
            Self::Foreign(_) => unreachable!("never part of a rule of ours"),
        }
    }
}

fn push_compare<'a>(
    elem: PushExpression<'a>,
    operator: CmpOps,
    value: &[u8],
) -> PushExpressions<'a> {
    elem.nested_data_cmp()
        .push_sreg(REGISTER)
        .push_op(operator as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

/// The bindings have no `redir`: its data is the register that holds the port.
fn push_redirect(elem: PushExpression<'_>) -> PushExpressions<'_> {
    let mut elem = elem.push_name(c"redir");
    let buffer = elem.as_vec_mut();
    let data = utils::push_nested_header(buffer, NFTA_EXPR_DATA);
    utils::push_header(buffer, NFTA_REDIR_REG_PROTO_MIN, 4);
    buffer.extend(REGISTER.to_be_bytes());
    utils::finalize_nested_header(buffer, data);
    elem.end_nested()
}

/// The program of a rule as the kernel tells it.
pub(super) fn decode(rule: &IterableRuleAttrs<'_>) -> Vec<Expr> {
    match rule.get_expressions() {
        Ok(expressions) => expressions.get_elem().map(|one| decode_one(&one)).collect(),
        Err(_) => Vec::new(),
    }
}

fn decode_one(one: &IterableExprAttrs<'_>) -> Expr {
    let name = one.get_name().map_or_else(
        |_| "unnamed".into(),
        |name| name.to_string_lossy().into_owned(),
    );
    if name == "redir" {
        return Expr::Redirect;
    }
    one.get_data()
        .ok()
        .and_then(decode_data)
        .unwrap_or(Expr::Foreign(name))
}

/// `None` for what we never write, such as a second register.
fn decode_data(data: ExprOps<'_>) -> Option<Expr> {
    let ours = |register: u32| (register == REGISTER).then_some(());
    Some(match data {
        ExprOps::Meta(meta) => {
            ours(meta.get_dreg().ok()?)?;
            Expr::Meta(meta.get_key().ok()?)
        }
        ExprOps::Ct(ct) if ct.get_key().ok()? == CtKeys::State as u32 => {
            ours(ct.get_dreg().ok()?)?;
            Expr::CtState
        }
        ExprOps::Fib(fib)
            if fib.get_result().ok()? == FIB_RESULT_ADDRTYPE
                && fib.get_flags().ok()? == FibFlags::Daddr as u32 =>
        {
            ours(fib.get_dreg().ok()?)?;
            Expr::DestinationType
        }
        ExprOps::Payload(payload) => {
            ours(payload.get_dreg().ok()?)?;
            Expr::Payload {
                base: payload.get_base().ok()?,
                offset: payload.get_offset().ok()?,
                len: payload.get_len().ok()?,
            }
        }
        ExprOps::Bitwise(bitwise) => {
            ours(bitwise.get_sreg().ok()?)?;
            ours(bitwise.get_dreg().ok()?)?;
            let flips = value(bitwise.get_xor().ok()?)?;
            flips.iter().all(|byte| *byte == 0).then_some(())?;
            Expr::And(value(bitwise.get_mask().ok()?)?)
        }
        ExprOps::Cmp(compare) => {
            ours(compare.get_sreg().ok()?)?;
            let value = value(compare.get_data().ok()?)?;
            match compare.get_op().ok()? {
                op if op == CmpOps::Eq as u32 => Expr::Equal(value),
                op if op == CmpOps::Neq as u32 => Expr::Differs(value),
                _ => return None,
            }
        }
        ExprOps::Counter(_) => Expr::Counter,
        ExprOps::Immediate(immediate) => {
            let data = immediate.get_data().ok()?;
            if immediate.get_dreg().ok()? == Registers::RegVerdict as u32 {
                Expr::Verdict(data.get_verdict().ok()?.get_code().ok()?)
            } else {
                ours(immediate.get_dreg().ok()?)?;
                Expr::Load(value(data)?)
            }
        }
        _ => return None,
    })
}

fn value(data: IterableDataAttrs<'_>) -> Option<Vec<u8>> {
    data.get_value().ok().map(<[u8]>::to_vec)
}

/// One line for people and for comparison.
pub(super) fn text(program: &[Expr]) -> String {
    let steps: Vec<String> = program.iter().map(ToString::to_string).collect();
    steps.join(" ")
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(key) => match NAMED_META.iter().find(|(named, _)| *named as u32 == *key) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "meta {key}"),
            },
            Self::CtState => f.write_str("ct-state"),
            Self::DestinationType => f.write_str("destination-type"),
            Self::Payload { base, offset, len } => write!(f, "header {base}+{offset}/{len}"),
            Self::And(mask) => write!(f, "& {}", Hex(mask)),
            Self::Equal(value) => write!(f, "== {}", Hex(value)),
            Self::Differs(value) => write!(f, "!= {}", Hex(value)),
            Self::Counter => f.write_str("counter"),
            Self::Load(value) => write!(f, "load {}", Hex(value)),
            Self::Redirect => f.write_str("redirect"),
            Self::Verdict(code) => match NAMED_VERDICTS.iter().find(|(named, _)| named == code) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "verdict {code}"),
            },
            Self::Foreign(name) => write!(f, "{name} (not ours)"),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

const NAMED_META: [(MetaKeys, &str); 5] = [
    (MetaKeys::Iifname, "iifname"),
    (MetaKeys::Oifname, "oifname"),
    (MetaKeys::L4Proto, "l4proto"),
    (MetaKeys::Nfproto, "nfproto"),
    (MetaKeys::Skuid, "skuid"),
];

const NAMED_VERDICTS: [(u32, &str); 3] = [
    (VerdictCode::Return as u32, "return"),
    (VerdictCode::Drop as u32, "drop"),
    (VerdictCode::Accept as u32, "accept"),
];

/// Steps hand over to each other here; one register is all a rule needs.
const REGISTER: u32 = Registers::Reg1 as u32;

/// `NF_CT_STATE_INVALID_BIT`.
const CT_STATE_INVALID: u32 = 1;

/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings count from 0 what the kernel counts from 1.
const FIB_RESULT_ADDRTYPE: u32 = 3;

const INTERFACE_NAME_BYTES: usize = 16;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;

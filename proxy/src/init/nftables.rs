//! Renders the rules for nf_tables: one table `inet heddle`, both families, replaced in one
//! transaction. Speaks netlink itself, so no `nft` program is needed.

mod expr;

use std::ffi::CStr;

use netlink_bindings::{
    nftables::{IterableChainAttrs, IterableRuleAttrs, Nfgenmsg, Request},
    traits::NetlinkRequest,
};

use super::{
    Line,
    model::{Chain, Rule},
    netlink::{Netfilter, Refused, Transaction},
};

/// Replaces our table by one with these rules.
pub(super) fn install(rules: &[Rule]) -> Result<(), Refused> {
    let mut transaction = Transaction::new();
    transaction.add("add table inet heddle".into(), &new_table());
    transaction.add("replace table inet heddle".into(), &delete_table());
    transaction.add("add table inet heddle".into(), &new_table());
    for chain in chains_of(rules) {
        transaction.add(format!("add chain {chain}"), &new_chain(chain));
    }
    for rule in rules {
        let what = format!("add rule in chain {}: {rule}", rule.chain);
        transaction.add(what, &new_rule(rule));
    }
    open()?.commit(transaction)
}

/// Deletes our table, if there.
fn remove() -> Result<(), Refused> {
    let mut transaction = Transaction::new();
    // Adding first makes the deletion succeed in either case, also before Linux 6.3, which
    // brought a deletion that tolerates absence.
    transaction.add("add table inet heddle".into(), &new_table());
    transaction.add("delete table inet heddle".into(), &delete_table());
    open()?.commit(transaction)
}

/// As [`remove`]; a kernel without nf_tables holds nothing of ours.
pub(super) fn remove_if_supported() -> Result<(), Refused> {
    match remove() {
        Err(refused) if refused.is_unsupported() => Ok(()),
        result => result,
    }
}

/// The lines our table should have.
pub(super) fn expected(rules: &[Rule]) -> Vec<Line> {
    let chains = chains_of(rules).map(|chain| Line::chain(chain.to_string(), hook_text(chain)));
    let lines = rules.iter().map(|rule| Line {
        chain: rule.chain.to_string(),
        text: expr::text(&expr::encode(rule)),
        meaning: Some(rule.explained()),
    });
    chains.chain(lines).collect()
}

/// The lines our table has; none when it does not exist.
pub(super) fn installed() -> Result<Vec<Line>, Refused> {
    let mut netfilter = open()?;
    let mut lines = Vec::new();
    let mut chains = Request::new().op_getchain_dump(&inet());
    chains.encode().push_table(TABLE);
    read(&mut netfilter, "read the chains", &chains, |(_, chain)| {
        lines.extend(chain_line(&chain));
    })?;
    let mut rules = Request::new().op_getrule_dump(&inet());
    rules.encode().push_table(TABLE);
    read(&mut netfilter, "read the rules", &rules, |(_, rule)| {
        lines.extend(rule_line(&rule));
    })?;
    Ok(lines)
}

fn read<R: NetlinkRequest>(
    netfilter: &mut Netfilter,
    what: &str,
    request: &R,
    each: impl FnMut(R::ReplyType<'_>),
) -> Result<(), Refused> {
    match netfilter.dump(request, each) {
        // Our table does not exist, which is an answer.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(source) => Err(Refused {
            what: what.into(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

fn open() -> Result<Netfilter, Refused> {
    Netfilter::open().map_err(|source| Refused {
        what: "open a netfilter socket".into(),
        source,
    })
}

fn chains_of(rules: &[Rule]) -> impl Iterator<Item = Chain> {
    [Chain::Invalid, Chain::Inbound, Chain::Outbound]
        .into_iter()
        .filter(|chain| rules.iter().any(|rule| rule.chain == *chain))
}

fn inet() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = u8::try_from(libc::NFPROTO_INET).expect("1");
    header
}

fn new_table() -> impl NetlinkRequest {
    let mut request = Request::new().set_create().op_newtable_do(&inet());
    request.encode().push_name(TABLE);
    request
}

fn delete_table() -> impl NetlinkRequest {
    let mut request = Request::new().op_deltable_do(&inet());
    request.encode().push_name(TABLE);
    request
}

fn new_chain(chain: Chain) -> impl NetlinkRequest {
    let hook = hook(chain);
    let mut request = Request::new().set_create().op_newchain_do(&inet());
    request
        .encode()
        .push_table(TABLE)
        .push_name_bytes(chain.to_string().as_bytes())
        .nested_hook()
        .push_num(hook.number)
        .push_priority(hook.priority)
        .end_nested()
        .push_type(hook.kind)
        .push_policy(POLICY_ACCEPT);
    request
}

fn new_rule(rule: &Rule) -> impl NetlinkRequest {
    let mut request = Request::new()
        .set_create()
        .set_append()
        .op_newrule_do(&inet());
    let mut expressions = request
        .encode()
        .push_table(TABLE)
        .push_chain_bytes(rule.chain.to_string().as_bytes())
        .nested_expressions();
    for one in expr::encode(rule) {
        expressions = one.push(expressions);
    }
    expressions
        .end_nested()
        .push_userdata(&comment(&rule.reason));
    request
}

/// The reason, as `nft list ruleset` shows it: type 0 of libnftnl's attributes, length, C string.
fn comment(reason: &str) -> Vec<u8> {
    let bytes = &reason.as_bytes()[..reason.len().min(COMMENT_BYTES_MAX)];
    let len = u8::try_from(bytes.len() + 1).expect("cut to fit");
    [&[0, len], bytes, &[0]].concat()
}

fn chain_line(chain: &IterableChainAttrs<'_>) -> Option<Line> {
    if chain.get_table() != Ok(TABLE) {
        return None;
    }
    let name = chain.get_name().ok()?.to_string_lossy().into_owned();
    let text = match (chain.get_hook(), chain.get_type()) {
        (Ok(hook), Ok(kind)) => describe(
            &kind.to_string_lossy(),
            hook.get_num().ok()?,
            hook.get_priority().ok()?,
            chain.get_policy().unwrap_or(POLICY_ACCEPT) == POLICY_ACCEPT,
        ),
        _ => "without a hook".into(),
    };
    Some(Line::chain(name, text))
}

fn rule_line(rule: &IterableRuleAttrs<'_>) -> Option<Line> {
    if rule.get_table() != Ok(TABLE) {
        return None;
    }
    Some(Line {
        chain: rule.get_chain().ok()?.to_string_lossy().into_owned(),
        text: expr::text(&expr::decode(rule)),
        meaning: None,
    })
}

/// Where a chain sits in the packet's way.
struct Hook {
    kind: &'static CStr,
    number: u32,
    priority: i32,
}

fn hook(chain: Chain) -> Hook {
    match chain {
        Chain::Invalid => Hook {
            kind: c"filter",
            number: HOOK_PREROUTING,
            // `mangle`: behind conntrack, before any translation.
            priority: -150,
        },
        Chain::Inbound => Hook {
            kind: c"nat",
            number: HOOK_PREROUTING,
            priority: PRIORITY_DSTNAT,
        },
        Chain::Outbound => Hook {
            kind: c"nat",
            number: HOOK_OUTPUT,
            priority: PRIORITY_DSTNAT,
        },
    }
}

fn hook_text(chain: Chain) -> String {
    let hook = hook(chain);
    describe(
        &hook.kind.to_string_lossy(),
        hook.number,
        hook.priority,
        true,
    )
}

fn describe(kind: &str, number: u32, priority: i32, accepts: bool) -> String {
    let hook = match number {
        HOOK_PREROUTING => "prerouting",
        HOOK_OUTPUT => "output",
        _ => "another hook",
    };
    let policy = if accepts { "accept" } else { "drop" };
    format!("{kind} chain at {hook}, priority {priority}, policy {policy}")
}

const TABLE: &CStr = c"heddle";
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const PRIORITY_DSTNAT: i32 = -100;
const POLICY_ACCEPT: u32 = 1;
const COMMENT_BYTES_MAX: usize = 120;

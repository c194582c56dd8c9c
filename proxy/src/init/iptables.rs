//! Renders the rules for `iptables-restore` and `ip6tables-restore`, for kernels without
//! nf_tables or without its `inet` translation. Each table of each family is replaced in one
//! restore; the lines are written the way `iptables-save` prints them, so that reading back is a
//! comparison of lines.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::Ipv6Addr,
    process::{Command, Output, Stdio},
};

use super::{
    Line,
    model::{Chain, Family, Match, Rule, Verdict},
};

/// Why iptables did not help.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// None of the programs is in the image.
    #[error("no iptables-restore in PATH")]
    NoProgram,
    /// A program could not be run.
    #[error("cannot run {program}")]
    Run { program: String, source: io::Error },
    /// A program ran and refused.
    #[error("{program} failed: {message}")]
    Refused { program: String, message: String },
}

/// The programs of one build of iptables, by the infix in their names: `iptables-restore`,
/// `iptables-legacy-restore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Programs(&'static str);

impl std::fmt::Display for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "iptables{}-restore", self.0)
    }
}

/// What an installation did.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) programs: Programs,
    /// IPv6 could not be set up, and the pod has no IPv6 address to protect.
    pub(super) without_ipv6: Option<Failed>,
}

#[cfg(test)]
impl Applied {
    /// As by `iptables-restore`, both families.
    pub(super) fn by_default_programs() -> Self {
        Self {
            programs: Programs(""),
            without_ipv6: None,
        }
    }
}

/// Replaces our chains by these rules, with the first build of iptables that can. A build that
/// fails half-way leaves nothing.
pub(super) fn install(rules: &[Rule]) -> Result<Applied, Failed> {
    let mut first = None;
    for programs in BUILDS {
        match programs.save(Family::V4) {
            Err(error) if error.is_absent() => {}
            Err(error) => _ = first.get_or_insert(error),
            Ok(saved) => match programs.apply(&saved, rules) {
                Ok(applied) => return Ok(applied),
                Err(error) => _ = first.get_or_insert(error),
            },
        }
    }
    Err(first.unwrap_or(Failed::NoProgram))
}

/// Deletes our chains, whichever build made them. `true` if there were any.
pub(super) fn remove() -> Result<bool, Failed> {
    let mut removed = false;
    for programs in BUILDS {
        for family in [Family::V4, Family::V6] {
            let saved = match programs.save(family) {
                Ok(saved) => saved,
                Err(error) if error.is_absent() => continue,
                // A family this kernel does not have holds none of our chains.
                Err(Failed::Refused { .. }) => continue,
                Err(error) => return Err(error),
            };
            if lines_of(&saved, family).next().is_some() {
                programs.restore(family, &script(&saved, &[], family))?;
                removed = true;
            }
        }
    }
    Ok(removed)
}

/// The lines our chains should have. Those for IPv6 only where they are needed or were `found`.
pub(super) fn expected(rules: &[Rule], found: &[Line]) -> Vec<Line> {
    let has_ipv6 = is_ipv6_needed() || found.iter().any(|line| line.chain.starts_with(LABEL_V6));
    FAMILIES
        .into_iter()
        .filter(|family| *family == Family::V4 || has_ipv6)
        .flat_map(|family| {
            let jumps = chains_of(rules).map(move |chain| {
                let text = format!("-A {} -j {}", place(chain).1, name(chain));
                Line::chain(label(family, name(chain)), text)
            });
            let rules = rules
                .iter()
                .filter(move |rule| rule.applies_to(family))
                .map(move |rule| Line {
                    chain: label(family, name(rule.chain)),
                    text: render(rule),
                    meaning: Some(rule.explained()),
                });
            jumps.chain(rules)
        })
        .collect()
}

/// The lines our chains have; none when they do not exist.
pub(super) fn installed() -> Result<Vec<Line>, Failed> {
    let mut refused = None;
    let mut is_read = false;
    for programs in BUILDS {
        match programs.installed() {
            // Both builds hold our chains only if somebody else changed builds; report the first.
            Ok(lines) if !lines.is_empty() => return Ok(lines),
            Ok(_nothing) => is_read = true,
            Err(error) if error.is_absent() => {}
            // As the build over nf_tables does where the kernel has none; the other may work.
            Err(error) => _ = refused.get_or_insert(error),
        }
    }
    match refused {
        Some(error) if !is_read => Err(error),
        Some(_) | None => Ok(Vec::new()),
    }
}

impl Programs {
    fn apply(self, saved: &str, rules: &[Rule]) -> Result<Applied, Failed> {
        self.restore(Family::V4, &script(saved, rules, Family::V4))?;
        let v6 = self
            .save(Family::V6)
            .and_then(|saved| self.restore(Family::V6, &script(&saved, rules, Family::V6)));
        let without_ipv6 = match v6 {
            Ok(()) => None,
            Err(error) if is_ipv6_needed() => {
                let saved = self.save(Family::V4)?;
                self.restore(Family::V4, &script(&saved, &[], Family::V4))?;
                return Err(error);
            }
            Err(error) => Some(error),
        };
        Ok(Applied {
            programs: self,
            without_ipv6,
        })
    }

    fn installed(self) -> Result<Vec<Line>, Failed> {
        let mut lines: Vec<_> = lines_of(&self.save(Family::V4)?, Family::V4).collect();
        match self.save(Family::V6) {
            Ok(saved) => lines.extend(lines_of(&saved, Family::V6)),
            Err(error) if error.is_absent() => {}
            // A family this kernel does not have holds none of our chains.
            Err(Failed::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(lines)
    }

    fn save(self, family: Family) -> Result<String, Failed> {
        let program = self.program(family, "save");
        let output = run(&program, &[], "")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn restore(self, family: Family, script: &str) -> Result<(), Failed> {
        let program = self.program(family, "restore");
        // Without --noflush it would drop the rules of everybody else. -w waits for another
        // user of the legacy build's lock.
        run(&program, &["--noflush", "-w", "5"], script).map(drop)
    }

    fn program(self, family: Family, action: &str) -> String {
        let tool = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{tool}{}-{action}", self.0)
    }
}

impl Failed {
    fn is_absent(&self) -> bool {
        match self {
            Self::NoProgram => true,
            Self::Run { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Refused { .. } => false,
        }
    }
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<Output, Failed> {
    let failed = |source| Failed::Run {
        program: program.into(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // The script is a few kilobytes and is read whole before anything is written back. A program
    // that exits early says why below, better than EPIPE does.
    if let Some(mut stdin) = child.stdin.take() {
        _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Failed::Refused {
        program: program.into(),
        message: String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace('\n', "; "),
    })
}

/// The input that turns what is saved into what is wanted: our chains flushed and refilled, or
/// deleted, and one jump to each. Chains of others are not touched.
fn script(saved: &str, rules: &[Rule], family: Family) -> String {
    let mut script = String::new();
    for table in ["nat", "mangle"] {
        let here = |chain: &Chain| place(*chain).0 == table;
        let wanted: Vec<Chain> = chains_of(rules).filter(here).collect();
        let present: Vec<Chain> = ALL_CHAINS
            .into_iter()
            .filter(here)
            .filter(|chain| is_declared(saved, table, *chain))
            .collect();
        if wanted.is_empty() && present.is_empty() {
            continue;
        }
        _ = writeln!(script, "*{table}");
        for chain in ALL_CHAINS.into_iter().filter(here) {
            if wanted.contains(&chain) || present.contains(&chain) {
                // Creates the chain, or empties it.
                _ = writeln!(script, ":{} - [0:0]", name(chain));
            }
        }
        for chain in &present {
            for _ in 0..jumps(saved, table, *chain) {
                _ = writeln!(script, "-D {} -j {}", place(*chain).1, name(*chain));
            }
        }
        for rule in rules.iter().filter(|rule| wanted.contains(&rule.chain)) {
            if rule.applies_to(family) {
                _ = writeln!(script, "{}", render(rule));
            }
        }
        for chain in &wanted {
            _ = writeln!(script, "-A {} -j {}", place(*chain).1, name(*chain));
        }
        for chain in present.iter().filter(|chain| !wanted.contains(chain)) {
            _ = writeln!(script, "-X {}", name(*chain));
        }
        _ = writeln!(script, "COMMIT");
    }
    script
}

fn render(rule: &Rule) -> String {
    let mut line = format!("-A {}", name(rule.chain));
    for one in &rule.matches {
        _ = match one {
            Match::Source(net) => write!(line, " -s {net}"),
            Match::Destination(net) => write!(line, " -d {net}"),
            Match::NotDestination(net) => write!(line, " ! -d {net}"),
            Match::FromLoopback => write!(line, " -i lo"),
            Match::ToLoopback => write!(line, " -o lo"),
            Match::ToOthers => write!(line, " -m addrtype ! --dst-type LOCAL"),
            Match::Tcp => write!(line, " -p tcp"),
            Match::TcpPort(port) => write!(line, " -p tcp -m tcp --dport {port}"),
            Match::UdpPort(port) => write!(line, " -p udp -m udp --dport {port}"),
            Match::Uid(uid) => write!(line, " -m owner --uid-owner {uid}"),
            Match::Invalid => write!(line, " -m conntrack --ctstate INVALID"),
        };
    }
    _ = match rule.verdict {
        Verdict::Return => write!(line, " -j RETURN"),
        Verdict::Drop => write!(line, " -j DROP"),
        Verdict::Redirect(port) => write!(line, " -j REDIRECT --to-ports {port}"),
    };
    line
}

/// Our lines in the output of `iptables-save`: rules in our chains and jumps to them.
fn lines_of(saved: &str, family: Family) -> impl Iterator<Item = Line> {
    saved.lines().filter_map(move |line| {
        let chain = ALL_CHAINS
            .into_iter()
            .map(name)
            .find(|chain| line.split(' ').any(|word| word == *chain))?;
        let label = label(family, chain);
        let rule = format!("-A {chain} ");
        line.starts_with("-A ").then(|| {
            if line.starts_with(&rule) {
                Line {
                    chain: label,
                    text: line.trim_end().into(),
                    meaning: None,
                }
            } else {
                Line::chain(label, line.trim_end().into())
            }
        })
    })
}

fn table_of<'a>(saved: &'a str, table: &str) -> impl Iterator<Item = &'a str> {
    let start = format!("*{table}");
    saved
        .lines()
        .skip_while(move |line| *line != start)
        .skip(1)
        .take_while(|line| *line != "COMMIT")
}

fn is_declared(saved: &str, table: &str, chain: Chain) -> bool {
    let declaration = format!(":{} ", name(chain));
    table_of(saved, table).any(|line| line.starts_with(&declaration))
}

fn jumps(saved: &str, table: &str, chain: Chain) -> usize {
    let jump = format!("-A {} -j {}", place(chain).1, name(chain));
    table_of(saved, table)
        .filter(|line| line.trim_end() == jump)
        .count()
}

fn chains_of(rules: &[Rule]) -> impl Iterator<Item = Chain> {
    ALL_CHAINS
        .into_iter()
        .filter(|chain| rules.iter().any(|rule| rule.chain == *chain))
}

fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Invalid => "HEDDLE_INVALID",
        Chain::Inbound => "HEDDLE_INBOUND",
        Chain::Outbound => "HEDDLE_OUTBOUND",
    }
}

/// Table and built-in chain that lead to ours.
fn place(chain: Chain) -> (&'static str, &'static str) {
    match chain {
        Chain::Invalid => ("mangle", "PREROUTING"),
        Chain::Inbound => ("nat", "PREROUTING"),
        Chain::Outbound => ("nat", "OUTPUT"),
    }
}

fn label(family: Family, chain: &str) -> String {
    match family {
        Family::V4 => format!("{LABEL_V4} {chain}"),
        Family::V6 => format!("{LABEL_V6} {chain}"),
    }
}

/// Whether this network namespace has an IPv6 address that others could reach.
fn is_ipv6_needed() -> bool {
    fs::read_to_string("/proc/net/if_inet6").is_ok_and(|table| has_reachable_address(&table))
}

/// `if_inet6`: address, interface index, prefix length, scope, flags, interface.
fn has_reachable_address(table: &str) -> bool {
    table.lines().any(|line| {
        let address = line
            .split_whitespace()
            .next()
            .and_then(|hex| u128::from_str_radix(hex, 16).ok())
            .map(Ipv6Addr::from_bits);
        address.is_some_and(|ip| !ip.is_loopback() && !ip.is_unicast_link_local())
    })
}

const LABEL_V4: &str = "IPv4";
const LABEL_V6: &str = "IPv6";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const ALL_CHAINS: [Chain; 3] = [Chain::Invalid, Chain::Inbound, Chain::Outbound];

/// The distribution's choice first; the legacy build serves kernels without nf_tables.
const BUILDS: [Programs; 2] = [Programs(""), Programs("-legacy")];

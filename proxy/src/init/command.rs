//! The command line of `heddle-proxy init` and what it prints.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::IpAddr,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use ipnet::IpNet;

use super::{Backend, Difference, Dns, InvalidSegments, Rules, install, remove, verify};

/// Make, check or remove the packet rules that bring the pod's connections to the proxy.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, Default, Subcommand)]
enum Action {
    /// Put the rules in force, replacing those of an earlier run (the default).
    #[default]
    Install,
    /// Say what differs from the rules; exit 1 if anything does.
    Verify,
    /// Remove all rules of ours.
    Remove,
}

#[derive(Clone, Debug, clap::Args)]
struct Settings {
    /// User id of the proxy.
    #[arg(long, global = true, default_value_t = 1337)]
    proxy_uid: u32,
    /// Port of the proxy for connections to the workload.
    #[arg(long, global = true, default_value_t = 15006)]
    inbound_port: u16,
    /// Port of the proxy for connections of the workload.
    #[arg(long, global = true, default_value_t = 15001)]
    outbound_port: u16,
    /// Ports of the pod that stay direct, besides the proxy's own 15020.
    #[arg(long, global = true, value_delimiter = ',', value_name = "PORT,...")]
    exclude_inbound_ports: Vec<u16>,
    /// Destination ports that stay direct.
    #[arg(long, global = true, value_delimiter = ',', value_name = "PORT,...")]
    exclude_outbound_ports: Vec<u16>,
    /// Destination networks or addresses that stay direct, IPv4 and IPv6.
    #[arg(long, global = true, value_delimiter = ',', value_name = "CIDR,...", value_parser = network)]
    exclude_networks: Vec<IpNet>,
    /// Bring name queries to the proxy.
    #[arg(long, global = true)]
    capture_dns: bool,
    /// Port of the proxy for name queries.
    #[arg(long, global = true, default_value_t = 15053)]
    dns_port: u16,
    /// Let TCP segments pass that conntrack cannot place, for asymmetric routing.
    #[arg(long, global = true)]
    pass_invalid: bool,
    /// What to make the rules with.
    #[arg(long, global = true, value_enum, default_value_t)]
    backend: Backend,
}

impl Args {
    /// Runs `heddle-proxy init`.
    pub fn run(&self) -> anyhow::Result<()> {
        let backend = self.settings.backend;
        let rules = self.settings.rules();
        let mut out = io::stdout().lock();
        match self.action.unwrap_or_default() {
            Action::Install => {
                let installed =
                    install(&rules, backend).context("cannot install the packet rules")?;
                writeln!(out, "installed with {installed}")?;
                write_rules(&mut out, &rules)
            }
            Action::Verify => {
                let differences =
                    verify(&rules, backend).context("cannot read the packet rules")?;
                write_differences(&mut out, &differences)
            }
            Action::Remove => {
                remove().context("cannot remove the packet rules")?;
                Ok(writeln!(out, "removed; connections are direct")?)
            }
        }
    }
}

impl Settings {
    fn rules(&self) -> Rules {
        let mut excluded_inbound_ports: BTreeSet<u16> =
            self.exclude_inbound_ports.iter().copied().collect();
        // Probes and metrics of the proxy must not depend on the mesh.
        excluded_inbound_ports.insert(HEALTH_PORT);
        Rules {
            proxy_uid: self.proxy_uid,
            inbound_port: self.inbound_port,
            outbound_port: self.outbound_port,
            excluded_inbound_ports,
            excluded_outbound_ports: self.exclude_outbound_ports.iter().copied().collect(),
            excluded_networks: self.exclude_networks.iter().copied().collect(),
            dns: if self.capture_dns {
                Dns::Captured(self.dns_port)
            } else {
                Dns::Direct
            },
            invalid: if self.pass_invalid {
                InvalidSegments::Passed
            } else {
                InvalidSegments::Dropped
            },
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|error| format!("{error}; give an address, or a network such as 10.0.0.0/8"))
}

fn write_rules(out: &mut impl Write, rules: &Rules) -> anyhow::Result<()> {
    for rule in rules.compile()? {
        writeln!(out, "{:<9} {}", rule.chain.to_string(), rule.explained())?;
    }
    Ok(())
}

fn write_differences(out: &mut impl Write, differences: &[Difference]) -> anyhow::Result<()> {
    for difference in differences {
        writeln!(out, "{difference}")?;
    }
    match differences.len() {
        0 => Ok(writeln!(out, "the rules are in force")?),
        1 => bail!("1 difference; run `heddle-proxy init install` to repair it"),
        count => bail!("{count} differences; run `heddle-proxy init install` to repair them"),
    }
}

const HEALTH_PORT: u16 = 15020;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn rules(line: &str) -> Rules {
        let words = std::iter::once("init").chain(line.split_whitespace());
        Args::try_parse_from(words)
            .expect("parsed")
            .settings
            .rules()
    }

    #[test]
    fn without_arguments_the_rules_are_the_default() {
        assert_eq!(rules(""), Rules::default());
        assert_eq!(rules("verify"), Rules::default());
    }

    #[test]
    fn settings_stand_before_or_behind_the_action() {
        let expected = Rules {
            excluded_inbound_ports: [22, 15020].into(),
            excluded_networks: ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]
                .map(|net| net.parse().expect("a network"))
                .into(),
            dns: Dns::Captured(15053),
            invalid: InvalidSegments::Passed,
            ..Rules::default()
        };
        let settings = "--exclude-inbound-ports 22 --exclude-networks 10.0.0.0/8,fd00::/8,192.0.2.1 \
                        --capture-dns --pass-invalid";
        assert_eq!(rules(&format!("{settings} install")), expected);
        assert_eq!(rules(&format!("install {settings}")), expected);
    }

    #[test]
    fn differences_are_an_error_that_says_what_to_do() {
        let mut out = Vec::new();
        let difference = Difference::Unexpected {
            chain: "inbound".into(),
            line: "return".into(),
        };
        let error = write_differences(&mut out, &[difference]).expect_err("a difference");
        assert!(error.to_string().contains("init install"), "{error}");
        assert_eq!(out, b"unexpected in inbound: return\n");
        write_differences(&mut out, &[]).expect("none");
    }
}

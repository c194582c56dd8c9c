//! What the packet rules redirect and what they leave alone, in both families and with each way
//! to install them. Pods `a` and `b` are meshed, `c` is plain; each runs an application on 8080
//! and 9090 and a resolver on 53. The proxy is `apps/probe.rs`, which tells every hop.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::symlink,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Family, Lab, NODE_V4, NODE_V6, Namespace, Pod},
    process::{Process, User},
};

use super::Case;

/// One connection: who opens it, where to, and the way it must take.
struct Row {
    name: &'static str,
    /// Settings of the rules, besides the backend.
    settings: &'static [&'static str],
    from: &'static str,
    user: User,
    /// `PLACE:PORT`, with `udp ` in front for a datagram, `stray ` for a connection in whose name
    /// segments from outside of its window are sent.
    to: &'static str,
    /// Hops as the probe prints them; `<PLACE>` and `<PLACE:PORT>` stand for addresses.
    way: &'static str,
}

const APP: User = User::Unprivileged(1000);
const PROXY: User = User::Unprivileged(1337);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "meshed_to_meshed", settings: &[], from: "a", user: APP, to: "b:8080", way: "outbound <b:8080>, inbound <b:8080>, app <b:8080> by <b>" },
    Row { name: "plain_to_meshed", settings: &[], from: "c", user: APP, to: "b:8080", way: "inbound <b:8080>, app <b:8080> by <b>" },
    Row { name: "node_to_meshed", settings: &[], from: "node", user: User::Root, to: "b:8080", way: "inbound <b:8080>, app <b:8080> by <b>" },
    Row { name: "meshed_to_plain", settings: &[], from: "a", user: APP, to: "c:8080", way: "outbound <c:8080>, app <c:8080> by <a>" },
    Row { name: "root_in_the_pod_is_meshed", settings: &[], from: "a", user: User::Root, to: "c:8080", way: "outbound <c:8080>, app <c:8080> by <a>" },
    Row { name: "the_proxy_itself_is_direct", settings: &[], from: "a", user: PROXY, to: "c:8080", way: "app <c:8080> by <a>" },
    Row { name: "the_proxy_reaches_its_own_application", settings: &[], from: "a", user: PROXY, to: "a:8080", way: "app <a:8080> by <a>" },
    Row { name: "self_by_service_address", settings: &[], from: "a", user: APP, to: "vip:8080", way: "outbound <vip:8080>, inbound <a:8080>, app <a:8080> by <a>" },
    Row { name: "self_by_pod_address", settings: &[], from: "a", user: APP, to: "a:8080", way: "app <a:8080> by <a>" },
    Row { name: "loopback", settings: &[], from: "a", user: APP, to: "lo:8080", way: "app <lo:8080> by <lo>" },
    Row { name: "excluded_outbound_port", settings: &["--exclude-outbound-ports", "9090,9091"], from: "a", user: APP, to: "c:9090", way: "app <c:9090> by <a>" },
    Row { name: "other_ports_beside_an_excluded_one", settings: &["--exclude-outbound-ports", "9090,9091"], from: "a", user: APP, to: "c:8080", way: "outbound <c:8080>, app <c:8080> by <a>" },
    Row { name: "excluded_inbound_port", settings: &["--exclude-inbound-ports", "9090"], from: "c", user: APP, to: "a:9090", way: "app <a:9090> by <c>" },
    Row { name: "excluded_address", settings: &["--exclude-networks", "<c>"], from: "a", user: APP, to: "c:8080", way: "app <c:8080> by <a>" },
    Row { name: "excluded_network", settings: &["--exclude-networks", "10.77.3.4/16,fd77::1/64"], from: "a", user: APP, to: "b:8080", way: "inbound <b:8080>, app <b:8080> by <b>" },
    Row { name: "other_addresses_beside_an_excluded_one", settings: &["--exclude-networks", "<c>"], from: "a", user: APP, to: "b:8080", way: "outbound <b:8080>, inbound <b:8080>, app <b:8080> by <b>" },
    Row { name: "dns_over_udp_captured", settings: &["--capture-dns"], from: "a", user: APP, to: "udp c:53", way: "dns" },
    Row { name: "dns_over_tcp_captured", settings: &["--capture-dns"], from: "a", user: APP, to: "c:53", way: "dns <lo:15053> by <a>" },
    Row { name: "dns_of_the_proxy_is_direct", settings: &["--capture-dns"], from: "a", user: PROXY, to: "udp c:53", way: "app" },
    Row { name: "dns_over_udp_is_direct_unless_captured", settings: &[], from: "a", user: APP, to: "udp c:53", way: "app" },
    Row { name: "health_from_the_node_is_direct", settings: &[], from: "node", user: User::Root, to: "a:15020", way: "health <a:15020> by <node>" },
    Row { name: "out_of_window_segments_are_dropped", settings: &[], from: "c", user: User::Root, to: "stray b:8080", way: "inbound <b:8080>, app <b:8080> by <b>" },
    Row { name: "out_of_window_segments_reset_where_they_pass", settings: &["--pass-invalid"], from: "c", user: User::Root, to: "stray b:8080", way: "connection reset" },
    Row { name: "inbound_listener_refuses_outsiders", settings: &[], from: "c", user: APP, to: "a:15006", way: "connection reset" },
    Row { name: "outbound_listener_refuses_outsiders", settings: &[], from: "c", user: APP, to: "a:15001", way: "connection reset" },
    Row { name: "inbound_listener_refuses_its_own_pod", settings: &[], from: "a", user: APP, to: "a:15006", way: "connection reset" },
    Row { name: "outbound_listener_refuses_its_own_pod", settings: &[], from: "a", user: APP, to: "a:15001", way: "connection reset" },
    Row { name: "inbound_listener_refuses_loopback", settings: &[], from: "a", user: APP, to: "lo:15006", way: "connection reset" },
    Row { name: "outbound_listener_refuses_loopback", settings: &[], from: "a", user: APP, to: "lo:15001", way: "connection reset" },
];

/// What the rules are installed with.
#[derive(Clone, Copy, Debug)]
enum Backend {
    Nftables,
    /// iptables over nf_tables, Debian's default.
    Iptables,
    /// iptables with its own kernel interface.
    IptablesLegacy,
}

const BACKENDS: [(Backend, &str); 3] = [
    (Backend::Nftables, "nftables"),
    (Backend::Iptables, "iptables"),
    (Backend::IptablesLegacy, "iptables_legacy"),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (backend, backend_name) in BACKENDS {
        for (family, family_name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
            for row in ROWS {
                let name = format!("interception::{backend_name}::{family_name}::{}", row.name);
                cases.push(Case::new(name, move || check(row, backend, family)));
            }
            let name = format!("interception::{backend_name}::{family_name}::what_a_pod_routes_on");
            cases.push(Case::new(name, move || routed_on(backend, family)));
        }
        let mut add = |name: &str, case: Case| {
            cases.push(Case {
                name: format!("interception::{backend_name}::{name}"),
                run: case.run,
            });
        };
        let of = |run: fn(Backend) -> Result<()>| {
            Case::new(String::new(), move || async move { run(backend) })
        };
        add("installed_ten_times_is_installed_once", of(repeated));
        add("verify_names_what_is_missing", of(verified));
        add("verify_names_what_is_foreign", of(foreign));
        add("a_new_install_replaces_other_settings", of(replaced));
        add(
            "remove_leaves_nothing_and_nobody_elses_rules_change",
            of(removed),
        );
        add("without_net_admin_the_error_says_so", of(unprivileged));
    }
    cases.push(Case::new(
        "interception::a_dead_proxy_fails_closed".into(),
        dead_proxy,
    ));
    cases.push(Case::new(
        "interception::changing_the_backend_leaves_one_set_of_rules".into(),
        || async { changed_backend() },
    ));
    cases.push(Case::new(
        "interception::without_nf_tables_iptables_is_used".into(),
        || async { without_nftables() },
    ));
    cases.push(Case::new(
        "interception::without_ip6tables_only_pods_with_ipv6_fail".into(),
        || async { without_ip6tables() },
    ));
    cases
}

async fn check(row: &Row, backend: Backend, family: Family) -> Result<()> {
    let lab = Lab::new(&["a", "b", "c"])?;
    let settings: Vec<String> = row
        .settings
        .iter()
        .map(|word| with_addresses(word, &lab, family))
        .collect();
    let mut running = Vec::new();
    for pod in ["a", "b", "c"].map(|name| lab.pod(name)) {
        running.push(start_app(pod).await?);
    }
    for pod in ["a", "b"].map(|name| lab.pod(name)) {
        running.push(start_proxy(&lab, pod).await?);
        backend.init(&lab, pod, "install", &settings)?;
    }
    let way = call(&lab, row, family)?;
    let expected = with_addresses(row.way, &lab, family);
    ensure!(way == expected, "took the way\n  {way}\nnot\n  {expected}");
    Ok(())
}

/// What the node sends by way of `b` to an address of `c` is neither `b`'s to judge nor to open.
async fn routed_on(backend: Backend, family: Family) -> Result<()> {
    let lab = Lab::new(&["b", "c"])?;
    let (b, c) = (lab.pod("b"), lab.pod("c"));
    let _app = start_app(c).await?;
    let _proxy = start_proxy(&lab, b).await?;
    let beyond = place("vip", &lab, family).to_string();
    let router = b.address(family).to_string();
    let node = place("node", &lab, family).to_string();
    let ip = |namespace: &Namespace, words: &[&str]| {
        namespace.output(User::Root, &[&["ip"], words].concat())
    };
    ip(&c.namespace, &["addr", "add", &beyond, "dev", "lo"])?;
    ip(&lab.node, &["route", "add", &beyond, "via", &router])?;
    let owner = c.address(family).to_string();
    ip(&b.namespace, &["route", "add", &beyond, "via", &owner])?;
    ip(&c.namespace, &["route", "add", &node, "via", &router])?;
    // A router of this kind forwards, and nobody tells the others of a shorter way.
    for (namespace, settings) in [
        (
            &b.namespace,
            &[
                "ipv4/ip_forward=1",
                "ipv6/conf/all/forwarding=1",
                "ipv4/conf/all/send_redirects=0",
                "ipv4/conf/eth0/send_redirects=0",
            ][..],
        ),
        (&c.namespace, &["ipv6/conf/eth0/accept_redirects=0"]),
        (&lab.node, &["ipv6/conf/br0/accept_redirects=0"]),
    ] {
        for setting in settings {
            let (path, value) = setting.split_once('=').context("a setting")?;
            let write = format!("echo {value} > /proc/sys/net/{path}");
            namespace.output(User::Root, &["sh", "-c", &write])?;
        }
    }
    backend.init(&lab, b, "install", &[])?;
    let row = Row {
        name: "",
        settings: &[],
        from: "node",
        user: User::Root,
        to: "vip:8080",
        way: "",
    };
    let way = call(&lab, &row, family)?;
    let expected = with_addresses("app <vip:8080> by <node>", &lab, family);
    ensure!(way == expected, "took the way\n  {way}\nnot\n  {expected}");
    Ok(())
}

async fn start_app(pod: &Pod) -> Result<Process> {
    let mut app = pod.spawn(
        "app",
        User::Root,
        &[PROBE, "app", "[::]:8080", "[::]:9090", "[::]:53"],
    )?;
    app.says("ready").await?;
    Ok(app)
}

async fn start_proxy(lab: &Lab, pod: &Pod) -> Result<Process> {
    let service = |family| {
        format!(
            "--service={}={}",
            place("vip", lab, family),
            pod.address(family)
        )
    };
    let services = [service(Family::V4), service(Family::V6)];
    let mut proxy = pod.spawn(
        "proxy",
        PROXY,
        &[PROBE, "proxy", &services[0], &services[1]],
    )?;
    proxy.says("ready").await?;
    Ok(proxy)
}

fn call(lab: &Lab, row: &Row, family: Family) -> Result<String> {
    let (flag, to) = match row.to.split_once(' ') {
        Some((how, to)) => (Some(format!("--{how}")), to),
        None => (None, row.to),
    };
    let to = with_addresses(&format!("<{to}>"), lab, family);
    let mut words = vec![PROBE, "call", &to];
    words.extend(flag.as_deref());
    let namespace = match row.from {
        "node" => &lab.node,
        pod => &lab.pod(pod).namespace,
    };
    Ok(namespace.output(row.user, &words)?.trim_end().to_owned())
}

/// Replaces `<PLACE>` by an address and `<PLACE:PORT>` by an address and port.
fn with_addresses(text: &str, lab: &Lab, family: Family) -> String {
    let mut parts = text.split('<');
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('>').expect("a closed placeholder");
        result += &match name.split_once(':') {
            Some((name, port)) => {
                let port = port.parse().expect("a port");
                SocketAddr::new(place(name, lab, family), port).to_string()
            }
            None => place(name, lab, family).to_string(),
        };
        result += rest;
    }
    result
}

fn place(name: &str, lab: &Lab, family: Family) -> IpAddr {
    let of = |v4: Ipv4Addr, v6: Ipv6Addr| match family {
        Family::V4 => IpAddr::from(v4),
        Family::V6 => IpAddr::from(v6),
    };
    match name {
        "node" => of(NODE_V4, NODE_V6),
        "lo" => of(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        // The address of a service, which nobody has.
        "vip" => of(
            Ipv4Addr::new(240, 240, 0, 1),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
        ),
        pod => lab.pod(pod).address(family),
    }
}

impl Backend {
    /// Runs `init` in the pod and returns what it printed.
    fn init(self, lab: &Lab, pod: &Pod, action: &str, settings: &[String]) -> Result<String> {
        let output = self.try_init(lab, pod, User::Root, action, settings)?;
        output.map_err(|error| anyhow::anyhow!("init {action}: {error}"))
    }

    /// What it printed, or its complaint.
    fn try_init(
        self,
        lab: &Lab,
        pod: &Pod,
        user: User,
        action: &str,
        settings: &[String],
    ) -> Result<Result<String, String>> {
        let path = format!("PATH={}", self.path(lab)?);
        let mut words = vec!["env", &path, PROBE, "init", action];
        match self {
            Self::Nftables => words.extend(["--backend", "nftables"]),
            Self::Iptables | Self::IptablesLegacy => words.extend(["--backend", "iptables"]),
        }
        words.extend(settings.iter().map(String::as_str));
        let output = pod.namespace.run(user, &words)?;
        let stdout = String::from_utf8(output.stdout)?;
        let stderr = String::from_utf8(output.stderr)?;
        Ok(if output.status.success() {
            Ok(stdout)
        } else {
            Err(stdout + &stderr)
        })
    }

    /// The legacy build under the names that `init` looks for, before all others.
    fn path(self, lab: &Lab) -> Result<String> {
        let path = std::env::var("PATH")?;
        Ok(match self {
            // No iptables at all: nf_tables must not need it.
            Self::Nftables => "/nonexistent:/usr/bin:/bin".into(),
            Self::Iptables => format!("{path}:/usr/sbin"),
            Self::IptablesLegacy => {
                let directory = shims(lab, &["iptables", "ip6tables"])?;
                format!("{}:{path}:/usr/sbin", directory.display())
            }
        })
    }

    /// The rules as somebody else's tool prints them, without counters and empty tables.
    fn ruleset(self, pod: &Namespace) -> Result<Vec<String>> {
        let tools: &[&[&str]] = match self {
            Self::Nftables => &[&["nft", "--stateless", "list", "ruleset"]],
            Self::Iptables => &[&["iptables-nft-save"], &["ip6tables-nft-save"]],
            Self::IptablesLegacy => &[&["iptables-legacy-save"], &["ip6tables-legacy-save"]],
        };
        let mut lines = Vec::new();
        for tool in tools {
            let output = pod.output(User::Root, tool)?;
            let is_rule = |line: &&str| match self {
                Self::Nftables => !line.is_empty(),
                Self::Iptables | Self::IptablesLegacy => {
                    line.starts_with("-A ") || line.contains(" - [")
                }
            };
            lines.extend(output.lines().filter(is_rule).map(str::to_owned));
        }
        Ok(lines)
    }

    /// Runs commands of the backend's own tool, for both families where they are separate.
    fn tamper(self, pod: &Namespace, nft: &[&str], iptables: &[&str]) -> Result<()> {
        let (tool, words) = match self {
            Self::Nftables => ("nft", nft),
            Self::Iptables => ("iptables-nft", iptables),
            Self::IptablesLegacy => ("iptables-legacy", iptables),
        };
        let mut command = vec![tool];
        command.extend(words);
        pod.output(User::Root, &command).map(drop)
    }
}

/// A directory in which `TOOL-save` and `TOOL-restore` are the legacy build.
fn shims(lab: &Lab, tools: &[&str]) -> Result<PathBuf> {
    let directory = lab.directory().join("legacy");
    if directory.exists() {
        return Ok(directory);
    }
    fs::create_dir(&directory)?;
    for tool in tools {
        for action in ["save", "restore"] {
            symlink(
                "/usr/sbin/xtables-legacy-multi",
                directory.join(format!("{tool}-{action}")),
            )?;
        }
    }
    Ok(directory)
}

fn repeated(backend: Backend) -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    backend.init(&lab, pod, "install", &[])?;
    let once = backend.ruleset(&pod.namespace)?;
    ensure!(once.len() > 5, "no rules: {once:?}");
    for _ in 0..9 {
        backend.init(&lab, pod, "install", &[])?;
    }
    let ten_times = backend.ruleset(&pod.namespace)?;
    ensure!(once == ten_times, "{once:#?}\nbecame\n{ten_times:#?}");
    backend.init(&lab, pod, "verify", &[]).map(drop)
}

fn verified(backend: Backend) -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    let complaint = || -> Result<String> {
        backend
            .try_init(&lab, pod, User::Root, "verify", &[])?
            .err()
            .context("nothing was missed")
    };
    let nothing = complaint()?;
    ensure!(nothing.contains("missing"), "before the install: {nothing}");
    backend.init(&lab, pod, "install", &[])?;
    backend.init(&lab, pod, "verify", &[])?;
    backend.tamper(
        &pod.namespace,
        &["flush", "chain", "inet", "heddle", "outbound"],
        &["-t", "nat", "-F", "HEDDLE_OUTBOUND"],
    )?;
    let flushed = complaint()?;
    ensure!(
        flushed.contains("tcp -> port 15001") && !flushed.contains("port 15020"),
        "the outbound rules and no other: {flushed}"
    );
    Ok(())
}

fn foreign(backend: Backend) -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    backend.init(&lab, pod, "install", &[])?;
    backend.tamper(
        &pod.namespace,
        &[
            "insert", "rule", "inet", "heddle", "outbound", "udp", "dport", "99", "accept",
        ],
        &[
            "-t",
            "nat",
            "-I",
            "HEDDLE_OUTBOUND",
            "-p",
            "udp",
            "--dport",
            "99",
            "-j",
            "ACCEPT",
        ],
    )?;
    let complaint = backend.try_init(&lab, pod, User::Root, "verify", &[])?;
    let complaint = complaint.err().context("it was not seen")?;
    ensure!(
        complaint.contains("unexpected") && complaint.contains("1 difference"),
        "{complaint}"
    );
    // Installing repairs it.
    backend.init(&lab, pod, "install", &[])?;
    backend.init(&lab, pod, "verify", &[]).map(drop)
}

fn replaced(backend: Backend) -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    backend.init(&lab, pod, "install", &[])?;
    let plain = backend.ruleset(&pod.namespace)?;
    let other = [
        "--capture-dns",
        "--pass-invalid",
        "--exclude-networks=10.0.0.0/8,fd00::/8",
    ];
    let other = other.map(str::to_owned);
    backend.init(&lab, pod, "install", &other)?;
    backend.init(&lab, pod, "verify", &other)?;
    let verified = backend.try_init(&lab, pod, User::Root, "verify", &[])?;
    ensure!(verified.is_err(), "other settings pass as the default");
    backend.init(&lab, pod, "install", &[])?;
    let again = backend.ruleset(&pod.namespace)?;
    // iptables keeps the order in which chains were made.
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let (plain, again) = (sorted(plain), sorted(again));
    ensure!(plain == again, "{plain:#?}\nbecame\n{again:#?}");
    Ok(())
}

fn removed(backend: Backend) -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    // Somebody else's rules.
    backend.tamper(
        &pod.namespace,
        &["add table inet other; add chain inet other c; add rule inet other c tcp dport 1 drop"],
        &[
            "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "1", "-j", "RETURN",
        ],
    )?;
    let before = backend.ruleset(&pod.namespace)?;
    ensure!(!before.is_empty(), "nothing of somebody else to keep");
    backend.init(&lab, pod, "install", &[])?;
    ensure!(
        before != backend.ruleset(&pod.namespace)?,
        "nothing was installed"
    );
    // Twice: removing what is not there is no error.
    for _ in 0..2 {
        backend.init(&lab, pod, "remove", &[])?;
        let after = backend.ruleset(&pod.namespace)?;
        ensure!(before == after, "{before:#?}\nbecame\n{after:#?}");
    }
    Ok(())
}

fn unprivileged(backend: Backend) -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    for action in ["install", "verify", "remove"] {
        let complaint = backend.try_init(&lab, pod, PROXY, action, &[])?;
        let complaint = complaint.err().context("it was allowed")?;
        ensure!(complaint.contains("CAP_NET_ADMIN"), "{action}: {complaint}");
    }
    Ok(())
}

async fn dead_proxy() -> Result<()> {
    let lab = Lab::new(&["a", "c"])?;
    let _apps = (
        start_app(lab.pod("a")).await?,
        start_app(lab.pod("c")).await?,
    );
    Backend::Nftables.init(&lab, lab.pod("a"), "install", &[])?;
    for family in [Family::V4, Family::V6] {
        for (from, to) in [("a", "c"), ("c", "a")] {
            let to = SocketAddr::new(lab.pod(to).address(family), 8080).to_string();
            let words = [PROBE, "call", &to];
            let way = lab.pod(from).namespace.output(APP, &words)?;
            ensure!(
                way.trim_end() == "connection refused",
                "{from} to {to}: {way}"
            );
        }
    }
    Ok(())
}

fn changed_backend() -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    Backend::Iptables.init(&lab, pod, "install", &[])?;
    // With iptables in PATH, so that the other rules can be found.
    let path = format!("PATH={}", Backend::Iptables.path(&lab)?);
    let auto = |action| {
        pod.namespace
            .output(User::Root, &["env", &path, PROBE, "init", action])
    };
    let said = auto("install")?;
    ensure!(said.contains("nf_tables"), "{said}");
    let old = Backend::Iptables.ruleset(&pod.namespace)?;
    ensure!(old.is_empty(), "iptables rules remain: {old:?}");
    auto("verify")?;
    Backend::Iptables.init(&lab, pod, "install", &[])?;
    let tables = Backend::Nftables.ruleset(&pod.namespace)?;
    ensure!(
        !tables.iter().any(|line| line.contains("inet heddle")),
        "the nf_tables table remains: {tables:?}"
    );
    auto("verify").map(drop)
}

/// With Debian's iptables, which speaks to nf_tables too: its legacy build is what works.
fn without_nftables() -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    let path = format!("PATH={}", Backend::Iptables.path(&lab)?);
    let init = |path: &str, action: &str| -> Result<Result<String, String>> {
        let words = ["env", path, PROBE, "init-without-nftables", action];
        let output = pod.namespace.run(User::Root, &words)?;
        let said = String::from_utf8(output.stdout)?;
        let complaint = String::from_utf8(output.stderr)?;
        Ok(match output.status.success() {
            true => Ok(said),
            false => Err(complaint),
        })
    };
    let says = |action: &str, expected: &str| {
        let said = init(&path, action)?.map_err(anyhow::Error::msg)?;
        ensure!(said.contains(expected), "{action}: {said}");
        anyhow::Ok(())
    };
    let because = "iptables-legacy-restore, because nf_tables refused: Protocol not supported";
    says("install", because)?;
    says("verify", "the rules are in force")?;
    let rules = Backend::IptablesLegacy.ruleset(&pod.namespace)?;
    let lab_of_its_own = Lab::new(&["a"])?;
    let told = lab_of_its_own.pod("a");
    Backend::IptablesLegacy.init(&lab_of_its_own, told, "install", &[])?;
    let expected = Backend::IptablesLegacy.ruleset(&told.namespace)?;
    ensure!(rules == expected, "{rules:#?}\nnot\n{expected:#?}");
    says("remove", "removed")?;
    let left = Backend::IptablesLegacy.ruleset(&pod.namespace)?;
    ensure!(left.is_empty(), "rules remain: {left:?}");
    let refused = init("PATH=/nonexistent:/usr/bin:/bin", "install")?;
    let complaint = refused.err().context("there was nothing to install with")?;
    ensure!(
        complaint.contains("nf_tables does not work here (Protocol not supported")
            && complaint.contains("no iptables-restore in PATH"),
        "{complaint}"
    );
    Ok(())
}

fn without_ip6tables() -> Result<()> {
    let lab = Lab::new(&["a"])?;
    let pod = lab.pod("a");
    let path = format!("PATH={}", shims(&lab, &["iptables"])?.display());
    let install = || {
        pod.namespace.run(
            User::Root,
            &["env", &path, PROBE, "init", "--backend=iptables"],
        )
    };
    let output = install()?;
    let complaint = String::from_utf8(output.stderr)?;
    ensure!(
        !output.status.success() && complaint.contains("ip6tables"),
        "a pod with an IPv6 address was left open: {complaint}"
    );
    let left = Backend::IptablesLegacy.ruleset(&pod.namespace)?;
    ensure!(left.is_empty(), "half of the rules remain: {left:?}");
    pod.namespace
        .output(User::Root, &["ip", "-6", "addr", "flush", "dev", "eth0"])?;
    let output = install()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && said.contains("no IPv6 rules"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

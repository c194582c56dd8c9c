use super::*;

fn machine() -> Machine {
    Machine {
        host_name: "box".to_owned(),
        cpus: NonZeroUsize::new(3).unwrap(),
        resolv_conf: "# x\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nsearch a\n".to_owned(),
    }
}

fn parse(yaml: &str) -> anyhow::Result<Config> {
    let raw: RawConfig = serde_saphyr::from_str(yaml)?;
    Config::new(&raw.filled(&machine()))
}

/// Each part must be in the one error.
#[track_caller]
fn check_faults(yaml: &str, parts: &[&str]) {
    let error = format!("{:#}", parse(yaml).unwrap_err());
    for part in parts {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

const HASH: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

#[test]
fn two_fields_are_enough() {
    let config = parse(&format!(
        "control_plane: {{addresses: ['cp:15012'], trust_anchor: {HASH}}}"
    ))
    .unwrap();
    assert_eq!(
        config.workload.id.as_str(),
        "spiffe://cluster.local/ns/default/sa/default"
    );
    assert_eq!(config.workload.name, "box");
    assert_eq!(config.workers.get(), 3);
    let Mode::Intercept { outbound, inbound } = config.mode else {
        panic!("{:?}", config.mode);
    };
    // Of both families, as the rules are.
    for at in [outbound, inbound, config.health_listen] {
        assert!(at.ip().is_unspecified() && at.is_ipv6(), "{at}");
    }
    assert_eq!(config.access_log, AccessLog::Off);
    assert_eq!(config.bounds().sampled_share.to_string(), "0.01");
    assert_eq!(config.bounds().paths, Strictness::default());
    let mut hash = [0; 32];
    hash[31] = 0xff;
    assert_eq!(config.control_plane.anchor, Anchor::Sha256(hash));
    let dns = config.dns.unwrap();
    assert_eq!(dns.resolvers, ["10.0.0.2:53".parse().unwrap()]);
    // Of both families too, but for this pod alone.
    assert!(dns.listen.iter().all(|at| at.ip().is_loopback()));
    assert!(dns.listen.iter().any(SocketAddr::is_ipv4));
    assert!(dns.listen.iter().any(SocketAddr::is_ipv6));
    assert_eq!(config.drain_limit, Duration::from_hours(24));
}

#[test]
fn every_fault_is_told_at_once() {
    check_faults(
        "
control_plane: {addresses: ['cp'], trust_domain: 'X!'}
workload: {name: 'a/b'}
admin: {listen: '0.0.0.0:15000'}
telemetry: {otlp_endpoint: 'collector'}
runtime: {workers: 0}
drain: {limit_s: 0}
traffic: {mode: magic}
",
        &[
            "control_plane.addresses[0]",
            "control_plane.trust_anchor",
            "control_plane.trust_domain",
            "admin.listen: must be a loopback",
            "telemetry.otlp_endpoint",
            "runtime.workers",
            "drain.limit_s",
            "traffic.mode",
        ],
    );
}

#[test]
fn the_sampled_share_is_a_setting_from_0_to_1() {
    let with = |share: &str| {
        format!(
            "control_plane: {{addresses: ['cp:1'], trust_anchor: {HASH}}}
telemetry: {{sampled_share: {share}}}"
        )
    };
    for share in ["0", "0.25", "1"] {
        let config = parse(&with(share)).unwrap();
        assert_eq!(config.bounds().sampled_share.to_string(), share);
    }
    for share in ["-0.1", "1.01", ".nan", ".inf"] {
        check_faults(&with(share), &["telemetry.sampled_share"]);
    }
}

#[test]
fn paths_that_servers_disagree_about_are_let_through_by_a_setting() {
    let with = |paths: &str| {
        format!(
            "control_plane: {{addresses: ['cp:1'], trust_anchor: {HASH}}}
paths: {{{paths}}}"
        )
    };
    let config = parse(&with("encoded_slash: keep, merge_slashes: false")).unwrap();
    let kept = Strictness {
        escaped_slashes: EscapedSlashes::Keep,
        empty_segments: EmptySegments::Keep,
    };
    assert_eq!(config.bounds().paths, kept);
    check_faults(&with("encoded_slash: decode"), &["paths.encoded_slash"]);
}

#[test]
fn the_reserved_identity_is_refused() {
    check_faults(
        &format!(
            "control_plane: {{addresses: ['cp:1'], trust_anchor: {HASH}}}
workload: {{namespace: heddle-system, service_account: heddle-control-plane}}"
        ),
        &["reserved identity"],
    );
}

#[test]
fn ports_are_settings_without_interception() {
    let config = parse(&format!(
        "
control_plane: {{addresses: ['[::1]:15012'], trust_anchor: {HASH}}}
traffic: {{mode: ports}}
ports:
  inbound: [{{listen: '0.0.0.0:18080', forward: '127.0.0.1:8080', protocol: grpc}}]
  outbound: [{{listen: '127.0.0.1:9000', destination: 'Db.shop:5432'}}]
"
    ))
    .unwrap();
    assert!(config.dns.is_none());
    let Mode::Ports {
        inbound, outbound, ..
    } = &config.mode
    else {
        unreachable!("the settings say ports");
    };
    assert_eq!(
        (inbound[0].port, inbound[0].protocol),
        (8080, Protocol::Http2)
    );
    assert_eq!(outbound[0].destination.to_string(), "db.shop:5432");
    assert_eq!(config.control_plane.addresses[0].to_string(), "[::1]:15012");
}

#[test]
fn a_port_list_does_not_go_with_interception() {
    check_faults(
        &format!(
            "control_plane: {{addresses: ['cp:1'], trust_anchor: {HASH}}}
ports: {{inbound: [{{listen: '0.0.0.0:1', forward: x}}]}}"
        ),
        &["ports: belongs to"],
    );
}

#[test]
fn settings_are_shown_with_their_source() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "control_plane: {addresses: ['cp:15012']}").unwrap();
    let environment = [("HEDDLE_WORKLOAD__NAME".to_owned(), "web-1".to_owned())];
    let text = show(Some(file.path()), &environment).unwrap();
    let name = file.path().display();
    for line in [
        format!("control_plane.addresses: [\"cp:15012\"]  # {name}"),
        "workload.name: \"web-1\"  # HEDDLE_WORKLOAD__NAME".to_owned(),
        "admin.listen: \"127.0.0.1:15000\"  # default".to_owned(),
        "drain.limit_s: 86400  # default".to_owned(),
        "dns.listen: [\"127.0.0.1:15053\",\"[::1]:15053\"]  # default".to_owned(),
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in:\n{text}"
        );
    }
}

use heddle_proto::xds::google::protobuf::Any;

use super::*;

use ResourceType::{Cluster, Listener, Route};

/// A stream with a server's side that says what each request must contain.
struct Script {
    stream: Stream,
    node: Option<Node>,
    nonce: u32,
}

impl Script {
    fn new() -> Self {
        let mut stream = Stream::default();
        stream.connected();
        Self {
            stream,
            node: Some(Node::default()),
            nonce: 0,
        }
    }

    fn want(&mut self, kind: ResourceType, names: &[&str]) -> &mut Self {
        for text in names {
            self.stream.want(&name(kind, text));
        }
        self
    }

    fn unwant(&mut self, kind: ResourceType, names: &[&str]) -> &mut Self {
        for text in names {
            self.stream.unwant(&name(kind, text));
        }
        self
    }

    fn reconnect(&mut self) -> &mut Self {
        self.stream.connected();
        self.node = Some(Node::default());
        self
    }

    /// `type +subscribed -unsubscribed =initial versions`, one line per request.
    #[track_caller]
    fn sends(&mut self, expected: &[&str]) -> &mut Self {
        let sent: Vec<String> = self
            .stream
            .outgoing(&mut self.node)
            .iter()
            .map(describe)
            .collect();
        assert_eq!(sent, expected);
        self
    }

    /// Sends `resources` (`name@version`; a body `!` does not decode; `name>other` has the body
    /// of another name) and checks the reply, what was accepted, and what was removed.
    #[track_caller]
    fn answer(
        &mut self,
        kind: ResourceType,
        resources: &[&str],
        removed: &[&str],
        expected: (&str, &[&str], &[&str]),
    ) -> &mut Self {
        self.nonce += 1;
        let update = self
            .stream
            .receive(
                response(kind, resources, removed, &self.nonce.to_string()),
                decode,
            )
            .unwrap();
        let (reply, accepted, gone) = expected;
        assert_eq!(update.reply.response_nonce, self.nonce.to_string());
        let refused = update
            .reply
            .error_detail
            .as_ref()
            .map(|status| format!(" NACK {}", status.message.replace('\n', "; ")))
            .unwrap_or_default();
        assert_eq!(format!("{}{refused}", describe(&update.reply)), reply);
        let taken: Vec<String> = update
            .accepted
            .iter()
            .map(|one| format!("{}@{}", one.name.name, one.version))
            .collect();
        assert_eq!(taken, accepted);
        let lost: Vec<&str> = update.removed.iter().map(|one| &*one.name).collect();
        assert_eq!(lost, gone);
        self
    }
}

fn name(kind: ResourceType, text: &str) -> ResourceName {
    ResourceName {
        kind,
        name: text.into(),
    }
}

fn describe(request: &DeltaDiscoveryRequest) -> String {
    let kind = ResourceType::from_type_url(&request.type_url).unwrap();
    let mut versions: Vec<String> = request
        .initial_resource_versions
        .iter()
        .map(|(name, version)| format!(" ={name}@{version}"))
        .collect();
    versions.sort();
    let mut text = kind.word().to_owned();
    for name in &request.resource_names_subscribe {
        text += &format!(" +{name}");
    }
    for name in &request.resource_names_unsubscribe {
        text += &format!(" -{name}");
    }
    if request.node.is_some() {
        text.insert_str(0, "node ");
    }
    text + &versions.concat()
}

fn response(
    kind: ResourceType,
    resources: &[&str],
    removed: &[&str],
    nonce: &str,
) -> DeltaDiscoveryResponse {
    let resources = resources
        .iter()
        .map(|text| {
            let (head, version) = text.split_once('@').unwrap();
            let (name, body) = head.split_once('>').unwrap_or((head, head));
            Resource {
                name: name.to_owned(),
                version: version.to_owned(),
                resource: Some(Any {
                    type_url: kind.type_url().to_owned(),
                    value: body.into(),
                }),
                ..Resource::default()
            }
        })
        .collect();
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        nonce: nonce.to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// The body is the name; one that begins with `!` is invalid.
fn decode(type_url: &str, value: &[u8]) -> Result<(ResourceName, ()), String> {
    let text = std::str::from_utf8(value).unwrap();
    let kind = ResourceType::from_type_url(type_url).unwrap();
    if text.starts_with('!') {
        return Err(format!("{text}: is bad"));
    }
    Ok((name(kind, text), ()))
}

#[test]
fn a_subscription_is_told_once_and_acknowledged_by_nonce() {
    Script::new()
        .want(Listener, &["a", "b"])
        .sends(&["node listener +a +b"])
        .sends(&[])
        .answer(Listener, &["a@1"], &[], ("listener", &["a@1"], &[]))
        .want(Listener, &["c"])
        .want(Route, &["r"])
        .sends(&["listener +c", "route +r"])
        .answer(
            Listener,
            &["b@1", "c@1"],
            &[],
            ("listener", &["b@1", "c@1"], &[]),
        );
}

#[test]
fn a_wish_taken_back_before_it_was_told_is_never_told() {
    Script::new()
        .want(Listener, &["a"])
        .unwant(Listener, &["a"])
        .sends(&[])
        .want(Listener, &["a", "b"])
        .sends(&["node listener +a +b"])
        .unwant(Listener, &["b"])
        .want(Listener, &["b"])
        .sends(&["listener +b"])
        .unwant(Listener, &["b"])
        .sends(&["listener -b"]);
}

#[test]
fn a_new_stream_repeats_subscriptions_with_the_versions_held() {
    Script::new()
        .want(Listener, &["a", "b"])
        .want(Cluster, &["x"])
        .sends(&["node cluster +x", "listener +a +b"])
        .answer(Listener, &["a@1"], &["b"], ("listener", &["a@1"], &["b"]))
        .answer(Cluster, &["x@9"], &[], ("cluster", &["x@9"], &[]))
        .unwant(Cluster, &["x"])
        .reconnect()
        .sends(&["node listener +a +b =a@1"])
        .sends(&[]);
}

#[test]
fn versions_of_the_state_directory_are_presented() {
    let mut script = Script::new();
    script.stream.restore(&name(Route, "r"), "7".into());
    script.sends(&["node route +r =r@7"]);
}

#[test]
fn a_fault_costs_its_own_resource_and_the_old_version_stays() {
    Script::new()
        .want(Listener, &["a", "!b"])
        .sends(&["node listener +!b +a"])
        .answer(
            Listener,
            &["a@1", "!b@1"],
            &[],
            ("listener NACK !b: is bad", &["a@1"], &[]),
        )
        .answer(
            Listener,
            &["a>!x@2"],
            &[],
            ("listener NACK !x: is bad", &[], &[]),
        )
        .reconnect()
        .sends(&["node listener +!b +a =a@1"]);
}

#[test]
fn an_older_version_is_a_version_like_any_other() {
    let mut script = Script::new();
    script
        .want(Listener, &["a"])
        .sends(&["node listener +a"])
        .answer(Listener, &["a@2"], &[], ("listener", &["a@2"], &[]))
        .answer(Listener, &["a@1"], &[], ("listener", &["a@1"], &[]));
    assert_eq!(
        script
            .stream
            .version(&name(Listener, "a"))
            .unwrap()
            .as_ref(),
        "1"
    );
}

#[test]
fn what_a_listener_depends_on_may_come_unasked_and_is_then_subscribed() {
    Script::new()
        .want(Listener, &["a"])
        .sends(&["node listener +a"])
        .answer(
            Cluster,
            &["x@1", "y@1"],
            &[],
            // Names, else it would read as a wildcard.
            ("cluster +x +y =x@1 =y@1", &["x@1", "y@1"], &[]),
        )
        .want(Cluster, &["x"])
        .sends(&[])
        .answer(Cluster, &["x@2"], &[], ("cluster", &["x@2"], &[]));
}

#[test]
fn a_listener_nobody_asked_for_is_refused() {
    Script::new()
        .want(Listener, &["a"])
        .sends(&["node listener +a"])
        .answer(
            Listener,
            &["out/1.2.3.4:5@1"],
            &[],
            ("listener NACK out/1.2.3.4:5: was not asked for", &[], &[]),
        );
}

#[test]
fn a_removed_resource_stays_subscribed_and_an_unknown_removal_means_nothing() {
    Script::new()
        .want(Listener, &["a"])
        .sends(&["node listener +a"])
        .answer(Listener, &[], &["a", "never"], ("listener", &[], &["a"]))
        .answer(Listener, &["a@3"], &[], ("listener", &["a@3"], &[]));
}

#[test]
fn contradictions_are_refused_in_words() {
    Script::new()
        .want(Listener, &["a", "b"])
        .sends(&["node listener +a +b"])
        .answer(
            Listener,
            &["a@1", "a@2"],
            &["a"],
            (
                "listener NACK a: is in the response twice; a: is both sent and removed",
                &["a@1"],
                &[],
            ),
        )
        .answer(
            Listener,
            &["a>b@2"],
            &[],
            ("listener NACK a: contains listener b", &[], &[]),
        );
}

#[test]
fn a_resource_of_another_type_or_without_content_is_refused() {
    let mut script = Script::new();
    script
        .want(Listener, &["a", "b"])
        .sends(&["node listener +a +b"]);
    let mut message = response(Listener, &["a@1", "b@1"], &[], "n");
    message.resources[0].resource = None;
    if let Some(any) = &mut message.resources[1].resource {
        any.type_url = Cluster.type_url().to_owned();
    }
    let update = script.stream.receive(message, decode).unwrap();
    assert!(update.accepted.is_empty());
    assert_eq!(update.faults[0], "a: has no content", "{:?}", update.faults);
    assert!(
        update.faults[1].contains("in a response of listeners"),
        "{:?}",
        update.faults
    );
}

#[test]
fn an_unknown_type_is_refused_with_its_own_name() {
    let mut script = Script::new();
    let mut message = response(Listener, &["a@1"], &[], "n");
    "type.googleapis.com/google.protobuf.Empty".clone_into(&mut message.type_url);
    let update = script.stream.receive(message, decode).unwrap();
    assert_eq!(
        update.reply.type_url,
        "type.googleapis.com/google.protobuf.Empty"
    );
    assert_eq!(update.reply.response_nonce, "n");
    assert_eq!(update.reply.error_detail.unwrap().code, INVALID_ARGUMENT);
    assert!(update.accepted.is_empty());
    assert!(script.stream.is_empty());
}

#[test]
fn a_server_of_nonsense_costs_bounded_memory() {
    let mut script = Script::new();
    let stream = &mut script.stream;
    assert_eq!(
        stream
            .receive(response(Cluster, &[], &[], ""), decode)
            .unwrap_err(),
        Violation::NoNonce
    );
    let names: Vec<String> = (0..RESPONSE_RESOURCES_MAX)
        .map(|i| format!("c{i}@1"))
        .collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    for round in 0..3 {
        let renamed: Vec<String> = names.iter().map(|name| format!("{round}{name}")).collect();
        let renamed: Vec<&str> = renamed.iter().map(String::as_str).collect();
        let update = stream
            .receive(response(Cluster, &renamed, &[], "n"), decode)
            .unwrap();
        let text = update
            .reply
            .error_detail
            .map_or(0, |status| status.message.len());
        assert!(text <= NACK_BYTES_MAX + 3);
    }
    assert_eq!(stream.len(), HELD_MAX);
    names.push("one-more@1");
    assert_eq!(
        stream
            .receive(response(Cluster, &names, &[], "n"), decode)
            .unwrap_err(),
        Violation::TooMany(RESPONSE_RESOURCES_MAX + 1)
    );
}

use super::*;

/// What exists: by name, a version and dependents.
#[derive(Default)]
struct Model {
    existing: BTreeMap<ResourceName, Arc<Compiled>>,
}

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoints;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::Route;

fn name(kind: ResourceType, name: &str) -> ResourceName {
    ResourceName {
        kind,
        name: name.into(),
    }
}

impl Model {
    fn put(&mut self, kind: ResourceType, text: &str, version: &str, dependents: &[ResourceName]) {
        self.put_sized(kind, text, version, dependents, 10);
    }

    fn put_sized(
        &mut self,
        kind: ResourceType,
        text: &str,
        version: &str,
        dependents: &[ResourceName],
        bytes: usize,
    ) {
        let compiled = Compiled {
            name: text.into(),
            version: version.into(),
            value: vec![0; bytes],
            dependents: dependents.to_vec(),
        };
        self.existing.insert(name(kind, text), Arc::new(compiled));
    }

    fn remove(&mut self, kind: ResourceType, text: &str) {
        self.existing.remove(&name(kind, text));
    }

    /// A listener `l` -> route `r` -> cluster `c` -> endpoints `c`.
    fn destination() -> Self {
        let mut model = Self::default();
        model.put(LDS, "l", "1", &[name(RDS, "r")]);
        model.put(RDS, "r", "1", &[name(CDS, "c")]);
        model.put(CDS, "c", "1", &[name(EDS, "c")]);
        model.put(EDS, "c", "1", &[]);
        model
    }
}

impl Resources for Model {
    fn get(&mut self, name: &ResourceName) -> Option<Arc<Compiled>> {
        self.existing.get(name).cloned()
    }

    fn all(&mut self, kind: ResourceType) -> Vec<Arc<str>> {
        let of = self.existing.keys().filter(|name| name.kind == kind);
        of.map(|name| Arc::clone(&name.name)).collect()
    }
}

fn at(seconds: u64) -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(heddle_shell::clock::now) + Duration::from_secs(seconds)
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|&name| name.to_owned()).collect()
}

fn subscribe(list: &[&str]) -> Request {
    Request {
        subscribe: names(list),
        ..Request::default()
    }
}

fn unsubscribe(list: &[&str]) -> Request {
    Request {
        unsubscribe: names(list),
        ..Request::default()
    }
}

/// An answer to `response`; in state of the world with the names still wanted.
fn answer(response: &Response, wanted: &[&str], error: Option<&str>) -> Request {
    Request {
        subscribe: names(wanted),
        nonce: response.nonce.clone(),
        error: error.map(str::to_owned),
        ..Request::default()
    }
}

fn told(response: &Response) -> String {
    let resources = response
        .resources
        .iter()
        .map(|c| format!("{}@{}", c.name, c.version));
    let absent = response.absent.iter().map(|name| format!("-{name}"));
    let all: Vec<_> = resources.chain(absent).collect();
    format!("{} {}", response.kind, all.join(" "))
}

/// Everything there is to send, each answered with an ACK when `form` is delta.
fn drain(stream: &mut Stream, model: &mut Model) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(response) = stream.next(at(0), model) {
        lines.push(told(&response).trim_end().to_owned());
        if stream.form == Form::Delta {
            stream
                .request(response.kind, answer(&response, &[], None))
                .unwrap();
        }
    }
    lines
}

fn delta() -> Stream {
    Stream::new(Form::Delta, Dependents::Asked)
}

fn state_of_the_world() -> Stream {
    Stream::new(Form::StateOfTheWorld, Dependents::Asked)
}

#[test]
fn a_listener_brings_what_it_needs_in_one_burst_clusters_first() {
    let mut model = Model::destination();
    let mut stream = Stream::new(Form::Delta, Dependents::Unasked);
    stream.request(LDS, subscribe(&["l"])).unwrap();
    // Without a single answer in between.
    let burst: Vec<_> = std::iter::from_fn(|| stream.next(at(0), &mut model))
        .map(|r| told(&r))
        .collect();
    assert_eq!(
        burst,
        ["cluster c@1", "endpoints c@1", "listener l@1", "route r@1"]
    );
    // Subscribing to what came unasked sends nothing again.
    stream.request(RDS, subscribe(&["r"])).unwrap();
    stream.request(CDS, subscribe(&["c"])).unwrap();
    assert!(stream.next(at(0), &mut model).is_none());
}

#[test]
fn a_new_subset_is_there_before_the_route_that_needs_it() {
    let mut model = Model::destination();
    let mut stream = Stream::new(Form::Delta, Dependents::Unasked);
    stream.request(LDS, subscribe(&["l"])).unwrap();
    drain(&mut stream, &mut model);
    model.put(RDS, "r", "2", &[name(CDS, "c"), name(CDS, "d")]);
    model.put(CDS, "d", "1", &[name(EDS, "d")]);
    model.put(EDS, "d", "1", &[]);
    assert_eq!(
        drain(&mut stream, &mut model),
        ["cluster d@1", "endpoints d@1", "route r@2"]
    );
}

#[test]
fn routes_wait_while_a_cluster_cannot_be_sent() {
    let mut model = Model::destination();
    let mut stream = Stream::new(Form::Delta, Dependents::Unasked);
    stream.request(LDS, subscribe(&["l"])).unwrap();
    let first = stream.next(at(0), &mut model).unwrap();
    while stream.next(at(0), &mut model).is_some() {}
    model.put(CDS, "c", "2", &[name(EDS, "c")]);
    model.put(RDS, "r", "2", &[name(CDS, "c")]);
    assert!(
        stream.next(at(0), &mut model).is_none(),
        "the first cluster is not answered"
    );
    stream.request(CDS, answer(&first, &[], None)).unwrap();
    assert_eq!(
        told(&stream.next(at(0), &mut model).unwrap()),
        "cluster c@2"
    );
}

#[test]
fn endpoints_are_sent_again_after_their_cluster_changed() {
    let mut model = Model::destination();
    for mut stream in [delta(), state_of_the_world()] {
        model.put(CDS, "c", "1", &[name(EDS, "c")]);
        let mut last = BTreeMap::new();
        for kind in [CDS, EDS] {
            stream.request(kind, subscribe(&["c"])).unwrap();
        }
        for _ in 0..2 {
            let response = stream.next(at(0), &mut model).unwrap();
            stream
                .request(response.kind, answer(&response, &["c"], None))
                .unwrap();
            last.insert(response.kind, response);
        }
        // (In delta that subscribed again; take what it sends.)
        drain(&mut stream, &mut model);
        model.put(CDS, "c", "2", &[name(EDS, "c")]);
        let sent = drain(&mut stream, &mut model);
        assert_eq!(sent, ["cluster c@2", "endpoints c@1"]);
    }
}

#[test]
fn one_response_of_a_type_is_in_flight_and_versions_in_between_are_skipped() {
    let mut model = Model::destination();
    let mut stream = delta();
    stream.request(EDS, subscribe(&["c"])).unwrap();
    let first = stream.next(at(0), &mut model).unwrap();
    for version in ["2", "3"] {
        model.put(EDS, "c", version, &[]);
        assert!(stream.next(at(0), &mut model).is_none());
    }
    stream.request(EDS, answer(&first, &[], None)).unwrap();
    assert_eq!(drain(&mut stream, &mut model), ["endpoints c@3"]);
}

#[test]
fn a_stale_nonce_acknowledges_nothing_but_its_names_count() {
    let mut model = Model::destination();
    model.put(EDS, "d", "1", &[]);
    for mut stream in [delta(), state_of_the_world()] {
        stream.request(EDS, subscribe(&["c"])).unwrap();
        let first = stream.next(at(0), &mut model).unwrap();
        let mut stale = answer(&first, &["c", "d"], None);
        stale.nonce = "0".to_owned();
        assert_eq!(stream.request(EDS, stale).unwrap(), None);
        assert!(
            stream.next(at(0), &mut model).is_none(),
            "the first is still in flight"
        );
        stream
            .request(EDS, answer(&first, &["c", "d"], None))
            .unwrap();
        assert!(told(&stream.next(at(0), &mut model).unwrap()).contains("d@1"));
    }
}

#[test]
fn a_refused_version_is_recorded_and_not_sent_again() {
    let mut model = Model::destination();
    for mut stream in [delta(), state_of_the_world()] {
        model.put(RDS, "r", "1", &[]);
        stream.request(RDS, subscribe(&["r"])).unwrap();
        let first = stream.next(at(0), &mut model).unwrap();
        let refusal = Request {
            subscribe: if stream.form == Form::Delta {
                Vec::new()
            } else {
                names(&["r"])
            },
            ..answer(&first, &[], Some("no"))
        };
        let answered = stream.request(RDS, refusal).unwrap();
        let resources = vec![("r".into(), Some("1".into()))];
        let message = "no".to_owned();
        assert_eq!(answered, Some(Answer::Refused { resources, message }));
        assert!(stream.next(at(0), &mut model).is_none());
        model.put(RDS, "r", "2", &[]);
        assert_eq!(told(&stream.next(at(0), &mut model).unwrap()), "route r@2");
    }
}

#[test]
fn an_unknown_name_is_answered_at_once_and_delivered_when_it_appears() {
    for mut stream in [delta(), state_of_the_world()] {
        let mut model = Model::default();
        stream.request(LDS, subscribe(&["l"])).unwrap();
        let first = stream.next(at(0), &mut model).unwrap();
        assert_eq!(told(&first), "listener -l");
        let wanted: &[&str] = if stream.form == Form::Delta {
            &[]
        } else {
            &["l"]
        };
        stream.request(LDS, answer(&first, wanted, None)).unwrap();
        assert!(stream.next(at(0), &mut model).is_none());
        model.put(LDS, "l", "1", &[]);
        assert_eq!(
            told(&stream.next(at(0), &mut model).unwrap()),
            "listener l@1"
        );
    }
}

#[test]
fn what_a_client_has_from_an_earlier_stream_is_not_sent_again() {
    let mut model = Model::destination();
    let mut stream = delta();
    let versions = [("c", "1"), ("d", "7"), ("e", "1")];
    let again = Request {
        initial_versions: versions.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..subscribe(&["c", "d"])
    };
    model.put(CDS, "d", "8", &[]);
    stream.request(CDS, again).unwrap();
    // `e` was not subscribed again: the client knows.
    assert_eq!(drain(&mut stream, &mut model), ["cluster d@8"]);
}

#[test]
fn what_went_away_between_two_streams_is_removed() {
    let mut model = Model::default();
    let mut stream = delta();
    let again = Request {
        initial_versions: [("c".to_owned(), "1".to_owned())].into(),
        ..subscribe(&["c"])
    };
    stream.request(CDS, again).unwrap();
    assert_eq!(drain(&mut stream, &mut model), ["cluster -c"]);
}

#[test]
fn removals_come_last_and_users_go_before_what_they_use() {
    let mut model = Model::destination();
    model.put(CDS, "old", "1", &[name(EDS, "old")]);
    model.put(EDS, "old", "1", &[]);
    let mut stream = delta();
    for (kind, list) in [
        (LDS, "l"),
        (RDS, "r"),
        (CDS, "c"),
        (CDS, "old"),
        (EDS, "old"),
    ] {
        stream.request(kind, subscribe(&[list])).unwrap();
    }
    drain(&mut stream, &mut model);
    model.remove(CDS, "old");
    model.remove(EDS, "old");
    model.remove(LDS, "l");
    model.put(RDS, "r", "2", &[]);
    assert_eq!(
        drain(&mut stream, &mut model),
        ["route r@2", "listener -l", "endpoints -old", "cluster -old"]
    );
}

#[test]
fn listeners_are_removed_before_their_routes() {
    let mut model = Model::destination();
    let mut stream = delta();
    for (kind, list) in [(LDS, "l"), (RDS, "r"), (CDS, "c"), (EDS, "c")] {
        stream.request(kind, subscribe(&[list])).unwrap();
    }
    drain(&mut stream, &mut model);
    model.existing.clear();
    assert_eq!(
        drain(&mut stream, &mut model),
        ["listener -l", "route -r", "endpoints -c", "cluster -c"]
    );
}

#[test]
fn what_was_refused_with_another_comes_again_when_it_is_asked_for() {
    let mut model = Model::destination();
    model.put(EDS, "d", "1", &[]);
    let mut stream = delta();
    stream.request(EDS, subscribe(&["c", "d"])).unwrap();
    let first = stream.next(at(0), &mut model).unwrap();
    // One of the two was bad; which, the client does not say.
    stream
        .request(EDS, answer(&first, &[], Some("d is bad")))
        .unwrap();
    assert!(stream.next(at(0), &mut model).is_none());
    stream.request(EDS, subscribe(&["c"])).unwrap();
    assert_eq!(drain(&mut stream, &mut model), ["endpoints c@1"]);
    // So do endpoints whose cluster comes anew.
    model.put(EDS, "c", "2", &[]);
    let second = stream.next(at(0), &mut model).unwrap();
    stream
        .request(EDS, answer(&second, &[], Some("no")))
        .unwrap();
    stream.request(CDS, subscribe(&["c"])).unwrap();
    assert_eq!(
        drain(&mut stream, &mut model),
        ["cluster c@1", "endpoints c@2"]
    );
}

#[test]
fn the_whole_world_keeps_a_cluster_until_its_route_is_gone() {
    let mut model = Model::destination();
    model.put(CDS, "old", "1", &[]);
    let mut stream = state_of_the_world();
    stream.request(CDS, subscribe(&["c", "old"])).unwrap();
    let first = stream.next(at(0), &mut model).unwrap();
    assert_eq!(told(&first), "cluster c@1 old@1");
    stream
        .request(CDS, answer(&first, &["c", "old"], None))
        .unwrap();
    model.remove(CDS, "old");
    model.put(CDS, "c", "2", &[]);
    let second = stream.next(at(0), &mut model).unwrap();
    assert_eq!(told(&second), "cluster c@2 old@1");
    stream
        .request(CDS, answer(&second, &["c", "old"], None))
        .unwrap();
    assert_eq!(
        told(&stream.next(at(0), &mut model).unwrap()),
        "cluster c@2 -old"
    );
}

#[test]
fn everything_is_a_star_or_a_first_request_without_names() {
    for request in [subscribe(&["*"]), subscribe(&[])] {
        for mut stream in [delta(), state_of_the_world()] {
            let mut model = Model::destination();
            stream.request(CDS, request.clone()).unwrap();
            let first = stream.next(at(0), &mut model).unwrap();
            assert_eq!(told(&first), "cluster c@1");
            let mut acknowledged = answer(&first, &[], None);
            if stream.form == Form::StateOfTheWorld {
                acknowledged.subscribe.clone_from(&request.subscribe);
            }
            stream.request(CDS, acknowledged).unwrap();
            assert!(stream.next(at(0), &mut model).is_none());
            model.put(CDS, "d", "1", &[]);
            assert!(told(&stream.next(at(0), &mut model).unwrap()).contains("d@1"));
        }
    }
}

#[test]
fn everything_of_nothing_is_answered() {
    for mut stream in [delta(), state_of_the_world()] {
        stream.request(CDS, subscribe(&[])).unwrap();
        let response = stream.next(at(0), &mut Model::default()).unwrap();
        assert!(response.resources.is_empty() && response.absent.is_empty());
        assert!(stream.next(at(0), &mut Model::default()).is_none());
    }
}

#[test]
fn what_is_not_subscribed_any_more_is_not_sent() {
    let mut model = Model::destination();
    let mut stream = delta();
    stream.request(EDS, subscribe(&["c"])).unwrap();
    drain(&mut stream, &mut model);
    stream.request(EDS, unsubscribe(&["c"])).unwrap();
    model.put(EDS, "c", "2", &[]);
    assert!(stream.next(at(0), &mut model).is_none());
    // Back again: from the beginning.
    stream.request(EDS, subscribe(&["c"])).unwrap();
    assert_eq!(drain(&mut stream, &mut model), ["endpoints c@2"]);
    // Asked for while held: the client lost it.
    stream.request(EDS, subscribe(&["c"])).unwrap();
    assert_eq!(drain(&mut stream, &mut model), ["endpoints c@2"]);
}

#[test]
fn responses_are_cut_where_a_part_is_allowed() {
    let mut model = Model::default();
    for i in 0..5 {
        model.put_sized(EDS, &format!("c{i}"), "1", &[], 400_000);
        model.put_sized(CDS, &format!("c{i}"), "1", &[], 400_000);
    }
    let all = ["c0", "c1", "c2", "c3", "c4"];
    let mut stream = delta();
    stream.request(EDS, subscribe(&all)).unwrap();
    let sizes: Vec<_> = drain(&mut stream, &mut model)
        .iter()
        .map(|line| line.split(' ').count() - 1)
        .collect();
    assert_eq!(sizes, [2, 2, 1]);
    let mut stream = state_of_the_world();
    stream.request(CDS, subscribe(&all)).unwrap();
    assert_eq!(
        stream.next(at(0), &mut model).unwrap().resources.len(),
        5,
        "a part would delete the rest"
    );
}

#[test]
fn subscriptions_are_bounded() {
    let many: Vec<_> = (0..=SUBSCRIPTIONS_MAX).map(|i| i.to_string()).collect();
    let request = Request {
        subscribe: many,
        ..Request::default()
    };
    assert_eq!(
        delta().request(CDS, request).unwrap_err(),
        Violation::TooManySubscriptions
    );
    let known = (0..=SUBSCRIPTIONS_MAX).map(|i| (i.to_string(), String::new()));
    let resumed = Request {
        initial_versions: known.collect(),
        ..Request::default()
    };
    assert_eq!(
        delta().request(CDS, resumed).unwrap_err(),
        Violation::TooManySubscriptions
    );
    let long = subscribe(&[&"a".repeat(NAME_BYTES_MAX + 1)]);
    assert_eq!(
        delta().request(CDS, long).unwrap_err(),
        Violation::NameTooLong
    );
}

#[test]
fn the_names_of_all_types_together_are_bounded() {
    let long = |i: usize| format!("{i:0>NAME_BYTES_MAX$}");
    let fill = NAMES_BYTES_MAX / NAME_BYTES_MAX;
    let some = |range: std::ops::Range<usize>| Request {
        subscribe: range.map(long).collect(),
        ..Request::default()
    };
    for mut stream in [
        delta(),
        Stream::new(Form::StateOfTheWorld, Dependents::Asked),
    ] {
        stream.request(CDS, some(0..fill / 2)).unwrap();
        stream.request(EDS, some(0..fill - fill / 2)).unwrap();
        let over = stream.request(RDS, some(0..1)).unwrap_err();
        assert_eq!(over, Violation::NamesTooLong);
    }
}

/// A client of everything that has what is there, as Envoy has.
fn warm(form: Form, model: &mut Model) -> Stream {
    let mut stream = Stream::new(form, Dependents::Asked);
    for (kind, list) in [(CDS, "*"), (EDS, "c"), (LDS, "*"), (RDS, "r")] {
        stream.request(kind, subscribe(&[list])).unwrap();
        let response = stream.next(at(0), model).unwrap();
        assert_eq!(response.kind, kind);
        acknowledge(&mut stream, &response, list);
    }
    assert!(stream.next(at(0), model).is_none());
    stream
}

fn acknowledge(stream: &mut Stream, response: &Response, list: &str) {
    let wanted: Vec<&str> = match stream.form {
        Form::Delta => Vec::new(),
        Form::StateOfTheWorld => list.split(' ').collect(),
    };
    let request = answer(response, &wanted, None);
    stream.request(response.kind, request).unwrap();
}

#[test]
fn a_route_waits_for_the_endpoints_that_its_new_cluster_is_warmed_with() {
    for form in [Form::Delta, Form::StateOfTheWorld] {
        let mut model = Model::destination();
        let mut stream = warm(form, &mut model);
        model.put(RDS, "r", "2", &[name(CDS, "c"), name(CDS, "d")]);
        model.put(CDS, "d", "1", &[name(EDS, "d")]);
        model.put(EDS, "d", "1", &[]);
        let clusters = stream.next(at(1), &mut model).unwrap();
        assert_eq!(clusters.kind, CDS);
        assert!(stream.next(at(1), &mut model).is_none(), "{form:?}");
        acknowledge(&mut stream, &clusters, "*");
        assert!(stream.next(at(1), &mut model).is_none(), "{form:?}");
        stream.request(EDS, subscribe(&["c", "d"])).unwrap();
        assert!(stream.has_news());
        let endpoints = stream.next(at(1), &mut model).unwrap();
        assert_eq!(endpoints.kind, EDS);
        let route = stream.next(at(1), &mut model).unwrap();
        assert_eq!(told(&route), "route r@2");
        assert_eq!(stream.warming_until(), None);
    }
}

#[test]
fn a_cluster_that_is_never_warmed_keeps_routes_waiting_no_longer_than_that() {
    let mut model = Model::destination();
    for has_refused in [false, true] {
        let mut stream = warm(Form::Delta, &mut model);
        model.put(RDS, "r", "2", &[]);
        model.put(CDS, "d", "1", &[name(EDS, "d")]);
        let clusters = stream.next(at(1), &mut model).unwrap();
        let error = has_refused.then_some("no");
        stream.request(CDS, answer(&clusters, &[], error)).unwrap();
        let until = if has_refused { at(1) } else { at(6) };
        if !has_refused {
            let just_before = until - Duration::from_millis(1);
            assert!(stream.next(just_before, &mut model).is_none());
            assert_eq!(stream.warming_until(), Some(until));
        }
        assert_eq!(told(&stream.next(until, &mut model).unwrap()), "route r@2");
        model = Model::destination();
    }
}

#[test]
fn a_mere_acknowledgement_is_no_news() {
    for mut stream in [delta(), state_of_the_world()] {
        let mut model = Model::destination();
        stream.request(EDS, subscribe(&["c"])).unwrap();
        assert!(stream.has_news());
        let first = stream.next(at(0), &mut model).unwrap();
        assert!(stream.next(at(0), &mut model).is_none());
        let mut unknown = answer(&first, &["c"], None);
        if stream.form == Form::Delta {
            unknown.subscribe.clear();
        }
        let acknowledged = unknown.clone();
        unknown.nonce = "77".to_owned();
        stream.request(EDS, unknown).unwrap();
        assert!(!stream.has_news());
        stream.request(EDS, acknowledged.clone()).unwrap();
        assert!(!stream.has_news());
        // But for what came while the answer was awaited.
        model.put(EDS, "c", "2", &[]);
        let second = stream.next(at(0), &mut model).unwrap();
        model.put(EDS, "c", "3", &[]);
        assert!(stream.next(at(0), &mut model).is_none());
        let mut acknowledged = acknowledged;
        acknowledged.nonce.clone_from(&second.nonce);
        stream.request(EDS, acknowledged).unwrap();
        assert!(stream.has_news());
        assert!(stream.next(at(0), &mut model).is_some());
        // And for other names.
        stream.request(EDS, subscribe(&["c", "d"])).unwrap();
        assert!(stream.has_news());
    }
}

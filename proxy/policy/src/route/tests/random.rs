//! The index against the definition: every host and every route looked at in order.

use std::sync::LazyLock;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

/// How close a domain is to a name: later variants are closer, longer texts too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    Prefix(usize),
    Suffix(usize),
    Exact,
}

fn closeness(domain: &str, name: &str) -> Option<Closeness> {
    if domain == name {
        return Some(Closeness::Exact);
    }
    if domain == "*" {
        return None;
    }
    if let Some(suffix) = domain.strip_prefix('*') {
        let fits = name.len() > suffix.len() && name.ends_with(suffix);
        return fits.then_some(Closeness::Suffix(suffix.len()));
    }
    let prefix = domain.strip_suffix('*')?;
    let fits = name.len() > prefix.len() && name.starts_with(prefix);
    fits.then_some(Closeness::Prefix(prefix.len()))
}

/// The host with the closest domain but `*`; of equals the first.
fn closest<'a>(hosts: &'a [VirtualHost], name: &str) -> Option<&'a VirtualHost> {
    let mut best: Option<(Closeness, &VirtualHost)> = None;
    for host in hosts {
        let closeness = host.domains.iter().filter_map(|d| closeness(d, name)).max();
        if let Some(closeness) = closeness
            && best.is_none_or(|(other, _)| other < closeness)
        {
            best = Some((closeness, host));
        }
    }
    best.map(|(_, host)| host)
}

/// The definition. The only port here is 80.
fn scan<'a>(hosts: &'a [VirtualHost], head: &RequestHead<'_>) -> Option<&'a Arc<Route>> {
    let name = head.authority.strip_suffix(":80");
    let name = name.unwrap_or(head.authority);
    let any = || hosts.iter().find(|host| host.domains.contains(&"*".into()));
    let host = closest(hosts, head.authority);
    let host = host.or_else(|| closest(hosts, name)).or_else(any)?;
    host.routes.iter().find(|route| route.matches.fits(head))
}

#[test]
fn whatever_the_table_the_index_finds_what_a_scan_finds() {
    let (mut found, mut missed) = (0, 0);
    for seed in 0..2_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let table = RouteTable::new("test", hosts(&mut rng));
        for _ in 0..20 {
            let (authority, path) = (authority(&mut rng), path(&mut rng));
            let value = text(&mut rng);
            let headers: &[(&str, &[u8])] = &[("x", value.as_bytes())];
            let head = head(&authority, &path, &headers);
            let of_index = table.find(&head).map(Arc::as_ptr);
            let of_scan = scan(table.hosts(), &head).map(Arc::as_ptr);
            assert_eq!(of_index, of_scan, "seed {seed}: {head:?} in {table:?}");
            *(if of_scan.is_some() {
                &mut found
            } else {
                &mut missed
            }) += 1;
        }
    }
    // Else most tables would say nothing.
    assert!(found > 5_000 && missed > 5_000, "{found} and {missed}");
}

fn hosts(rng: &mut StdRng) -> Vec<VirtualHost> {
    let host = |rng: &mut StdRng| VirtualHost {
        domains: some(rng, 4, domain),
        routes: some(rng, 12, |rng| {
            let headers = some(rng, 2, condition);
            route("", path_match(rng), headers)
        }),
    };
    some(rng, 6, host)
}

fn some<T>(rng: &mut StdRng, max: usize, mut one: impl FnMut(&mut StdRng) -> T) -> Vec<T> {
    let count = rng.random_range(0..=max);
    (0..count).map(|_| one(rng)).collect()
}

/// Short and of few letters, so that texts are often alike.
fn text(rng: &mut StdRng) -> String {
    let length = rng.random_range(0..4);
    (0..length).map(|_| rng.random_range('a'..='b')).collect()
}

fn domain(rng: &mut StdRng) -> Arc<str> {
    let text = text(rng);
    match rng.random_range(0..6) {
        0 => "*".into(),
        1 => format!("*{text}").into(),
        2 => format!("{text}*").into(),
        3 => format!("{text}:80").into(),
        _ => text.into(),
    }
}

fn authority(rng: &mut StdRng) -> String {
    let text = text(rng);
    match rng.random_range(0..8) {
        0 | 1 => format!("{text}:80"),
        2 => format!("{text}:"),
        3 => format!("*{text}"),
        4 => format!("{text}*"),
        _ => text,
    }
}

fn path(rng: &mut StdRng) -> String {
    format!("/{}", text(rng))
}

fn path_match(rng: &mut StdRng) -> PathMatch {
    let path = path(rng);
    match rng.random_range(0..8) {
        0 => PathMatch::Any,
        1..4 => PathMatch::Exact(path.into()),
        4..7 => PathMatch::Prefix(path.into()),
        _ => PathMatch::Regex(EXPRESSIONS[rng.random_range(0..3)].clone()),
    }
}

fn condition(rng: &mut StdRng) -> HeaderMatch {
    HeaderMatch {
        is_inverted: rng.random(),
        ..header("x", ValueMatch::Prefix(text(rng).into()))
    }
}

static EXPRESSIONS: LazyLock<[Regex; 3]> =
    LazyLock::new(|| ["/a.", "/.*b", "/[ab]*"].map(|text| Regex::new(text).unwrap()));

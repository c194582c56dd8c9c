use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Pattern::{Exact, Prefix, Suffix},
    *,
};

fn covers(pattern: Pattern<'_>, text: &str) -> bool {
    match pattern {
        Exact(other) => text == other,
        Prefix(begin) => text.starts_with(begin),
        Suffix(end) => text.ends_with(end),
    }
}

/// Which patterns, by their positions, cover a text.
fn found(patterns: &[Pattern<'_>], text: &str) -> Vec<usize> {
    let index: Patterns<Vec<usize>> = Patterns::new(patterns.iter().copied().zip(0..));
    let mut found = Vec::new();
    index.visit(text, |some| found.extend_from_slice(some));
    found.sort_unstable();
    found
}

#[track_caller]
fn check(patterns: &[Pattern<'_>], text: &str, expected: &[usize]) {
    assert_eq!(found(patterns, text), expected, "{text:?} in {patterns:?}");
}

#[test]
fn without_patterns_nothing_is_covered() {
    check(&[], "", &[]);
    check(&[], "a", &[]);
}

#[test]
fn the_empty_text_begins_and_ends_every_text() {
    let empty = [Exact(""), Prefix(""), Suffix("")];
    check(&empty, "", &[0, 1, 2]);
    check(&empty, "a", &[1, 2]);
}

#[test]
fn patterns_that_share_bytes_are_told_apart() {
    let patterns = [
        Exact("/a"),
        Prefix("/a"),
        Exact("/abc"),
        Prefix("/abd"),
        Suffix("c"),
        Suffix("bc"),
        Exact("/a"),
    ];
    check(&patterns, "/a", &[0, 1, 6]);
    check(&patterns, "/ab", &[1]);
    check(&patterns, "/abc", &[1, 2, 4, 5]);
    check(&patterns, "/abdc", &[1, 3, 4]);
    check(&patterns, "/", &[]);
    check(&patterns, "c", &[4]);
}

#[test]
fn a_character_of_several_bytes_is_matched_whole() {
    let patterns = [Prefix("ä"), Prefix("ö"), Suffix("ä")];
    check(&patterns, "äx", &[0]);
    check(&patterns, "öä", &[1, 2]);
    check(&patterns, "ü", &[]);
}

/// So deep that building or walking by recursion would end the process.
#[test]
fn every_text_may_begin_another() {
    let texts: Vec<String> = (0..3_000).map(|n| "a".repeat(n)).collect();
    let patterns: Vec<_> = texts.iter().map(|text| Prefix(text)).collect();
    let all: Vec<_> = (0..3_000).collect();
    check(&patterns, &"a".repeat(5_000), &all);
    check(&patterns, &"a".repeat(10), &all[..=10]);
}

#[test]
fn the_longest_end_is_shorter_than_the_text() {
    let patterns = [Suffix("c"), Suffix(".c"), Prefix("a"), Exact("c")];
    let index: Patterns<Vec<usize>> = Patterns::new(patterns.into_iter().zip(0..));
    for (text, expected) in [
        ("b.c", Some(1)),
        ("bc", Some(0)),
        (".c", Some(0)),
        ("c", None),
    ] {
        let longest = index.longest_end(text);
        assert_eq!(longest.map(|kept| kept[0]), expected, "{text}");
    }
}

#[test]
fn whatever_the_patterns_those_that_cover_are_found() {
    for seed in 0..3_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let texts: Vec<String> = (0..30).map(|_| text(&mut rng)).collect();
        let patterns: Vec<_> = texts.iter().map(|text| pattern(text, &mut rng)).collect();
        for _ in 0..10 {
            let text = text(&mut rng);
            let expected: Vec<_> = (0..patterns.len())
                .filter(|i| covers(patterns[*i], &text))
                .collect();
            assert_eq!(found(&patterns, &text), expected, "seed {seed}: {text:?}");
        }
    }
}

fn text(rng: &mut StdRng) -> String {
    let length = rng.random_range(0..6);
    (0..length).map(|_| rng.random_range('a'..='c')).collect()
}

fn pattern<'a>(text: &'a str, rng: &mut StdRng) -> Pattern<'a> {
    [Exact, Prefix, Suffix][rng.random_range(0..3)](text)
}

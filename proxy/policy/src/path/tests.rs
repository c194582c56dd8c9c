use super::*;

#[track_caller]
fn check(raw: &str, expected: Result<&str, Unsafe>) {
    let normal = Normal::parse(raw, Strictness::default());
    let path = normal.as_ref().map(|normal| &*normal.path).map_err(|e| *e);
    assert_eq!(path, expected, "{raw}");
    if let Ok(path) = path {
        let again = Normal::parse(path, Strictness::default()).unwrap();
        assert_eq!(again.path, path, "{raw} is not normalised in one step");
    }
}

#[test]
fn a_normal_path_is_borrowed() {
    for raw in [
        "/",
        "/a/b",
        "/a.b/c-d_e~f",
        "/a;v=1/b@c:d",
        "/.well-known/x",
        "/a%20b",
        "*",
    ] {
        let normal = Normal::parse(raw, Strictness::default()).unwrap();
        assert!(matches!(normal.path, Cow::Borrowed(_)), "{raw}");
        assert_eq!(normal.target(), raw);
    }
}

#[test]
fn each_character_has_one_spelling() {
    check("/%61%2D%2e%5f%7E", Ok("/a-._~"));
    check("/%c3%a9", Ok("/%C3%A9"));
    check("/é", Ok("/%C3%A9"));
    check("/a|b", Ok("/a%7Cb"));
    check("/a%7cb", Ok("/a%7Cb"));
    check("/a%40b", Ok("/a%40b"));
    check("/a@b", Ok("/a@b"));
    check("/%2525", Ok("/%2525"));
    check("/Case", Ok("/Case"));
}

#[test]
fn dot_segments_are_removed_however_they_are_spelled() {
    check("/a/./b", Ok("/a/b"));
    check("/a/../b", Ok("/b"));
    check("/a/%2e%2E/b", Ok("/b"));
    check("/a/.%2e/b", Ok("/b"));
    check("/../../a", Ok("/a"));
    check("/a/..", Ok("/"));
    check("/a/b/.", Ok("/a/b/"));
    check("/..", Ok("/"));
    check("/a/...", Ok("/a/..."));
    check("/a/..b", Ok("/a/..b"));
    check("/a//../b", Ok("/b"));
}

#[test]
fn empty_segments_are_merged_unless_told() {
    check("//admin", Ok("/admin"));
    check("/a///b//", Ok("/a/b/"));
    check("/a/.//b", Ok("/a/b"));
    let keep = Strictness {
        empty_segments: EmptySegments::Keep,
        ..Strictness::default()
    };
    assert_eq!(Normal::parse("//a//b/./", keep).unwrap().path, "//a//b/");
}

#[test]
fn what_servers_disagree_about_is_refused() {
    for raw in ["/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b", "/..%2fadmin"] {
        check(raw, Err(Unsafe::Slash));
    }
    for raw in ["/a%00", "/a\0", "/a\nb", "/a b", "/a\x7f"] {
        check(raw, Err(Unsafe::Control));
    }
    for raw in ["/%", "/%4", "/%zz", "/%+1", "/%4?x"] {
        check(raw, Err(Unsafe::Escape));
    }
    for raw in ["/%ff", "/%C3%28", "/%c3"] {
        check(raw, Err(Unsafe::NotUtf8));
    }
    check("/a#b", Err(Unsafe::Fragment));
    check("/a?b#c", Err(Unsafe::Fragment));
    check("a/b", Err(Unsafe::NotAbsolute));
    check("**", Err(Unsafe::NotAbsolute));
}

#[test]
fn a_setting_lets_escaped_slashes_stay() {
    let keep = Strictness {
        escaped_slashes: EscapedSlashes::Keep,
        ..Strictness::default()
    };
    let path = |raw| Normal::parse(raw, keep).map(|normal| normal.path.into_owned());
    assert_eq!(path("/a%2fb").unwrap(), "/a%2Fb");
    assert_eq!(path("/a/..%2fb%5c").unwrap(), "/a/..%2Fb%5C");
    assert_eq!(path("/a\\b"), Err(Unsafe::Slash));
}

#[test]
fn the_query_is_not_touched() {
    let target = |raw| {
        let normal = Normal::parse(raw, Strictness::default()).unwrap();
        normal.target().into_owned()
    };
    for raw in ["/?", "/a?x=%2f..//%zz?y", "?q"] {
        let expected = if raw == "?q" { "/?q" } else { raw };
        assert_eq!(target(raw), expected);
    }
    assert_eq!(target("/a/../b?x=/../"), "/b?x=/../");
    assert_eq!(target(""), "/");
}

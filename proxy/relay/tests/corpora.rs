//! What fuzzing found worth keeping, replayed (`fuzz/README.md`).

#[path = "../fuzz/bodies/h1.rs"]
mod h1;
#[path = "../fuzz/bodies/h2.rs"]
mod h2;
#[path = "../fuzz/bodies/hpack.rs"]
mod hpack;
#[path = "../fuzz/bodies/relay.rs"]
mod relay;
#[path = "relay/scene.rs"]
mod scene;
#[path = "../fuzz/bodies/script.rs"]
mod script;

use std::{fs, path::Path};

/// Gives every input of a corpus to the body of its target.
#[track_caller]
fn check(target: &str, run: fn(&[u8])) {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let inputs = fs::read_dir(corpora.join(target)).expect("the target has a corpus");
    let mut paths: Vec<_> = inputs
        .map(|input| input.expect("it is listed").path())
        .collect();
    assert!(!paths.is_empty(), "the corpus is empty");
    paths.sort();
    for path in paths {
        #[expect(clippy::print_stdout, reason = "a test that fails names the input")]
        {
            println!("{}", path.display());
        }
        run(&fs::read(&path).expect("it can be read"));
    }
}

#[test]
fn hpack_takes_its_corpus() {
    check("hpack", hpack::run);
}

#[test]
fn http1_takes_its_corpus() {
    check("h1", h1::run);
}

#[test]
fn http2_takes_its_corpus() {
    check("h2", h2::run);
}

#[test]
fn the_relay_takes_its_corpus() {
    check("relay", relay::run);
}

//! Repository rules as tests: what a package may name, how long a file may be, what may not be
//! committed. They read the tracked files as text.

mod imports;
mod protos;
mod tree;

use std::path::Path;

use tree::{SourceFile, code_lines, sources, tracked};

/// Code lines without tests and comments.
const FILE_LINES_MAX: usize = 600;

/// Packages in `Cargo.lock`: the founding commit's count plus 10 %.
const LOCKED_CRATES_MAX: usize = 335;

#[test]
fn files_stay_short() {
    let long: Vec<String> = sources()
        .iter()
        .map(|file| (file, code_lines(&file.text)))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(file, lines)| format!("{}: {lines} code lines", file.path))
        .collect();
    assert!(long.is_empty(), "over {FILE_LINES_MAX}: {long:#?}");
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|file| !file.path.ends_with("tests.rs") && !file.text.starts_with("//!"))
        .map(|file| file.path)
        .collect();
    assert!(silent.is_empty(), "no //! at the top: {silent:#?}");
}

#[test]
fn nothing_unfinished_is_committed() {
    // Spelt in halves, so that this file does not find itself.
    let marks = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X"],
        ["todo", "!("],
        ["#[ig", "nore"],
    ];
    let found = lines_with(&sources(), &marks.map(|[a, b]| format!("{a}{b}")));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn no_place_outside_the_repository_is_named() {
    let marks = [
        ["../sha", "red"],
        ["crates", ".io"],
        ["pypi", ".org"],
        ["npm", "js.com"],
        ["debian", ".org"],
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["DESI", "GN.md"],
        ["STY", "LE.md"],
    ];
    let files: Vec<SourceFile> = tracked()
        .into_iter()
        .filter(|file| !file.path.ends_with("Cargo.lock") && file.path != "deny.toml")
        .collect();
    let found = lines_with(&files, &marks.map(|[a, b]| format!("{a}{b}")));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_dependency_tree_stays_small() {
    let lock = include_str!("../../Cargo.lock");
    let crates = lock.matches("\n[[package]]\n").count();
    assert!(
        crates <= LOCKED_CRATES_MAX,
        "{crates} locked crates, at most {LOCKED_CRATES_MAX}"
    );
}

#[test]
fn modules_import_only_what_they_may() {
    let faults: Vec<String> = sources().iter().flat_map(imports::faults).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn every_field_of_our_messages_is_documented() {
    let ours = tracked().into_iter().filter(|file| {
        let path = Path::new(&file.path);
        path.starts_with("proto/heddle") && path.extension().is_some_and(|ext| ext == "proto")
    });
    let ours: Vec<SourceFile> = ours.collect();
    assert!(ours.len() > 5, "the .proto files were not found");
    let silent: Vec<String> = ours.iter().flat_map(protos::undocumented).collect();
    assert!(silent.is_empty(), "no comment above: {silent:#?}");
}

fn lines_with(files: &[SourceFile], marks: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (number, line) in file.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    found
}

//! The tracked files.

use std::{fs, path::Path, process::Command};

pub(crate) struct SourceFile {
    /// Relative to the repository.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every tracked text file; what git does not know yet but would add counts too.
pub(crate) fn tracked() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is in the repository");
    let listing = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .expect("git lists the files");
    assert!(listing.status.success(), "git ls-files failed");
    String::from_utf8(listing.stdout)
        .expect("file names are UTF-8")
        .split_terminator('\0')
        .filter_map(|path| {
            // Binary files and files deleted but not staged have no text to judge.
            let text = fs::read_to_string(root.join(path)).ok()?;
            Some(SourceFile {
                path: path.to_owned(),
                text,
            })
        })
        .collect()
}

/// Every tracked Rust file.
pub(crate) fn sources() -> Vec<SourceFile> {
    let files: Vec<SourceFile> = tracked()
        .into_iter()
        .filter(|file| {
            Path::new(&file.path)
                .extension()
                .is_some_and(|ext| ext == "rs")
        })
        .collect();
    assert!(files.len() > 20, "the sources were not found");
    files
}

/// Lines that are code: no blank lines, no comments, nothing from the inline test module on.
pub(crate) fn code_lines(text: &str) -> usize {
    text.split("\n#[cfg(test)]\nmod tests {")
        .next()
        .expect("split yields at least one part")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

//! Whether a directory is in memory only, from `/proc/self/mountinfo` (proc(5)).

use std::{fs, path::Path};

/// Whether the private key may be written to the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStorage {
    /// The directory is on tmpfs: the key does not outlive the machine's power.
    Tmpfs,
    /// It is on a disk, or nobody can tell.
    Never,
}

/// Looks at the file system under `directory`, which must exist.
pub fn key_storage(directory: &Path) -> KeyStorage {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Ok(directory) = fs::canonicalize(directory) else {
        return KeyStorage::Never;
    };
    judge(&mounts, &directory)
}

fn judge(mounts: &str, directory: &Path) -> KeyStorage {
    let mut found = ("", 0);
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else {
            continue;
        };
        // A later mount covers an earlier one at the same point. Escaped characters (`\040`) make
        // a path that matches nothing, which says no.
        let depth = Path::new(point).components().count();
        if directory.starts_with(point) && depth >= found.1 {
            found = (kind, depth);
        }
    }
    match found.0 {
        "tmpfs" | "ramfs" => KeyStorage::Tmpfs,
        _ => KeyStorage::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw - ext4 /dev/root rw
25 22 0:22 / /run rw shared:1 - tmpfs tmpfs rw
26 25 254:1 / /run/disk rw - ext4 /dev/b rw
27 25 0:23 / /run/twice rw - tmpfs tmpfs rw
28 25 254:2 / /run/twice rw - ext4 /dev/c rw
";

    #[track_caller]
    fn check(directory: &str, expected: KeyStorage) {
        assert_eq!(judge(MOUNTS, Path::new(directory)), expected, "{directory}");
    }

    #[test]
    fn the_innermost_and_latest_mount_decides() {
        check("/var/lib/heddle", KeyStorage::Never);
        check("/run/heddle", KeyStorage::Tmpfs);
        check("/running", KeyStorage::Never);
        check("/run/disk/x", KeyStorage::Never);
        check("/run/twice/x", KeyStorage::Never);
        assert_eq!(judge("", Path::new("/run")), KeyStorage::Never);
    }
}

//! The machine: its name and resolvers, and how much of it this process may use: CPUs by its
//! affinity and the quota of its cgroup rounded up, memory by the limit of its cgroup.
//!
//! The standard library rounds the quota down, so that 1.5 CPUs would be one worker.

use std::{fs, num::NonZeroUsize, path::Path};

/// What defaults of settings are taken from.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Default of `workload.name`.
    pub host_name: String,
    /// Default of `runtime.workers`.
    pub cpus: NonZeroUsize,
    /// Default of `dns.resolvers`: the text of `/etc/resolv.conf`.
    pub resolv_conf: String,
}

impl Machine {
    /// The one this process runs on.
    pub fn this() -> Self {
        let read = |path| read(path).unwrap_or_default();
        Self {
            host_name: read("/proc/sys/kernel/hostname").trim().to_owned(),
            cpus: cpus(),
            resolv_conf: read("/etc/resolv.conf"),
        }
    }
}

/// At least one.
fn cpus() -> NonZeroUsize {
    let allowed = read("/proc/self/status").and_then(|status| allowed(&status));
    let quota = read("/proc/self/cgroup").and_then(|cgroups| tightest(&cgroups, &QUOTA, read));
    let cpus = match (allowed, quota) {
        (Some(allowed), Some(quota)) => allowed.min(quota),
        (Some(cpus), None) | (None, Some(cpus)) => cpus,
        (None, None) => 1,
    };
    NonZeroUsize::new(cpus).unwrap_or(NonZeroUsize::MIN)
}

/// Bytes; `None` is no limit.
pub fn memory_bytes() -> Option<u64> {
    tightest(&read("/proc/self/cgroup")?, &MEMORY, read)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// `Cpus_allowed_list: 0-3,8` of proc_pid_status(5).
fn allowed(status: &str) -> Option<usize> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            Some(last.checked_sub(first)? + 1)
        })
        .sum()
}

/// Files of a cgroup and how their text is a limit (`None`: unlimited).
struct Limit<T> {
    v2_file: &'static str,
    v1_controller: &'static str,
    /// Their texts are joined by a space, as the one file of v2 has it.
    v1_files: &'static [&'static str],
    value: fn(&str) -> Option<T>,
}

const QUOTA: Limit<usize> = Limit {
    v2_file: "cpu.max",
    v1_controller: "cpu",
    v1_files: &["cpu.cfs_quota_us", "cpu.cfs_period_us"],
    value: quota,
};

const MEMORY: Limit<u64> = Limit {
    v2_file: "memory.max",
    v1_controller: "memory",
    v1_files: &["memory.limit_in_bytes"],
    value: |text| text.parse().ok().filter(|bytes| *bytes < NO_LIMIT_BYTES),
};

/// The tightest limit from the process's cgroup up to the root. Containers see their own cgroup
/// as the root, so a path that does not exist is skipped.
fn tightest<T: Ord>(
    cgroups: &str,
    limit: &Limit<T>,
    read: impl Fn(&str) -> Option<String>,
) -> Option<T> {
    let mut tightest: Option<T> = None;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, files) = if controllers.is_empty() {
            ("/sys/fs/cgroup".to_owned(), &[limit.v2_file][..])
        } else if controllers.split(',').any(|it| it == limit.v1_controller) {
            let root = format!("/sys/fs/cgroup/{}", limit.v1_controller);
            (root, limit.v1_files)
        } else {
            continue;
        };
        for ancestor in Path::new(path).ancestors() {
            let at = ancestor.to_string_lossy();
            let at = at.trim_end_matches('/');
            let texts: Option<Vec<String>> = files
                .iter()
                .map(|file| Some(read(&format!("{root}{at}/{file}"))?.trim().to_owned()))
                .collect();
            let found = texts.and_then(|texts| (limit.value)(&texts.join(" ")));
            tightest = match (tightest, found) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }
    tightest
}

/// Whole CPUs, of a quota and its period. `None` for `max` and for -1: unlimited.
fn quota(text: &str) -> Option<usize> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (usize, usize) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota.div_ceil(period).max(1))
}

/// cgroup v1 says the largest number of whole pages for no limit.
const NO_LIMIT_BYTES: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_list_is_counted() {
        assert_eq!(allowed("Name:\tx\nCpus_allowed_list:\t0-3,8\n"), Some(5));
        assert_eq!(allowed("Cpus_allowed_list:\t1"), Some(1));
        assert_eq!(allowed("Cpus_allowed_list:\t3-1"), None);
        assert_eq!(allowed("nothing"), None);
    }

    #[track_caller]
    fn check<T: Ord + std::fmt::Debug>(
        limit: &Limit<T>,
        cgroups: &str,
        files: &[(&str, &str)],
        expected: Option<T>,
    ) {
        let read = |path: &str| {
            files
                .iter()
                .find(|(name, _)| *name == path)
                .map(|(_, text)| (*text).to_owned())
        };
        assert_eq!(tightest(cgroups, limit, read), expected);
    }

    #[test]
    fn a_quota_is_rounded_up() {
        for (text, expected) in [
            ("150000 100000\n", Some(2)),
            ("10000 100000\n", Some(1)),
            ("max 100000\n", None),
        ] {
            let file = ("/sys/fs/cgroup/cpu.max", text);
            check(&QUOTA, "0::/\n", &[file], expected);
        }
        check(&QUOTA, "0::/\n", &[], None);
    }

    #[test]
    fn a_quota_of_the_first_version_has_two_files() {
        let period = ("/sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "100000\n");
        for (text, expected) in [("250000\n", Some(3)), ("-1\n", None)] {
            let quota = ("/sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", text);
            let cgroups = "4:cpu,cpuacct:/pod/x\n1:memory:/\n";
            check(&QUOTA, cgroups, &[quota, period], expected);
        }
    }

    #[test]
    fn memory_is_limited_by_either_version() {
        for (text, expected) in [
            ("134217728\n", Some(128 << 20)),
            ("max\n", None),
            ("9223372036854771712\n", None),
        ] {
            let v2 = ("/sys/fs/cgroup/memory.max", text);
            check(&MEMORY, "0::/\n", &[v2], expected);
            let v1 = ("/sys/fs/cgroup/memory/pod/memory.limit_in_bytes", text);
            check(&MEMORY, "4:memory:/pod\n", &[v1], expected);
        }
    }

    #[test]
    fn the_tightest_ancestor_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/cpu.max", "400000 100000"),
            ("/sys/fs/cgroup/a/cpu.max", "100000 100000"),
        ];
        check(&QUOTA, "0::/a/b\n", &files, Some(1));
    }
}

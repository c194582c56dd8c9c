//! How many CPUs this process may use: its affinity, and the quota of its cgroup rounded up.
//!
//! The standard library rounds the quota down, so that 1.5 CPUs would be one worker.

use std::{fs, num::NonZeroUsize};

/// At least one.
pub(super) fn limit() -> NonZeroUsize {
    let read = |path: &str| fs::read_to_string(path).ok();
    let allowed = read("/proc/self/status").and_then(|status| allowed(&status));
    let quota = read("/proc/self/cgroup").and_then(|cgroups| quota(&cgroups, read));
    let cpus = match (allowed, quota) {
        (Some(allowed), Some(quota)) => allowed.min(quota),
        (Some(cpus), None) | (None, Some(cpus)) => cpus,
        (None, None) => 1,
    };
    NonZeroUsize::new(cpus).unwrap_or(NonZeroUsize::MIN)
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

/// The tightest quota from the process's cgroup up to the root, rounded up. Containers see their
/// own cgroup as the root, so a path that does not exist is skipped.
fn quota(cgroups: &str, read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let mut tightest: Option<usize> = None;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let is_v2 = controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|name| name == "cpu") {
            continue;
        }
        for ancestor in std::path::Path::new(path).ancestors() {
            let at = ancestor.to_string_lossy();
            let at = at.trim_end_matches('/');
            let cpus = if is_v2 { v2(at, &read) } else { v1(at, &read) };
            tightest = match (tightest, cpus) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }
    tightest
}

fn v2(at: &str, read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let text = read(&format!("/sys/fs/cgroup{at}/cpu.max"))?;
    let (quota, period) = text.trim().split_once(' ')?;
    ceil(quota, period)
}

fn v1(at: &str, read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let quota = read(&format!("/sys/fs/cgroup/cpu{at}/cpu.cfs_quota_us"))?;
    let period = read(&format!("/sys/fs/cgroup/cpu{at}/cpu.cfs_period_us"))?;
    ceil(quota.trim(), period.trim())
}

/// `None` for `max` and for -1: unlimited.
fn ceil(quota: &str, period: &str) -> Option<usize> {
    let (quota, period): (usize, usize) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota.div_ceil(period).max(1))
}

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
    fn check(cgroups: &str, files: &[(&str, &str)], expected: Option<usize>) {
        let read = |path: &str| {
            files
                .iter()
                .find(|(name, _)| *name == path)
                .map(|(_, text)| (*text).to_owned())
        };
        assert_eq!(quota(cgroups, read), expected);
    }

    #[test]
    fn a_quota_is_rounded_up() {
        let root = "0::/\n";
        check(
            root,
            &[("/sys/fs/cgroup/cpu.max", "150000 100000\n")],
            Some(2),
        );
        check(
            root,
            &[("/sys/fs/cgroup/cpu.max", "10000 100000\n")],
            Some(1),
        );
        check(root, &[("/sys/fs/cgroup/cpu.max", "max 100000\n")], None);
        check(root, &[], None);
        let v1 = [
            ("/sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", "250000\n"),
            ("/sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "100000\n"),
        ];
        check("4:cpu,cpuacct:/pod/x\n1:memory:/\n", &v1, Some(3));
        check(
            "4:cpu:/\n",
            &[
                ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ],
            None,
        );
    }

    #[test]
    fn the_tightest_ancestor_counts() {
        check(
            "0::/a/b\n",
            &[
                ("/sys/fs/cgroup/a/b/cpu.max", "400000 100000"),
                ("/sys/fs/cgroup/a/cpu.max", "100000 100000"),
            ],
            Some(1),
        );
    }
}

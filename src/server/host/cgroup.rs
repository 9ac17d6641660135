//! What the control groups of this process allow: memory and processor time, of its own group and of all above it.
//!
//! Both versions: 2 (`memory.max`, `memory.high`, `cpu.max`), and 1 (`memory.limit_in_bytes`, `cpu.cfs_quota_us`) where a
//! controller is still mounted so. Groups above a container's own mount cannot be seen from inside; what they allow is
//! then not known to anybody in there.
//! Law: a limit that is there and cannot be read is unknown, not absent.

use serde::Serialize;

use super::files::{Fact, Files, Unknown, parse, unreadable};

/// A limit of memory, and how much of it is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryLimit {
    /// The file with the limit.
    pub file: String,
    /// The limit in bytes.
    pub limit_bytes: u64,
    /// Of it in use, in bytes, without cached files that the kernel would give up first.
    pub used_bytes: u64,
}

impl MemoryLimit {
    /// What is left of it, in bytes.
    pub fn room_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// A limit of processor time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuLimit {
    /// The file with the limit.
    pub file: String,
    /// Processor time for each second, in cores.
    pub cores: f64,
    /// The time over which it is counted, in microseconds.
    pub period_us: u64,
}

/// Every limit of memory over this process, its own group's first.
pub(super) fn memory(files: &Files) -> Fact<Vec<MemoryLimit>> {
    let Some(groups) = Groups::of(files, "memory")? else { return Ok(Vec::new()) };
    let mut limits = Vec::new();
    for group in &groups.paths {
        let (names, used, reclaimable): (&[&str], _, _) = match groups.version {
            Version::One => (&["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file "),
            Version::Two => (&["memory.max", "memory.high"], "memory.current", "inactive_file "),
        };
        for name in names {
            let file = format!("{group}/{name}");
            let Some(limit_bytes) = limit(files, &file)? else { continue };
            let used = files.number(&format!("{group}/{used}"))?;
            let cached = files.amount(&format!("{group}/memory.stat"), reclaimable)?;
            limits.push(MemoryLimit { file, limit_bytes, used_bytes: used.saturating_sub(cached) });
        }
    }
    Ok(limits)
}

/// The tightest limit of processor time over this process.
pub(super) fn cpu(files: &Files) -> Fact<Option<CpuLimit>> {
    let Some(groups) = Groups::of(files, "cpu")? else { return Ok(None) };
    let mut tightest: Option<CpuLimit> = None;
    for group in &groups.paths {
        let (file, quota, period_us) = match groups.version {
            Version::One => {
                let file = format!("{group}/cpu.cfs_quota_us");
                let quota = present(files.text(&file))?.filter(|quota| quota != "-1");
                let Some(quota) = quota else { continue };
                (file, quota, files.number(&format!("{group}/cpu.cfs_period_us"))?)
            }
            Version::Two => {
                let file = format!("{group}/cpu.max");
                let Some(text) = present(files.text(&file))? else { continue };
                let (quota, period) = text.split_once(' ').ok_or_else(|| unreadable(&file, "has no two values"))?;
                if quota == "max" {
                    continue;
                }
                let period_us = parse(&file, period.trim())?;
                (file, quota.to_owned(), period_us)
            }
        };
        let quota_us: u64 = parse(&file, &quota)?;
        if period_us == 0 {
            return Err(unreadable(&file, "a period of nothing"));
        }
        let cores = quota_us as f64 / period_us as f64;
        if tightest.as_ref().is_none_or(|tightest| cores < tightest.cores) {
            tightest = Some(CpuLimit { file, cores, period_us });
        }
    }
    Ok(tightest)
}

/// The number in a file with a limit; none if the file is not there, as in the root's group, or says that there is none.
fn limit(files: &Files, file: &str) -> Fact<Option<u64>> {
    match present(files.text(file))?.as_deref() {
        None | Some("max") => Ok(None),
        Some(text) => Ok(Some(parse::<u64>(file, text)?).filter(|&limit| limit < UNLIMITED)),
    }
}

/// A file that need not be there.
fn present(text: Fact<String>) -> Fact<Option<String>> {
    match text {
        Err(Unknown::Absent(_)) => Ok(None),
        text => text.map(Some),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where the groups of a controller are, this process' own first and then upwards.
struct Groups {
    version: Version,
    paths: Vec<String>,
}

impl Groups {
    /// None if the controller is not mounted, so that nothing limits anything.
    fn of(files: &Files, controller: &str) -> Fact<Option<Self>> {
        let mounts = files.text("/proc/self/mountinfo")?;
        let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
        let one =
            mounts.iter().find(|mount| mount.kind == "cgroup" && mount.options.split(',').any(|o| o == controller));
        let two = mounts.iter().find(|mount| mount.kind == "cgroup2");
        let (version, mount) = match (one, two) {
            (Some(mount), _) => (Version::One, mount),
            (None, Some(mount)) => (Version::Two, mount),
            (None, None) => return Ok(None),
        };
        let memberships = files.text("/proc/self/cgroup")?;
        let own = memberships.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let is_it = match version {
                Version::One => controllers.split(',').any(|name| name == controller),
                Version::Two => controllers.is_empty(),
            };
            is_it.then_some(path)
        });
        let own = own.ok_or_else(|| unreadable("/proc/self/cgroup", format!("has no group for {controller}")))?;
        // A container sees its own group as the mount's root, under either name.
        let below = if mount.root == "/" { Some(own) } else { own.strip_prefix(mount.root) };
        let below = below.filter(|path| !path.starts_with("/..")).unwrap_or_default().trim_end_matches('/');
        let mut path = format!("{}{below}", mount.point);
        let mut paths = vec![path.clone()];
        while path.len() > mount.point.len() {
            path.truncate(path.rfind('/').unwrap_or_default());
            paths.push(path.clone());
        }
        Ok(Some(Self { version, paths }))
    }
}

/// A line of `/proc/self/mountinfo`, as far as it matters.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut system = system.split(' ');
        Some(Self { root: mount.next()?, point: mount.next()?, kind: system.next()?, options: system.nth(1)? })
    }
}

/// Version 1 writes "no limit" as the largest multiple of a page.
const UNLIMITED: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    const TWO: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                          35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    fn tree(mounts: &str, groups: &str) -> Tree {
        Tree::empty().with("/proc/self/mountinfo", mounts).with("/proc/self/cgroup", groups)
    }

    fn group(tree: Tree, path: &str, max: &str, current: &str) -> Tree {
        tree.with(&format!("{path}/memory.max"), max)
            .with(&format!("{path}/memory.high"), "max")
            .with(&format!("{path}/memory.current"), current)
            .with(&format!("{path}/memory.stat"), "anon 5\nfile 9\ninactive_file 100\n")
    }

    #[track_caller]
    fn check(tree: &Tree, expected: Result<&[(&str, u64, u64)], &str>) {
        let limits = memory(&tree.files()).map_err(|unknown| unknown.to_string());
        let limits = limits.map(|limits| {
            let tuple = |limit: MemoryLimit| (limit.file, limit.limit_bytes, limit.used_bytes);
            limits.into_iter().map(tuple).collect::<Vec<_>>()
        });
        let owned = |&(file, limit, used): &(&str, u64, u64)| (file.to_owned(), limit, used);
        assert_eq!(limits, expected.map(|limits| limits.iter().map(owned).collect()).map_err(str::to_owned));
    }

    #[test]
    fn limits_of_all_groups_above_count() {
        let tree = tree(TWO, "0::/system.slice/tidewheel.service");
        let tree = group(tree, "/sys/fs/cgroup/system.slice/tidewheel.service", "max", "700");
        let tree = group(tree, "/sys/fs/cgroup/system.slice", "5000", "2100");
        check(&tree, Ok(&[("/sys/fs/cgroup/system.slice/memory.max", 5000, 2000)]));
        let tree = tree.with("/sys/fs/cgroup/system.slice/tidewheel.service/memory.high", "1000\n");
        check(
            &tree,
            Ok(&[
                ("/sys/fs/cgroup/system.slice/tidewheel.service/memory.high", 1000, 600),
                ("/sys/fs/cgroup/system.slice/memory.max", 5000, 2000),
            ]),
        );
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        let own = group(tree(TWO, "0::/"), "/sys/fs/cgroup", "4096", "100");
        check(&own, Ok(&[("/sys/fs/cgroup/memory.max", 4096, 0)]));
        let outside = group(tree(TWO, "0::/../../other"), "/sys/fs/cgroup", "4096", "150");
        check(&outside, Ok(&[("/sys/fs/cgroup/memory.max", 4096, 50)]));
        let mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let bound = tree(mounts, "4:memory:/docker/abc\n0::/docker/abc")
            .with("/sys/fs/cgroup/memory/memory.limit_in_bytes", "8192")
            .with("/sys/fs/cgroup/memory/memory.usage_in_bytes", "10")
            .with("/sys/fs/cgroup/memory/memory.stat", "inactive_file 3\ntotal_inactive_file 4\n");
        check(&bound, Ok(&[("/sys/fs/cgroup/memory/memory.limit_in_bytes", 8192, 6)]));
    }

    #[test]
    fn version_one_where_it_is_mounted() {
        let tree = tree(HYBRID, "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/")
            .with("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712")
            .with("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000")
            .with("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "999")
            .with("/sys/fs/cgroup/memory/a/memory.stat", "total_inactive_file 0");
        check(&tree, Ok(&[("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", 1000, 999)]));
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_no_limit() {
        let bare = || tree(TWO, "0::/a");
        check(&bare(), Ok(&[])); // no controller: no limit
        check(&tree("30 23 0:26 / /proc rw - proc proc rw", ""), Ok(&[]));
        check(&Tree::empty(), Err("/proc/self/mountinfo is not there"));
        check(&Tree::empty().with("/proc/self/mountinfo", TWO), Err("/proc/self/cgroup is not there"));
        check(&tree(TWO, "4:memory:/a"), Err("/proc/self/cgroup: has no group for memory"));
        check(
            &bare().with("/sys/fs/cgroup/a/memory.max", "much"),
            Err("/sys/fs/cgroup/a/memory.max: `much` is no number"),
        );
        check(&bare().with("/sys/fs/cgroup/a/memory.max", "5"), Err("/sys/fs/cgroup/a/memory.current is not there"));
    }

    #[test]
    fn the_tightest_quota_counts() {
        #[track_caller]
        fn check(tree: &Tree, expected: Result<Option<f64>, &str>) {
            let cores = cpu(&tree.files()).map(|limit| limit.map(|limit| limit.cores));
            assert_eq!(cores.map_err(|unknown| unknown.to_string()), expected.map_err(str::to_owned));
        }
        let two = |own: &str, above: &str| {
            tree(TWO, "0::/a/b").with("/sys/fs/cgroup/a/b/cpu.max", own).with("/sys/fs/cgroup/a/cpu.max", above)
        };
        check(&two("max 100000", "max 100000"), Ok(None));
        check(&two("150000 100000", "max 100000"), Ok(Some(1.5)));
        check(&two("150000 100000", "50000 100000"), Ok(Some(0.5)));
        check(&two("150000", "max 100000"), Err("/sys/fs/cgroup/a/b/cpu.max: has no two values"));
        check(&two("150000 0", "max 100000"), Err("/sys/fs/cgroup/a/b/cpu.max: a period of nothing"));
        check(&two("some 100000", "max 100000"), Err("/sys/fs/cgroup/a/b/cpu.max: `some` is no number"));
        let one = |quota: &str| {
            let file = "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us";
            tree(HYBRID, "1:cpu,cpuacct:/a").with(file, quota).with("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "50000")
        };
        check(&one("-1"), Ok(None));
        check(&one("200000"), Ok(Some(4.0)));
        check(&one("-2"), Err("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us: `-2` is no number"));
    }
}

//! What the machine says of itself in files, and room for the region.
#![expect(unsafe_code, reason = "reserves address space, asks for limits")]

use std::fs;

use ext_api::limits::{BASE_MAX, BASE_MIN, HUGE_PAGE_LEN};
use libos::layout::{LEN_DEFAULT, PRIVATE_LEN};

use super::Found;

/// First kernel with everything that a sandbox cannot do without.
const KERNEL_MIN: (u32, u32) = (5, 9);

/// Everything that a participant reserves.
const SPAN: usize = LEN_DEFAULT + PRIVATE_LEN;

/// Bases that are tried, over the whole range that they are drawn from.
const BASES_TRIED: usize = 16;

pub(super) fn kernel() -> Found {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let new_enough = version(release).is_some_and(|version| version >= KERNEL_MIN);
    Found::new(new_enough, if release.is_empty() { "/proc is not mounted" } else { release })
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn yama() -> Found {
    match fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(scope) => {
            let scope = scope.trim();
            Found::new(matches!(scope, "0" | "1"), format!("ptrace_scope {scope}"))
        }
        Err(_) => Found::new(true, "this kernel does not restrict ptrace by Yama"),
    }
}

/// Whether the region fits at several bases.
pub(super) fn address_range() -> Found {
    let room = BASE_MAX - BASE_MIN - SPAN;
    let step = room / (BASES_TRIED - 1) / HUGE_PAGE_LEN * HUGE_PAGE_LEN;
    let free = (0..BASES_TRIED).filter(|index| is_free(BASE_MIN + index * step)).count();
    Found::new(free > 0, format!("{free} of {BASES_TRIED} bases are free for {} MiB", SPAN >> 20))
}

/// Whether `SPAN` bytes at `base` can be reserved.
fn is_free(base: usize) -> bool {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let wanted = std::ptr::without_provenance_mut(base);
    // SAFETY: replaces nothing, and nothing else uses what it gets.
    let got = unsafe { libc::mmap(wanted, SPAN, libc::PROT_NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: just mapped, and known to nobody.
    unsafe { libc::munmap(got, SPAN) };
    got == wanted
}

/// The narrowest limit on this process's memory, and whether a default sandbox fits it.
pub(super) fn memory_limits() -> Found {
    let space = address_space();
    let (group, memory) = group_limit();
    let space_text = if space == libc::RLIM_INFINITY { "no limit".to_owned() } else { mib(space) };
    let memory_text = memory.map_or_else(|| "no limit".to_owned(), mib);
    let fits = space >= SPAN as u64 && memory.is_none_or(|memory| memory >= LEN_DEFAULT as u64);
    Found::new(fits, format!("address space: {space_text}; control group {group}: {memory_text}"))
}

/// The limit on this process's address space.
fn address_space() -> u64 {
    let none = libc::RLIM_INFINITY;
    let mut limit = libc::rlimit { rlim_cur: none, rlim_max: none };
    // SAFETY: the kernel writes one pair.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    if result == 0 { limit.rlim_cur } else { none }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The control group (version 2) of this process with the narrowest limit, among its own and
/// those around it.
fn group_limit() -> (String, Option<u64>) {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let limits = std::path::Path::new(&own).ancestors().filter_map(|group| {
        let folder = format!("/sys/fs/cgroup{}", group.display());
        let limit = fs::read_to_string(format!("{folder}/memory.max")).ok()?;
        Some((group.display().to_string(), limit.trim().parse().ok()?))
    });
    match limits.min_by_key(|(_, limit)| *limit) {
        Some((group, limit)) => (group, Some(limit)),
        None => (own, None),
    }
}

#[cfg(test)]
mod tests {
    use super::{KERNEL_MIN, address_range, version};

    #[test]
    fn versions_are_read() {
        assert_eq!(version("6.18.44-cloud"), Some((6, 18)));
        assert_eq!(version("5.9-rc1"), Some(KERNEL_MIN));
        assert!(version("5.10.0").unwrap() > KERNEL_MIN);
        assert_eq!(version(""), None);
    }

    #[test]
    fn a_test_process_has_room_for_a_region() {
        let found = address_range();
        assert!(found.present, "{}", found.seen);
    }
}

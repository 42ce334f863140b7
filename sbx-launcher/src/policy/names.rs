//! What a policy may say by name: sets of system calls, errors, constants; and what a person who
//! misspelt one of them probably meant.

use nix::errno::Errno;

use super::syscalls::{self, Syscall};

/// Sets of system calls, named for what their calls give access to.
const SETS: &[(&str, &[&str])] = &[
    ("@clock", &["adjtimex", "clock_adjtime", "clock_settime", "settimeofday"]),
    (
        "@debug",
        &[
            "kcmp",
            "perf_event_open",
            "pidfd_getfd",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
    ),
    (
        "@file",
        &[
            "access",
            "chdir",
            "chmod",
            "chown",
            "chroot",
            "creat",
            "faccessat",
            "faccessat2",
            "fchmodat",
            "fchmodat2",
            "fchownat",
            "lchown",
            "link",
            "linkat",
            "mkdir",
            "mkdirat",
            "mknod",
            "mknodat",
            "newfstatat",
            "open",
            "openat",
            "openat2",
            "readlink",
            "readlinkat",
            "rename",
            "renameat",
            "renameat2",
            "rmdir",
            "stat",
            "lstat",
            "statx",
            "symlink",
            "symlinkat",
            "truncate",
            "unlink",
            "unlinkat",
        ],
    ),
    ("@io-uring", &["io_uring_enter", "io_uring_register", "io_uring_setup"]),
    ("@ipc", &["mq_open", "mq_unlink", "msgctl", "msgget", "semctl", "semget", "shmctl", "shmget"]),
    ("@keyring", &["add_key", "keyctl", "request_key"]),
    ("@module", &["delete_module", "finit_module", "init_module"]),
    (
        "@mount",
        &[
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "pivot_root",
            "umount2",
        ],
    ),
    (
        "@network",
        &[
            "accept",
            "accept4",
            "bind",
            "connect",
            "listen",
            "recvmmsg",
            "recvmsg",
            "recvfrom",
            "sendmmsg",
            "sendmsg",
            "sendto",
            "setsockopt",
            "shutdown",
            "socket",
            "socketpair",
        ],
    ),
    ("@process", &["clone", "clone3", "execve", "execveat", "fork", "vfork"]),
    ("@raw-io", &["ioperm", "iopl"]),
    ("@reboot", &["kexec_file_load", "kexec_load", "reboot"]),
    ("@swap", &["swapoff", "swapon"]),
];

/// Constants that rules compare arguments with.
const CONSTANTS: &[(&str, u64)] = &[
    ("AF_INET", libc::AF_INET as u64),
    ("AF_INET6", libc::AF_INET6 as u64),
    ("AF_NETLINK", libc::AF_NETLINK as u64),
    ("AF_PACKET", libc::AF_PACKET as u64),
    ("AF_UNIX", libc::AF_UNIX as u64),
    ("AF_VSOCK", libc::AF_VSOCK as u64),
    ("ARCH_ENABLE_TAGGED_ADDR", 0x4002),
    ("CLONE_NEWUSER", libc::CLONE_NEWUSER as u64),
    ("PER_QUERY", 0xffff_ffff),
    ("PROT_EXEC", libc::PROT_EXEC as u64),
    ("READ_IMPLIES_EXEC", libc::READ_IMPLIES_EXEC as u64),
    ("SOCK_RAW", libc::SOCK_RAW as u64),
    ("TIOCLINUX", 0x541c),
    ("TIOCSTI", libc::TIOCSTI),
];

/// Names of errors that share a number with another.
const ERRNO_ALIASES: &[(&str, Errno)] =
    &[("EWOULDBLOCK", Errno::EAGAIN), ("ENOTSUP", Errno::EOPNOTSUPP)];

/// Greatest number of an error on Linux (`EHWPOISON`).
const ERRNO_MAX: i32 = 133;

/// The calls that `name` stands for: a set with `@`, or one call.
pub(super) fn syscalls(name: &str) -> Option<Vec<Syscall>> {
    if !name.starts_with('@') {
        return syscalls::by_name(name).map(|call| vec![call]);
    }
    let (_, members) = SETS.iter().find(|(set, _)| *set == name)?;
    Some(members.iter().filter_map(|member| syscalls::by_name(member)).collect())
}

/// The system call or set whose name is most like `name`.
pub(super) fn nearest_syscall(name: &str) -> &'static str {
    let sets = SETS.iter().map(|(set, _)| *set);
    nearest(name, sets.chain(syscalls::all().map(|call| call.name)))
}

/// The error named `name`.
pub(super) fn errno(name: &str) -> Option<Errno> {
    let alias = ERRNO_ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, errno)| *errno);
    alias.or_else(|| errnos().find(|errno| format!("{errno:?}") == name))
}

/// The error whose name is most like `name`.
pub(super) fn nearest_errno(name: &str) -> String {
    let names: Vec<_> = errnos().map(|errno| format!("{errno:?}")).collect();
    nearest(name, names.iter().map(String::as_str)).to_owned()
}

fn errnos() -> impl Iterator<Item = Errno> {
    (1..=ERRNO_MAX).map(Errno::from_raw).filter(|errno| *errno != Errno::UnknownErrno)
}

/// The constant named `name`.
pub(super) fn constant(name: &str) -> Option<u64> {
    CONSTANTS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// The constant whose name is most like `name`.
pub(super) fn nearest_constant(name: &str) -> &'static str {
    nearest(name, CONSTANTS.iter().map(|(known, _)| *known))
}

/// The first of `known` with the fewest edits from `name`; empty if there is none.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    known.min_by_key(|candidate| edits(name, candidate)).unwrap_or_default()
}

/// Insertions, deletions and replacements that make `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{SETS, constant, edits, errno, nearest_errno, nearest_syscall, syscalls};

    #[test]
    fn every_member_of_a_set_is_a_call() {
        for (set, members) in SETS {
            let found = syscalls(set).expect(set);
            assert_eq!(found.len(), members.len(), "{set}");
        }
    }

    #[test]
    fn misspellings_find_their_neighbours() {
        assert_eq!((edits("", "ab"), edits("ptrac", "ptrace"), edits("abc", "adc")), (2, 1, 1));
        assert_eq!(nearest_syscall("userfaultd"), "userfaultfd");
        assert_eq!(nearest_syscall("@debgu"), "@debug");
        assert_eq!(nearest_errno("EPRM"), "EPERM");
        assert_eq!(errno("EPERM").map(|errno| errno as i32), Some(1));
        assert_eq!(errno("ENOSYS").map(|errno| errno as i32), Some(38));
        assert_eq!(errno("EWOULDBLOCK"), errno("EAGAIN"));
        assert_eq!(errno("UnknownErrno"), None);
        assert_eq!(constant("TIOCSTI"), Some(0x5412));
    }
}

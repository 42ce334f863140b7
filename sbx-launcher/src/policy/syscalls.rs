//! Names and numbers of system calls.

use std::sync::OnceLock;

const TABLE: &str = include_str!("../../policies/syscalls-x86_64.txt");

/// A system call of 64-bit x86 Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Syscall {
    /// What the kernel calls it by.
    pub number: u32,
    /// What people call it by.
    pub name: &'static str,
}

/// All of them, by number.
pub fn all() -> &'static [Syscall] {
    static PARSED: OnceLock<Vec<Syscall>> = OnceLock::new();
    PARSED.get_or_init(|| TABLE.lines().filter_map(parse).collect())
}

fn parse(line: &'static str) -> Option<Syscall> {
    let (number, name) = line.split_once(' ')?;
    Some(Syscall { number: number.parse().ok()?, name })
}

/// The call named `name`.
pub fn by_name(name: &str) -> Option<Syscall> {
    all().iter().find(|call| call.name == name).copied()
}

/// The name of call `number`.
pub fn name_of(number: u32) -> Option<&'static str> {
    all().iter().find(|call| call.number == number).map(|call| call.name)
}

#[cfg(test)]
mod tests {
    use super::{TABLE, all, by_name, name_of};

    #[test]
    fn the_table_is_whole() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(all().len(), lines, "every line that is no comment parses");
        assert!(all().windows(2).all(|pair| pair[0].number < pair[1].number));
        let mut names: Vec<_> = all().iter().map(|call| call.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "names are unique");
    }

    #[test]
    fn the_table_agrees_with_libc() {
        let known = [
            ("read", libc::SYS_read),
            ("mmap", libc::SYS_mmap),
            ("madvise", libc::SYS_madvise),
            ("clone", libc::SYS_clone),
            ("execve", libc::SYS_execve),
            ("personality", libc::SYS_personality),
            ("arch_prctl", libc::SYS_arch_prctl),
            ("mbind", libc::SYS_mbind),
            ("execveat", libc::SYS_execveat),
            ("userfaultfd", libc::SYS_userfaultfd),
            ("pkey_mprotect", libc::SYS_pkey_mprotect),
            ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("clone3", libc::SYS_clone3),
            ("process_madvise", libc::SYS_process_madvise),
            ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node),
            ("mseal", libc::SYS_mseal),
        ];
        for (name, number) in known {
            let number = u32::try_from(number).unwrap();
            assert_eq!(by_name(name).map(|call| call.number), Some(number), "{name}");
            assert_eq!(name_of(number), Some(name));
        }
        assert_eq!(by_name("nosuch"), None);
    }
}

//! Names and numbers of system calls.

const TABLE: &str = include_str!("../../policies/syscalls-x86_64.txt");

/// Where a line's parts lie. The table is read by the compiler: every launch looks names up.
#[derive(Debug, Clone, Copy)]
struct Row {
    number: u16,
    name: u16,
    len: u16,
}

const ROWS_MAX: usize = 512;
static ROWS: ([Row; ROWS_MAX], usize) = rows(TABLE.as_bytes());

/// The rows of all lines that begin with a digit, and how many these are.
const fn rows(text: &[u8]) -> ([Row; ROWS_MAX], usize) {
    let mut rows = [Row { number: 0, name: 0, len: 0 }; ROWS_MAX];
    let (mut count, mut at) = (0, 0);
    while at < text.len() {
        let mut number = 0;
        let is_row = text[at].is_ascii_digit();
        while is_row && text[at] != b' ' {
            number = number * 10 + (text[at] - b'0') as u16;
            at += 1;
        }
        let name = at + 1;
        while at < text.len() && text[at] != b'\n' {
            at += 1;
        }
        if is_row {
            rows[count] = Row { number, name: name as u16, len: (at - name) as u16 };
            count += 1;
        }
        at += 1;
    }
    (rows, count)
}

/// A system call of 64-bit x86 Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Syscall {
    /// What the kernel calls it by.
    pub number: u32,
    /// What people call it by.
    pub name: &'static str,
}

/// All of them, by number.
pub fn all() -> impl Iterator<Item = Syscall> {
    ROWS.0[..ROWS.1].iter().map(|row| {
        let name = row.name as usize;
        Syscall { number: row.number.into(), name: &TABLE[name..name + row.len as usize] }
    })
}

/// The call named `name`.
pub fn by_name(name: &str) -> Option<Syscall> {
    all().find(|call| call.name == name)
}

/// The name of call `number`.
pub fn name_of(number: u32) -> Option<&'static str> {
    all().find(|call| call.number == number).map(|call| call.name)
}

#[cfg(test)]
mod tests {
    use super::{TABLE, all, by_name, name_of};

    #[test]
    fn the_table_is_whole() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(all().count(), lines, "every line that is no comment parses");
        assert!(all().is_sorted_by(|one, next| one.number < next.number));
        let mut names: Vec<_> = all().map(|call| call.name).collect();
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

//! Which descriptors of this process are open, and how many could be.

use super::ask;
use crate::sys::{ENOENT, nr};

/// Descriptors that are looked at one by one if there is no /proc.
const TRIED_MAX: usize = 1024;
/// A directory's entry: inode and offset, its length in bytes, its type, its name.
const LEN_AT: usize = 16;
const NAME_AT: usize = 19;

/// Say each.
pub(super) fn each(mut on: impl FnMut(usize)) {
    const AT_FDCWD: isize = -100;
    const DIRECTORY_CLOEXEC: usize = 0x1_0000 | 0x8_0000;
    let path = c"/proc/self/fd".as_ptr() as usize;
    let listed = ask(nr::OPENAT, [AT_FDCWD as usize, path, DIRECTORY_CLOEXEC]);
    let Ok(listed) = usize::try_from(listed) else {
        (0..TRIED_MAX).for_each(on);
        return;
    };
    // As the words that entries are aligned to.
    let mut words = [0u64; 256];
    loop {
        let got = ask(nr::GETDENTS64, [listed, words.as_mut_ptr() as usize, size_of_val(&words)]);
        let Some(got) = usize::try_from(got).ok().filter(|got| *got != 0) else { break };
        let mut bytes = [0u8; 2048];
        bytes
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip(words)
            .for_each(|(to, word)| *to = word.to_ne_bytes());
        let mut rest = bytes.get(..got).unwrap_or_default();
        while let Some((fd, len)) = entry(rest) {
            if let Some(fd) = fd.filter(|fd| *fd != listed) {
                on(fd);
            }
            rest = rest.get(len..).unwrap_or_default();
        }
    }
    ask(nr::CLOSE, [listed]);
}

/// The descriptor that the first entry names, and the entry's length.
fn entry(bytes: &[u8]) -> Option<(Option<usize>, usize)> {
    let len = u16::from_ne_bytes(bytes.get(LEN_AT..LEN_AT + 2)?.try_into().ok()?);
    let name = bytes.get(NAME_AT..usize::from(len))?;
    let digits = name.iter().position(|byte| *byte == 0).map(|end| &name[..end]);
    let number = digits.and_then(|digits| core::str::from_utf8(digits).ok()?.parse().ok());
    Some((number, usize::from(len)))
}

/// Is any of them an epoll instance?
pub(super) fn any_epoll() -> bool {
    const DELETE: usize = 2;
    // Something that none has: an instance says so, and what is none says that.
    let new = ask(nr::EVENTFD2, [0, 0]);
    let Ok(new) = usize::try_from(new) else { return true };
    let mut any = false;
    each(|fd| any |= ask(nr::EPOLL_CTL, [fd, DELETE, new]) == -(ENOENT as isize));
    ask(nr::CLOSE, [new]);
    any
}

/// Descriptors that the kernel has room for in its table of this process.
pub(super) fn room() -> Option<usize> {
    const AT_FDCWD: isize = -100;
    const CLOEXEC: usize = 0x8_0000;
    const KEY: &[u8] = b"FDSize:\t";
    let path = c"/proc/self/status".as_ptr() as usize;
    let file = usize::try_from(ask(nr::OPENAT, [AT_FDCWD as usize, path, CLOEXEC])).ok()?;
    let mut text = [0u8; 1024];
    let got = ask(nr::READ, [file, text.as_mut_ptr() as usize, text.len()]);
    ask(nr::CLOSE, [file]);
    let text = text.get(..usize::try_from(got).ok()?)?;
    let at = text.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let digits = text.get(at..)?.split(|byte| *byte == b'\n').next()?;
    core::str::from_utf8(digits).ok()?.parse().ok()
}

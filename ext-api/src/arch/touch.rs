//! Bytes of a program's memory, where there may be none: read and written by instructions that libos knows.
//!
//! A handler looks at what a program gives to a system call, and a program gives whatever it likes. Each access is one
//! instruction and, behind it, one that does nothing and has a mark in it. Of a fault at such a pair libos makes a
//! result: all bits of rax are set, and the thread goes on behind it.
#![expect(unsafe_code, reason = "assembly")]

/// Bytes of such a pair.
pub const LEN: usize = 10;
/// What rax holds if there was nothing: no byte.
pub const NOTHING: u64 = u64::MAX;

/// `movzx eax, byte ptr [rdx]`, then `nop dword ptr [rax + mark]`.
const LOAD: [u8; LEN] = [0x0f, 0xb6, 0x02, 0x0f, 0x1f, 0x80, 0x53, 0x42, 0x58, 0x31];
/// `mov byte ptr [rdx], al`, with a prefix that means nothing, then the same.
const STORE: [u8; LEN] = [0x40, 0x88, 0x02, 0x0f, 0x1f, 0x80, 0x53, 0x42, 0x58, 0x31];

/// Are these the bytes of a pair?
#[must_use]
pub fn is_pair(bytes: &[u8; LEN]) -> bool {
    *bytes == LOAD || *bytes == STORE
}

/// The byte at an address of the program's. None if nothing is there that can be read.
#[must_use]
#[inline]
pub fn load(from: *const u8) -> Option<u8> {
    let byte: u64;
    #[cfg(not(miri))]
    // SAFETY: what is there is read, or libos says that nothing is.
    unsafe {
        core::arch::asm!(
            ".byte {0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}",
            const LOAD[0], const LOAD[1], const LOAD[2], const LOAD[3], const LOAD[4],
            const LOAD[5], const LOAD[6], const LOAD[7], const LOAD[8], const LOAD[9],
            in("rdx") from, out("rax") byte,
            options(nostack, readonly, preserves_flags));
    }
    #[cfg(miri)]
    // SAFETY: the tests that are interpreted give addresses of bytes.
    let byte = u64::from(unsafe { from.read() });
    u8::try_from(byte).ok()
}

/// Write a byte to an address of the program's. False if nothing is there that can be written.
///
/// # Safety
/// The program has asked for it to be written there.
#[must_use]
#[inline]
pub unsafe fn store(to: *mut u8, byte: u8) -> bool {
    let mut result = u64::from(byte);
    #[cfg(not(miri))]
    // SAFETY: by contract; or nothing is there, which libos says.
    unsafe {
        core::arch::asm!(
            ".byte {0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}",
            const STORE[0], const STORE[1], const STORE[2], const STORE[3], const STORE[4],
            const STORE[5], const STORE[6], const STORE[7], const STORE[8], const STORE[9],
            in("rdx") to, inout("rax") result,
            options(nostack, preserves_flags));
    }
    #[cfg(miri)]
    // SAFETY: by contract.
    unsafe {
        to.write(byte);
        result = u64::from(byte);
    }
    result != NOTHING
}

#[cfg(test)]
mod tests {
    use super::{load, store};

    #[test]
    fn bytes_are_read_and_written() {
        let mut bytes = [1, 0xff, 3];
        // SAFETY: bytes of this function's.
        assert!(unsafe { store(&raw mut bytes[2], 0xfe) });
        assert_eq!(bytes.map(|byte| load(&raw const byte)), [1, 0xff, 0xfe].map(Some));
    }
}

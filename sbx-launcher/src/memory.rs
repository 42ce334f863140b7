//! Reading and writing another process's memory.
#![expect(unsafe_code, reason = "process_vm_readv and process_vm_writev")]

use std::io;

/// Fill `into` from `address` of the task `tid`.
///
/// # Errors
/// The kernel's; `EFAULT` if a part is not readable there.
pub fn read(tid: i32, address: u64, into: &mut [u8]) -> io::Result<()> {
    let len = into.len();
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len };
    // SAFETY: the kernel writes at most `len` bytes into `into`.
    let got = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    whole(got, len)
}

/// Write `from` to `address` of the task `tid`.
///
/// # Errors
/// As [`read`].
pub fn write(tid: i32, address: u64, from: &[u8]) -> io::Result<()> {
    let len = from.len();
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len };
    // SAFETY: the kernel reads `from`; the other process is the caller's to change.
    let got = unsafe { libc::process_vm_writev(tid, &raw const local, 1, &raw const remote, 1, 0) };
    whole(got, len)
}

fn whole(got: isize, len: usize) -> io::Result<()> {
    match usize::try_from(got) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(got) if got == len => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

/// `N` words from `address` of the task `tid`.
///
/// # Errors
/// As [`read`].
pub fn read_words<const N: usize>(tid: i32, address: u64) -> io::Result<[u64; N]> {
    let mut bytes = [[0; 8]; N];
    read(tid, address, bytes.as_flattened_mut())?;
    Ok(bytes.map(u64::from_le_bytes))
}

/// Words to `address` of the task `tid`.
///
/// # Errors
/// As [`write()`].
pub fn write_words(tid: i32, address: u64, words: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    write(tid, address, &bytes)
}

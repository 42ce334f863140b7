//! Single system calls that ask the kernel whether it has something, and leave nothing behind.
#![expect(unsafe_code, reason = "system calls that no library wraps")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use ext_api::limits::HUGE_PAGE_LEN;
use memfd::{FileSeal, MemfdOptions};

use super::Found;

/// Whether this kernel seals mappings (from Linux 6.10, on 64 bits).
#[must_use]
pub fn has_mseal() -> bool {
    // SAFETY: sealing nothing at address 0 has no effect.
    unsafe { libc::syscall(libc::SYS_mseal, 0, 0, 0) == 0 }
}

/// A system call's result as one.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor that a system call has just returned.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(checked(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it for the caller, who passes its only copy.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn mseal() -> Found {
    let present = has_mseal();
    Found::new(present, if present { "works" } else { "not offered" })
}

pub(super) fn landlock() -> Found {
    const VERSION: u32 = 1;
    let none = ptr::null::<u8>();
    // SAFETY: with this flag the call only returns a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    match checked(abi) {
        Ok(abi) => Found::new(true, format!("ABI {abi}")),
        Err(error) => Found::new(false, error.to_string()),
    }
}

pub(super) fn user_notif() -> Found {
    let (question, action) = (libc::SECCOMP_GET_ACTION_AVAIL, libc::SECCOMP_RET_USER_NOTIF);
    // SAFETY: the kernel reads one number.
    let known = unsafe { libc::syscall(libc::SYS_seccomp, question, 0, &raw const action) };
    Found::from_result(&checked(known))
}

/// A kernel that knows the flags gets as far as reading the program, which is at no address.
pub(super) fn wait_killable() -> Found {
    let flags =
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let (mode, none) = (libc::SECCOMP_SET_MODE_FILTER, ptr::null::<u8>());
    // SAFETY: without a program no filter is installed.
    let refused = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, none) };
    let error = checked(refused).err().and_then(|error| error.raw_os_error());
    let present = error == Some(libc::EFAULT);
    Found::new(present, if present { "works" } else { "not offered" })
}

fn memory_file() -> io::Result<memfd::Memfd> {
    let made = MemfdOptions::default().allow_sealing(true).create("sbx-doctor");
    made.map_err(io::Error::other)
}

pub(super) fn seals() -> Found {
    let seals = [FileSeal::SealFutureWrite, FileSeal::SealShrink, FileSeal::SealGrow];
    Found::from_result(
        &memory_file().and_then(|file| file.add_seals(&seals).map_err(io::Error::other)),
    )
}

pub(super) fn huge_tmpfs() -> Found {
    Found::from_result(&mount_huge())
}

/// A mount that is attached nowhere and ends with its descriptor.
fn mount_huge() -> io::Result<OwnedFd> {
    const CLOEXEC: u32 = 1;
    const SET_STRING: u32 = 1;
    const CREATE: u32 = 6;
    let (config, none) = (libc::SYS_fsconfig, ptr::null::<u8>());
    // SAFETY: the kernel reads a text that ends with a zero.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOEXEC) };
    let context = descriptor(context)?;
    let fd = context.as_raw_fd();
    let (key, value) = (c"huge".as_ptr(), c"always".as_ptr());
    // SAFETY: the kernel reads two texts that end with zeros.
    checked(unsafe { libc::syscall(config, fd, SET_STRING, key, value, 0) })?;
    // SAFETY: this command reads nothing.
    checked(unsafe { libc::syscall(config, fd, CREATE, none, none, 0) })?;
    // SAFETY: takes numbers only.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOEXEC, 0) })
}

pub(super) fn collapse() -> Found {
    Found::from_result(&collapse_file())
}

/// Collapses a huge page's worth of a memory file.
fn collapse_file() -> io::Result<()> {
    let file = memory_file()?;
    file.as_file().set_len(HUGE_PAGE_LEN as u64)?;
    let (len, none) = (2 * HUGE_PAGE_LEN, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new reservation where the kernel likes.
    let room = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, none, -1, 0) };
    if room == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let result = collapse_at(room.map_addr(|at| at.next_multiple_of(HUGE_PAGE_LEN)), &file);
    // SAFETY: mapped above, and no pointer into it is left.
    unsafe { libc::munmap(room, len) };
    result
}

/// Maps `file` over a reservation of a huge page at `place`, and collapses it. File and address
/// are aligned alike, or the kernel could not.
fn collapse_at(place: *mut libc::c_void, file: &memfd::Memfd) -> io::Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let (flags, fd) = (libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd());
    // SAFETY: replaces a part of the caller's reservation, which nothing uses.
    let start = unsafe { libc::mmap(place, HUGE_PAGE_LEN, prot, flags, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just mapped, writable, and as long as the file behind it.
    unsafe { start.cast::<u8>().write_volatile(1) };
    // SAFETY: as above; collapsing keeps the contents.
    let result = unsafe { libc::madvise(start, HUGE_PAGE_LEN, libc::MADV_COLLAPSE) };
    checked(result.into()).map(drop)
}

pub(super) fn membarrier() -> Found {
    const QUERY: i32 = 0;
    const GLOBAL_EXPEDITED: libc::c_long = 1 << 1;
    // SAFETY: takes numbers only.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) };
    match checked(commands) {
        Ok(commands) if commands & GLOBAL_EXPEDITED != 0 => Found::new(true, "works"),
        Ok(commands) => Found::new(false, format!("commands {commands:#x} only")),
        Err(error) => Found::new(false, error.to_string()),
    }
}

pub(super) fn procmap_query() -> Found {
    /// `PROCMAP_QUERY`: reads and writes a structure of 104 bytes.
    const REQUEST: libc::Ioctl = 0xc068_6611;
    /// Words of that structure; its first is its size, its third an address.
    const WORDS: usize = 13;
    let ask = || {
        let maps = File::open("/proc/self/maps")?;
        let mut query = [0u64; WORDS];
        query[0] = size_of_val(&query) as u64;
        query[2] = (&raw const query).addr() as u64;
        // SAFETY: the kernel reads and writes `WORDS` words.
        let found = unsafe { libc::ioctl(maps.as_raw_fd(), REQUEST, &raw mut query) };
        checked(found.into())
    };
    Found::from_result(&ask())
}

pub(super) fn pidfd() -> Found {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    Found::from_result(&descriptor(fd))
}

pub(super) fn fsgsbase() -> Found {
    const FSGSBASE: libc::c_ulong = 1 << 1;
    // SAFETY: reads a number that the kernel gave this process at its start.
    let bits = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    let present = bits & FSGSBASE != 0;
    Found::new(present, if present { "works" } else { "not enabled for programs" })
}

pub(super) fn protection_keys() -> Found {
    // SAFETY: takes numbers only.
    match checked(unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) }) {
        Ok(key) => {
            // SAFETY: the key was just made, and no page has it.
            unsafe { libc::syscall(libc::SYS_pkey_free, key) };
            Found::new(true, "works")
        }
        Err(error) => Found::new(false, error.to_string()),
    }
}

pub(super) fn userfaultfd() -> Found {
    const USER_MODE_ONLY: i32 = 1;
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    Found::from_result(&descriptor(fd))
}

pub(super) fn user_dispatch() -> Found {
    const SET_DISPATCH: i32 = 59;
    const OFF: i32 = 0;
    // SAFETY: takes numbers only, and switches off what is off.
    let off = unsafe { libc::prctl(SET_DISPATCH, OFF, 0, 0, 0) };
    Found::from_result(&checked(off.into()))
}

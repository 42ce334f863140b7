//! File descriptors of region code: they belong to the process that opened them.
//!
//! A descriptor is only a number, and a `File` in shared state would name another process's file.
//! So the numbers given to extensions carry the opener's row and generation; anywhere else they
//! are EBADF.
//!
//! ```text
//! bit 30: one of ours │ 29..24 generation │ 23..14 row of the process │ 13..0 kernel's number
//! ```

use core::ffi::{c_char, c_int, c_long, c_void};

use crate::sys::{self, Errno, nr};
use crate::threads::fail;
use crate::{heap, log, start};

const OURS: i32 = 1 << 30;
const FD_BITS: u32 = 14;
const ROW_BITS: u32 = 10;
const GENERATION_MASK: u32 = 63;

const _: () = assert!(ext_api::limits::PROCESSES_MAX <= 1 << ROW_BITS);

/// This process's mark.
fn mark() -> Option<i32> {
    let own = start::this_process()?;
    let mark = (own.generation & GENERATION_MASK) << ROW_BITS | own.row as u32;
    Some((mark << FD_BITS) as i32)
}

/// The number that region code sees for the kernel's `fd`.
fn to_region(fd: usize) -> Result<c_int, Errno> {
    if fd >= 1 << FD_BITS {
        let _ = sys::close(fd as i32);
        return Err(sys::EMFILE);
    }
    Ok(OURS | mark().ok_or(sys::EBADF)? | fd as i32)
}

/// The kernel's number for `fd`, if it was opened by this process.
fn to_kernel(fd: c_int) -> Result<usize, Errno> {
    let kernel = fd & ((1 << FD_BITS) - 1);
    let same = Some(fd & !OURS & !((1 << FD_BITS) - 1)) == mark();
    if fd & OURS != 0 && same { Ok(kernel as usize) } else { Err(sys::EBADF) }
}

/// A result as libc gives it.
fn result(result: Result<usize, Errno>) -> isize {
    match result {
        Ok(value) => value as isize,
        Err(errno) => fail(errno) as isize,
    }
}

/// A call whose first argument is a descriptor.
fn on_fd<const N: usize>(number: usize, fd: c_int, rest: [usize; N]) -> isize {
    let mut args = [0; 6];
    for (to, from) in args.iter_mut().skip(1).zip(rest) {
        *to = from;
    }
    result(to_kernel(fd).and_then(|fd| {
        args[0] = fd;
        // SAFETY: the caller of the libc function vouches for its arguments.
        unsafe { sys::call(number, args) }
    }))
}

/// A call that takes paths, addresses and numbers only.
fn on_path<const N: usize>(number: usize, args: [usize; N]) -> isize {
    // SAFETY: the caller of the libc function vouches for its arguments.
    result(unsafe { sys::call(number, args) })
}

const AT_FDCWD: usize = -100isize as usize;

pub(crate) extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    openat(AT_FDCWD as c_int, path, flags, mode)
}

pub(crate) extern "C" fn openat(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_int,
) -> c_int {
    let directory = if at as usize == AT_FDCWD { Ok(AT_FDCWD) } else { to_kernel(at) };
    let opened = directory.and_then(|directory| {
        // SAFETY: the caller vouches for the path.
        unsafe { sys::call(nr::OPENAT, [directory, path as usize, flags as usize, mode as usize]) }
    });
    match opened.and_then(to_region) {
        Ok(fd) => fd,
        Err(errno) => fail(errno),
    }
}

pub(crate) extern "C" fn close(fd: c_int) -> c_int {
    on_fd(nr::CLOSE, fd, []) as c_int
}

pub(crate) extern "C" fn read(fd: c_int, to: *mut c_void, len: usize) -> isize {
    on_fd(nr::READ, fd, [to as usize, len])
}

pub(crate) extern "C" fn readv(fd: c_int, parts: *const c_void, count: c_int) -> isize {
    on_fd(nr::READV, fd, [parts as usize, count as usize])
}

pub(crate) extern "C" fn pread(fd: c_int, to: *mut c_void, len: usize, offset: c_long) -> isize {
    on_fd(nr::PREAD64, fd, [to as usize, len, offset as usize])
}

pub(crate) extern "C" fn pwrite(
    fd: c_int,
    from: *const c_void,
    len: usize,
    offset: c_long,
) -> isize {
    on_fd(nr::PWRITE64, fd, [from as usize, len, offset as usize])
}

/// `write(2)`: 1 and 2 are the sandbox's log, not the terminal of whoever happens to call.
pub(crate) extern "C" fn write(fd: c_int, from: *const c_void, len: usize) -> isize {
    if fd == 1 || fd == 2 {
        // SAFETY: the caller vouches for `len` readable bytes.
        log::append(unsafe { core::slice::from_raw_parts(from.cast(), len) });
        return len as isize;
    }
    on_fd(nr::WRITE, fd, [from as usize, len])
}

/// `writev(2)`.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn writev(fd: c_int, parts: *const [usize; 2], count: c_int) -> isize {
    if fd == 1 || fd == 2 {
        let mut written = 0;
        for index in 0..count as usize {
            // SAFETY: `count` parts, by contract.
            let [from, len] = unsafe { parts.add(index).read() };
            written += write(fd, from as *const c_void, len);
        }
        return written;
    }
    on_fd(nr::WRITEV, fd, [parts as usize, count as usize])
}

pub(crate) extern "C" fn lseek(fd: c_int, offset: c_long, whence: c_int) -> c_long {
    on_fd(nr::LSEEK, fd, [offset as usize, whence as usize]) as c_long
}

pub(crate) extern "C" fn fstat(fd: c_int, to: *mut c_void) -> c_int {
    on_fd(nr::FSTAT, fd, [to as usize]) as c_int
}

pub(crate) extern "C" fn fsync(fd: c_int) -> c_int {
    on_fd(nr::FSYNC, fd, []) as c_int
}

pub(crate) extern "C" fn fdatasync(fd: c_int) -> c_int {
    on_fd(nr::FDATASYNC, fd, []) as c_int
}

pub(crate) extern "C" fn ftruncate(fd: c_int, len: c_long) -> c_int {
    on_fd(nr::FTRUNCATE, fd, [len as usize]) as c_int
}

pub(crate) extern "C" fn stat(path: *const c_char, to: *mut c_void) -> c_int {
    on_path(nr::NEWFSTATAT, [AT_FDCWD, path as usize, to as usize, 0]) as c_int
}

/// `statx(2)`; with AT_EMPTY_PATH the descriptor is what is asked about.
pub(crate) extern "C" fn statx(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mask: u32,
    to: *mut c_void,
) -> c_int {
    let directory = if at as usize == AT_FDCWD { Ok(AT_FDCWD) } else { to_kernel(at) };
    result(directory.and_then(|directory| {
        let args = [directory, path as usize, flags as usize, mask as usize, to as usize];
        // SAFETY: the caller vouches for path and buffer.
        unsafe { sys::call(nr::STATX, args) }
    })) as c_int
}

pub(crate) extern "C" fn unlink(path: *const c_char) -> c_int {
    on_path(nr::UNLINK, [path as usize]) as c_int
}

pub(crate) extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    on_path(nr::RENAME, [from as usize, to as usize]) as c_int
}

pub(crate) extern "C" fn mkdir(path: *const c_char, mode: u32) -> c_int {
    on_path(nr::MKDIR, [path as usize, mode as usize]) as c_int
}

pub(crate) extern "C" fn rmdir(path: *const c_char) -> c_int {
    on_path(nr::RMDIR, [path as usize]) as c_int
}

pub(crate) extern "C" fn readlink(path: *const c_char, to: *mut c_char, len: usize) -> isize {
    on_path(nr::READLINK, [path as usize, to as usize, len])
}

/// Longest path, with its zero.
const PATH_LEN: usize = 4096;

/// The path of the file that `path` leads to, as the kernel says it: into `to`, which has room for any, or
/// into memory of the heap if there is none.
pub(crate) extern "C" fn realpath(path: *const c_char, to: *mut c_char) -> *mut c_char {
    const ANY: usize = 0o10_000_000 | 0o2_000_000; // O_PATH, O_CLOEXEC
    let room = if to.is_null() { heap::malloc(PATH_LEN).cast::<c_char>() } else { to };
    if room.is_null() {
        fail(sys::ENOMEM);
        return room;
    }
    // SAFETY: the caller vouches for the path.
    let opened = unsafe { sys::call(nr::OPENAT, [AT_FDCWD, path as usize, ANY, 0]) };
    let found = opened.and_then(|fd| {
        let mut link = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
        write_number(&mut link[14..], fd);
        let args = [link.as_ptr() as usize, room as usize, PATH_LEN - 1];
        // SAFETY: a text of ours that ends in a zero, and room for a path.
        let found = unsafe { sys::call(nr::READLINK, args) };
        let _ = sys::close(fd as i32);
        found
    });
    match found {
        Ok(len) => {
            // SAFETY: the kernel has written `len` bytes, one less than there is room for at most.
            unsafe { room.add(len).write(0) };
            room
        }
        Err(errno) => {
            if to.is_null() {
                // SAFETY: allocated above.
                unsafe { heap::free(room.cast()) };
            }
            fail(errno);
            core::ptr::null_mut()
        }
    }
}

/// Write a number in decimal.
fn write_number(to: &mut [u8], number: usize) {
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut left = number;
    for place in to.iter_mut().take(digits).rev() {
        *place = b'0' + (left % 10) as u8;
        left /= 10;
    }
}

pub(crate) extern "C" fn getcwd(to: *mut c_char, len: usize) -> *mut c_char {
    if on_path(nr::GETCWD, [to as usize, len]) < 0 { core::ptr::null_mut() } else { to }
}

pub(crate) extern "C" fn getrandom(to: *mut c_void, len: usize, flags: u32) -> isize {
    on_path(nr::GETRANDOM, [to as usize, len, flags as usize])
}

pub(crate) extern "C" fn nanosleep(time: *const c_void, left: *mut c_void) -> c_int {
    on_path(nr::NANOSLEEP, [time as usize, left as usize]) as c_int
}

/// `clock_nanosleep(3)`: an error is the result, not in `errno`.
pub(crate) extern "C" fn clock_nanosleep(
    clock: c_int,
    flags: c_int,
    time: *const c_void,
    left: *mut c_void,
) -> c_int {
    let args = [clock as usize, flags as usize, time as usize, left as usize];
    // SAFETY: the caller's timespecs, by the contract of clock_nanosleep.
    unsafe { sys::call(nr::CLOCK_NANOSLEEP, args) }.err().unwrap_or(0)
}

/// `poll(2)` on no descriptors, which is how std sleeps and probes.
pub(crate) extern "C" fn poll(fds: *mut c_void, count: usize, timeout: c_int) -> c_int {
    if count != 0 {
        return fail(sys::ENOSYS);
    }
    on_path(nr::POLL, [fds as usize, 0, timeout as usize]) as c_int
}

/// `syscall(2)`: the few that std makes by number. Futexes in the region are never private, and
/// what would make a process or replace one is refused.
pub(crate) extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    const FUTEX_PRIVATE: usize = 128;
    let number = number as usize;
    match number {
        nr::FUTEX => on_path(number, [a, b & !FUTEX_PRIVATE, c, d, e, f]) as c_long,
        nr::GETRANDOM | nr::GETTID | nr::CLOCK_GETTIME => on_path(number, [a, b, c]) as c_long,
        nr::STATX => c_long::from(statx(a as c_int, b as _, c as c_int, d as u32, e as _)),
        nr::FORK | nr::VFORK | nr::CLONE | nr::CLONE3 => {
            c_long::from(fail(crate::threads::NO_FORK))
        }
        nr::EXECVE | nr::EXECVEAT => c_long::from(fail(crate::threads::NO_EXEC)),
        _ => c_long::from(fail(sys::ENOSYS)),
    }
}

/// Memory of the process that the handler runs in. The region's own mappings are sealed.
pub(crate) extern "C" fn mmap(
    at: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: usize,
) -> *mut c_void {
    let fd = if fd == -1 { Ok(usize::MAX) } else { to_kernel(fd) };
    let made = fd.and_then(|fd| {
        // SAFETY: the caller vouches for what it replaces.
        unsafe {
            sys::mmap(at as usize, len, protection as usize, flags as usize, fd as i32, offset)
        }
    });
    result(made) as *mut c_void
}

pub(crate) extern "C" fn munmap(at: *mut c_void, len: usize) -> c_int {
    on_path(nr::MUNMAP, [at as usize, len]) as c_int
}

pub(crate) extern "C" fn mprotect(at: *mut c_void, len: usize, protection: c_int) -> c_int {
    on_path(nr::MPROTECT, [at as usize, len, protection as usize]) as c_int
}

pub(crate) extern "C" fn mremap(
    at: *mut c_void,
    len: usize,
    new_len: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    on_path(nr::MREMAP, [at as usize, len, new_len, flags as usize, to as usize]) as *mut c_void
}

pub(crate) extern "C" fn mincore(at: *mut c_void, len: usize, to: *mut u8) -> c_int {
    on_path(nr::MINCORE, [at as usize, len, to as usize]) as c_int
}

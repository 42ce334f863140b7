//! Pages that are filled when they are touched: by a hook in the thread that touches them, or by
//! another thread through userfaultfd. Both copy 4 KiB.
#![expect(unsafe_code, reason = "maps memory and touches it")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::null_mut;

use ext_api::client::Sandbox;

use super::pin::{pin, time};

const PAGE_LEN: usize = 4096;

/// A file for `examples/pager` with so many pages that are stored as they are; goes with the value.
pub(super) struct PageFile(PathBuf);

impl PageFile {
    pub(super) fn new(pages: u64) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("sbx-bench-{}.packed", std::process::id()));
        let len = pages * PAGE_LEN as u64;
        let mut file = Vec::from(*b"SBXpack1");
        file.extend([len, PAGE_LEN as u64].into_iter().flat_map(u64::to_le_bytes));
        file.extend((1..=pages).flat_map(|page| (page * PAGE_LEN as u64).to_le_bytes()));
        file.resize(file.len() + len as usize, 1);
        std::fs::write(&path, file)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for PageFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Touch `count` pages from `start`; nanoseconds each.
fn touch(start: usize, count: u64) -> f64 {
    time(count, || {
        for page in 0..count as usize {
            // SAFETY: mapped by the caller, or filled when it is touched.
            let byte = unsafe { ((start + page * PAGE_LEN) as *const u8).read_volatile() };
            assert_eq!(byte, 1, "page {page}");
        }
    })
}

/// In the sandbox: nanoseconds per page that the pager fills.
pub(super) fn by_hook(sandbox: &Sandbox, path: &str, count: u64) -> Result<f64, String> {
    let map = sandbox.find("pager.map").map_err(|error| error.to_string())?;
    let words = [path.as_ptr() as u64, path.len() as u64];
    let start = sandbox.invoke::<u64>(map, &words).map_err(|error| error.to_string())?;
    let ns = touch(start as usize, count);
    let unmap = sandbox.find("pager.unmap").map_err(|error| error.to_string())?;
    sandbox.invoke::<()>(unmap, &[start]).map_err(|error| error.to_string())?;
    Ok(ns)
}

/// A range whose faults are told to a descriptor.
struct Watched {
    fd: OwnedFd,
    start: usize,
    len: usize,
}

impl Watched {
    fn new(pages: u64) -> io::Result<Self> {
        const USER_MODE_ONLY: i32 = 1;
        const API: u64 = 0xaa;
        const IOCTL_API: u64 = 0xc018_aa3f;
        const IOCTL_REGISTER: u64 = 0xc020_aa00;
        const MISSING: u64 = 1;
        let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let len = pages as usize * PAGE_LEN;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: new memory wherever the kernel likes.
        let at = unsafe { libc::mmap(null_mut(), len, libc::PROT_READ, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let watched = Self { fd, start: at as usize, len };
        watched.ioctl(IOCTL_API, &mut [API, 0, 0])?;
        watched.ioctl(IOCTL_REGISTER, &mut [watched.start as u64, len as u64, MISSING, 0])?;
        Ok(watched)
    }

    fn ioctl<const N: usize>(&self, number: u64, words: &mut [u64; N]) -> io::Result<()> {
        // SAFETY: each of the calls takes a structure of so many words.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), number, words.as_mut_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Fill `count` pages as they are touched by another thread.
    fn serve(&self, count: u64) -> io::Result<()> {
        const IOCTL_COPY: u64 = 0xc028_aa03;
        let page = [1u8; PAGE_LEN];
        for _ in 0..count {
            let mut message = [0u64; 4];
            // SAFETY: the kernel writes one message of 32 bytes.
            if unsafe { libc::read(self.fd.as_raw_fd(), message.as_mut_ptr().cast(), 32) } != 32 {
                return Err(io::Error::last_os_error());
            }
            let to = message[2] & !(PAGE_LEN as u64 - 1);
            let from = page.as_ptr() as u64;
            self.ioctl(IOCTL_COPY, &mut [to, from, PAGE_LEN as u64, 0, 0])?;
        }
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody uses it any more.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.len) };
    }
}

/// Nanoseconds per page that a thread on CPU 1 fills for one on CPU 0.
pub(super) fn by_thread(count: u64) -> io::Result<f64> {
    let watched = Watched::new(count)?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            pin(0, 1);
            watched.serve(count)
        });
        pin(0, 0);
        let ns = touch(watched.start, count);
        pin(0, 1);
        server.join().map_err(|_| io::Error::other("the thread panicked"))?.map(|()| ns)
    })
}

/// Why there is no userfaultfd here, if there is none.
pub(super) fn without_thread() -> Option<String> {
    Watched::new(1).err().map(|error| format!("userfaultfd: {error}"))
}

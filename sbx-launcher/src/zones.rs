//! The three zones: made, written once through aliases that only the supervisor has, and sealed.
#![expect(unsafe_code, reason = "maps the zones and writes their tables")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use ext_api::limits::{BASE_MAX, BASE_MIN, HUGE_PAGE_LEN, PAGE_LEN};
use libos::layout::{CODE_FILE_LEN, CONTROL_LEN, LEN_MAX, LEN_MIN, PRIVATE_LEN, Place};

use crate::slot_zero::SlotZero;

/// A zone's file as participants get it, and the supervisor's own writable mapping of it.
#[derive(Debug)]
pub struct Zone {
    /// What participants map.
    pub fd: OwnedFd,
    alias: *mut u8,
    len: usize,
}

impl Zone {
    /// Address of the alias.
    #[must_use]
    pub const fn alias(&self) -> *mut u8 {
        self.alias
    }

    /// Copy bytes to an offset.
    ///
    /// # Panics
    /// They do not fit: the caller worked out the offset wrongly.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        // SAFETY: within the alias, which this value keeps mapped.
        let to = unsafe { self.alias.add(offset) };
        // SAFETY: the bytes fit (asserted), and a mapping does not overlap a slice of ours.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// The page at `offset`, as it is now.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn page(&self, offset: usize) -> &[u8; PAGE_LEN] {
        assert!(offset.checked_add(PAGE_LEN).is_some_and(|end| end <= self.len));
        let at = self.alias.wrapping_add(offset).cast::<[u8; PAGE_LEN]>();
        // SAFETY: within the alias (asserted), which this value keeps mapped. Callers see to it
        // that nobody changes the page meanwhile.
        unsafe { &*at }
    }

    /// `len` bytes at `offset`, as they are now.
    ///
    /// # Panics
    /// There are not so many.
    #[must_use]
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: within the alias (asserted), which this value keeps mapped. Callers see to it
        // that nobody changes the bytes meanwhile.
        unsafe { std::slice::from_raw_parts(self.alias.wrapping_add(offset), len) }
    }

    /// Length of the alias.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// A zone is never empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Have the first `len` bytes in pages of 4 KiB: tables and images use little of many places,
    /// and to clear a huge page for each takes longer than all the rest of a launch.
    fn small_pages(&self, len: usize) {
        // SAFETY: the front of our own mapping; advice changes no byte.
        unsafe { libc::madvise(self.alias.cast(), len.min(self.len), libc::MADV_NOHUGEPAGE) };
    }

    fn map(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let place = reserve_aligned(len)?;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: replaces a part of the reservation made just now.
        let alias = unsafe { libc::mmap(place, len, prot, flags, fd.as_raw_fd(), 0) };
        if alias == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, alias: alias.cast(), len })
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        // SAFETY: our own mapping; references into it are made through the sandbox that ends with it.
        unsafe { libc::munmap(self.alias.cast(), self.len) };
    }
}

/// The pages that a data zone is made of, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Huge ones where the heaps are, if we may mount a file system for it.
    Huge,
    /// Small ones, of a memfd: all that tables need. Without the mount a sandbox is made sooner. Nothing is
    /// ever loaded into it.
    Small,
}

/// The zones of one sandbox.
#[derive(Debug)]
pub struct Zones {
    /// Where participants map them.
    pub place: Place,
    /// Control zone.
    pub control: Zone,
    /// Code zone.
    pub code: Zone,
    /// Data zone.
    pub data: Zone,
    /// How the data zone is backed, for people.
    pub backing: &'static str,
    /// What they have room for.
    pub pages: Pages,
}

impl Zones {
    /// Make the zones of a sandbox with a shared part of `len` bytes, at `base` if it matters. The code
    /// zone holds libos, relocated for another base.
    ///
    /// # Errors
    /// The kernel's, with what was asked of it.
    pub fn create(len: usize, base: Option<usize>, pages: Pages) -> io::Result<Self> {
        let place = match base {
            None => draw_place(len)?,
            Some(base) => Place::new(base, len).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "no region can be there")
            })?,
        };
        let huge = (pages == Pages::Huge).then(|| huge_tmpfs(len).ok()).flatten();
        let (data, backing) = match huge {
            Some(fd) => (fd, "tmpfs, huge pages, noexec"),
            None => (sealed_data(len)?, "memfd, sealed against resizing"),
        };
        let data = Zone::map(data, len)?;
        data.small_pages(libos::layout::ARENAS_OFFSET);
        Ok(Self {
            place,
            control: read_only_zone("sbx-control", CONTROL_LEN, (0, &[]))?,
            code: read_only_zone("sbx-code", CODE_FILE_LEN, SlotZero::code())?,
            data,
            backing,
            pages,
        })
    }

    /// The descriptors that a participant maps, in the order of the `ZONE_*` numbers.
    #[must_use]
    pub fn fds(&self) -> [i32; 3] {
        [&self.control, &self.code, &self.data].map(|zone| zone.fd.as_raw_fd())
    }

    /// Have the kernel provide the memory of a range of the data zone, or say that it cannot.
    ///
    /// # Errors
    /// ENOSPC or ENOMEM when the machine is full.
    pub fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        // SAFETY: takes numbers only.
        let done =
            unsafe { libc::fallocate(self.data.fd.as_raw_fd(), 0, offset as i64, len as i64) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Memory that the kernel holds for the zones, in KiB.
    #[must_use]
    pub fn held_kib(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let held = |fd: i32| std::fs::metadata(format!("/proc/self/fd/{fd}")).map(|m| m.blocks());
        self.fds().into_iter().filter_map(|fd| held(fd).ok()).sum::<u64>() / 2
    }

    /// Give the memory of a range back; it reads as zeros again.
    pub fn discard(&self, offset: usize, len: usize) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: takes numbers only. What cannot be given back stays until the sandbox ends.
        let _ =
            unsafe { libc::fallocate(self.data.fd.as_raw_fd(), mode, offset as i64, len as i64) };
    }
}

/// Address space for `len` bytes, aligned as the region is: heaps are laid out in the alias.
fn reserve_aligned(len: usize) -> io::Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let (any, more) = (std::ptr::null_mut(), len + HUGE_PAGE_LEN);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(any, more, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let place = start.map_addr(|address| address.next_multiple_of(HUGE_PAGE_LEN));
    let before = place.addr() - start.addr();
    let ends = [(start, before), (place.wrapping_byte_add(len), HUGE_PAGE_LEN - before)];
    for (at, len) in ends.into_iter().filter(|(_, len)| *len > 0) {
        // SAFETY: what is left over of the mapping made just now.
        unsafe { libc::munmap(at, len) };
    }
    Ok(place)
}

/// A base at random: a region is no use to whoever has to guess where it lies.
fn draw_place(len: usize) -> io::Result<Place> {
    let wrong = || {
        let (min, max) = (LEN_MIN >> 20, LEN_MAX >> 20);
        let why = format!("a region has {min} to {max} MiB, an even number of them");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    };
    if !(LEN_MIN..=LEN_MAX).contains(&len) {
        return Err(wrong());
    }
    let choices = (BASE_MAX - PRIVATE_LEN - len - BASE_MIN) / HUGE_PAGE_LEN + 1;
    let base = BASE_MIN + random()? as usize % choices * HUGE_PAGE_LEN;
    Place::new(base, len).ok_or_else(wrong)
}

/// 64 random bits.
///
/// # Errors
/// The kernel has none to give.
pub fn random() -> io::Result<u64> {
    let mut word = 0u64;
    // SAFETY: the kernel writes eight bytes into a word of ours.
    let got = unsafe { libc::getrandom((&raw mut word).cast(), 8, 0) };
    if got == 8 { Ok(word) } else { Err(io::Error::last_os_error()) }
}

/// A memfd that nobody can write but through the mapping made here, with these bytes at an offset.
fn read_only_zone(name: &str, len: usize, (at, bytes): (usize, &[u8])) -> io::Result<Zone> {
    let writable = File::from(memfd(name, len)?);
    // Through the mapping, the kernel would clear each page before it is written.
    writable.write_all_at(bytes, at as u64)?;
    let read_only = File::open(format!("/proc/self/fd/{}", writable.as_raw_fd()));
    let read_only = read_only.map_err(|error| {
        io::Error::new(error.kind(), format!("{error}: /proc has to be mounted"))
    })?;
    let mut zone = Zone::map(writable.into(), len)?;
    seal(&zone.fd, libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW)?;
    zone.fd = read_only.into();
    Ok(zone)
}

fn sealed_data(len: usize) -> io::Result<OwnedFd> {
    let fd = memfd("sbx-data", len)?;
    seal(&fd, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW)?;
    Ok(fd)
}

fn memfd(name: &str, len: usize) -> io::Result<OwnedFd> {
    let options = memfd::MemfdOptions::new().allow_sealing(true);
    let memfd = options.create(name).map_err(io::Error::other)?;
    memfd.as_file().set_len(len as u64)?;
    Ok(memfd.into_file().into())
}

fn seal(fd: &OwnedFd, seals: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals | libc::F_SEAL_SEAL) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A nameless file on a tmpfs of our own with huge pages, on which nothing can be executed. Takes
/// the right to mount, but no mount point and no namespace.
fn huge_tmpfs(len: usize) -> io::Result<OwnedFd> {
    const SET_STRING: usize = 1;
    const CREATE: usize = 6;
    const NOEXEC: usize = 8;
    let call = |number: libc::c_long, args: [usize; 5]| {
        // SAFETY: the texts outlive the call; the rest are numbers.
        let got = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as i32) }
    };
    let owned = |fd: i32| {
        // SAFETY: the kernel just made this descriptor for us.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    let tmpfs = owned(call(libc::SYS_fsopen, [c"tmpfs".as_ptr() as usize, 1, 0, 0, 0])?);
    let fs = tmpfs.as_raw_fd() as usize;
    let size = CString::new(len.to_string()).map_err(io::Error::other)?;
    for (key, value) in [(c"huge", c"always"), (c"size", size.as_c_str())] {
        let args = [fs, SET_STRING, key.as_ptr() as usize, value.as_ptr() as usize, 0];
        call(libc::SYS_fsconfig, args)?;
    }
    call(libc::SYS_fsconfig, [fs, CREATE, 0, 0, 0])?;
    let mount = owned(call(libc::SYS_fsmount, [fs, 1, NOEXEC, 0, 0])?);
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the path is a literal.
    let fd = unsafe { libc::openat(mount.as_raw_fd(), c".".as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let file = File::from(owned(fd));
    file.set_len(len as u64)?;
    Ok(file.into())
}

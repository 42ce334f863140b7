//! Joining a sandbox late: for a program that the launcher did not start.
#![expect(unsafe_code, reason = "maps the zones and enters libos")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::abi::{
    ABI_VERSION, MAPS_MAX, MapRecord, SUPERBLOCK_MAGIC, Superblock, ZONE_CODE, ZONE_CONTROL,
    ZONE_DATA,
};
use crate::limits::PAGE_LEN;

/// Longest answer of a supervisor, about.
const ANSWER_LEN: usize = 4096;

/// Become a participant of the sandbox `name`; the address of its control zone.
pub(crate) fn attach(name: &str) -> Result<usize, String> {
    join_by(&connect_to(name)?)
}

/// A connection to the supervisor of the sandbox `name`.
fn connect_to(name: &str) -> Result<OwnedFd, String> {
    let path = runtime_dir().join(name).join("control");
    connect(&path).map_err(|error| {
        format!(
            "no sandbox named {name} is up ({}: {error}): sbx-launcher up {name}",
            path.display()
        )
    })
}

/// As [`attach`], to the sandbox whose control socket is at `path`.
pub(crate) fn attach_by(path: &Path) -> Result<usize, String> {
    let connection =
        connect(path).map_err(|error| format!("its supervisor: {}: {error}", path.display()))?;
    join_by(&connection)
}

/// Become a participant of the sandbox whose supervisor is at the other end.
fn join_by(supervisor: &OwnedFd) -> Result<usize, String> {
    let fds = zones_of(supervisor)?;
    let (base, join, maps) = read_superblock(&fds[0])?;
    map_all(&maps, &fds).map_err(|(at, error)| {
        format!(
            "mapping {at:#x}: {error}{}",
            match error.raw_os_error() {
                Some(libc::EEXIST) => ": the sandbox's address range is in use by this program",
                Some(libc::ENOMEM) => ": RLIMIT_AS or the machine's memory leaves no room for it",
                _ => "",
            }
        )
    })?;
    drop(fds);
    // SAFETY: libos's entry point of this type; the region is mapped as it says.
    let join: extern "C" fn() -> i32 = unsafe { std::mem::transmute(join as usize) };
    match join() {
        0 => Ok(base),
        errno => {
            for map in &maps {
                // SAFETY: mapped above, and nothing of it is in use. What was sealed stays.
                unsafe { libc::munmap(map.addr as *mut libc::c_void, map.len as usize) };
            }
            Err(format!("joining: {}", io::Error::from_raw_os_error(-errno)))
        }
    }
}

/// Where the sandboxes of this user are; the launcher has the same rule.
fn runtime_dir() -> PathBuf {
    // SAFETY: takes nothing.
    let uid = unsafe { libc::getuid() };
    let per_user = PathBuf::from(format!("/run/user/{uid}"));
    match uid {
        0 => PathBuf::from("/run/sbx"),
        _ if per_user.is_dir() => per_user.join("sbx"),
        _ => PathBuf::from(format!("/tmp/sbx-{uid}")),
    }
}

/// Ask the supervisor of the sandbox `name`, handing it a descriptor: its answer, and those that come with
/// it.
pub(crate) fn ask(
    name: &str,
    request: &str,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(String, Vec<OwnedFd>), String> {
    ask_on(&connect_to(name)?, request, fd)
}

fn ask_on(
    connection: &OwnedFd,
    request: &str,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(String, Vec<OwnedFd>), String> {
    send(connection, request, fd).map_err(|error| format!("asking the supervisor: {error}"))?;
    receive(connection).map_err(|error| format!("the supervisor's answer: {error}"))
}

/// One message, and a descriptor with it.
fn send(to: &OwnedFd, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut control = [0u64; 4];
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
    // SAFETY: a header without parts is all zeros.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    if let Some(fd) = fd {
        let len = size_of::<i32>() as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: takes a number.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as usize;
        // SAFETY: there is room for one header.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: within `control`, aligned, and nobody else's.
        let header = unsafe { &mut *header };
        (header.cmsg_level, header.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        // SAFETY: takes a number.
        header.cmsg_len = unsafe { libc::CMSG_LEN(len) } as usize;
        // SAFETY: the data follows the header.
        let data = unsafe { libc::CMSG_DATA(header) }.cast::<i32>();
        // SAFETY: room for one descriptor.
        unsafe { data.write_unaligned(fd.as_raw_fd()) };
    }
    // SAFETY: the header names live buffers with their lengths.
    let sent = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ask the supervisor for the descriptors of control, code and data.
fn zones_of(connection: &OwnedFd) -> Result<[OwnedFd; 3], String> {
    let (text, fds) = ask_on(connection, r#"{"request":"attach"}"#, None)?;
    // Either {"ok":...} or {"error":"..."}: the zones come with the first.
    <[OwnedFd; 3]>::try_from(fds).map_err(|_| {
        let why = text.strip_prefix(r#"{"error":""#).and_then(|why| why.strip_suffix(r#""}"#));
        format!("the supervisor refuses: {}", why.unwrap_or(&text))
    })
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let text = CString::new(path.as_os_str().as_bytes())?;
    let bytes = text.as_bytes_with_nul();
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    if bytes.len() > address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's path is too long"));
    }
    for (to, &from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as u32;
    // SAFETY: an address of this length.
    match unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One message and the descriptors that came with it.
fn receive(from: &OwnedFd) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut buffer = [0u8; ANSWER_LEN];
    // Words, so that the control message is aligned.
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a header without parts is all zeros.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the header names live buffers with their lengths.
    let len = unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the header in.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null, or a header within `control`.
    if let Some(header) = unsafe { first.as_ref() }
        && (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS)
    {
        let count = (header.cmsg_len - size_of::<libc::cmsghdr>()) / size_of::<i32>();
        // SAFETY: the descriptors follow the header.
        let data = unsafe { libc::CMSG_DATA(first) }.cast::<i32>();
        for at in 0..count {
            // SAFETY: below the number that the kernel says it wrote.
            let fd = unsafe { data.wrapping_add(at).read_unaligned() };
            // SAFETY: the kernel just made it for us.
            fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Ok((String::from_utf8_lossy(&buffer[..len]).into_owned(), fds))
}

/// Base, libos's `join`, and what to map.
fn read_superblock(control: &OwnedFd) -> Result<(usize, u64, Vec<MapRecord>), String> {
    let len = size_of::<Superblock>().next_multiple_of(PAGE_LEN);
    let (fd, none) = (control.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: a new mapping wherever the kernel likes.
    let at = unsafe { libc::mmap(none, len, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(format!("mapping the control zone: {}", io::Error::last_os_error()));
    }
    // SAFETY: mapped, larger than the structure, and written only before it was handed out.
    let superblock = unsafe { &*at.cast::<Superblock>() };
    let sound = superblock.magic == SUPERBLOCK_MAGIC
        && superblock.abi_version == ABI_VERSION
        && superblock.size as usize == size_of::<Superblock>()
        && superblock.map_count as usize <= MAPS_MAX;
    let result = if sound {
        let maps = superblock.maps[..superblock.map_count as usize].to_vec();
        Ok((superblock.base as usize, superblock.entry.join, maps))
    } else {
        Err(format!(
            "the sandbox has ABI version {}, this program has {ABI_VERSION}",
            superblock.abi_version
        ))
    };
    // SAFETY: the mapping made above; no reference into it is left.
    unsafe { libc::munmap(at, len) };
    result
}

/// Map the region: all of it, or nothing.
fn map_all(maps: &[MapRecord], fds: &[OwnedFd; 3]) -> Result<(), (u64, io::Error)> {
    for (index, map) in maps.iter().enumerate() {
        let shared = libc::MAP_SHARED | libc::MAP_FIXED;
        let (flags, fd) = match map.zone {
            ZONE_CONTROL => (shared, fds[0].as_raw_fd()),
            ZONE_CODE => (shared, fds[1].as_raw_fd()),
            ZONE_DATA => (shared | libc::MAP_NORESERVE, fds[2].as_raw_fd()),
            _ => {
                let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                (private | libc::MAP_FIXED_NOREPLACE, -1)
            }
        };
        let (at, len) = (map.addr as *mut libc::c_void, map.len as usize);
        // SAFETY: the first record reserves the span and replaces nothing; the others lie in it.
        let got = unsafe { libc::mmap(at, len, map.prot as i32, flags, fd, map.offset as i64) };
        if got != at {
            let error = match got {
                libc::MAP_FAILED => io::Error::last_os_error(),
                _ => io::Error::from_raw_os_error(libc::EEXIST),
            };
            if index > 0 {
                // SAFETY: the reservation of this very call, of which nothing is in use.
                unsafe { libc::munmap(maps[0].addr as *mut libc::c_void, maps[0].len as usize) };
            }
            return Err((map.addr, error));
        }
    }
    Ok(())
}

//! The XDP program that sends the frames of one queue to a socket, and its attachment to an interface.
#![expect(unsafe_code, reason = "bpf is a system call")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::device::{OpenError, Step};

/// Commands, kinds and flags of bpf(2) that are needed here.
const MAP_CREATE: i32 = 0;
const MAP_UPDATE: i32 = 2;
const PROGRAM_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const MAP_OF_SOCKETS: u32 = 17;
const PROGRAM_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const BY_KERNEL: u32 = 1 << 1;
const BY_DRIVER: u32 = 1 << 2;
/// A frame that is for no socket is the kernel's.
const XDP_PASS: i32 = 2;
/// Where the number of a frame's queue lies in the program's argument.
const QUEUE_AT: i16 = 16;
const REDIRECT_MAP: i32 = 51;

/// Stays attached while it lives.
#[derive(Debug)]
pub(super) struct Program {
    /// Detaches when it is closed.
    _link: OwnedFd,
    is_native: bool,
}

#[repr(C)]
struct MakeMap {
    kind: u32,
    key_len: u32,
    value_len: u32,
    entries: u32,
    flags: u32,
}

#[repr(C)]
struct Update {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    /// What is asked for no further.
    rest: [u32; 12],
}

#[repr(C)]
struct Link {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

/// `redirect_map(map, queue, XDP_PASS)`.
const fn instructions(map: i32) -> [Instruction; 6] {
    const LOAD_WORD: u8 = 0x61;
    const LOAD_LONG: u8 = 0x18;
    const MOVE: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// Says that a constant is the descriptor of a map.
    const MAP: u8 = 1;
    [
        instruction(LOAD_WORD, 2, 1, QUEUE_AT, 0),
        instruction(LOAD_LONG, 1, MAP, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE, 3, 0, 0, XDP_PASS),
        instruction(CALL, 0, 0, 0, REDIRECT_MAP),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

impl Program {
    /// Have the frames of `queue` go to `socket`.
    pub(super) fn attach(
        name: &str,
        interface: u32,
        queue: u32,
        socket: &OwnedFd,
    ) -> Result<Self, OpenError> {
        let program =
            load(queue, socket).map_err(|error| OpenError::new(Step::Program, name, error))?;
        let link = |flags| {
            let program = program.as_raw_fd() as u32;
            make(LINK_CREATE, &Link { program, interface, attach: ATTACH_XDP, flags })
        };
        // Not every driver can: then the kernel does it for it.
        let (link, is_native) = match link(BY_DRIVER) {
            Ok(link) => (link, true),
            Err(_) => {
                let link = link(BY_KERNEL);
                (link.map_err(|error| OpenError::new(Step::Attach, name, error))?, false)
            }
        };
        Ok(Self { _link: link, is_native })
    }

    pub(super) const fn is_native(&self) -> bool {
        self.is_native
    }
}

fn load(queue: u32, socket: &OwnedFd) -> io::Result<OwnedFd> {
    let map =
        MakeMap { kind: MAP_OF_SOCKETS, key_len: 4, value_len: 4, entries: queue + 1, flags: 0 };
    let map = make(MAP_CREATE, &map)?;
    let value = socket.as_raw_fd();
    let address = |of: *const u8| of.addr() as u64;
    let update = Update {
        map: map.as_raw_fd() as u32,
        key: address((&raw const queue).cast()),
        value: address((&raw const value).cast()),
        flags: 0,
    };
    bpf(MAP_UPDATE, &update)?;
    let instructions = instructions(map.as_raw_fd());
    // The license decides over which functions may be called; this one may be by any.
    let license = c"Dual MIT/GPL";
    let load = Load {
        kind: PROGRAM_XDP,
        count: instructions.len() as u32,
        instructions: address(instructions.as_ptr().cast()),
        license: address(license.as_ptr().cast()),
        rest: [0; 12],
    };
    make(PROGRAM_LOAD, &load)
}

fn make<T>(command: i32, about: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, about)?;
    // SAFETY: made by that command, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: i32, about: &T) -> io::Result<i32> {
    let (about, len) = (std::ptr::from_ref(about), size_of::<T>());
    // SAFETY: the kernel reads a structure of that size, and what it points to, which lives.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, about, len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

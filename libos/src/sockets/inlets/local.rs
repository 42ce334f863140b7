//! Datagram sockets of AF_UNIX: what they are known by.
//!
//! A bound socket keeps its file, so that no other has that device and inode as long as it lives, and an abstract name
//! is nobody else's meanwhile. Of the peer of a connected one the kernel tells the socket's own inode. So each of the
//! three says for certain which socket hears a datagram.

use super::super::{Name, Sockets};
use super::{Heard, LEFT, LOCAL, NAME_MAX, NAMED, Place};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// In the first word of such a one's name.
pub(super) const LOCALLY: u64 = 1 << 61;
const BY_SOCKET: u64 = 1 << 32;
const BY_FILE: u64 = 2 << 32;
const ABSTRACT: u64 = 3 << 32;
/// Bytes of an address before its name.
const FAMILY_LEN: usize = 2;
/// Bytes of the longest one that a program can give.
pub const GIVEN_MAX: usize = 110;

/// A device, and an inode there.
pub type File = [u64; 2];

/// An address: as the kernel tells it, or as a program gives it, without what comes behind a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    bytes: [u8; NAME_MAX],
    len: usize,
}

impl Address {
    /// Nothing.
    pub const NONE: Self = Self { bytes: [0; NAME_MAX], len: 0 };

    /// What a program gives, with its family. None if the kernel would not have it.
    #[must_use]
    pub fn given(raw: &[u8]) -> Option<Self> {
        if !(FAMILY_LEN + 1..=GIVEN_MAX).contains(&raw.len()) {
            return None;
        }
        let mut given = Self::told(raw);
        if !given.is_abstract() {
            let name = &raw[FAMILY_LEN..];
            given.len = FAMILY_LEN + name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            given.bytes[given.len..].fill(0);
        }
        Some(given)
    }

    /// What the kernel tells. It is nothing if there is nothing but a family.
    #[must_use]
    pub fn told(raw: &[u8]) -> Self {
        let len = if raw.len() <= FAMILY_LEN { 0 } else { raw.len().min(NAME_MAX) };
        let mut told = Self { len, ..Self::NONE };
        told.bytes[..len].copy_from_slice(&raw[..len]);
        told
    }

    /// With its family.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.min(NAME_MAX)]
    }

    /// Is it in no file system?
    #[must_use]
    pub fn is_abstract(&self) -> bool {
        self.len > FAMILY_LEN && self.bytes[FAMILY_LEN] == 0
    }

    /// Its path, which is followed by a zero.
    #[must_use]
    pub fn path(&self) -> Option<&[u8]> {
        (self.len > FAMILY_LEN && !self.is_abstract()).then(|| &self.bytes[FAMILY_LEN..])
    }

    /// Two numbers that are other ones for most other addresses.
    #[must_use]
    pub fn mixed(&self) -> [u64; 2] {
        const SPREAD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
        let words = self.bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
        words.fold([self.len as u64; 2], |sums, word| {
            [0, 1].map(|way| (sums[way] ^ word).wrapping_mul(SPREAD[way]).rotate_left(29))
        })
    }
}

/// What a socket is bound to. It stays so as long as the socket has its row.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Bound {
    /// Zeroes if it has none.
    file: [AtomicU64; 2],
    len: AtomicU32,
    name: [AtomicU64; NAME_MAX / 8],
}

impl Bound {
    /// It is this. By who has taken the row, which nobody finds yet.
    pub fn set(&self, name: &Address, file: File) {
        for (word, part) in self.file.iter().zip(file) {
            word.store(part, Ordering::Relaxed);
        }
        for (word, part) in self.name.iter().zip(name.bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*part), Ordering::Relaxed);
        }
        self.len.store(name.len as u32, Ordering::Relaxed);
    }

    /// Its address.
    #[must_use]
    pub fn name(&self) -> Address {
        let len = self.len.load(Ordering::Relaxed) as usize;
        let mut name = Address { len: len.min(NAME_MAX), ..Address::NONE };
        for (part, word) in name.bytes.as_chunks_mut().0.iter_mut().zip(&self.name) {
            *part = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        name
    }

    /// Is it bound there?
    #[must_use]
    pub fn is_at(&self, file: File) -> bool {
        file != [0; 2] && self.file.each_ref().map(|word| word.load(Ordering::Relaxed)) == file
    }
}

/// What leads to a socket.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// Its inode.
    Socket(u64),
    /// The file that it is bound to.
    File(File),
    /// An abstract name of this network namespace.
    Abstract(&'a Address, u64),
}

/// The place of a socket with this inode.
#[must_use]
pub const fn place(inode: u64) -> Place {
    Place { address: [inode, 0], port: 1 }
}

/// What names a socket of this inode that is bound so.
#[must_use]
pub fn name_of(inode: u64, bound: &Address, file: File, space: u64) -> Name {
    if file != [0; 2] {
        named(Way::File(file))
    } else if bound.is_abstract() {
        named(Way::Abstract(bound, space))
    } else {
        named(Way::Socket(inode))
    }
}

fn named(way: Way<'_>) -> Name {
    let first = NAMED | LOCALLY;
    match way {
        Way::Socket(inode) => [first | BY_SOCKET, inode, 0, 0, 0],
        Way::File([device, inode]) => [first | BY_FILE, device, inode, 0, 0],
        Way::Abstract(name, space) => {
            let [one, other] = name.mixed();
            [first | ABSTRACT, one, other, space, 0]
        }
    }
}

impl Heard {
    /// Does it hear the socket with this inode by a ring?
    #[must_use]
    pub fn hears_locally(&self, from: u64) -> bool {
        self.flags & LEFT == 0 && (self.peer.port == 0 || self.peer.address[0] == from)
    }
}

impl Sockets {
    /// May a datagram socket of AF_UNIX have a row?
    #[must_use]
    #[inline]
    pub fn any_local(&self) -> bool {
        self.inlets.locals.load(Ordering::Acquire) != 0
    }

    /// The row that `way` leads to, and what it said then.
    #[must_use]
    pub fn find_local(&self, way: Way<'_>) -> Option<(usize, Heard)> {
        match way {
            Way::Socket(_) => self.heard_of(self.rows().filter(|row| self.is_inlet_row(*row)), way),
            _ => self.heard_of(self.named(named(way)), way),
        }
    }

    fn heard_of(&self, rows: impl Iterator<Item = usize>, way: Way<'_>) -> Option<(usize, Heard)> {
        let mut all = rows.filter_map(|row| {
            let inlet = &self.inlets.all[row];
            let heard = inlet.heard().filter(|heard| heard.flags & LOCAL != 0)?;
            let is_it = match way {
                Way::Socket(inode) => heard.own.address[0] == inode,
                Way::File(file) => inlet.bound.is_at(file),
                Way::Abstract(name, space) => heard.space == space && inlet.bound.name() == *name,
            };
            // Another may have had the row meanwhile.
            (is_it && inlet.is_still(heard.stamp)).then_some((row, heard))
        });
        all.next()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Address, Bound, GIVEN_MAX, name_of};

    fn given(name: &[u8]) -> Address {
        let raw = [&1u16.to_ne_bytes()[..], name].concat();
        Address::given(&raw).expect("an address")
    }

    #[test]
    fn paths_end_at_their_zero_and_abstract_names_do_not() {
        assert_eq!(given(b"/a"), given(b"/a\0rest"));
        assert_eq!(given(b"/a").path().map(|path| &path[..3]), Some(&b"/a\0"[..]));
        assert_ne!(given(b"\0a"), given(b"\0a\0"));
        assert!(given(b"\0a").is_abstract() && given(b"\0a").path().is_none());
        assert!(!given(b"/a").is_abstract());
        let longest = given(&[b'x'; GIVEN_MAX - 2]);
        assert_eq!(longest.path().map(|path| path[GIVEN_MAX - 2]), Some(0));
    }

    #[test]
    fn what_the_kernel_would_not_have_is_no_address() {
        for len in [0, 1, 2, GIVEN_MAX + 1] {
            assert_eq!(Address::given(&vec![1; len]), None, "{len}");
        }
        assert_eq!(Address::told(&[1, 0]), Address::NONE);
    }

    #[test]
    fn what_is_bound_is_told_as_it_was() {
        let bound = Bound::default();
        assert!(!bound.is_at([0; 2]));
        for name in [given(b"\0x\0y"), given(b"/tmp/x"), Address::NONE] {
            bound.set(&name, [7, 9]);
            assert_eq!(bound.name(), name);
            assert!(bound.is_at([7, 9]) && !bound.is_at([7, 8]));
        }
    }

    #[test]
    fn a_socket_is_named_by_its_file_else_by_its_abstract_name_else_by_itself() {
        let (path, hidden) = (given(b"/x"), given(b"\0x"));
        let names = [
            name_of(5, &path, [1, 2], 3),
            name_of(5, &hidden, [0; 2], 3),
            name_of(5, &hidden, [0; 2], 4),
            name_of(5, &Address::NONE, [0; 2], 3),
            name_of(6, &path, [0; 2], 3),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{index}");
        }
        assert_eq!(name_of(5, &path, [1, 2], 3), name_of(6, &hidden, [1, 2], 9));
    }
}

//! Addresses as the kernel has them.
#![expect(unsafe_code, reason = "reads and writes the kernel's structures")]

use std::fmt;
use std::net::SocketAddr;

use ext_api::abi::NetAddress;

/// Room for the address of an Internet socket or of an interface.
pub const ADDRESS_LEN: usize = 28;

/// An address in the kernel's form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct Address {
    bytes: [u8; ADDRESS_LEN],
    len: u32,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net().socket() {
            Some(address) => address.fmt(f),
            None => f.write_str("no address"),
        }
    }
}

impl Address {
    /// From the kernel's bytes; what is longer than an address of ours is none.
    #[must_use]
    pub fn new(from: &[u8]) -> Self {
        let mut bytes = [0; ADDRESS_LEN];
        let len = if from.len() <= ADDRESS_LEN { from.len() } else { 0 };
        bytes[..len].copy_from_slice(&from[..len]);
        Self { bytes, len: len as u32 }
    }

    /// From the standard library's form.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        let mut bytes = [0; ADDRESS_LEN];
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let len = match address {
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self { bytes, len: len as u32 }
    }

    /// As handlers get it; version 0 if it is no Internet address.
    #[must_use]
    pub fn net(&self) -> NetAddress {
        let family = i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]));
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        let mut ip = [0; 16];
        if family == libc::AF_INET && self.len() >= size_of::<libc::sockaddr_in>() {
            ip[..4].copy_from_slice(&self.bytes[4..8]);
            NetAddress { version: 4, port, scope: 0, ip }
        } else if family == libc::AF_INET6 && self.len() >= size_of::<libc::sockaddr_in6>() {
            ip.copy_from_slice(&self.bytes[8..24]);
            let scope = u32::from_ne_bytes(std::array::from_fn(|at| self.bytes[24 + at]));
            NetAddress { version: 6, port, scope, ip }
        } else {
            NetAddress::default()
        }
    }

    /// Its first byte, for the kernel.
    #[must_use]
    pub const fn as_ptr(&self) -> *const libc::sockaddr {
        self.bytes.as_ptr().cast()
    }

    /// Its length.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Is there none?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address that `fd` is bound to, or its peer's; none if the kernel does not say.
    #[must_use]
    pub fn of_socket(fd: i32, peer: bool) -> Self {
        let mut bytes = [0u8; ADDRESS_LEN];
        let mut len = ADDRESS_LEN as u32;
        let at = bytes.as_mut_ptr().cast();
        let ask = if peer { libc::getpeername } else { libc::getsockname };
        // SAFETY: room for `len` bytes; what is longer is cut short.
        let done = unsafe { ask(fd, at, &raw mut len) };
        if done != 0 { Self::new(&[]) } else { Self::new(bytes.get(..len as usize).unwrap_or(&[])) }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;
    use ext_api::abi::NetAddress;
    use std::net::SocketAddr;

    #[test]
    fn an_address_is_the_same_in_every_form() {
        for text in ["127.0.0.1:80", "[::1]:65535", "[fe80::1%3]:9"] {
            let socket: SocketAddr = text.parse().expect("an address");
            let address = Address::of(socket);
            assert_eq!(address.net(), NetAddress::of(socket), "{text}");
            assert_eq!(address.net().socket(), Some(socket), "{text}");
        }
        assert_eq!(Address::new(&[2, 0, 0]).net().socket(), None);
    }
}

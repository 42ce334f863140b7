//! What the kernel says about an interface, by its name.
#![expect(unsafe_code, reason = "ioctl is a system call, and ifreq a union")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Medium, OpenError, Step};

/// An interface of the kernel's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) mtu: usize,
    pub(crate) medium: Medium,
    pub(crate) hardware: [u8; 6],
}

/// A request about `name`.
pub(crate) fn request(name: &str) -> Result<libc::ifreq, OpenError> {
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let refused = |code| OpenError::new(Step::Find, name, std::io::Error::from_raw_os_error(code));
    if name.contains('\0') {
        return Err(refused(libc::ENODEV));
    }
    if name.len() >= request.ifr_name.len() {
        return Err(refused(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// A socket of `family`.
pub(crate) fn socket(
    name: &str,
    family: i32,
    kind: i32,
    protocol: i32,
) -> Result<OwnedFd, OpenError> {
    // SAFETY: takes no memory.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(OpenError::last(Step::Socket, name));
    }
    // SAFETY: made above, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Interface {
    /// The one of this name.
    pub(crate) fn find(name: &str) -> Result<Self, OpenError> {
        let asking = socket(name, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let ask = |what| {
            let mut request = request(name)?;
            // SAFETY: these read the name and write one member.
            if unsafe { libc::ioctl(asking.as_raw_fd(), what, &raw mut request) } < 0 {
                return Err(OpenError::last(Step::Find, name));
            }
            Ok(request)
        };
        let [index, mtu] = [ask(libc::SIOCGIFINDEX)?, ask(libc::SIOCGIFMTU)?];
        let address = ask(libc::SIOCGIFHWADDR)?;
        // SAFETY: the members that these requests fill.
        let index = unsafe { index.ifr_ifru.ifru_ifindex };
        // SAFETY: as above.
        let mtu = unsafe { mtu.ifr_ifru.ifru_mtu };
        // SAFETY: as above.
        let address = unsafe { address.ifr_ifru.ifru_hwaddr };
        let [a, b, c, d, e, f, ..] = address.sa_data.map(|octet| octet.cast_unsigned());
        let kind = address.sa_family;
        let has_header = [libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK].contains(&kind);
        let medium = if has_header { Medium::Ethernet } else { Medium::Ip };
        Ok(Self { index: index as u32, mtu: mtu as usize, medium, hardware: [a, b, c, d, e, f] })
    }
}

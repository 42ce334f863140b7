//! What a host is to be.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

/// Addresses of a host.
pub const ADDRESSES_MAX: usize = 8;
/// Shortest buffer of a connection that makes sense.
const BUFFER_MIN: usize = 2048;
/// Longest: what the window of TCP can say.
const BUFFER_MAX: usize = 1 << 30;
/// Shortest packet that every host has to take.
const MTU_MIN: usize = 576;

/// How much a connection may send before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    /// What the receiver has room for: right on a line that is not shared, like a ring or a TAP.
    Unlimited,
    /// What the network seems to bear (CUBIC).
    Cubic,
}

/// What a host is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its addresses, and how many bits of each are the network's.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where packets for other networks go: one address of each version at most.
    pub gateways: Vec<IpAddr>,
    /// Its address on Ethernet.
    pub hardware: [u8; 6],
    /// Octets of a connection's buffers, each way. Memory is taken as it is used.
    pub buffer_len: usize,
    /// Octets, and 1/512 as many datagrams, of a UDP socket's buffers, each way.
    pub datagrams_len: usize,
    /// How connections that are made from now on send.
    pub congestion: Congestion,
    /// After how long without an answer a connection is given up.
    pub give_up_after: Duration,
    /// The least time after which something that is not acknowledged is sent again, from a millisecond to a
    /// second. More than the longest round trip that is to be expected.
    pub retransmit_after: Duration,
    /// How long to look at the device again and again before sleeping: costs a core, and saves the tens of
    /// microseconds that waking takes.
    pub spin: Duration,
    /// What port and sequence numbers come from.
    pub seed: u64,
}

/// A configuration that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// No address, or more than [`ADDRESSES_MAX`].
    Addresses(usize),
    /// It is not one that a single host can have, or has not so many bits.
    Address(IpAddr, u8),
    /// Not an address that the gateway of this host can have, or a second one of its version.
    Gateway(IpAddr),
    /// It is that of a group: bit 0 of the first octet must not be set.
    Hardware([u8; 6]),
    /// Too short or too long for a buffer.
    Buffer(usize),
    /// The device's packets are too short for IP.
    Mtu(usize),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(count) => {
                write!(f, "a host has 1 to {ADDRESSES_MAX} addresses, not {count}")
            }
            Self::Address(address, bits) => {
                write!(
                    f,
                    "{address}/{bits} is not an address of one host: name one, as 10.0.0.2/24"
                )
            }
            Self::Gateway(address) => {
                write!(f, "{address} cannot be a gateway here: name one host of each IP version")
            }
            Self::Hardware(address) => {
                write!(f, "{address:02x?} is the address of a group: begin with 02")
            }
            Self::Buffer(len) => {
                write!(f, "buffers have {BUFFER_MIN} to {BUFFER_MAX} octets, not {len}")
            }
            Self::Mtu(mtu) => write!(f, "the device's MTU is {mtu}: make it {MTU_MIN} at least"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// A host of one address, with everything else as is mostly right.
    #[must_use]
    pub fn new(address: IpAddr, network_bits: u8) -> Self {
        Self {
            addresses: vec![(address, network_bits)],
            gateways: Vec::new(),
            hardware: hardware_of(address),
            buffer_len: 512 << 10,
            datagrams_len: 256 << 10,
            congestion: Congestion::Cubic,
            // RFC 1122 wants 100 s at least.
            give_up_after: Duration::from_secs(120),
            // As Linux has it.
            retransmit_after: Duration::from_millis(200),
            spin: Duration::ZERO,
            seed: RandomState::new().hash_one(address),
        }
    }

    /// How much faster than time the protocols' clock goes. For smoltcp a second is the least after which
    /// anything is sent again, and cannot be told otherwise.
    pub(super) fn haste(&self) -> u32 {
        let least = self.retransmit_after.as_micros().clamp(1000, 1_000_000);
        (1_000_000 / least) as u32
    }

    /// Whether a host on a device of this MTU can be like this.
    pub(super) fn check(&self, mtu: usize) -> Result<(), ConfigError> {
        if mtu < MTU_MIN {
            return Err(ConfigError::Mtu(mtu));
        }
        let count = self.addresses.len();
        if count == 0 || count > ADDRESSES_MAX {
            return Err(ConfigError::Addresses(count));
        }
        for &(address, bits) in &self.addresses {
            let bits_max = if address.is_ipv4() { 32 } else { 128 };
            if !is_one_host(address) || bits > bits_max {
                return Err(ConfigError::Address(address, bits));
            }
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            let is_second =
                self.gateways[..index].iter().any(|other| other.is_ipv4() == gateway.is_ipv4());
            if !is_one_host(*gateway) || is_second {
                return Err(ConfigError::Gateway(*gateway));
            }
        }
        if self.hardware[0] & 1 != 0 {
            return Err(ConfigError::Hardware(self.hardware));
        }
        for len in [self.buffer_len, self.datagrams_len] {
            if !(BUFFER_MIN..=BUFFER_MAX).contains(&len) {
                return Err(ConfigError::Buffer(len));
            }
        }
        Ok(())
    }
}

/// A locally administered address, the same whenever a host of this address comes up: its neighbours
/// remember it for a while.
fn hardware_of(address: IpAddr) -> [u8; 6] {
    let all = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let [.., a, b, c, d, e] = all.octets();
    [2, a, b, c, d, e]
}

fn is_one_host(address: IpAddr) -> bool {
    let is_all = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !is_all
}

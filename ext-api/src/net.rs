//! Packets and connections, as handlers see them.
//!
//! ```
//! # mod example {
//! use ext_api::prelude::*;
//!
//! #[extension(name = "echo")]
//! pub mod echo {
//!     use ext_api::prelude::*;
//!     use ext_api::net::{Packet, Stream, Verdict};
//!
//!     #[on(udp = 9000)]
//!     fn datagram(packet: &mut Packet<'_>) -> Verdict {
//!         packet.reply_in_place(packet.bytes().len())
//!     }
//!
//!     #[on(tcp = 9000)]
//!     fn stream(stream: &mut Stream<'_>) -> Verdict {
//!         stream.reply_in_place(stream.bytes().len())
//!     }
//! }
//! # }
//! ```
//!
//! They run in the worker that serves the network, on the bytes as the kernel has put them into the
//! region. [`Verdict::Hand`] has another process answer: there, [`Held`] is the same packet.
#![expect(unsafe_code, reason = "the other side of the worker's raw pointers")]

mod shown;

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::abi::{
    Handle, NET_BEGINS, NET_CLOSE, NET_CUT, NET_DROP, NET_ENDED, NET_FORWARD, NET_HAND, NET_PASS,
    NET_REPLY, NET_REPLY_IN_PLACE, NetAddress, PacketBlock, Reply, Status,
};
use crate::error::CallError;
use crate::extension::{Out, runtime};
use crate::limits::BUFFER_LEN;
use crate::pool::{Buffer, Holder, Name, Outcome, Pool, bytes_of};
use crate::post::To;

pub use shown::{FrameHandler, Said, show_to};

/// What becomes of a packet, or of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A packet is shown to the handler of `"*"`, if there is one. A connection goes on; what was
    /// written is sent.
    Pass,
    /// What was written goes back to who has sent it.
    Reply,
    /// As many of its own first bytes go back, without a copy; see `reply_in_place`.
    ReplyInPlace,
    /// It goes on to this address, and what comes from there goes back. A connection is joined to a new
    /// one, and its handler is not asked again.
    Forward(SocketAddr),
    /// It is dropped. A connection is cut at once.
    Drop,
    /// A process is to answer it: this handler, which takes one number, gets the packet's name as an
    /// event. See [`Held::take`].
    Hand(To, Handle),
}

impl NetAddress {
    /// From the standard library's form.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        let (mut ip, mut scope) = ([0; 16], 0);
        let version = match address {
            SocketAddr::V4(v4) => {
                ip[..4].copy_from_slice(&v4.ip().octets());
                4
            }
            SocketAddr::V6(v6) => {
                ip = v6.ip().octets();
                scope = v6.scope_id();
                6
            }
        };
        Self { version, port: address.port(), scope, ip }
    }

    /// As the standard library has it; None if there is no address.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        let [a, b, c, d, ..] = self.ip;
        match self.version {
            4 => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), self.port)),
            6 => {
                let ip = Ipv6Addr::from(self.ip);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, self.port, 0, self.scope)))
            }
            _ => None,
        }
    }
}

/// What a handler on the network is given: a [`Packet`] or a [`Stream`].
pub struct View<'a, K> {
    block: &'a mut PacketBlock,
    out: Out<'a>,
    kind: PhantomData<K>,
}

/// A datagram, or a frame of an interface.
///
/// `#[on(packet = "eth0")]` is asked about every frame that comes in by that interface, from its link-layer
/// header on. The kernel has a copy of each and goes on with it, whatever the verdict. An answer is a frame,
/// too, and goes out as it is; one to a datagram goes to who has sent that. `#[on(packet = "*")]` is asked about
/// frames of programs that have a device of their own ([`FrameHandler`]), in these programs: what it does not
/// pass, nobody else sees.
pub type Packet<'a> = View<'a, Datagram>;

/// A connection, and those of its bytes that the handler has not used up yet.
pub type Stream<'a> = View<'a, Connection>;

/// Of [`Packet`].
#[derive(Debug)]
pub enum Datagram {}

/// Of [`Stream`].
#[derive(Debug)]
pub enum Connection {}

impl<K> fmt::Debug for View<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes from {:?}", self.bytes().len(), self.from())
    }
}

impl<'a, K> View<'a, K> {
    /// Run a handler on what the worker has put at `word`.
    ///
    /// # Safety
    /// A wrapper's: the block is there, and this upcall's alone.
    #[doc(hidden)]
    pub unsafe fn with(
        word: u64,
        reply: &'a mut Reply,
        handler: impl FnOnce(&mut Self) -> Verdict,
    ) -> Status {
        // SAFETY: by contract.
        let block = unsafe { &mut *(word as *mut PacketBlock) };
        let mut view = Self { block, out: Out::new(reply), kind: PhantomData };
        let verdict = handler(&mut view);
        view.decide(verdict)
    }

    fn decide(&mut self, verdict: Verdict) -> Status {
        self.block.verdict = match verdict {
            Verdict::Pass => NET_PASS,
            Verdict::Reply => NET_REPLY,
            Verdict::ReplyInPlace => NET_REPLY_IN_PLACE,
            Verdict::Drop => NET_DROP,
            Verdict::Forward(address) => {
                self.block.next = NetAddress::of(address);
                NET_FORWARD
            }
            Verdict::Hand(to, handler) => {
                self.block.hand = [to.how, to.target, handler];
                NET_HAND
            }
        };
        Status::Ok
    }

    /// Its bytes, where the kernel has put them; of a connection those that are not used up.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the worker gives the upcall this many bytes, and nobody else has them meanwhile.
        let all = unsafe { std::slice::from_raw_parts(self.block.data, self.block.len) };
        all.get(self.block.used..).unwrap_or(&[])
    }

    /// Who has sent it: the other side of a connection. None for a frame.
    #[must_use]
    pub fn from(&self) -> Option<SocketAddr> {
        self.block.from.socket()
    }

    /// The address that it came to: this side of a connection. None for a frame.
    #[must_use]
    pub fn to(&self) -> Option<SocketAddr> {
        self.block.to.socket()
    }

    /// Append to the answer: [`Verdict::Reply`] sends that of a packet, every verdict but [`Verdict::Drop`]
    /// and [`Verdict::Forward`] that of a connection. It may be of any length.
    pub fn write(&mut self, bytes: &[u8]) {
        self.out.write(bytes);
    }

    /// Answer with its own first `len` bytes, as they are now, without a copy. Of a connection they are used
    /// up so; nothing else may be consumed or written in the same upcall.
    #[must_use = "the verdict sends them"]
    pub const fn reply_in_place(&mut self, len: usize) -> Verdict {
        self.block.in_place = if len < self.block.len { len } else { self.block.len };
        Verdict::ReplyInPlace
    }
}

impl Packet<'_> {
    /// Its bytes, to be changed before they are sent back or on.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.block.data, self.block.len) }
    }

    /// Answer with these bytes.
    #[must_use = "the verdict sends them"]
    pub fn reply(&mut self, bytes: &[u8]) -> Verdict {
        self.write(bytes);
        Verdict::Reply
    }
}

impl Stream<'_> {
    /// Be through with the first `len` bytes. What is left comes again once more has come: at most
    /// [`crate::limits::BUFFER_LEN`] bytes, or the connection is cut.
    pub fn consume(&mut self, len: usize) {
        self.block.used += len.min(self.bytes().len());
    }

    /// Close it when all that was written is sent.
    pub const fn close(&mut self) {
        self.block.flags |= NET_CLOSE;
    }

    /// It has just been accepted; no bytes have come yet.
    #[must_use]
    pub const fn begins(&self) -> bool {
        self.block.flags & NET_BEGINS != 0
    }

    /// The other side will send no more than these bytes. It is the last upcall of the connection.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.block.flags & NET_ENDED != 0
    }

    /// It was cut, by a reset or by a handler that dropped it or failed: nothing can be sent any more. It is
    /// the last upcall of the connection, and there are no bytes.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.block.flags & NET_CUT != 0
    }

    /// A word that stays with the connection; 0 at first.
    #[must_use]
    pub const fn word(&self) -> u64 {
        self.block.word
    }

    /// See [`Stream::word`].
    pub const fn set_word(&mut self, word: u64) {
        self.block.word = word;
    }
}

/// A packet that this process was handed, or a piece of a connection. When it goes out of scope its
/// answer is sent; it is lost with the upcall that has taken it, if that ends in a fault.
pub struct Held {
    pool: &'static Pool,
    name: Name,
    holder: Holder,
    used: usize,
    flags: u16,
    reply: Reply,
    spill_cap: usize,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} bytes from {:?})", self.bytes().len(), self.from())
    }
}

impl Held {
    /// Take the packet whose name a handler was given by [`Verdict::Hand`].
    ///
    /// # Errors
    /// [`Status::Gone`]: another has taken it, or it was given up. [`CallError::NotAttached`] outside of
    /// a region.
    pub fn take(packet: u64) -> Result<Self, CallError> {
        let runtime = runtime().ok_or(CallError::NotAttached)?;
        // SAFETY: 0, or the pool's front, which stays mapped for good; all atomics.
        let pool = unsafe { ((runtime.pool)() as *const Pool).as_ref() };
        let pool = pool.ok_or(CallError::Refused(Status::Gone))?;
        let (name, holder) = (Name::from_raw(packet), Holder::of_peer((runtime.own)()));
        let take = |it: &Buffer| it.take(name.turn, holder, (runtime.owner)());
        let taken = pool.buffers.get(name.index).is_some_and(take);
        if !taken {
            return Err(CallError::Refused(Status::Gone));
        }
        let mut held =
            Self { pool, name, holder, used: 0, flags: 0, reply: Reply::empty(), spill_cap: 0 };
        let [start, len] = held.extent();
        held.used = len;
        held.reply.cap = BUFFER_LEN - start - len;
        held.reply.buf = held.at(start + len);
        Ok(held)
    }

    fn extent(&self) -> [usize; 2] {
        self.pool.buffers[self.name.index].extent()
    }

    fn at(&self, offset: usize) -> *mut u8 {
        let pool = std::ptr::from_ref(self.pool).cast::<u8>().cast_mut();
        pool.with_addr(bytes_of(pool.addr(), self.name.index) + offset)
    }

    /// Its bytes, where the kernel has put them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let [start, len] = self.extent();
        // SAFETY: the extent lies within the buffer, which this process alone holds.
        unsafe { std::slice::from_raw_parts(self.at(start), len) }
    }

    /// Who has sent it.
    #[must_use]
    pub fn from(&self) -> Option<SocketAddr> {
        self.pool.buffers[self.name.index].from().socket()
    }

    /// Append to the answer.
    pub fn write(&mut self, bytes: &[u8]) {
        let mut out = Out::resumed(&mut self.reply, self.spill_cap);
        out.write(bytes);
        self.spill_cap = out.spill_cap();
    }

    /// Of a connection: only the first `len` bytes are used up. All are if nobody says so.
    pub fn consume(&mut self, len: usize) {
        self.used = len.min(self.extent()[1]);
    }

    /// Close the connection when the answer is sent.
    pub const fn close(&mut self) {
        self.flags |= Outcome::CLOSE;
    }

    /// Send no answer. A connection is cut.
    pub fn drop_it(mut self) {
        self.flags |= Outcome::DROP;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.flags |= Outcome::DROP;
        }
        let outcome = Outcome {
            used: self.used as u16,
            answer: self.reply.len as u32,
            spill: self.reply.spill as u64,
            flags: self.flags,
        };
        let pool = self.pool;
        let finished = pool.buffers[self.name.index].finish(self.name.turn, self.holder, outcome);
        if finished
            && pool.done.push(&pool.buffers, self.name.index)
            && let Some(runtime) = runtime()
        {
            let word = std::ptr::from_ref(&pool.done.word).cast();
            // SAFETY: a word of the pool.
            unsafe { (runtime.futex_wake)(word, 1) };
        }
    }
}

//! What the calls that send and receive mean, as bytes of a stream.

use super::fds::End;
use super::stream::{
    MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, MSG_WAITALL,
    Source, by_kernel, receive as receive_bytes, send as send_bytes,
};
use super::user::{self, Pieces};
use super::{ask, counters, fds, inlets, meet, native, pipes, records};
use crate::sys::{EFAULT, EINVAL, Errno, nr};

/// `struct msghdr`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Message {
    pub(super) name: usize,
    pub(super) name_len: usize,
    pub(super) vectors: usize,
    pub(super) count: usize,
    pub(super) control: usize,
    pub(super) control_len: usize,
    pub(super) flags: usize,
}

impl Message {
    /// Where the address is, and how long.
    pub(super) const fn named(&self) -> (usize, usize) {
        (self.name, self.name_len as u32 as usize)
    }

    /// Nothing but bytes.
    pub(super) const fn of(vectors: usize, count: usize) -> Self {
        Self { name: 0, name_len: 0, vectors, count, control: 0, control_len: 0, flags: 0 }
    }
}

const MESSAGE_LEN: usize = size_of::<Message>();
/// Flags of a message that the kernel has not looked at.
const UNTOLD: usize = 0x5eed_5eed;
/// `struct mmsghdr`: the bytes that were moved come behind the message.
pub(super) const LEN_AT: usize = MESSAGE_LEN;

const SEEK_CUR: usize = 1;
/// What the kernel moves at a time.
const SENDFILE_MAX: usize = 0x7fff_f000;

const TO_SEND: usize = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE;
const TO_RECEIVE: usize =
    MSG_DONTWAIT | MSG_NOSIGNAL | MSG_PEEK | MSG_WAITALL | MSG_TRUNC | MSG_CMSG_CLOEXEC;

/// A call that sends on a carried socket.
pub(super) fn send(end: End, number: usize, args: [usize; 6]) -> isize {
    if end.connection.is_pipe() {
        return pipes::send(end, number, args);
    }
    if end.connection.is_counter() {
        return counters::send(&end, number, args);
    }
    if end.connection.is_inlet() {
        return match number {
            nr::SENDMSG => inlets::send_message(&end, args),
            nr::SENDFILE => inlets::spliced(&end, number, args),
            _ => inlets::send(&end, number, args),
        };
    }
    if end.connection.has_records() && number != nr::SENDMSG {
        return records::send(end, number, args);
    }
    let [_, second, third, fourth, fifth, _] = args;
    let memory = |pieces: Pieces, flags: usize| {
        let total = pieces.total();
        match total.filter(|_| flags & !TO_SEND == 0) {
            Some(total) => send_bytes(end, number, args, Source::Memory { pieces, flags }, total),
            None => by_kernel(&end, number, args, total.unwrap_or(0)),
        }
    };
    match number {
        nr::WRITE => memory(Pieces::one(second, third), 0),
        nr::WRITEV => memory(Pieces::many(second, third), 0),
        // An address is for the kernel to judge.
        nr::SENDTO if fifth != 0 => by_kernel(&end, number, args, third),
        nr::SENDTO => memory(Pieces::one(second, third), fourth),
        // From what is no file, the kernel knows best.
        nr::SENDFILE if ask(nr::LSEEK, [second, 0, SEEK_CUR]) < 0 => {
            by_kernel(&end, number, args, fourth.min(SENDFILE_MAX))
        }
        nr::SENDFILE => {
            let source = Source::File { fd: second, position: third };
            send_bytes(end, number, args, source, fourth.min(SENDFILE_MAX))
        }
        _ => send_message(end, args),
    }
}

/// `sendmsg` to the kernel. It may take descriptors of carried connections with it.
pub(super) fn send_passing(args: [usize; 6], send: impl FnOnce() -> isize) -> isize {
    meet::about_to_pass(args[0], args[1]);
    let sent = send();
    if sent < 0 {
        meet::not_passed(args[1]);
    }
    sent
}

/// `sendmsg`.
pub(super) fn send_message(end: End, args: [usize; 6]) -> isize {
    if end.connection.is_inlet() {
        return inlets::send_message(&end, args);
    }
    if end.connection.has_records() {
        return records::send_message(&end, args);
    }
    let (number, [_, at, flags, ..]) = (nr::SENDMSG, args);
    let Some(message) = user::read::<Message>(at) else { return -(EFAULT as isize) };
    let pieces = Pieces::many(message.vectors, message.count);
    let total = pieces.total();
    let is_plain = message.name == 0 && message.control_len == 0 && flags & !TO_SEND == 0;
    match total.filter(|_| is_plain) {
        Some(total) => send_bytes(end, number, args, Source::Memory { pieces, flags }, total),
        None => send_passing(args, || by_kernel(&end, number, args, total.unwrap_or(0))),
    }
}

/// A call that receives on a carried socket.
pub(super) fn receive(end: End, number: usize, args: [usize; 6]) -> isize {
    if end.connection.is_pipe() {
        return pipes::receive(end, number, args, 0);
    }
    if end.connection.is_counter() {
        return counters::receive(end, number, args, 0);
    }
    if end.connection.is_inlet() && number != nr::RECVMSG {
        return inlets::receive(&end, number, args);
    }
    if end.connection.has_records() && number != nr::RECVMSG {
        return records::receive(end, number, args);
    }
    let [_, second, third, fourth, fifth, sixth] = args;
    let bytes = |pieces: Pieces, flags: usize| {
        let total = pieces.total().filter(|total| *total != 0 && flags & !TO_RECEIVE == 0);
        match total {
            Some(total) => receive_bytes(end, number, args, pieces, total, flags),
            None => native(number, args),
        }
    };
    match number {
        nr::READ => bytes(Pieces::one(second, third), 0),
        nr::READV => bytes(Pieces::many(second, third), 0),
        nr::RECVFROM => {
            let room = if fifth == 0 { None } else { user::read::<u32>(sixth) };
            let received = bytes(Pieces::one(second, third), fourth);
            match room {
                _ if received < 0 || fifth == 0 => received,
                Some(room) => named(&end, received, [fifth, sixth], room),
                None => -(EFAULT as isize),
            }
        }
        _ => receive_message(end, args),
    }
}

/// `preadv2` and `pwritev2`: at no position, they are `readv` and `writev` with flags.
pub(super) fn by_position(number: usize, args: [usize; 6]) -> isize {
    const NO_POSITION: usize = usize::MAX;
    const RWF_NOWAIT: usize = 8;
    let [fd, vectors, count, position, _, flags] = args;
    let is_something = || Pieces::many(vectors, count).total() != Some(0);
    let end = fds::end_of(fd).filter(|_| position == NO_POSITION && is_something());
    let Some(end) = end else { return native(number, args) };
    if end.connection.is_pipe() {
        return pipes::by_position(end, number, args);
    }
    if end.connection.is_counter() {
        return counters::by_position(end, number, args);
    }
    let plain = [fd, vectors, count, 0, 0, 0];
    let message = core::cell::UnsafeCell::new(Message::of(vectors, count));
    let waitless = [fd, message.get() as usize, MSG_DONTWAIT, 0, 0, 0];
    match (number, flags & RWF_NOWAIT != 0) {
        (nr::PREADV2, false) => receive(end, nr::READV, plain),
        (nr::PREADV2, true) => receive_message(end, waitless),
        (_, false) => send(end, nr::WRITEV, plain),
        (_, true) => send_message(end, waitless),
    }
}

/// What has been received, with who has sent it, where the program wants to know.
fn named(end: &End, received: isize, [at, len_at]: [usize; 2], room: u32) -> isize {
    // A stream of TCP has no senders' addresses.
    let is_named = end.connection.is_unix() && received > 0;
    if room > i32::MAX as u32 {
        return -(EINVAL as isize);
    }
    let len = if is_named { name_of_peer(end, at, room) } else { Ok(0) };
    match len {
        Ok(len) if user::write(len_at, &len) => received,
        Ok(_) => -(EFAULT as isize),
        Err(errno) => -(errno as isize),
    }
}

/// The same, of a record.
pub(super) fn say_sender(end: &End, at: usize, len_at: usize) -> Result<(), Errno> {
    let room = user::read(len_at).ok_or(EFAULT)?;
    let len = name_of_peer(end, at, room)?;
    if user::write(len_at, &len) { Ok(()) } else { Err(EFAULT) }
}

/// Give the program the address of the other end, where there is room for so many bytes; its length, which is 0
/// if it has none.
fn name_of_peer(end: &End, at: usize, room: u32) -> Result<u32, Errno> {
    const FAMILY_LEN: u32 = 2;
    let mut name = [0u8; 128];
    let mut len = name.len() as u32;
    let asked = ask(nr::GETPEERNAME, [end.fd, name.as_mut_ptr() as usize, &raw mut len as usize]);
    if asked < 0 || len <= FAMILY_LEN {
        len = 0;
    }
    give_name(&name[..len.min(name.len() as u32) as usize], at, room)?;
    Ok(len)
}

/// Give the program an address, as much of it as there is room for.
fn give_name(name: &[u8], at: usize, room: u32) -> Result<(), Errno> {
    if room > i32::MAX as u32 {
        return Err(EINVAL);
    }
    let part = name.len().min(room as usize);
    if part != 0 && !user::copy(at, name.as_ptr() as usize, part) {
        return Err(EFAULT);
    }
    Ok(())
}

/// The sender of a datagram has this address.
pub(super) fn say_name(name: &[u8], at: usize, len_at: usize) -> Result<(), Errno> {
    let room = user::read(len_at).ok_or(EFAULT)?;
    give_name(name, at, room)?;
    if user::write(len_at, &(name.len() as u32)) { Ok(()) } else { Err(EFAULT) }
}

/// Say of the message at `at`, which is from a ring, what the kernel would have said.
pub(super) fn answer(
    end: &End,
    at: usize,
    given: Message,
    received: usize,
    flags: usize,
) -> Result<(), Errno> {
    let mut message = given;
    if given.name != 0 {
        let room = given.name_len as u32;
        let is_named = end.connection.is_unix() && received != 0;
        let len = if is_named { name_of_peer(end, given.name, room)? } else { 0 };
        message.name_len = given.name_len & !(u32::MAX as usize) | len as usize;
    }
    message.control_len = 0;
    message.flags = given.flags & !(u32::MAX as usize) | flags;
    if user::write(at, &message) { Ok(()) } else { Err(EFAULT) }
}

/// The same, of a datagram from who has this address.
pub(super) fn answer_named(
    at: usize,
    given: Message,
    name: &[u8],
    flags: usize,
) -> Result<(), Errno> {
    let mut message = given;
    if given.name != 0 {
        give_name(name, given.name, given.name_len as u32)?;
        message.name_len = given.name_len & !(u32::MAX as usize) | name.len();
    }
    message.control_len = 0;
    message.flags = given.flags & !(u32::MAX as usize) | flags;
    if user::write(at, &message) { Ok(()) } else { Err(EFAULT) }
}

/// Bytes of the message at `at`.
pub(super) fn len_of(at: usize) -> Option<usize> {
    let message = user::read::<Message>(at)?;
    Pieces::many(message.vectors, message.count).total()
}

/// `recvmsg`.
pub(super) fn receive_message(end: End, args: [usize; 6]) -> isize {
    if end.connection.is_inlet() {
        return inlets::receive_message(&end, args);
    }
    if end.connection.has_records() {
        return records::receive_message(end, args);
    }
    let [_, at, flags, ..] = args;
    let Some(message) = user::read::<Message>(at) else { return -(EFAULT as isize) };
    let pieces = Pieces::many(message.vectors, message.count);
    let total = pieces.total().filter(|total| *total != 0 && flags & !TO_RECEIVE == 0);
    let Some(total) = total else { return adopt_received(args) };
    // The kernel, if it is asked, fills a copy.
    let copy = core::cell::UnsafeCell::new(Message { flags: UNTOLD, ..message });
    let args = [args[0], copy.get() as usize, flags, 0, 0, 0];
    let received = receive_bytes(end, nr::RECVMSG, args, pieces, total, flags);
    let copy = copy.into_inner();
    if received < 0 {
        return received;
    }
    if copy.flags == UNTOLD {
        // From the ring: what the kernel would have said of it.
        let flags = flags & MSG_CMSG_CLOEXEC;
        if let Err(errno) = answer(&end, at, message, received as usize, flags) {
            return -(errno as isize);
        }
    } else {
        let upper = message.flags & !(u32::MAX as usize);
        let told = Message { flags: upper | copy.flags as u32 as usize, ..copy };
        if !user::write(at, &told) {
            return -(EFAULT as isize);
        }
        meet::adopt_passed(at);
    }
    received
}

/// `recvmsg` on a socket that is not carried: descriptors that come by it may be.
pub(super) fn adopt_received(args: [usize; 6]) -> isize {
    let received = native(nr::RECVMSG, args);
    if received >= 0 {
        meet::adopt_passed(args[1]);
    }
    received
}

/// Control data of a message that the kernel has filled.
pub(super) fn control_of(at: usize) -> Option<(usize, usize)> {
    let message = user::read::<Message>(at)?;
    (message.control != 0).then_some((message.control, message.control_len))
}

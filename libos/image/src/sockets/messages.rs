//! What the calls that send and receive mean, as bytes of a stream.

use super::fds::End;
use super::stream::{
    MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, MSG_WAITALL,
    Source, by_kernel, receive as receive_bytes, send as send_bytes,
};
use super::user::{self, Pieces};
use super::{ask, meet, native, options};
use crate::sys::{EFAULT, nr};

/// `struct msghdr`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Message {
    name: usize,
    name_len: usize,
    vectors: usize,
    count: usize,
    control: usize,
    control_len: usize,
    flags: usize,
}

const MESSAGE_LEN: usize = size_of::<Message>();
/// `struct mmsghdr`: the bytes that were moved come behind the message.
const LEN_AT: usize = MESSAGE_LEN;

const SEEK_CUR: usize = 1;
/// What the kernel moves at a time.
const SENDFILE_MAX: usize = 0x7fff_f000;

const TO_SEND: usize = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE;
const TO_RECEIVE: usize =
    MSG_DONTWAIT | MSG_NOSIGNAL | MSG_PEEK | MSG_WAITALL | MSG_TRUNC | MSG_CMSG_CLOEXEC;

/// A call that sends on a carried socket.
pub(super) fn send(end: End, number: usize, args: [usize; 6]) -> isize {
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
        nr::SENDMSG => send_message(end, number, args, second, third),
        nr::SENDMMSG if third == 0 => native(number, args),
        // The first of them: programs expect that not all are sent.
        _ => {
            let one = [args[0], second, fourth, 0, 0, 0];
            match send_message(end, nr::SENDMSG, one, second, fourth) {
                sent @ 0.. => {
                    if !user::write(second + LEN_AT, &(sent as u32)) {
                        return -(EFAULT as isize);
                    }
                    1
                }
                error => error,
            }
        }
    }
}

/// `sendmsg` to the kernel. It may take descriptors of carried connections with it.
pub(super) fn send_passing(args: [usize; 6], send: impl FnOnce() -> isize) -> isize {
    meet::about_to_pass(args[1]);
    let sent = send();
    if sent < 0 {
        meet::not_passed(args[1]);
    }
    sent
}

fn send_message(end: End, number: usize, args: [usize; 6], at: usize, flags: usize) -> isize {
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
            let received = bytes(Pieces::one(second, third), fourth);
            // A stream has no senders' addresses.
            if received >= 0 && fifth != 0 && !user::write(sixth, &0u32) {
                return -(EFAULT as isize);
            }
            received
        }
        nr::RECVMSG => receive_message(end, args, second, third),
        _ if third == 0 => native(number, args),
        // The first of them: programs expect that not all have come. This call tells of errors first.
        _ => match options::take_error(&end).unwrap_or_else(|| {
            receive_message(end, [args[0], second, fourth, 0, 0, 0], second, fourth)
        }) {
            received @ 0.. => {
                if !user::write(second + LEN_AT, &(received as u32)) {
                    return -(EFAULT as isize);
                }
                1
            }
            error => error,
        },
    }
}

fn receive_message(end: End, args: [usize; 6], at: usize, flags: usize) -> isize {
    let Some(mut message) = user::read::<Message>(at) else { return -(EFAULT as isize) };
    let pieces = Pieces::many(message.vectors, message.count);
    let total = pieces.total().filter(|total| *total != 0 && flags & !TO_RECEIVE == 0);
    let Some(total) = total else { return adopt_received(args) };
    let before = end.incoming().reading.kernel_read.load(core::sync::atomic::Ordering::Relaxed);
    let given = message;
    let received = receive_bytes(end, nr::RECVMSG, args, pieces, total, flags);
    let after = end.incoming().reading.kernel_read.load(core::sync::atomic::Ordering::Relaxed);
    if received > 0 && before == after && flags & MSG_PEEK == 0 || received == 0 {
        // From the ring: what the kernel would have said of it.
        (message.name_len, message.control_len, message.flags) = (0, 0, 0);
        message.name_len |= given.name_len & !(u32::MAX as usize);
        if !user::write(at, &message) {
            return -(EFAULT as isize);
        }
    } else if received > 0 {
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

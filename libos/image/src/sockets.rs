//! Local sockets of programs whose bytes go through the region: [`libos::sockets`] says how.
//!
//! ```text
//!  call on a descriptor ──► carried? ── no ──────────────────────────► the kernel
//!                             │ yes
//!                             ▼
//!              stream: bytes in and out     meet: connections begin
//!              records: the same, whole     batches: several at a time
//!              pair, pipes, counters: or are made whole
//!              inlets: datagrams, between many
//!              wait: poll, select, epoll    fds: what descriptors stand for
//! ```
//!
//! A process keeps in private memory which descriptor stands for which end of which connection; everything
//! that makes, copies or closes descriptors passes here for that. Calls of programs come on the program's
//! own stack, at any moment, and signal handlers of the program may come on top and never return: nothing
//! here is held across a call but the locks of a direction, which name the thread that has them.

mod batches;
mod behind;
mod bells;
mod counters;
mod epoll;
mod fds;
mod inlets;
mod late;
mod meet;
mod messages;
mod open;
mod options;
mod pair;
mod pipes;
mod records;
mod stream;
mod turns;
mod user;
mod wait;

use libos::sockets::Sockets;

use crate::arch::syscall6;
use crate::sys::nr;
use crate::{boot, context, start, sys};

pub(crate) use fds::prepare;
pub(crate) use meet::{adopt_after_exec, hold_after_fork};

/// Calls that are looked at: what `libos::sockets::CALLS` lists.
const CALLS: [u64; 8] = libos::sockets::CALLS;

/// Is call `number` one that may be about a carried socket?
#[inline]
pub(crate) fn may_carry(number: usize) -> bool {
    is_on() && CALLS.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
}

/// Are sockets carried in this sandbox?
#[inline]
pub(crate) fn is_on() -> bool {
    crate::calls::call_table().sockets.load(core::sync::atomic::Ordering::Relaxed) != 0
}

fn sockets() -> &'static Sockets {
    context::common().sockets()
}

/// The call as the kernel does it.
fn native(number: usize, args: [usize; 6]) -> isize {
    // SAFETY: the program's own call, with its own arguments or with memory of ours in their place.
    unsafe { syscall6(number, args) }
}

/// A call of ours on a descriptor of the program's.
fn ask<const N: usize>(number: usize, given: [usize; N]) -> isize {
    let mut args = [0; 6];
    args[..N].copy_from_slice(&given);
    native(number, args)
}

/// Does this process, rather than a child of vfork in its memory, make the call?
fn own_pid() -> Option<u32> {
    start::this_process().map(|own| own.pid).filter(|&pid| pid == sys::getpid())
}

/// Carry out a call for which [`may_carry`] is true.
pub(crate) fn call(number: usize, args: [usize; 6]) -> isize {
    let [first, second, third, fourth, ..] = args;
    match number {
        nr::READ | nr::RECVFROM | nr::READV | nr::RECVMSG => match fds::end_of(first) {
            Some(end) => messages::receive(end, number, args),
            None if matches!(number, nr::RECVMSG) => messages::adopt_received(args),
            None => native(number, args),
        },
        nr::WRITE | nr::SENDTO | nr::WRITEV | nr::SENDMSG | nr::SENDFILE => {
            match fds::end_of(first) {
                Some(end) => messages::send(end, number, args),
                None if inlets::is_first(first) => inlets::first(first, number, args),
                None if number == nr::SENDMSG => {
                    messages::send_passing(args, || native(number, args))
                }
                None => native(number, args),
            }
        }
        nr::PREADV2 | nr::PWRITEV2 => messages::by_position(number, args),
        nr::RECVMMSG => batches::receive(args),
        nr::SENDMMSG => batches::send(args),
        nr::EPOLL_WAIT | nr::EPOLL_PWAIT | nr::EPOLL_PWAIT2 => epoll::wait(number, args),
        nr::EPOLL_CTL => epoll::control(args),
        nr::EPOLL_CREATE | nr::EPOLL_CREATE1 => fds::made_epoll(native(number, args)),
        nr::POLL | nr::PPOLL => wait::poll(number, args),
        nr::SELECT | nr::PSELECT6 => wait::select(number, args),
        nr::SOCKETPAIR => pair::socketpair(args),
        nr::PIPE | nr::PIPE2 => pipes::pipe(number, args),
        nr::EVENTFD | nr::EVENTFD2 => counters::eventfd(number, args),
        nr::OPEN | nr::CREAT | nr::OPENAT | nr::OPENAT2 => {
            counters::before_open(if number >= nr::OPENAT { second } else { first });
            pipes::opened(native(number, args))
        }
        nr::IO_SUBMIT => {
            counters::before_submit(args);
            native(number, args)
        }
        nr::SOCKET => inlets::made(args),
        nr::BIND => inlets::bind(args),
        nr::CONNECT if inlets::concerns(first) => inlets::connect(args),
        nr::CONNECT => meet::connect(args),
        nr::ACCEPT | nr::ACCEPT4 => meet::accept(number, args),
        nr::CLOSE => fds::close(first),
        nr::CLOSE_RANGE => fds::close_range(args),
        nr::DUP => fds::copied(first, native(number, args)),
        nr::DUP2 | nr::DUP3 => fds::replace(number, args),
        nr::FCNTL => match second {
            options::F_DUPFD | options::F_DUPFD_CLOEXEC => fds::copied(first, native(number, args)),
            _ => options::control(number, args),
        },
        nr::IOCTL => {
            counters::before_ioctl(second);
            options::control(number, args)
        }
        nr::SHUTDOWN => match inlets::end_of(first) {
            Some(end) => inlets::shutdown(&end, args),
            None => stream::shutdown(first, second, native(number, args)),
        },
        nr::SETSOCKOPT if inlets::concerns(first) => inlets::set_option(args),
        nr::SETSOCKOPT if second == options::SOCKET => options::set_of_socket(args),
        nr::SETSOCKOPT if second == options::TCP => options::set(first, third, fourth, args),
        nr::GETSOCKOPT if second == options::TCP => options::get(first, third, args),
        nr::SPLICE => pipes::splice(args),
        nr::TEE => pipes::tee(args),
        nr::VMSPLICE => pipes::vmsplice(args),
        _ => native(number, args),
    }
}

/// The core that this thread runs on, as others are told.
fn core() -> u32 {
    crate::arch::core() + 1
}

/// Is it this one? It may be if nobody knows which one it is.
fn may_be_here(known: &core::sync::atomic::AtomicU32) -> bool {
    [0, core()].contains(&known.load(core::sync::atomic::Ordering::Relaxed))
}

fn base() -> usize {
    boot::place().base + boot::place().len - libos::sockets::RINGS_LEN
}

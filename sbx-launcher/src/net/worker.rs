//! The worker that serves the network: a participant that the supervisor forks, which runs handlers on
//! what comes in and holds nothing that its successor could not make anew.
#![expect(unsafe_code, reason = "forks, joins the region and calls the gate")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use ext_api::abi::{CallFn, POST_HANDLE, PacketBlock, ReleaseFn, Reply, Runtime, Status};
use ext_api::limits::{PORTS_MAX, SEATS_MAX};
use ext_api::pool::{BY_PROCESS, Holder, Pool};
use libos::data::Common;
use libos::layout::{ARENAS_OFFSET, Place};
use netio::buffers::Buffers;
use netio::engine::driver::Driver;
use netio::engine::epoll::Epoll;
use netio::engine::uring::{Options, Uring};
use netio::engine::{self, Engine};

use super::Order;
use crate::clock::now_ns;
use crate::control;
use crate::run::allow_many_descriptors;
use crate::sandbox::Sandbox;
use crate::sandbox::ports::Waits;
use crate::watchdog::wake_promptly;
use crate::worker::enter;

/// The descriptor by which the worker gets its orders.
const CONTROL_FD: i32 = 3;

/// What is said then.
const REMOVED: &str = "sbx: an interface that a handler is hooked to has been removed; it is served again \
    when there is one of its name\n";

/// Start it; its pid, and what it gets its orders by.
pub(super) fn start(sandbox: &Sandbox) -> io::Result<(u32, OwnedFd)> {
    let pool = sandbox.pool().ok_or_else(|| io::Error::other("there are no buffers"))?;
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made for us.
    let [ours, its] = pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let [join, runtime] = sandbox.network_entries();
    // SAFETY: the supervisor has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let region = Region::of(sandbox, runtime);
            let waits = sandbox.network_waits;
            allow_many_descriptors();
            wake_promptly();
            let served = enter(&sandbox.zones, join)
                .and_then(|()| keep_only(its))
                .and_then(|control| serve(region, control, pool, waits));
            // SAFETY: ends the child without running the supervisor's exit handlers.
            unsafe { libc::_exit(i32::from(served.is_err())) }
        }
        child => Ok((child as u32, ours)),
    }
}

/// Of the supervisor's descriptors it needs one.
fn keep_only(control: OwnedFd) -> io::Result<OwnedFd> {
    let fd = control.into_raw_fd();
    // SAFETY: takes numbers only; nothing of this copy uses what is replaced.
    if fd != CONTROL_FD && unsafe { libc::dup2(fd, CONTROL_FD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_close_range, CONTROL_FD + 1, u32::MAX, 0) };
    // SAFETY: it was put there just now.
    Ok(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) })
}

fn serve(region: Region, control: OwnedFd, pool: usize, waits: Waits) -> io::Result<()> {
    let pool = std::ptr::with_exposed_provenance::<Pool>(pool);
    // SAFETY: the supervisor has made it there, and starts one worker at a time.
    let buffers = unsafe { Buffers::own(pool, now_ns()) };
    let options = Options { sqpoll: waits == Waits::Sqpoll, ..Options::default() };
    match Uring::with(options) {
        Ok(ring) => obey(Engine::new(ring, region, buffers), control, waits),
        Err(refused) => {
            let text = format!("sbx: the network goes by epoll, since io_uring says: {refused}\n");
            region.common.log().append(text.as_bytes());
            obey(Engine::new(Epoll::new()?, region, buffers), control, waits)
        }
    }
}

/// Serve until nobody is left to give orders.
fn obey<D: Driver>(
    mut engine: Engine<D, Region>,
    control: OwnedFd,
    waits: Waits,
) -> io::Result<()> {
    if waits == Waits::Look {
        engine.look_always();
    }
    let mut orders: VecDeque<(Order, Option<OwnedFd>)> = VecDeque::new();
    engine.watch(control.as_fd());
    loop {
        // An order that cannot be carried out yet is tried again in a moment.
        let moment = (!orders.is_empty()).then_some(Duration::from_millis(1));
        if engine.turn(moment)? {
            let Some(order) = receive(&control)? else { return Ok(()) };
            orders.push_back(order);
            engine.watch(control.as_fd());
        }
        for _ in engine.take_removed() {
            engine.sandbox().common.log().append(REMOVED.as_bytes());
        }
        while let Some((order, fd)) = orders.pop_front() {
            if let Some(later) = carry_out(&mut engine, order, fd) {
                orders.push_front(later);
                break;
            }
        }
    }
}

/// Carry an order out, or give it back for later.
fn carry_out<D: Driver>(
    engine: &mut Engine<D, Region>,
    order: Order,
    fd: Option<OwnedFd>,
) -> Option<(Order, Option<OwnedFd>)> {
    match order {
        Order::Close { number } => engine.close(number),
        Order::Sit { number, seat } => engine.sit(number, seat),
        Order::Leave { seat } => engine.leave(seat),
        Order::Only { numbers, seats } => {
            let others = (0..SEATS_MAX).filter(|seat| !seats.contains(seat));
            others.for_each(|seat| engine.leave(seat));
            let others = (0..PORTS_MAX).filter(|number| !numbers.contains(number));
            others.for_each(|number| engine.close(number));
        }
        // A successor says once more what its predecessor has said.
        Order::Open { number, kind, handler, .. }
            if engine.served(number) == Some((kind, handler)) => {}
        // Its number's former port is not through yet.
        Order::Open { number, .. } if engine.is_open(number) => {
            engine.close(number);
            return Some((order, fd));
        }
        Order::Open { number, kind, handler, interface } => {
            if let Err(error) = engine.open(number, kind, handler, fd) {
                let text = format!("sbx: port {number} of the network cannot be served: {error}\n");
                engine.sandbox().common.log().append(text.as_bytes());
            }
            if let Some(name) = interface {
                engine.stays_with(number, name);
            }
        }
    }
    None
}

/// The next order; None if nobody is left to give any.
fn receive(control: &OwnedFd) -> io::Result<Option<(Order, Option<OwnedFd>)>> {
    match control::receive(control) {
        Ok((text, mut fds)) => Ok(Some((serde_json::from_str(&text)?, fds.pop()))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The sandbox, as the engine sees it.
#[derive(Debug)]
struct Region {
    gate: CallFn,
    release: ReleaseFn,
    runtime: *const Runtime,
    common: Common,
    place: Place,
}

impl Region {
    fn of(sandbox: &Sandbox, runtime: u64) -> Self {
        let place = sandbox.zones.place;
        Self {
            // SAFETY: the address of libos's gate, which will be mapped.
            gate: unsafe { std::mem::transmute::<u64, CallFn>(sandbox.entry.call) },
            // SAFETY: the address of libos's entry, which will be mapped.
            release: unsafe { std::mem::transmute::<u64, ReleaseFn>(sandbox.entry.release) },
            runtime: std::ptr::with_exposed_provenance(runtime as usize),
            // SAFETY: nothing is looked at before the data zone is mapped there.
            common: unsafe { Common::at(place) },
            place,
        }
    }
}

impl engine::Sandbox for Region {
    fn upcall(&mut self, handler: u64, block: &mut PacketBlock, reply: &mut Reply) -> u32 {
        let args = [std::ptr::from_mut(block).expose_provenance() as u64];
        // SAFETY: handlers that are hooked to the network take the address of a block.
        unsafe { (self.gate)(handler, args.as_ptr(), reply) }
    }

    fn release(&mut self, spill: *mut u8) {
        // SAFETY: a block of an arena, or nothing; what is none is ignored.
        unsafe { (self.release)(spill) };
    }

    fn spilled(&self, spill: u64, len: usize) -> Option<*const u8> {
        let start = usize::try_from(spill).ok()?;
        let end = start.checked_add(len)?;
        let heaps = self.place.base + ARENAS_OFFSET..self.place.base + self.place.len;
        let within = heaps.contains(&start) && end <= heaps.end;
        within.then(|| std::ptr::with_exposed_provenance(start))
    }

    fn post(&mut self, [how, to, handler]: [u64; 3], word: u64) -> Status {
        let args = [how, to, handler, word, 0, 0, 0];
        let mut reply = Reply::empty();
        // SAFETY: as many words as `libos.post` takes.
        let status = unsafe { (self.gate)(POST_HANDLE, args.as_ptr(), &raw mut reply) };
        match Status::from_raw(status) {
            // To all, of whom there is nobody.
            Some(Status::Ok) if reply.word == 0 => Status::Gone,
            status => status.unwrap_or(Status::BadArgs),
        }
    }

    fn wake(&mut self, word: &'static AtomicU32) {
        // SAFETY: libos's table, mapped for good.
        let runtime = unsafe { &*self.runtime };
        // SAFETY: a word of the pool.
        unsafe { (runtime.futex_wake)(word.as_ptr(), u32::MAX >> 1) };
    }

    fn is_over(&self, holder: Holder, upcall: u64) -> bool {
        let seen = self.common.process(holder.row()).claim.load();
        if seen.pid == 0 || !holder.is_of(seen.generation) {
            return true;
        }
        // SAFETY: libos's table, mapped for good.
        let runtime = unsafe { &*self.runtime };
        !matches!(upcall, 0 | BY_PROCESS) && (runtime.owner_alive)(upcall) == 0
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }
}

//! Events: what is posted to a process, and how it gets there.
//!
//! ```text
//!  post ──► inbox of the target ──► bell ──┬─ a thread of it looks or sleeps: that one, at once
//!                                          ├─ one is inside an upcall: on its way out
//!                                          └─ none, and it is urgent: one signal to one thread
//! ```
//!
//! Events of one process are delivered one after another, each as an upcall of its own, never
//! inside another upcall: whoever has the inbox's *turn* delivers, and others leave it to them.
//! Events for any process wait in the pool for a thread that has nothing else to do.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use ext_api::abi::{
    HOW_ALL, HOW_ANY, HOW_KIND, HOW_PEER, HOW_PID, HOW_SERVER, HOW_URGENT, NO_EVENT, Reply, Status,
};
use ext_api::limits::{CONTEXTS_MAX, PROCESSES_MAX};
use libos::bell::Wake;
use libos::data::{Claimed, Context, Inbox, SERVER_CLAIMANT, SUPERVISOR_CLAIMANT, Tally};
use libos::mailbox::{Claimant, EVENT_WORDS, Event, KIND, Mailbox, Taken};
use libos::signals::WHY_EVENT;

use crate::arch::{fs_base, sbx_call, sbx_call_in, stack_pointer};
use crate::{context, heap, hooks, left, start, sys, time};

/// Events that one way out of libos delivers at most; the next one goes on.
const BATCH: u64 = 64;
/// Batches that a signal is good for at most, lest handlers that post to their own process keep it for ever. What is
/// left waits for the next upcall, or for the next urgent event, be there room for that or not.
const BATCHES_HERE: u32 = 16;
/// Events of the pool that a wait runs before it looks at its own inbox again.
const POOL_BATCH: u64 = 8;
/// How long a waiter looks before it sleeps: as long as to wake another one and hear from it takes.
const SPIN_NS: u64 = 40_000;
/// Patience up to here is none, and counts the waits until some is tried again.
const SPIN_NS_MIN: u64 = 1024;
/// Patience of such a trial: if that does not pay, there is none again.
const SPIN_NS_TRIAL: u64 = SPIN_NS + 1;
/// A signal that comes so soon after events came by another is one of several.
const SOON_NS: u64 = 50_000;
/// How long whom it has interrupted stays for each further event: less than a signal takes.
const STAY_NS: u64 = 3_000;
/// And how long for all of them: the program is to run as well.
const STAY_NS_MAX: u64 = 100_000;
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;

/// Names the upcall that the calling thread is in, for a claim. None outside of one.
pub(crate) fn claimant() -> Option<Claimant> {
    let context = context::current()?;
    let sequence = context.sequence.load(Relaxed) as u32;
    Some(sequence << KIND.count_ones() | (context::index_of(context) as u32 + 1))
}

/// May the claimant still go on?
pub(crate) fn is_alive(claimant: Claimant) -> bool {
    let own = claimant & KIND;
    let common = context::common();
    if own == SUPERVISOR_CLAIMANT {
        let pid = common.supervisor().load(Relaxed);
        return (pid << KIND.count_ones()) | SUPERVISOR_CLAIMANT == claimant;
    }
    if own == SERVER_CLAIMANT {
        let server = live(common.timers().server.load(Relaxed));
        return server.is_some_and(|(row, pid)| {
            pid << KIND.count_ones() | own == claimant
                && (!start::shares_pids(row) || sys::thread_exists(pid, pid))
        });
    }
    let index = own as usize - 1;
    if index >= CONTEXTS_MAX {
        return false;
    }
    let sequence = common.context(index).sequence.load(Acquire) as u32;
    sequence << KIND.count_ones() | own == claimant && start::may_live(index)
}

/// A process, so that nobody else is ever taken for it: its row and the row's generation.
pub(crate) const fn peer_of(row: usize, generation: u32) -> u64 {
    (generation as u64) << 32 | row as u64
}

/// The live process that `peer` names.
fn live(peer: u64) -> Option<(usize, u32)> {
    let row = peer as u32 as usize;
    if row >= PROCESSES_MAX {
        return None;
    }
    let seen = context::common().process(row).claim.load();
    (seen.pid != 0 && u64::from(seen.generation) == peer >> 32).then_some((row, seen.pid))
}

/// [`ext_api::abi::Runtime::is_live`].
pub(crate) extern "C" fn is_live(peer: u64) -> u32 {
    u32::from(live(peer).is_some())
}

/// The process `pid` of this pid namespace; 0 if it takes no part.
pub(crate) extern "C" fn peer(pid: u32) -> u64 {
    let common = context::common();
    let is = |row: &usize| {
        let process = common.process(*row);
        let is_here = process.claim.load().pid == pid && start::shares_pids(*row);
        is_here && process.joined.load(Relaxed) != 0
    };
    let found = common.rows().find(is).filter(|_| pid != 0);
    found.map_or(0, |row| peer_of(row, common.process(row).claim.load().generation))
}

/// [`ext_api::abi::Runtime::post`].
///
/// # Safety
/// Four words are readable at `words`.
pub(crate) unsafe extern "C" fn post(how: u64, target: u64, handle: u64, words: *const u64) -> u64 {
    // SAFETY: by contract.
    let words = unsafe { words.cast::<[u64; EVENT_WORDS]>().read_unaligned() };
    let (status, count) = post_to(how, target, Event { handle, words, to: 0 });
    status as u64 | count << 32
}

/// Handler 1: [`post`] for programs. The argument words are: how, target, handler, four words.
///
/// # Safety
/// Seven words, and a reply or null, as its signature says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_post(args: *const u64, reply: *mut Reply) -> u32 {
    // SAFETY: by contract.
    let [how, target, handle, a, b, c, d] = unsafe { args.cast::<[u64; 7]>().read_unaligned() };
    let (status, count) = post_to(how, target, Event { handle, words: [a, b, c, d], to: 0 });
    // SAFETY: by contract.
    if let Some(reply) = unsafe { reply.as_mut() } {
        reply.word = count;
    }
    status as u32
}

/// Handler 2: what names the process `pid` in [`sbx_post`].
///
/// # Safety
/// One word, and a reply or null, as its signature says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_peer(args: *const u64, reply: *mut Reply) -> u32 {
    // SAFETY: by contract.
    let pid = unsafe { args.read_unaligned() } as u32;
    let peer = peer(pid);
    // SAFETY: by contract.
    if let Some(reply) = unsafe { reply.as_mut() } {
        reply.word = peer;
    }
    if peer == 0 { Status::Gone as u32 } else { Status::Ok as u32 }
}

/// Post; the status, and how many mailboxes have the event.
fn post_to(how: u64, target: u64, event: Event) -> (Status, u64) {
    let Some(own) = claimant() else { return (Status::NotAttached, 0) };
    match context::live_handler(event.handle) {
        None => return (Status::Stale, 0),
        // The others read memory at their words.
        Some(handler) if handler.event_words == NO_EVENT => return (Status::BadArgs, 0),
        Some(_) => {}
    }
    send(own, how, target, event)
}

/// Post as the server, which is in no upcall then.
pub(crate) fn post_as_server(how: u64, target: u64, event: Event) -> Status {
    send(server_claimant(), how, target, event).0
}

fn server_claimant() -> Claimant {
    sys::getpid() << KIND.count_ones() | SERVER_CLAIMANT
}

/// Is the one process that a post would go to there? True if it would go to no certain one.
pub(crate) fn has_target(how: u64, target: u64) -> bool {
    match how & HOW_KIND {
        HOW_PEER => live(target).is_some(),
        HOW_PID => peer(target as u32) != 0,
        _ => true,
    }
}

fn send(own: Claimant, how: u64, target: u64, event: Event) -> (Status, u64) {
    let urgent = how & HOW_URGENT != 0;
    let single = |status: Status| (status, u64::from(status == Status::Ok));
    match how & HOW_KIND {
        HOW_PEER => single(put(own, target, event, urgent)),
        HOW_PID => single(put(own, peer(target as u32), event, urgent)),
        HOW_ANY => single(put_in_pool(own, event)),
        HOW_SERVER => {
            single(put(own, context::common().timers().server.load(Relaxed), event, urgent))
        }
        HOW_ALL => put_in_each(|peer| put(own, peer, event, urgent)),
        _ => (Status::BadArgs, 0),
    }
}

/// Do `put` for each process that takes part; [`Status::Full`] if it found no room somewhere, and how many have it.
fn put_in_each(put: impl Fn(u64) -> Status) -> (Status, u64) {
    let common = context::common();
    let (mut status, mut count) = (Status::Ok, 0);
    for row in common.rows() {
        let Claimed { generation, pid } = common.process(row).claim.load();
        if pid == 0 || common.process(row).joined.load(Relaxed) == 0 {
            continue;
        }
        match put(peer_of(row, generation)) {
            Status::Ok => count += 1,
            Status::Full => status = Status::Full,
            _ => {}
        }
    }
    (status, count)
}

/// Post as the server to each process for which `event` does not wait already: it comes again and again, and is not to
/// fill the mailbox of one that does not look.
pub(crate) fn post_once_to_each(how: u64, event: Event) -> Status {
    let (own, urgent) = (server_claimant(), how & HOW_URGENT != 0);
    let is_it = |other: &Event| (other.handle, other.words) == (event.handle, event.words);
    let (status, count) = put_in_each(|peer| {
        let Some((row, pid)) = live(peer) else { return Status::Gone };
        let inbox = context::common().inbox(row);
        if !inbox.mail.holds(|other| other.to == peer && is_it(other)) {
            return put(own, peer, event, urgent);
        }
        tell(row, pid, inbox, urgent);
        Status::Ok
    });
    if count != 0 { Status::Ok } else { status }
}

pub(crate) fn put(own: Claimant, peer: u64, mut event: Event, urgent: bool) -> Status {
    let Some((row, pid)) = live(peer) else { return Status::Gone };
    event.to = peer;
    let inbox = context::common().inbox(row);
    let is_in = inbox.mail.push(own, event).is_ok();
    if !is_in {
        inbox.tally.refused.fetch_add(1, Relaxed);
        if !urgent {
            return Status::Full;
        }
    }
    tell(row, pid, inbox, urgent);
    if is_in { Status::Ok } else { Status::Full }
}

/// Tell the process `pid` that there are events for it.
fn tell(row: usize, pid: u32, inbox: &Inbox, urgent: bool) {
    let is_told = match inbox.bell.ring() {
        // Who said that it sleeps may have ended since, or have jumped out of its sleep.
        Wake::Sleeper => wake(inbox),
        Wake::Spinner => !urgent || looks(row, pid, inbox),
        Wake::Nobody => false,
    };
    if urgent && !is_told && start::shares_pids(row) && inbox.bell.may_signal() {
        signal(inbox, pid);
    }
}

/// Is the thread still there that said that it looks? It is said of that of another pid namespace.
fn looks(row: usize, pid: u32, inbox: &Inbox) -> bool {
    !start::shares_pids(row) || sys::thread_exists(pid, inbox.bell.spinner())
}

/// Wake one who sleeps. False if nobody does.
fn wake(inbox: &Inbox) -> bool {
    // SAFETY: a word of the data zone.
    unsafe { sys::futex_wake(inbox.bell.word.as_ptr(), 1) > 0 }
}

/// Interrupt one thread of `pid` that is outside of libos. A thread that is inside looks on its
/// way out.
fn signal(inbox: &Inbox, pid: u32) {
    let outside = context::of_process(pid)
        .filter(|context| context.sequence.load(Relaxed).is_multiple_of(2))
        .map(|context| context.tid.load(Relaxed));
    // The first thread may have ended and still be there, which the kernel does not say; it finds another then.
    let mut told = outside.map(|tid| match tid {
        _ if tid == pid => sys::queue_stop_to_any(pid, WHY_EVENT),
        _ => sys::queue_stop(pid, tid, WHY_EVENT, 0),
    });
    if !told.any(|told| told.is_ok()) && sys::queue_stop_to_any(pid, WHY_EVENT).is_err() {
        inbox.bell.signal_came();
    }
}

fn put_in_pool(own: Claimant, event: Event) -> Status {
    let pool = context::common().pool();
    if pool.mail.push(own, event).is_err() {
        pool.tally.refused.fetch_add(1, Relaxed);
        return Status::Full;
    }
    core::sync::atomic::fence(SeqCst);
    for (index, word) in pool.idle.iter().enumerate() {
        let mut bits = word.load(Relaxed);
        while bits != 0 {
            let row = index * 64 + bits.trailing_zeros() as usize;
            let inbox = context::common().inbox(row);
            let pid = context::common().process(row).claim.load().pid;
            let takes_it = match inbox.bell.ring() {
                Wake::Sleeper => wake(inbox),
                Wake::Spinner => pid != 0 && looks(row, pid, inbox),
                Wake::Nobody => false,
            };
            if takes_it {
                return Status::Ok;
            }
            // Up already, or killed in its sleep.
            bits &= bits - 1;
        }
    }
    Status::Ok
}

/// For the gate, on the way out of the upcalls of `context`: deliver what has come meanwhile.
pub(crate) extern "C" fn sbx_deliver(context: &Context) {
    hooks::come_now(context);
    // Not moved: a copy right after it was written word by word would wait for that.
    if let Some(own) = &start::this_process() {
        deliver(own, context.tid.load(Relaxed), None);
    }
}

/// Is a signal on its way that says so?
pub(crate) fn is_signalled() -> bool {
    let own = start::this_process();
    own.is_some_and(|own| context::common().inbox(own.row).bell.is_signalled())
}

/// A signal has come to say that there are events.
pub(crate) fn signal_came() {
    if let Some(own) = start::this_process() {
        context::common().inbox(own.row).bell.signal_came();
    }
}

/// Until when a thread that a signal has interrupted for events stays for more of them: not at all if events came
/// long ago.
pub(crate) fn stays_until(own: &start::ThisProcess) -> u64 {
    let (inbox, now) = (context::common().inbox(own.row), time::now_ns());
    let before = inbox.signalled_ns.swap(now, Relaxed);
    if now.saturating_sub(before) < SOON_NS { now + STAY_NS_MAX } else { 0 }
}

/// Look for another event, which then needs no signal. Every signal is blocked, so that nobody jumps out of this.
pub(crate) fn stays(own: &start::ThisProcess, tid: u32, until: u64) -> bool {
    let (inbox, now) = (context::common().inbox(own.row), time::now_ns());
    if now >= until {
        return false;
    }
    inbox.signalled_ns.store(now, Relaxed);
    let is_empty = || inbox.masked.load(Relaxed) != 0 || inbox.mail.is_empty();
    inbox.bell.begin_to_spin(tid);
    let found = look(STAY_NS, is_empty);
    inbox.bell.end_to_spin();
    // Of one that came at the end nobody else has been told.
    found || !is_empty()
}

/// Deliver events to the thread with this context, which a signal has interrupted in code of its own.
pub(crate) fn deliver_here(context: &Context) {
    let Some(own) = &start::this_process() else { return };
    let is_done = |_: &u32| deliver(own, context.tid.load(Relaxed), Some(context)) < BATCH;
    let _ = (0..BATCHES_HERE).find(is_done);
}

/// Deliver what waits for this process, unless another thread is at it; how many. The gate finds the thread's context
/// unless it is told.
fn deliver(own: &start::ThisProcess, tid: u32, context: Option<&Context>) -> u64 {
    take_and_run(own, tid, context, false)
}

/// The same. If an event has been seen (`is_seen`), it is taken before anything is written to the bell, whose line its
/// poster has just then.
fn take_and_run(
    own: &start::ThisProcess,
    tid: u32,
    context: Option<&Context>,
    is_seen: bool,
) -> u64 {
    let inbox = context::common().inbox(own.row);
    let (peer, mut count, mut is_seen) = (peer_of(own.row, own.generation), 0, is_seen);
    loop {
        if inbox.masked.load(Relaxed) != 0 {
            inbox.bell.answer();
            return count;
        }
        if !take_turn(inbox, tid) {
            return count;
        }
        if !is_seen {
            inbox.bell.begin();
        }
        let is_open = || inbox.masked.load(Relaxed) == 0;
        // Asked of each event when it has been taken, before its handler runs.
        let is_late = core::cell::Cell::new(core::mem::take(&mut is_seen));
        let is_ours = |event: &Event| {
            if is_late.take() {
                inbox.bell.begin();
            }
            event.to == peer
        };
        let batch = run(&inbox.mail, &inbox.tally, BATCH, context, is_open, is_ours);
        count += batch.count;
        let rung = inbox.bell.leave(&inbox.turn);
        if batch.end == End::Enough {
            inbox.bell.pending.store(1, Release);
            return count;
        }
        // Go on with what was put in behind our last look, by somebody who saw that it was our
        // turn. Who is putting one in at this moment rings when it is there.
        if !rung && (batch.end == End::Busy || inbox.mail.is_empty()) {
            return count;
        }
    }
}

/// Only one thread of a process delivers at a time. A turn is a thread and where its stack was: a
/// handler of the program that jumped out of a delivery has its stack above that again.
fn take_turn(inbox: &Inbox, tid: u32) -> bool {
    let mine = u64::from(tid) << 32 | (stack_pointer() as u64 >> 4 & 0xffff_ffff);
    let seen = inbox.turn.load(Relaxed);
    let jumped_out = seen >> 32 == mine >> 32 && seen as u32 <= mine as u32;
    let is_free = seen == 0 || jumped_out || has_ended(inbox, (seen >> 32) as u32);
    is_free && inbox.turn.compare_exchange(seen, mine, Acquire, Relaxed).is_ok()
}

/// Has the thread that delivers ended in the middle of it? Asked now and then.
fn has_ended(inbox: &Inbox, tid: u32) -> bool {
    const TURNS: u32 = 64;
    inbox.turned_away.fetch_add(1, Relaxed) % TURNS == TURNS - 1 && !sys::task_lives(tid)
}

/// What this thread has jumped out of is over before it takes a turn, which would be taken for that one's.
fn end_left() {
    let is_open = |context: &&Context| !context.sequence.load(Relaxed).is_multiple_of(2);
    if let Some(context) = context::of_fs(fs_base()).filter(is_open) {
        left::end_if_left(context, stack_pointer());
    }
}

/// Thread `tid` has left all that it was in.
pub(crate) fn has_left(tid: u32) {
    let Some(own) = start::this_process() else { return };
    let turn = &context::common().inbox(own.row).turn;
    let seen = turn.load(Relaxed);
    if seen >> 32 == u64::from(tid) {
        let _ = turn.compare_exchange(seen, 0, Relaxed, Relaxed);
    }
}

/// Why no more events are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Empty,
    Busy,
    Enough,
}

/// Events that were taken, and why no more.
#[derive(Debug, Clone, Copy)]
struct Batch {
    count: u64,
    end: End,
}

/// Take at most `most` events and run their handlers.
fn run<const N: usize>(
    mail: &Mailbox<N>,
    tally: &Tally,
    most: u64,
    context: Option<&Context>,
    goes_on: impl Fn() -> bool,
    is_ours: impl Fn(&Event) -> bool,
) -> Batch {
    for count in 0..most {
        if !goes_on() {
            return Batch { count, end: End::Enough };
        }
        let event = match mail.pop(is_alive) {
            Taken::Event(event) => event,
            Taken::Empty => return Batch { count, end: End::Empty },
            Taken::Busy => return Batch { count, end: End::Busy },
        };
        let outcome = if is_ours(&event) {
            if upcall(&event, context) { &tally.delivered } else { &tally.failed }
        } else {
            &tally.lost
        };
        // Another taker of the pool may come between: these are for people.
        outcome.store(outcome.load(Relaxed) + 1, Relaxed);
    }
    Batch { count: most, end: End::Enough }
}

/// Run the handler of an event. False: it failed, or is there no longer.
fn upcall(event: &Event, context: Option<&Context>) -> bool {
    let mut reply = Reply::empty();
    let (handle, words, to) = (event.handle, event.words.as_ptr(), &raw mut reply);
    let status = match context {
        // SAFETY: events are for handlers that take numbers, at most as many as there are words; the reply is ours, and
        // the context is this thread's.
        Some(context) => unsafe { sbx_call_in(handle, words, to, context) },
        // SAFETY: the same.
        None => unsafe { sbx_call(handle, words, to) },
    };
    if !reply.spill.is_null() {
        // SAFETY: the handler made it for this reply.
        unsafe { heap::free(reply.spill.cast()) };
    }
    status == Status::Ok as u32 || status == Status::None as u32
}

/// [`ext_api::abi::WaitFn`]: wait for events, at most so long; how many were delivered.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_wait(timeout_ns: u64) -> u64 {
    let Some(own) = start::this_process() else { return 0 };
    end_left();
    let (common, tid) = (context::common(), context::own_tid());
    let (inbox, pool) = (common.inbox(own.row), common.pool());
    let is_open = || inbox.masked.load(Relaxed) == 0;
    let work = || {
        let count = deliver(&own, tid, None);
        count + run(&pool.mail, &pool.tally, POOL_BATCH, None, is_open, |_| true).count
    };
    let is_empty = || !is_open() || inbox.mail.is_empty() && pool.mail.is_empty();
    if timeout_ns == 0 || !is_empty() {
        let count = work();
        if count != 0 || timeout_ns == 0 {
            return count;
        }
    }
    let patience = patience(inbox).min(timeout_ns);
    inbox.bell.begin_to_spin(tid);
    let has_none = || !is_open() || !inbox.mail.has_first() && !pool.mail.has_first();
    let found = look(patience, has_none);
    let seen = if found { take_and_run(&own, tid, None, true) } else { 0 };
    inbox.bell.end_to_spin();
    note_patience(inbox, patience, found);
    let count = seen + if seen == 0 || !is_empty() { work() } else { 0 };
    if count != 0 || timeout_ns <= patience {
        return count;
    }
    // Who has the turn may have ended in the middle of it.
    let turn = inbox.turn.load(Relaxed);
    if turn != 0 && !sys::task_lives((turn >> 32) as u32) {
        let _ = inbox.turn.compare_exchange(turn, 0, Relaxed, Relaxed);
    }
    let seen = inbox.bell.lie_down();
    let (idle, bit) = (&pool.idle[own.row / 64], 1 << (own.row % 64));
    idle.fetch_or(bit, SeqCst);
    if is_empty() {
        // SAFETY: a word of the data zone.
        unsafe { sys::futex_wait(inbox.bell.word.as_ptr(), seen, timeout_ns - patience) };
    }
    inbox.bell.get_up();
    idle.fetch_and(!bit, SeqCst);
    if inbox.bell.has_waiter() {
        // Another thread of this process. What it missed meanwhile is ours to take.
        idle.fetch_or(bit, SeqCst);
    }
    work()
}

/// [`ext_api::abi::WaitOnFn`]: wait until `*word` is no longer `expected`, at most so long, and run
/// what comes for the process or for any process meanwhile. 1 if it has changed.
///
/// # Safety
/// `word` is readable, and stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_wait_on(word: *const u32, expected: u32, timeout_ns: u64) -> u64 {
    let Some(own) = start::this_process() else { return 0 };
    end_left();
    // SAFETY: by contract; others may write it at any time.
    let word = unsafe { core::sync::atomic::AtomicU32::from_ptr(word.cast_mut()) };
    let (common, tid) = (context::common(), context::own_tid());
    let (inbox, pool) = (common.inbox(own.row), common.pool());
    let until = time::now_ns().saturating_add(timeout_ns);
    let has_changed = || word.load(Acquire) != expected;
    let is_open = || inbox.masked.load(Relaxed) == 0;
    let is_empty = || !is_open() || inbox.mail.is_empty() && pool.mail.is_empty();
    loop {
        if has_changed() {
            return 1;
        }
        if !is_empty() {
            deliver(&own, tid, None);
            // One at a time: whoever changes the word is not to wait for a queue of work.
            run(&pool.mail, &pool.tally, 1, None, is_open, |_| true);
            continue;
        }
        let now = time::now_ns();
        if now >= until {
            return 0;
        }
        let patience = patience(inbox).min(until - now);
        inbox.bell.begin_to_spin(tid);
        let found = look(patience, || !has_changed() && is_empty());
        inbox.bell.end_to_spin();
        note_patience(inbox, patience, found);
        if found {
            continue;
        }
        let seen = inbox.bell.lie_down();
        let (idle, bit) = (&pool.idle[own.row / 64], 1 << (own.row % 64));
        idle.fetch_or(bit, SeqCst);
        if is_empty() && !has_changed() {
            let words = [(word.as_ptr(), expected), (inbox.bell.word.as_ptr(), seen)];
            // SAFETY: a word of the caller's, and one of the data zone.
            unsafe { sys::futex_wait_any(words, until) };
        }
        inbox.bell.get_up();
        idle.fetch_and(!bit, SeqCst);
        if inbox.bell.has_waiter() {
            idle.fetch_or(bit, SeqCst);
        }
    }
}

/// [`ext_api::abi::WakeOnFn`].
///
/// # Safety
/// `word` may be waited on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_wake_on(word: *const u32, count: u32) -> u64 {
    // SAFETY: by contract.
    u64::try_from(unsafe { sys::futex_wake(word, count) }).unwrap_or(0)
}

/// Look until there is something, for so long; whether there is.
fn look(limit_ns: u64, is_empty: impl Fn() -> bool) -> bool {
    let mut began = None;
    if limit_ns <= SPIN_NS_MIN {
        return !is_empty();
    }
    loop {
        for _ in 0..LOOKS {
            if !is_empty() {
                return true;
            }
            core::hint::spin_loop();
        }
        let now = time::now_ns();
        if now - *began.get_or_insert(now) >= limit_ns {
            return false;
        }
    }
}

/// How long to look: long while that pays, as between two that run on CPUs of their own; hardly
/// where who is to post cannot run meanwhile.
fn patience(inbox: &Inbox) -> u64 {
    match inbox.patience_ns.load(Relaxed) {
        0 => SPIN_NS,
        ns => u64::from(ns),
    }
}

fn note_patience(inbox: &Inbox, was: u64, paid: bool) {
    let next = match was {
        _ if paid => SPIN_NS,
        SPIN_NS_MIN => SPIN_NS_TRIAL,
        0..SPIN_NS_MIN => was + 1,
        SPIN_NS_TRIAL => 1,
        _ if was / 2 <= SPIN_NS_MIN => 1,
        _ => was / 2,
    };
    inbox.patience_ns.store(next as u32, Relaxed);
}

/// [`ext_api::abi::Runtime::mask`].
pub(crate) extern "C" fn mask(on: u32) {
    let Some(own) = start::this_process() else { return };
    let inbox = context::common().inbox(own.row);
    inbox.masked.store(u32::from(on != 0), Release);
    // What has come meanwhile is seen on the way out, or by who sleeps.
    core::sync::atomic::fence(SeqCst);
    if on == 0 && inbox.bell.ring() == Wake::Sleeper {
        wake(inbox);
    }
}

/// A process has taken row `row` of the process table: what waits there was for another. How many events.
pub(crate) fn begin(row: usize) -> u64 {
    let inbox = context::common().inbox(row);
    inbox.bell.reset();
    inbox.turn.store(0, Relaxed);
    inbox.masked.store(0, Relaxed);
    let tally = &inbox.tally;
    for count in [&tally.delivered, &tally.failed, &tally.refused, &tally.lost] {
        count.store(0, Relaxed);
    }
    context::common().pool().idle[row / 64].fetch_and(!(1 << (row % 64)), Relaxed);
    while let Taken::Event(_) = inbox.mail.pop(is_alive) {
        inbox.tally.lost.fetch_add(1, Relaxed);
    }
    inbox.tally.lost.load(Relaxed)
}

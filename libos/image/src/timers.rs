//! Timers: started by anybody, served by the worker that stays.
//!
//! When a timer is due the server posts to where its handler is to run, or runs it itself. What is
//! posted is [`sbx_expire`], which calls the handler: so a timer waits in a mailbox once at most, and
//! what has gone by meanwhile is counted. Only of one that comes once, to all, the handler itself is posted.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use ext_api::abi::{
    EXPIRE_HANDLE, HELLO_HANDLE, HOW_ALL, HOW_ANY, HOW_KIND, HOW_PID, HOW_RUNNING, HOW_SERVER,
    HOW_URGENT, NO_EVENT, Reply, Status, TIMER_ABSOLUTE,
};
use ext_api::limits::{PROCESSES_MAX, TIMER_NS_MIN, TIMERS_MAX};
use libos::data::Context;
use libos::mailbox::Event;
use libos::signals::WHY_TIMER;
use libos::timers::{LOOK_NS, Plan, Timer, TimerId, Timers, following, rounded};
use libos::wheel::Wheel;

use crate::arch::sbx_call;
use crate::events::{self, claimant, is_alive};
use crate::{context, start, sys, time};

/// Nanoseconds of a tick, as a power of two.
const TICK: u32 = 10;
/// How long until a timer that comes once tries again after it found a full mailbox.
const AGAIN_NS: u64 = TIMER_NS_MIN;
/// Words of `libos.timer`.
const WORDS: usize = 9;

fn all() -> &'static Timers {
    context::common().timers()
}

/// [`ext_api::abi::Runtime::timer`].
///
/// # Safety
/// Nine words are readable at `words`; `id` is writable.
pub(crate) unsafe extern "C" fn timer(words: *const u64, id: *mut u64) -> u32 {
    // SAFETY: by contract.
    let words = unsafe { words.cast::<[u64; WORDS]>().read_unaligned() };
    match begin(words) {
        Ok(name) => {
            // SAFETY: by contract.
            unsafe { id.write(name) };
            Status::Ok as u32
        }
        Err(status) => status as u32,
    }
}

/// Handler 3: [`timer`] for programs.
///
/// # Safety
/// As its signature says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_timer(args: *const u64, reply: *mut Reply) -> u32 {
    let mut ignored = 0;
    // SAFETY: by contract.
    let id = unsafe { reply.as_mut() }.map_or(&mut ignored, |reply| &mut reply.word);
    // SAFETY: by contract.
    unsafe { timer(args, id) }
}

/// [`ext_api::abi::Runtime::cancel`].
pub(crate) extern "C" fn cancel(id: u64) -> u32 {
    let done = all().cancel(id);
    if done {
        tell_server();
    }
    u32::from(done)
}

/// Handler 4: [`cancel`] for programs.
///
/// # Safety
/// As its signature says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_cancel(args: *const u64, reply: *mut Reply) -> u32 {
    // SAFETY: by contract.
    let done = cancel(unsafe { args.read_unaligned() });
    // SAFETY: by contract.
    if let Some(reply) = unsafe { reply.as_mut() } {
        reply.word = u64::from(done);
    }
    Status::Ok as u32
}

fn begin(
    [first, flags, period, slack, how, target, handle, a, b]: [u64; WORDS],
) -> Result<TimerId, Status> {
    let own = claimant().ok_or(Status::NotAttached)?;
    let handler = context::live_handler(handle).ok_or(Status::Stale)?;
    let too_often = period != 0 && period < TIMER_NS_MIN;
    let is_known = how & HOW_KIND <= HOW_RUNNING && how & !(HOW_KIND | HOW_URGENT) == 0;
    if handler.event_words == NO_EVENT || handler.event_words > 3 || too_often || !is_known {
        return Err(Status::BadArgs);
    }
    let from_now = flags & TIMER_ABSOLUTE == 0;
    let plan = Plan {
        due_ns: if from_now { time::now_ns().saturating_add(first) } else { first },
        period_ns: period,
        slack_ns: slack,
        how,
        target,
        handle,
        words: [a, b],
        word_count: 2,
    };
    let id = all().start(own, is_alive, &plan).ok_or(Status::Full)?;
    tell_server();
    if how & HOW_KIND == HOW_RUNNING {
        tell_lenders();
    }
    Ok(id)
}

/// Have those that lend themselves look at the timers: there is a new one.
fn tell_lenders() {
    let common = context::common();
    for index in common.contexts() {
        let (context, pid) = (common.context(index), common.claim(index).load().pid);
        if pid != 0 && context.lent.load(Relaxed) != 0 && start::context_shares_pids(index) {
            let _ = sys::queue_stop(pid, context.tid.load(Relaxed), WHY_TIMER, 0);
        }
    }
}

/// Handler 6: the calling thread runs timers of others from now on.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_lend(_: *const u64, _: *mut Reply) -> u32 {
    let Some(context) = context::current() else { return Status::NotAttached as u32 };
    if context.lent.load(Relaxed) == 0 {
        match sys::create_timer() {
            Ok(number) => context.lent.store(number + 1, Relaxed),
            Err(_) => return Status::Full as u32,
        }
    }
    look_again(context);
    Status::Ok as u32
}

/// Have the kernel interrupt this thread when the next timer is due, which may be now.
pub(crate) fn look_again(context: &Context) {
    let Some(number) = context.lent.load(Relaxed).checked_sub(1) else { return };
    let next = each_running(|index| all().timers[index].due_ns.load(Relaxed)).min();
    if let Some(next) = next.filter(|next| *next != u64::MAX) {
        sys::set_timer(number, next);
    }
}

/// Of each timer for whoever runs.
fn each_running<T>(of: impl Fn(usize) -> T) -> impl Iterator<Item = T> {
    (0..TIMERS_MAX / 64)
        .flat_map(|word| {
            let bits = all().running[word].load(Relaxed);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit)
        })
        .filter(|&index| all().look(index).is_some())
        .map(of)
}

/// The thread of `context` is in no upcall: run the timers that are due, as far as nobody else does.
pub(crate) fn run_due(context: &Context) {
    each_running(take).for_each(drop);
    look_again(context);
}

/// If the timer `index`, which is for whoever runs, is due, run its handler here.
fn take(index: usize) {
    let timer = &all().timers[index];
    let Some(gone_by) = all().claim(index, time::now_ns()) else { return };
    let Some(id) = all().look(index) else { return };
    timer.missed.fetch_add(gone_by, Relaxed);
    let (runs, now) = (timer.runner.load(Relaxed), time::now_ns());
    let since = now.saturating_sub(timer.began_ns.load(Relaxed));
    if runs != 0 && since < timer.period_ns.load(Relaxed) && is_alive(runs) {
        // It is at it still, elsewhere. For no longer than a period: its thread may be waiting for a CPU.
        timer.missed.fetch_add(1, Relaxed);
        return;
    }
    timer.began_ns.store(now, Relaxed);
    expire(id);
}

/// Run the handler of a timer here.
fn expire(id: TimerId) {
    let mut reply = Reply::empty();
    // SAFETY: the words of `libos.expire`, and a reply of ours.
    unsafe { sbx_call(EXPIRE_HANDLE, (&raw const id).cast(), &raw mut reply) };
}

/// Have the server look at what has changed; if there is none, the supervisor makes one.
fn tell_server() {
    let server = all().server.load(Acquire);
    let hello = Event { handle: HELLO_HANDLE, words: [0; 4], to: 0 };
    let told = claimant().map(|own| events::put(own, server, hello, false));
    if told == Some(Status::Gone) {
        sys::kill(context::common().supervisor().load(Relaxed), libos::data::DOORBELL);
    }
}

/// Handler 5: a timer's time has come, and this is where its handler is to run.
///
/// # Safety
/// One word, as its signature says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_expire(args: *const u64, _reply: *mut Reply) -> u32 {
    // SAFETY: by contract.
    let id = unsafe { args.read_unaligned() };
    let Some((_, timer)) = all().live(id) else { return Status::Gone as u32 };
    timer.queued_ns.store(0, Relaxed);
    let words = words_of(timer);
    let handle = timer.handle.load(Relaxed);
    if let Some(own) = claimant() {
        timer.runner.store(own, Relaxed);
    }
    // One that comes once may have been posted again when it was taken for lost.
    if timer.period_ns.load(Relaxed) == 0 && !all().cancel(id) {
        return Status::Gone as u32;
    }
    let mut reply = Reply::empty();
    // SAFETY: a handler of numbers, as many as there are words; the reply is ours.
    unsafe { sbx_call(handle, words.as_ptr(), &raw mut reply) }
}

/// What the timer's handler is given now.
fn words_of(timer: &Timer) -> [u64; 4] {
    let missed = timer.missed.swap(0, AcqRel);
    match timer.word_count.load(Relaxed) {
        0 => [missed, 0, 0, 0],
        _ => [timer.words[0].load(Relaxed), timer.words[1].load(Relaxed), missed, 0],
    }
}

/// The server's life: serve timers and run what is posted to it.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_serve() {
    let Some(own) = start::this_process() else { return };
    sys::set_timer_slack(1);
    all().server.store(events::peer_of(own.row, own.generation), Relaxed);
    all().changed.iter().for_each(|bits| bits.store(!0, Relaxed));
    let mut wheel = Wheel::<TIMERS_MAX>::new(time::now_ns() >> TICK);
    loop {
        for (word, bits) in all().changed.iter().enumerate() {
            let mut bits = bits.swap(0, Acquire);
            while bits != 0 {
                let index = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                plan(&mut wheel, index);
            }
        }
        wheel_on(&mut wheel);
        let left = match wheel.next() {
            None => u64::MAX >> 4,
            Some(tick) => (tick << TICK).saturating_sub(time::now_ns()),
        };
        if left != 0 {
            events::sbx_wait(left);
        }
    }
}

/// Put a timer where the wheel will find it.
fn plan(wheel: &mut Wheel<TIMERS_MAX>, index: usize) {
    if all().look(index).is_none() {
        wheel.clear(index);
        return;
    }
    let timer = &all().timers[index];
    let at = rounded(timer.due_ns.load(Relaxed), timer.slack_ns.load(Relaxed));
    wheel.set(index, at.div_ceil(1 << TICK));
}

/// Serve what is due.
fn wheel_on(wheel: &mut Wheel<TIMERS_MAX>) {
    let mut due = [0u64; TIMERS_MAX / 64];
    wheel.advance(time::now_ns() >> TICK, |index| due[index / 64] |= 1 << (index % 64));
    for (word, mut bits) in due.into_iter().enumerate() {
        while bits != 0 {
            let index = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if let Some(id) = all().look(index) {
                come(index, id);
                plan(wheel, index);
            }
        }
    }
}

/// Have the timer's handler run where it is to.
fn send(id: TimerId, timer: &Timer) -> Status {
    let (how, target) = (timer.how.load(Relaxed), timer.target.load(Relaxed));
    let event = Event { handle: EXPIRE_HANDLE, words: [id, 0, 0, 0], to: 0 };
    match how & HOW_KIND {
        HOW_SERVER => {
            expire(id);
            Status::Ok
        }
        HOW_ALL if timer.period_ns.load(Relaxed) == 0 => {
            // It would be over with the first of them. Who has no room for it goes without.
            let handle = timer.handle.load(Relaxed);
            events::post_as_server(how, target, Event { handle, words: words_of(timer), to: 0 });
            all().cancel(id);
            Status::Ok
        }
        HOW_ALL => events::post_once_to_each(how, event),
        _ => events::post_as_server(how, target, event),
    }
}

/// Has the timer been posted, so that its handler will run? Not so if who took it out of its mailbox was
/// killed, or an exec has emptied that, or a server has ended that was to run it.
fn is_on_its_way(timer: &Timer, now: u64) -> bool {
    let since = timer.queued_ns.load(Relaxed);
    let (how, target) = (timer.how.load(Relaxed), timer.target.load(Relaxed));
    let is_recent = now.saturating_sub(since) < LOOK_NS;
    since != 0 && how & HOW_KIND != HOW_SERVER && (is_recent || something_waits(how, target))
}

/// Has the one process ended that the timer is for?
fn is_over(how: u64, target: u64) -> bool {
    let pid = target as u32;
    // It takes no part for a moment while it executes a program.
    let executes = how & HOW_KIND == HOW_PID && pid != 0 && sys::thread_exists(pid, pid);
    !executes && !events::has_target(how, target)
}

/// Does anything wait where a timer was posted to?
fn something_waits(how: u64, target: u64) -> bool {
    let common = context::common();
    let holds = |row: usize| row < PROCESSES_MAX && !common.inbox(row).mail.is_empty();
    match how & HOW_KIND {
        HOW_ANY => !common.pool().mail.is_empty(),
        HOW_ALL => common.rows().any(|row| common.process(row).claim.load().pid != 0 && holds(row)),
        HOW_PID => holds(events::peer(target as u32) as u32 as usize),
        _ => holds(target as u32 as usize),
    }
}

/// A timer is due: have its handler run, and work out when it is due again.
fn come(index: usize, id: TimerId) {
    let timer = &all().timers[index];
    if timer.how.load(Relaxed) & HOW_KIND == HOW_RUNNING {
        return take(index);
    }
    let (due, period) = (timer.due_ns.load(Relaxed), timer.period_ns.load(Relaxed));
    // It is looked at early if its time lies beyond what the wheel can tell.
    let now = time::now_ns();
    let Some(late) = now.checked_sub(due) else { return };
    let gone_by = late.checked_div(period).unwrap_or(0);
    timer.missed.fetch_add(gone_by, Relaxed);
    // One that does not come again is over with its handler.
    let next = if period == 0 { now + LOOK_NS } else { following(due, period, gone_by) };
    timer.due_ns.store(next, Relaxed);
    if context::live_handler(timer.handle.load(Relaxed)).is_none() {
        all().cancel(id);
        return;
    }
    let (how, target) = (timer.how.load(Relaxed), timer.target.load(Relaxed));
    if is_on_its_way(timer, now) {
        timer.missed.fetch_add(u64::from(period != 0), Relaxed);
        if is_over(how, target) {
            all().cancel(id);
        }
        return;
    }
    let lost = timer.queued_ns.swap(now, Relaxed) != 0;
    timer.missed.fetch_add(u64::from(lost && period != 0), Relaxed);
    match send(id, timer) {
        Status::Ok => {}
        Status::Gone if is_over(how, target) => {
            all().cancel(id);
        }
        status => {
            if period == 0 && status == Status::Full {
                timer.due_ns.store(now + AGAIN_NS, Relaxed);
            }
            timer.queued_ns.store(0, Relaxed);
            timer.missed.fetch_add(u64::from(period != 0), Relaxed);
        }
    }
}

//! `events ROUTE`: posts events by one route and says what became of them. Ends with an error if it
//! is something else than it must be. Runs in a sandbox with the ledger.
#![expect(unsafe_code, reason = "forks")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::client::Sandbox;
use ext_api::error::CallError;
use ext_api::limits::INBOX_EVENTS_MAX;
use ext_api::post::{Peer, To};
use integration::Random;
use ledger::ledger::Client;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

const PATIENCE: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(5);

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A child that ends with the value.
struct Other(Pid);

impl Other {
    fn start(body: impl FnOnce(&Here)) -> Self {
        // SAFETY: this process has one thread.
        match unsafe { fork() }.expect("it forks") {
            ForkResult::Parent { child } => Self(child),
            ForkResult::Child => {
                body(&Here::new().expect("it is inside"));
                std::process::exit(0)
            }
        }
    }

    /// One that waits for events until it is killed.
    fn waiting() -> Self {
        Self::start(|here| {
            loop {
                let _ = here.sandbox.wait(PATIENCE);
            }
        })
    }

    fn peer(&self, here: &Here) -> Peer {
        let start = Instant::now();
        loop {
            match here.sandbox.peer(self.0.as_raw() as u32) {
                Ok(peer) => return peer,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
        }
    }

    fn stop(&self) {
        kill(self.0, Signal::SIGSTOP).expect("it is there");
        waitpid(self.0, Some(WaitPidFlag::WUNTRACED)).expect("it stops");
    }

    fn join(self) {
        let _ = waitpid(self.0, None);
        std::mem::forget(self);
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

struct Here {
    sandbox: Sandbox,
    ledger: Client,
    note: u64,
    work: u64,
}

impl Here {
    fn new() -> Result<Self, CallError> {
        let sandbox = Sandbox::current()?;
        let (note, work) = (sandbox.find("ledger.note")?, sandbox.find("ledger.work")?);
        Ok(Self { sandbox, ledger: Client::attach()?, note, work })
    }

    /// Post, as often as it takes while the mailbox is full.
    fn post(&self, to: To, handler: u64, words: &[u64]) {
        loop {
            match self.sandbox.post(to, handler, words) {
                Ok(_) => return,
                Err(CallError::Refused(Status::Full)) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn noted(&self) -> u64 {
        self.ledger.noted(0).expect("it answers")
    }

    /// Until so many events have been noted, none of them wrongly.
    fn expect(&self, count: u64, wait: impl Fn()) {
        let start = Instant::now();
        while self.noted() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count}", self.noted());
            wait();
        }
        std::thread::sleep(MOMENT);
        assert_eq!(self.noted(), count);
        assert_eq!(self.ledger.noted(1).expect("it answers"), 0, "out of order");
    }

    fn own_peer(&self) -> Peer {
        self.sandbox.peer(std::process::id()).expect("we take part")
    }
}

fn refused(result: Result<u64, CallError>, status: Status) {
    assert_eq!(result, Err(CallError::Refused(status)));
}

const POSTERS: u64 = 4;
const EACH: u64 = 5_000;

/// Posters that send numbered notes to `to`.
fn posters(to: Peer) -> Vec<Other> {
    let poster = |which| {
        Other::start(move |here| {
            (1..=EACH).for_each(|at| here.post(To::peer(to), here.note, &[which, at]));
        })
    };
    (0..POSTERS).map(poster).collect()
}

/// To a process that waits.
fn waiting(here: &Here) {
    let posters = posters(here.own_peer());
    here.expect(POSTERS * EACH, || {
        let _ = here.sandbox.wait(MOMENT);
    });
    posters.into_iter().for_each(Other::join);
}

/// To a process that makes upcalls all the time, from two threads.
fn leaving(here: &Here) {
    let posters = posters(here.own_peer());
    std::thread::scope(|scope| {
        let total = POSTERS * EACH;
        scope.spawn(move || {
            let client = Client::attach().expect("we take part");
            while client.noted(0).expect("it answers") < total {}
        });
        here.expect(POSTERS * EACH, || ());
    });
    posters.into_iter().for_each(Other::join);
}

/// To oneself, from a handler: when the upcall is over.
fn oneself(here: &Here) {
    let peer = here.own_peer().to_raw();
    for number in 1..=1_000 {
        assert_eq!(here.ledger.relay(peer, 7, number), Ok(1));
        assert_eq!(here.noted(), number);
    }
    here.expect(1_000, || ());
}

/// To one that runs code of its own: only if it is urgent.
fn urgent(here: &Here) {
    let busy = Other::start(|here| {
        here.noted();
        loop {
            std::hint::spin_loop();
        }
    });
    let peer = busy.peer(here);
    std::thread::sleep(MOMENT);
    here.post(To::peer(peer), here.note, &[1, 1]);
    std::thread::sleep(10 * MOMENT);
    assert_eq!(here.noted(), 0, "delivered to a process that never came by");
    here.post(To::peer(peer).urgent(), here.note, &[1, 2]);
    here.expect(2, || ());
    for number in 3..=2_000 {
        here.post(To::peer(peer).urgent(), here.note, &[1, number]);
    }
    here.expect(2_000, || ());
    assert_eq!(here.ledger.noted(2), Ok(busy.0.as_raw() as u64));
}

/// To one that takes none: full, and nothing that was put in is lost.
fn full(here: &Here) {
    let stopped = Other::waiting();
    let peer = stopped.peer(here);
    std::thread::sleep(MOMENT);
    stopped.stop();
    for number in 1..=INBOX_EVENTS_MAX as u64 {
        let posted = here.sandbox.post(To::peer(peer), here.note, &[1, number]);
        assert_eq!(posted, Ok(1), "{number}");
    }
    refused(here.sandbox.post(To::peer(peer), here.note, &[1, 0]), Status::Full);
    assert_eq!(here.noted(), 0);
    kill(stopped.0, Signal::SIGCONT).expect("it is there");
    here.expect(INBOX_EVENTS_MAX as u64, || ());
}

/// To one that ends, and to what there never was.
fn gone(here: &Here) {
    let stopped = Other::waiting();
    let (peer, pid) = (stopped.peer(here), stopped.0.as_raw() as u32);
    std::thread::sleep(MOMENT);
    stopped.stop();
    (1..=3).for_each(|number| here.post(To::peer(peer), here.note, &[1, number]));
    drop(stopped);
    let start = Instant::now();
    while here.sandbox.peer(pid).is_ok() {
        assert!(start.elapsed() < PATIENCE);
    }
    refused(here.sandbox.post(To::peer(peer), here.note, &[1, 4]), Status::Gone);
    refused(here.sandbox.post(To::pid(pid), here.note, &[1, 4]), Status::Gone);
    refused(here.sandbox.post(To::peer(Peer::from_raw(u64::MAX)), here.note, &[]), Status::Gone);
    refused(here.sandbox.post(To::any(), here.note ^ 1 << 40, &[]), Status::Stale);
    // One whose words would be taken for addresses.
    let greet = here.sandbox.find("hello.greet").expect("it is loaded");
    refused(here.sandbox.post(To::any(), greet, &[1, 2]), Status::BadArgs);
    refused(here.sandbox.post(To::any(), here.note, &[0; 5]), Status::BadArgs);
    // Whoever comes to its row gets none of it.
    let next = Other::waiting();
    next.peer(here);
    std::thread::sleep(10 * MOMENT);
    assert_eq!(here.noted(), 0);
}

/// Posters that are killed anywhere: what they posted comes once, and the mailbox goes on.
fn killed(here: &Here) {
    let (peer, mut random) = (here.own_peer(), Random::new(4));
    let began = Instant::now();
    // On a busy machine a poster may be killed before it begins.
    for round in 0.. {
        if round >= 200 && (here.noted() > 1_000 || began.elapsed() > PATIENCE) {
            break;
        }
        let poster = Other::start(|here| {
            loop {
                here.post(To::peer(peer), here.work, &[0]);
            }
        });
        let start = Instant::now();
        let life = Duration::from_micros(500 + random.below(2_000));
        while start.elapsed() < life {
            let _ = here.sandbox.wait(Duration::ZERO);
        }
        drop(poster);
    }
    while here.sandbox.wait(MOMENT) != 0 {}
    let before = here.noted();
    assert!(before > 1_000, "{before}");
    (0..1_000).for_each(|_| {
        here.post(To::peer(peer), here.work, &[0]);
        let _ = here.sandbox.wait(Duration::ZERO);
    });
    let start = Instant::now();
    while here.noted() < before + 1_000 {
        assert!(start.elapsed() < PATIENCE);
        let _ = here.sandbox.wait(MOMENT);
    }
    println!("{before} events of killed posters");
}

/// To everybody.
fn all(here: &Here) {
    let others = [Other::waiting(), Other::waiting(), Other::waiting()];
    others.iter().for_each(|other| {
        other.peer(here);
    });
    std::thread::sleep(MOMENT);
    let posted = here.sandbox.post(To::all(), here.work, &[1]).expect("there is room");
    // Us and them; the launcher's shell, if there is one, makes no upcalls.
    assert!(posted >= 4, "{posted}");
    let start = Instant::now();
    while here.noted() < 4 {
        assert!(start.elapsed() < PATIENCE, "{}", here.noted());
        let _ = here.sandbox.wait(MOMENT);
    }
}

/// To whoever is idle: two that do nothing else, one of them killed on the way.
fn any(here: &Here) {
    let (first, second) = (Other::waiting(), Other::waiting());
    first.peer(here);
    second.peer(here);
    for number in 0..20_000 {
        if number == 10_000 {
            kill(second.0, Signal::SIGKILL).expect("it is there");
        }
        here.post(To::any(), here.work, &[50]);
    }
    let start = Instant::now();
    // The killed one may have had one in hand.
    while here.noted() < 19_999 {
        assert!(start.elapsed() < PATIENCE, "{}", here.noted());
        std::thread::sleep(MOMENT);
    }
    assert!(here.noted() <= 20_000);
}

/// Two that take turns by a futex, and do what else there is while they wait.
fn futex(here: &Here) {
    const ROUNDS: u32 = 5_000;
    let words = shared_words();
    let [ping, pong] = words;
    let wait = |here: &Here, word: &AtomicU32, seen: u32| {
        let start = Instant::now();
        while !here.sandbox.wait_on(word, seen, PATIENCE) {
            assert!(start.elapsed() < PATIENCE);
        }
    };
    let other = Other::start(|here| {
        for round in 0..ROUNDS {
            wait(here, ping, round);
            pong.store(round + 1, SeqCst);
            here.sandbox.wake_on(pong, 1);
        }
        let _ = here.sandbox.wait(PATIENCE);
    });
    let peer = other.peer(here);
    let (mut notes, mut works) = (0, 0);
    for round in 0..ROUNDS {
        if round % 7 == 0 {
            notes += 1;
            here.post(To::peer(peer), here.note, &[1, notes]);
        }
        if round % 3 == 0 {
            works += 1;
            here.post(To::any(), here.work, &[20]);
        }
        ping.store(round + 1, SeqCst);
        here.sandbox.wake_on(ping, 1);
        wait(here, pong, round);
    }
    here.expect(notes + works, || {
        let _ = here.sandbox.wait(MOMENT);
    });
    // What does not change is waited for no longer than it is to be.
    let start = Instant::now();
    assert!(!here.sandbox.wait_on(pong, ROUNDS, MOMENT) && start.elapsed() >= MOMENT);
    assert!(here.sandbox.wait_on(pong, 0, PATIENCE) && start.elapsed() < PATIENCE);
}

/// Words that this process shares with its children.
fn shared_words() -> [&'static AtomicU32; 2] {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    let len = std::num::NonZeroUsize::new(4096).expect("not zero");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory wherever the kernel likes.
    let at = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_SHARED) };
    let at = at.expect("a page");
    // SAFETY: a page of zeros, mapped for good.
    let page = unsafe { at.cast::<[AtomicU32; 64]>().as_ref() };
    [&page[0], &page[32]]
}

fn main() -> ExitCode {
    let route = std::env::args().nth(1).unwrap_or_default();
    let run = || -> Outcome {
        let here = Here::new()?;
        here.ledger.forget_notes()?;
        match route.as_str() {
            "waiting" => waiting(&here),
            "leaving" => leaving(&here),
            "oneself" => oneself(&here),
            "urgent" => urgent(&here),
            "full" => full(&here),
            "gone" => gone(&here),
            "killed" => killed(&here),
            "all" => all(&here),
            "any" => any(&here),
            "futex" => futex(&here),
            _ => return Err(format!("no route {route:?}").into()),
        }
        Ok(())
    };
    match run() {
        Ok(()) => {
            println!("{route}: ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("events: {error}");
            ExitCode::FAILURE
        }
    }
}

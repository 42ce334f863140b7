//! What a round trip to another process costs without us: the ways that programs use today.
#![expect(unsafe_code, reason = "forks, and shares memory with the child")]

use std::hint::spin_loop;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use super::pin::{pin, time};

/// A child process that answers until its end of the line is closed.
pub(super) struct Peer(i32);

impl Peer {
    /// Fork; the child is pinned to `cpu`, runs `answer` and ends.
    pub(super) fn start(cpu: usize, answer: impl FnOnce() -> io::Result<()>) -> io::Result<Self> {
        // SAFETY: a benchmark has one thread.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                pin(0, cpu);
                let _ = answer();
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            child => Ok(Self(child)),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // SAFETY: our own child.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Send a byte and wait for it to come back, `count` times.
fn ping(mut to: impl Write, mut from: impl Read, count: u64) -> io::Result<f64> {
    let mut byte = [1];
    let mut result = Ok(());
    let ns = time(count, || {
        for _ in 0..count {
            result = to.write_all(&byte).and_then(|()| from.read_exact(&mut byte));
            if result.is_err() {
                break;
            }
        }
    });
    result.map(|()| ns)
}

fn pong(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        to.write_all(&byte)?;
    }
}

pub(super) fn pipe(cpu: usize, count: u64) -> io::Result<f64> {
    let ((their_from, to), (from, their_to)) = (io::pipe()?, io::pipe()?);
    let _peer = Peer::start(cpu, || pong(their_from, their_to))?;
    ping(to, from, count)
}

pub(super) fn unix(cpu: usize, count: u64) -> io::Result<f64> {
    let (ours, theirs) = UnixStream::pair()?;
    let _peer = Peer::start(cpu, || pong(&theirs, &theirs))?;
    ping(&ours, &ours, count)
}

pub(super) fn tcp(cpu: usize, count: u64) -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    ours.set_nodelay(true)?;
    theirs.set_nodelay(true)?;
    let _peer = Peer::start(cpu, || pong(&theirs, &theirs))?;
    ping(&ours, &ours, count)
}

/// A page that a forked child shares.
pub(super) fn shared_words() -> io::Result<&'static [AtomicU32; 64]> {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, mapped until the process ends, and all atomics.
    Ok(unsafe { &*at.cast() })
}

/// Turns by one word: odd for the child, even for us. `wait` does what it can until it changes.
fn turns(
    cpu: usize,
    count: u64,
    wait: fn(&AtomicU32, u32),
    wake: fn(&AtomicU32),
) -> io::Result<f64> {
    let word = &shared_words()?[0];
    let _peer = Peer::start(cpu, || {
        loop {
            let turn = word.load(Ordering::Acquire);
            if turn % 2 == 0 {
                wait(word, turn);
                continue;
            }
            word.store(turn.wrapping_add(1), Ordering::Release);
            wake(word);
        }
    })?;
    Ok(time(count, || {
        for _ in 0..count {
            let turn = word.load(Ordering::Relaxed).wrapping_add(1);
            word.store(turn, Ordering::Release);
            wake(word);
            while word.load(Ordering::Acquire) == turn {
                wait(word, turn);
            }
        }
    }))
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    let none = std::ptr::null::<libc::timespec>();
    // SAFETY: the word lives in a shared mapping.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, none) };
}

pub(super) fn futexes(cpu: usize, count: u64) -> io::Result<f64> {
    let wait = |word: &AtomicU32, seen| futex(word, libc::FUTEX_WAIT, seen);
    turns(cpu, count, wait, |word| futex(word, libc::FUTEX_WAKE, 1))
}

pub(super) fn spin(count: u64) -> io::Result<f64> {
    spin_from(0, 1, count)
}

/// As [`spin`], from the caller's CPU `own` to `cpu`.
pub(super) fn spin_from(own: usize, cpu: usize, count: u64) -> io::Result<f64> {
    pin(0, own);
    turns(cpu, count, |_, _| spin_loop(), |_| ())
}

/// A signal to oneself, handled.
pub(super) fn self_signal(count: u64) -> f64 {
    extern "C" fn handler(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t) };
    time(count, || {
        for _ in 0..count {
            // SAFETY: raises a signal that is handled.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
    })
}

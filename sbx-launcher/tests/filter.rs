//! The filter on a real kernel: a child installs it and tries each call.
#![expect(unsafe_code, reason = "forks, and makes system calls that a filter may kill")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};
use sbx_launcher::filter::{
    FilterSpec, InstallError, build_spec, install, install_without_listener,
};
use sbx_launcher::policy::Policy;

const PAGE: u64 = 4096;
const BASE: u64 = 0x5540_1220_0000;
const REGION: Range<u64> = BASE..BASE + 16 * PAGE;
/// Longest that a child may take, in seconds.
const CHILD_SECONDS_MAX: u32 = 20;

type Args = [u64; 6];

fn spec(libos_text: Range<u64>) -> FilterSpec {
    FilterSpec {
        region: REGION,
        libos_text,
        keep_signals: false,
        armed: sbx_launcher::filter::Armed::default(),
        first_exec: 0,
        follow_exec: false,
        follow_fork: false,
        mseal: false,
        policy: Policy::base().expect("the base policy is valid"),
    }
}

/// The kernel's answer: result, or negated errno.
fn call(number: i64, args: Args) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: only called in a child of a test, on mappings that the test made for it.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { -i64::from(Errno::last_raw()) } else { result }
}

/// Maps `pages` pages at `addr`, which must be free.
fn map(addr: u64, pages: u64) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let args = [addr, pages * PAGE, prot as u64, flags as u64, u64::MAX, 0];
    match call(libc::SYS_mmap, args) {
        found if found == addr.cast_signed() => Ok(()),
        error => Err(io::Error::other(format!("mapping {addr:#x}: {error}"))),
    }
}

/// How a child that runs `body` ends. It exits with 0 if `body` returns no complaint.
fn in_child(body: impl FnOnce() -> Result<(), String>) -> WaitStatus {
    // What another thread is initialising at the fork stays locked in the child for ever: have it
    // done before.
    drop(build_spec(&spec(0..0)));
    // SAFETY: the child makes system calls, allocates and exits; glibc keeps malloc usable in it.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => waitpid(child, None).expect("waitpid"),
        ForkResult::Child => {
            alarm::set(CHILD_SECONDS_MAX);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let code = match result {
                Ok(Ok(())) => 0,
                Ok(Err(complaint)) => {
                    eprintln!("{complaint}");
                    1
                }
                Err(_) => 2,
            };
            // SAFETY: ends the child without running what belongs to the test's process.
            unsafe { libc::_exit(code) }
        }
    }
}

#[track_caller]
fn passes(body: impl FnOnce() -> Result<(), String>) {
    let status = in_child(body);
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
}

/// A filtered child with the region mapped, and a page on either side of it.
fn prepare(spec: &FilterSpec) -> Result<(), String> {
    map(REGION.start - PAGE, 18).map_err(|error| error.to_string())?;
    let program = build_spec(spec).map_err(|error| error.to_string())?;
    install_without_listener(&program).map_err(|error| error.to_string())
}

fn expect(what: &str, got: i64, wanted: impl Fn(i64) -> bool) -> Result<(), String> {
    if wanted(got) { Ok(()) } else { Err(format!("{what}: {got}")) }
}

fn refused(what: &str, number: i64, args: Args) -> Result<(), String> {
    expect(what, call(number, args), |got| got == -i64::from(libc::EPERM))
}

fn permitted(what: &str, number: i64, args: Args) -> Result<(), String> {
    expect(what, call(number, args), |got| got != -i64::from(libc::EPERM))
}

/// Ranges that touch the region, and ranges that do not.
const TOUCHING: [(&str, u64, u64); 7] = [
    ("all of it", REGION.start, REGION.end - REGION.start),
    ("its first page", REGION.start, PAGE),
    ("its last page", REGION.end - PAGE, PAGE),
    ("its middle", REGION.start + 5 * PAGE, PAGE),
    ("one page more on either side", REGION.start - PAGE, 18 * PAGE),
    ("across its start", REGION.start - PAGE, PAGE + 1),
    ("around the address space", REGION.start - PAGE, u64::MAX),
];
const APART: [(&str, u64, u64); 2] =
    [("the page before", REGION.start - PAGE, PAGE), ("the page behind", REGION.end, PAGE)];

#[test]
fn advice_on_the_region_is_refused() {
    let calls = [
        ("madvise", libc::SYS_madvise, [libc::MADV_DONTNEED as u64, 0, 0, 0]),
        ("mbind", libc::SYS_mbind, [0; 4]),
        ("mprotect", libc::SYS_mprotect, [libc::PROT_READ as u64, 0, 0, 0]),
        ("pkey_mprotect", libc::SYS_pkey_mprotect, [libc::PROT_READ as u64, u64::MAX, 0, 0]),
        ("remap_file_pages", libc::SYS_remap_file_pages, [0; 4]),
        ("munmap", libc::SYS_munmap, [0; 4]),
    ];
    passes(|| {
        prepare(&spec(0..0))?;
        for (name, number, [c, d, e, f]) in calls {
            for (range, start, len) in TOUCHING {
                refused(&format!("{name} of {range}"), number, [start, len, c, d, e, f])?;
            }
            for (range, start, len) in APART {
                permitted(&format!("{name} of {range}"), number, [start, len, c, d, e, f])?;
            }
        }
        expect(
            "the page behind is gone",
            call(libc::SYS_munmap, [REGION.end, PAGE, 0, 0, 0, 0]),
            |got| got == 0,
        )
    });
}

#[test]
fn nothing_is_mapped_over_the_region() {
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let fixed = anonymous | libc::MAP_FIXED as u64;
    let map = |what: &str, start, len, flags, wanted: fn(i64) -> bool| {
        expect(what, call(libc::SYS_mmap, [start, len, 0, flags, u64::MAX, 0]), wanted)
    };
    passes(|| {
        prepare(&spec(0..0))?;
        for (range, start, len) in TOUCHING {
            map(range, start, len, fixed, |got| got == -i64::from(libc::EPERM))?;
        }
        map("fixed beside", REGION.end, PAGE, fixed, |got| got == REGION.end.cast_signed())?;
        map("a hint inside", REGION.start, PAGE, anonymous, |got| got > 0)?;
        for hint in [0x1234_5678_9000, 0x3fff_0000_0000, REGION.end + (1 << 30)] {
            map("a hint elsewhere", hint, PAGE, anonymous, |got| got > 0)?;
        }
        let careful = anonymous | libc::MAP_FIXED_NOREPLACE as u64;
        let taken = |got| got == -i64::from(libc::EEXIST);
        map("no replacement", REGION.start, PAGE, careful, taken)
    });
}

#[test]
fn the_region_is_not_moved() {
    const FIXED: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let (may_move, elsewhere) = (libc::MREMAP_MAYMOVE as u64, REGION.end + (1 << 30));
    passes(|| {
        prepare(&spec(0..0))?;
        let remap = libc::SYS_mremap;
        let (start, beside) = (REGION.start, REGION.end);
        refused("away", remap, [start, PAGE, PAGE, FIXED, elsewhere, 0])?;
        refused("shrunk", remap, [start, 2 * PAGE, PAGE, 0, 0, 0])?;
        refused("aliased", remap, [start, 0, PAGE, may_move, 0, 0])?;
        refused("aliased from inside", remap, [start + PAGE, 0, PAGE, may_move, 0, 0])?;
        refused("onto it", remap, [beside, PAGE, PAGE, FIXED, start + PAGE, 0])?;
        refused("onto its end", remap, [beside, PAGE, 2 * PAGE, FIXED, start - PAGE, 0])?;
        let moved = call(remap, [beside, PAGE, PAGE, FIXED, elsewhere, 0]);
        expect("a neighbour", moved, |got| got == elsewhere.cast_signed())?;
        let exec = libc::SHM_EXEC as u64;
        refused("shmat over it", libc::SYS_shmat, [u64::MAX, start, 0x4000, 0, 0, 0])?;
        permitted("shmat", libc::SYS_shmat, [u64::MAX, start, exec, 0, 0, 0])
    });
}

#[test]
fn a_kernel_that_seals_is_left_to_it() {
    passes(|| {
        prepare(&FilterSpec { mseal: true, ..spec(0..0) })?;
        let first = [REGION.start, PAGE, libc::MADV_DONTNEED as u64, 0, 0, 0];
        refused("madvise", libc::SYS_madvise, first)?;
        let mut args = first;
        args[2] = libc::PROT_READ as u64;
        expect("mprotect", call(libc::SYS_mprotect, args), |got| got == 0)
    });
}

#[test]
fn libos_may_do_what_others_may_not() {
    let advice = [REGION.start, PAGE, libc::MADV_NORMAL as u64, 0, 0, 0];
    passes(|| {
        // All code of this process passes for libos.
        prepare(&spec(0x1000..0x7fff_ffff_f000))?;
        expect("from libos", call(libc::SYS_madvise, advice), |got| got == 0)
    });
    passes(|| {
        prepare(&spec(REGION))?;
        refused("from elsewhere", libc::SYS_madvise, advice)
    });
}

#[test]
fn the_base_policy_holds() {
    let first = |arg| [arg, 0, 0, 0, 0, 0];
    passes(|| {
        prepare(&spec(0..0))?;
        let ring = call(libc::SYS_io_uring_setup, [8, 0, 0, 0, 0, 0]);
        expect("io_uring_setup", ring, |got| got == -i64::from(libc::ENOSYS))?;
        refused("process_madvise", libc::SYS_process_madvise, [0; 6])?;
        refused("userfaultfd", libc::SYS_userfaultfd, [0; 6])?;
        refused("modify_ldt", libc::SYS_modify_ldt, [0; 6])?;
        refused("READ_IMPLIES_EXEC", libc::SYS_personality, first(0x0040_0000))?;
        refused("with others", libc::SYS_personality, first(0x0044_0000))?;
        let query = call(libc::SYS_personality, first(0xffff_ffff));
        expect("personality's value", query, |got| got >= 0)?;
        let unrandom = call(libc::SYS_personality, first(libc::ADDR_NO_RANDOMIZE as u64));
        expect("ADDR_NO_RANDOMIZE", unrandom, |got| got >= 0)?;
        let tagged = call(libc::SYS_arch_prctl, first(0x4002));
        expect("tagged addresses", tagged, |got| got == -i64::from(libc::ENODEV))
    });
}

#[test]
fn the_x32_abi_is_absent() {
    passes(|| {
        prepare(&spec(0..0))?;
        for number in [0x4000_0000, 0x4000_0000 + libc::SYS_munmap, 0x7fff_ffff] {
            let got = call(number, [REGION.start, PAGE, 0, 0, 0, 0]);
            expect("x32", got, |got| got == -i64::from(libc::ENOSYS))?;
        }
        Ok(())
    });
}

/// `getpid` of the 32-bit ABI, through the instruction that leads there.
fn int_80() {
    // mov eax, 20; int 0x80; ret
    const CODE: [u8; 8] = [0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3];
    let prot = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let page = call(libc::SYS_mmap, [0, PAGE, prot, flags, u64::MAX, 0]);
    let page = page as *mut u8;
    // SAFETY: the page is ours, writable, and longer than the code.
    unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), page, CODE.len()) };
    // SAFETY: the page is executable and starts with a function that takes nothing.
    let code: extern "C" fn() -> u32 = unsafe { std::mem::transmute(page) };
    assert_ne!(code(), 0);
}

#[test]
fn int_80_kills() {
    let without = in_child(|| {
        int_80();
        Ok(())
    });
    if !matches!(without, WaitStatus::Exited(_, 0)) {
        eprintln!("skipped: this kernel has no 32-bit system calls ({without:?})");
        return;
    }
    let status = in_child(|| {
        prepare(&spec(0..0))?;
        int_80();
        Ok(())
    });
    let sigsys = nix::sys::signal::Signal::SIGSYS;
    assert!(matches!(status, WaitStatus::Signaled(_, signal, _) if signal == sigsys), "{status:?}");
}

/// Waits for one notification and answers it with `errno`; the number of the call.
fn answer_one(listener: &OwnedFd, errno: i32) -> io::Result<i32> {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which is ours.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
    if ready != 1 {
        return Err(io::Error::other("no notification within 10 s"));
    }
    // SAFETY: plain numbers, for which zeros are values.
    let mut seen: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one notification.
    if unsafe { libc::ioctl(poll.fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut seen) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut reply = libc::seccomp_notif_resp { id: seen.id, val: 0, error: -errno, flags: 0 };
    // SAFETY: the kernel reads one reply.
    if unsafe { libc::ioctl(poll.fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut reply) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(seen.data.nr)
}

/// A filtered thread makes a call; this one, unfiltered, answers its notification with EAGAIN.
fn notified(spec: &FilterSpec, number: i64, args: Args) -> Result<(), String> {
    let program = build_spec(spec).map_err(|error| error.to_string())?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let (result, got) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let listener = install(&program);
        let installed = listener.is_ok();
        sender.send(listener).expect("the other thread waits");
        if installed {
            result.send(call(number, args)).expect("the other thread waits");
        }
    });
    let listener = receiver.recv().map_err(|error| error.to_string())?;
    let listener = listener.map_err(|error| error.to_string())?;
    let seen = answer_one(&listener, libc::EAGAIN).map_err(|error| error.to_string())?;
    expect("the call notified", i64::from(seen), |seen| seen == number)?;
    // Not joined: std's end of a thread makes calls that may be notified, and nobody answers now.
    let got = got.recv().map_err(|error| error.to_string())?;
    expect("its result", got, |got| got == -i64::from(libc::EAGAIN))
}

#[test]
fn execs_forks_and_our_signals_are_notified() {
    let follow =
        FilterSpec { keep_signals: true, follow_exec: true, follow_fork: true, ..spec(0..0) };
    let path = c"/bin/true".as_ptr() as u64;
    let calls = [
        (libc::SYS_execve, [path, 0, 0, 0, 0, 0]),
        (libc::SYS_execveat, [u64::MAX, path, 0, 0, 0, 0]),
        (libc::SYS_fork, [0; 6]),
        (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        (libc::SYS_rt_sigaction, [libc::SIGSEGV as u64, 0, 0, 8, 0, 0]),
        (libc::SYS_sigaltstack, [0; 6]),
    ];
    for (number, args) in calls {
        passes(|| notified(&follow, number, args));
    }
}

#[test]
fn threads_are_not_notified_and_clone3_is_hidden() {
    let follow = FilterSpec { follow_exec: true, follow_fork: true, ..spec(0..0) };
    passes(|| {
        let program = build_spec(&follow).map_err(|error| error.to_string())?;
        let listener = install(&program).map_err(|error| error.to_string())?;
        let thread = std::thread::spawn(|| call(libc::SYS_clone3, [0; 6]));
        let got = thread.join().map_err(|_| "the thread panicked")?;
        drop(listener);
        expect("clone3", got, |got| got == -i64::from(libc::ENOSYS))
    });
}

#[test]
fn a_second_listener_is_a_typed_error() {
    passes(|| {
        let program = build_spec(&spec(0..0)).map_err(|error| error.to_string())?;
        let first = install(&program).map_err(|error| error.to_string())?;
        let second = install(&program).err();
        drop(first);
        match second {
            Some(InstallError::ListenerExists) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

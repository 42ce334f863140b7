//! Other ways to look at a program's system calls, each at its best: nothing is decoded, and the call
//! goes on to the kernel. `bench-inside COUNT --by NAME` measures one in a process of its own.
#![expect(unsafe_code, reason = "installs filters and handles signals")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::mpsc;

use super::interpose::calls;
use super::pin::time;

/// In the sixth argument of a call that is to go through.
const MAGIC: libc::c_long = 0x5b5b;
const NUMBER: u32 = libc::SYS_getppid as u32;

/// Nanoseconds per call while somebody looks by this means.
///
/// # Errors
/// The kernel does not have it.
pub(super) fn by(means: &str, count: u64) -> io::Result<f64> {
    match means {
        "nothing" => Ok(calls(count)),
        "trap" => by_trap(count),
        "dispatch" => by_dispatch(count),
        "notify" => by_notification(count),
        other => Err(io::Error::other(format!("no means named {other}"))),
    }
}

fn handle_sigsys(handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t)) {
    // SAFETY: plain numbers and pointers; zero is none.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler only makes a call and sets a register.
    unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
}

/// Have the interrupted call return what the kernel says.
fn pass(context: *mut libc::ucontext_t) {
    // SAFETY: takes numbers only; the last one has it go through.
    let result = unsafe { libc::syscall(libc::SYS_getppid, 0, 0, 0, 0, 0, MAGIC) };
    // SAFETY: the kernel's, for this signal.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = result };
}

/// A filter that does `what` with the call, unless it has the magic number.
fn install(what: u32, flags: libc::c_ulong) -> io::Result<i32> {
    const fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    const ARG_5: u32 = 16 + 5 * 8;
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut steps = [
        step(load, 0, 0, 0),
        step(equal, NUMBER, 0, 3),
        step(load, ARG_5, 0, 0),
        step(equal, MAGIC as u32, 1, 0),
        step(libc::BPF_RET, what, 0, 0),
        step(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: a program that lives for the call.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd as i32) }
}

fn by_trap(count: u64) -> io::Result<f64> {
    extern "C" fn trapped(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
        pass(context);
    }
    handle_sigsys(trapped);
    install(libc::SECCOMP_RET_TRAP, 0)?;
    // By the function for it the sixth argument, which is left alone, might be the magic number.
    Ok(time(count, || {
        for _ in 0..count {
            // SAFETY: takes nothing.
            unsafe { libc::syscall(libc::SYS_getppid, 0, 0, 0, 0, 0, 0) };
        }
    }))
}

/// Syscall User Dispatch: 1 for a signal, 0 for the kernel.
static SELECTOR: AtomicU8 = AtomicU8::new(0);

fn by_dispatch(count: u64) -> io::Result<f64> {
    extern "C" fn dispatched(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
        SELECTOR.store(0, SeqCst);
        pass(context);
    }
    const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
    const ON: u64 = 1;
    handle_sigsys(dispatched);
    // SAFETY: a byte that lives for good.
    if unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, ON, 0, 0, SELECTOR.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time(count, || {
        for _ in 0..count {
            SELECTOR.store(1, SeqCst);
            // SAFETY: takes nothing.
            unsafe { libc::getppid() };
        }
    }))
}

/// `struct seccomp_notif`, of which only the first word is needed, and `struct seccomp_notif_resp`.
const NOTIFICATION_WORDS: usize = 10;
#[derive(Debug, Default)]
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

fn by_notification(count: u64) -> io::Result<f64> {
    const RECEIVE: u64 = 3 << 30 | (NOTIFICATION_WORDS as u64 * 8) << 16 | 0x21 << 8;
    const SEND: u64 = 3 << 30 | (size_of::<Response>() as u64) << 16 | 0x21 << 8 | 1;
    const CONTINUE: u32 = 1;
    let (to, from) = mpsc::channel();
    let measured = std::thread::spawn(move || -> io::Result<f64> {
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let fd = install(libc::SECCOMP_RET_USER_NOTIF, flags)?;
        // SAFETY: the kernel just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        to.send(fd.as_raw_fd()).map_err(io::Error::other)?;
        let ns = calls(count);
        drop(fd);
        Ok(ns)
    });
    let fd = from.recv().map_err(|_| io::Error::other("no listener"))?;
    // The first call beyond those that are counted fails: the listener is closed by then.
    for _ in 0..count {
        let mut notification = [0u64; NOTIFICATION_WORDS];
        // SAFETY: room for a notification.
        if unsafe { libc::ioctl(fd, RECEIVE, notification.as_mut_ptr()) } != 0 {
            break;
        }
        let response = Response { id: notification[0], flags: CONTINUE, ..Response::default() };
        // SAFETY: a response.
        unsafe { libc::ioctl(fd, SEND, &raw const response) };
    }
    measured.join().map_err(|_| io::Error::other("the thread that makes calls died"))?
}

/// A library that takes the place of libc's function, made with the machine's compiler.
pub(super) fn preload() -> io::Result<PathBuf> {
    const SOURCE: &str = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <sys/types.h>\n\
        static pid_t (*next)(void);\nstatic unsigned long count;\n\
        __attribute__((constructor)) static void find(void) { next = (pid_t (*)(void))dlsym(RTLD_NEXT, \"getppid\"); }\n\
        pid_t getppid(void) { count++; return next(); }\n";
    let stem = std::env::temp_dir().join(format!("sbx-preload-{}", std::process::id()));
    let (source, library) = (stem.with_extension("c"), stem.with_extension("so"));
    std::fs::write(&source, SOURCE)?;
    let mut cc = Command::new("cc");
    let made = cc.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    let _ = std::fs::remove_file(&source);
    if made?.success() { Ok(library) } else { Err(io::Error::other("cc failed")) }
}

/// Sites that are executed for the first time, and how long one takes in nanoseconds: in a mapping of
/// a file, as far apart as a C library's are, or in memory that no file is behind (which stays on the trap: `count` calls
/// from one site).
pub(super) fn new_sites(count: u64, in_file: bool) -> io::Result<f64> {
    const APART: usize = 2048;
    // mov $110, %eax; syscall; ret; and no operation.
    const SITE: [u8; 16] = [
        0xb8,
        NUMBER as u8,
        0,
        0,
        0,
        0x0f,
        0x05,
        0xc3,
        0x90,
        0x90,
        0x90,
        0x90,
        0x90,
        0x90,
        0x90,
        0x90,
    ];
    let len = count as usize * APART;
    let path = std::env::temp_dir().join(format!("sbx-sites-{}", std::process::id()));
    let mut code = vec![0; len];
    code.chunks_exact_mut(APART).for_each(|chunk| chunk[..SITE.len()].copy_from_slice(&SITE));
    File::create(&path)?.write_all(&code)?;
    let file = File::open(&path)?;
    std::fs::remove_file(&path)?;
    let (flags, protection) = if in_file {
        (libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_EXEC)
    } else {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, all)
    };
    let fd = if in_file { file.as_raw_fd() } else { -1 };
    // SAFETY: a fresh mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if !in_file {
        // SAFETY: writable, and long enough for one site.
        unsafe { at.cast::<[u8; SITE.len()]>().write(SITE) };
    }
    let site = |index: u64| -> extern "C" fn() -> i64 {
        let offset = if in_file { index as usize * APART } else { 0 };
        // SAFETY: code that keeps to the C convention: a call of a C function changes these registers.
        unsafe { std::mem::transmute(at.cast::<u8>().wrapping_add(offset)) }
    };
    let ns = time(count, || {
        for index in 0..count {
            site(index)();
        }
    });
    // Stays mapped: where it was, sites are known.
    Ok(ns)
}

/// Requests per second that a redis-server answers, both it and its client `under` something.
pub(super) fn redis(under: &[&Path], count: u64) -> io::Result<f64> {
    let command = |argv: &[&str]| -> io::Result<Command> {
        let mut command = Command::new(if under.is_empty() {
            PathBuf::from(argv[0])
        } else {
            std::env::current_exe()?
        });
        if !under.is_empty() {
            command.arg("run").args(under.iter().map(|image| format!("--ext={}", image.display())));
            command.args(["--", argv[0]]);
        }
        command.args(&argv[1..]).stdin(std::process::Stdio::null());
        Ok(command)
    };
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port().to_string();
    let server = ["redis-server", "--port", &port, "--save", "", "--appendonly", "no"];
    let mut server = command(&server)?.stdout(std::process::Stdio::null()).spawn()?;
    for _ in 0..500 {
        if std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let count = count.to_string();
    let client = ["redis-benchmark", "-p", &port, "-t", "get", "-n", &count, "-c", "50", "--csv"];
    let output = command(&client)?.output();
    let ended = Command::new("redis-cli").args(["-p", &port, "shutdown", "nosave"]).output();
    if ended.is_err() {
        let _ = server.kill();
    }
    let _ = server.wait();
    let text = String::from_utf8_lossy(&output?.stdout).into_owned();
    let row = text.lines().find(|line| line.starts_with("\"GET\""));
    let figure = row.and_then(|row| row.split(',').nth(1)?.trim_matches('"').parse().ok());
    figure.ok_or_else(|| io::Error::other(format!("redis-benchmark said {text:?}")))
}

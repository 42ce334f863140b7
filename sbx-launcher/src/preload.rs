//! Where programs may not be traced: they join by a library that the dynamic loader puts into them.
//!
//! That reaches less than following execs does, and the launcher says so: no program that is static or
//! whose environment has lost LD_PRELOAD, no hooks on signals or system calls (a program would meet them
//! before the library is there), and no keeping of the program's own signal actions.
#![expect(unsafe_code, reason = "tries system calls")]

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::filter::{self, Armed};
use crate::policy::Policy;
use crate::run::{Start, Started, start_unfollowed};

static LIBRARY: &[u8] = include_bytes!(env!("SBX_PRELOAD_IMAGE"));

/// What the library has before the place for its socket's path, and the length of that place.
const MARK: &[u8] = b"sbx-preload-socket:";
const PATH_LEN: usize = 108;

/// Where a sandbox has the library, beside its control socket.
const FILE: &str = "preload.so";

/// What is refused here of what injecting programs takes, for people; nothing if all is allowed.
///
/// Every launch asks, so that it is asked by calls that fail at once: a filter refuses them before the
/// kernel sees that they make no sense.
#[must_use]
pub fn refused() -> Option<String> {
    let calls = [
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_SEIZE as i64, -1]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, -1]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [-1, 0]),
    ];
    for (name, number, [first, second]) in calls {
        // SAFETY: no process and no descriptor has the number -1, and no memory is named.
        if unsafe { libc::syscall(number, first, second, 0, 0, 0, 0) } == -1 {
            let error = io::Error::last_os_error();
            if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) {
                return Some(format!("{name}: {error}"));
            }
        }
    }
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    refused_by(scope.trim(), may_trace)
}

/// What Yama's scope forbids us. 1 leaves a launcher its own children, which is all that it traces.
fn refused_by(scope: &str, may_trace: impl FnOnce() -> bool) -> Option<String> {
    let refuses = match scope {
        "2" => !may_trace(),
        "3" => true,
        _ => false,
    };
    refuses.then(|| format!("kernel.yama.ptrace_scope is {scope}"))
}

/// Have we CAP_SYS_PTRACE?
fn may_trace() -> bool {
    const SYS_PTRACE: u64 = 19;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    held.and_then(|held| u64::from_str_radix(held.trim(), 16).ok())
        .is_some_and(|held| held >> SYS_PTRACE & 1 == 1)
}

/// Put the library into a sandbox's directory, made for its socket; where it is.
///
/// # Errors
/// The kernel's.
pub fn write(directory: &Path) -> io::Result<PathBuf> {
    let file = directory.join(FILE);
    if file.exists() {
        return Ok(file);
    }
    let bytes = library_for(&directory.join("control"))?;
    // Whole, or not there: another launch may look for it.
    let new = directory.join(format!("{FILE}.{}", std::process::id()));
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o500))?;
    fs::rename(&new, &file)?;
    Ok(file)
}

fn library_for(socket: &Path) -> io::Result<Vec<u8>> {
    let path = socket.as_os_str().as_bytes();
    let mark = LIBRARY.windows(MARK.len()).position(|bytes| bytes == MARK);
    let place = mark.map(|at| at + MARK.len()).filter(|_| path.len() < PATH_LEN);
    let place = place.ok_or_else(|| io::Error::other("the socket's path is too long"))?;
    let mut bytes = LIBRARY.to_vec();
    bytes[place..place + path.len()].copy_from_slice(path);
    Ok(bytes)
}

/// Start a command that joins by `library`, since `why` is refused, and say what that means.
///
/// # Errors
/// The command could not be started, or its policy asks for what cannot be had so.
pub(crate) fn start(
    start: Start,
    region: &Range<usize>,
    armed: Armed,
    policy: Policy,
    (why, library): (&str, &Path),
) -> io::Result<Started> {
    if let Some((handler, _)) = policy.upcalls().next() {
        return Err(io::Error::other(format!(
            "the policy has {handler} decide system calls, which takes tracing ({why}); allow that, or \
             leave the rule out"
        )));
    }
    warn(why, armed);
    if let Some(path) = start.candidates().find(|path| is_static(path).unwrap_or(false)) {
        let path = path.to_string_lossy();
        eprintln!("sbx-launcher: {path} is static: it runs outside of the sandbox's extensions");
    }
    let program = filter::build_unfollowed(region, policy).map_err(io::Error::other)?;
    start_unfollowed(&program, start, &environment(library)?)
}

fn warn(why: &str, armed: Armed) {
    let off = if armed == Armed::default() {
        ""
    } else {
        ", hooks on signals and system calls and carried sockets are off"
    };
    eprintln!(
        "sbx-launcher: programs cannot be traced here ({why}), so they join by a preloaded library: \
         static programs and those that drop LD_PRELOAD run outside of the sandbox's extensions, gcc's \
         address sanitiser refuses to start{off}, and a program's own handlers of SIGSEGV and the like \
         replace the sandbox's"
    );
}

/// The launcher's environment, with the library before whatever else is preloaded.
fn environment(library: &Path) -> io::Result<Vec<CString>> {
    const NAME: &str = "LD_PRELOAD";
    let mut value = library.as_os_str().to_owned();
    if let Some(others) = std::env::var_os(NAME).filter(|others| !others.is_empty()) {
        value.push(":");
        value.push(others);
    }
    let kept = std::env::vars_os().filter(|(name, _)| name != NAME);
    let pairs = kept.chain([(OsStr::new(NAME).to_owned(), value)]);
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let bytes = [name.as_bytes(), b"=", value.as_bytes()].concat();
        CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    pairs.map(text).collect()
}

/// Is this a 64-bit ELF program that asks for no dynamic loader?
fn is_static(path: &CStr) -> io::Result<bool> {
    const INTERPRETER: u32 = 3;
    let file = File::open(OsStr::from_bytes(path.to_bytes()))?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    if !head.starts_with(b"\x7fELF\x02") {
        return Ok(false);
    }
    let first = u64::from_le_bytes(std::array::from_fn(|byte| head[32 + byte]));
    let count = u64::from(u16::from_le_bytes([head[56], head[57]]));
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, first.saturating_add(index * 56))?;
        if u32::from_le_bytes(kind) == INTERPRETER {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{LIBRARY, MARK, PATH_LEN, is_static, library_for, refused};

    #[test]
    fn each_scope_of_yama_has_its_answer() {
        let answers = |may_trace: bool| {
            ["", "0", "1", "2", "3"].map(|scope| super::refused_by(scope, || may_trace).is_some())
        };
        assert_eq!(answers(true), [false, false, false, false, true]);
        assert_eq!(answers(false), [false, false, false, true, true]);
        let why = super::refused_by("2", || false).unwrap();
        assert!(why.contains("ptrace_scope is 2"), "{why}");
    }

    #[test]
    fn the_library_has_one_place_for_the_path() {
        let places = LIBRARY.windows(MARK.len()).filter(|bytes| *bytes == MARK).count();
        assert_eq!(places, 1);
        let bytes = library_for(Path::new("/run/sbx/a/control")).unwrap();
        assert_eq!(bytes.len(), LIBRARY.len());
        assert!(bytes.windows(38).any(|at| at == b"sbx-preload-socket:/run/sbx/a/control\0"));
        assert!(library_for(Path::new(&"x".repeat(PATH_LEN))).is_err());
    }

    #[test]
    fn a_dynamic_program_is_told_from_others() {
        assert!(!is_static(c"/bin/sh").unwrap());
        assert!(!is_static(c"/etc/passwd").unwrap());
        assert!(is_static(c"/no/such/file").is_err());
        // Asking changes nothing, whatever the answer is here.
        assert_eq!(refused(), refused());
    }
}

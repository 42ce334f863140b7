//! Putting a filter on the calling thread.
#![expect(unsafe_code, reason = "prctl and seccomp, between fork and exec")]

use std::fmt;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use seccompiler::sock_filter;

/// Why a filter was not installed. Nothing changed, except that the thread may no longer gain
/// privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallError {
    /// A listener watches this thread already: it is in a sandbox, or some other supervisor has
    /// it. The kernel allows one.
    ListenerExists,
    /// The kernel refused, with this errno.
    Kernel(i32),
}

impl InstallError {
    fn last() -> Self {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or_default();
        if errno == libc::EBUSY { Self::ListenerExists } else { Self::Kernel(errno) }
    }

    /// The errno behind it.
    #[must_use]
    pub const fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::ListenerExists => Some(libc::EBUSY),
            Self::Kernel(errno) => Some(*errno),
        }
    }
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ListenerExists => f.write_str(
                "this process is in a sandbox already, or another seccomp listener watches it: a \
                 process is in one sandbox at most",
            ),
            Self::Kernel(errno) => {
                write!(f, "the kernel refused the filter: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for InstallError {}

impl From<InstallError> for io::Error {
    fn from(error: InstallError) -> Self {
        let kind = Self::from_raw_os_error(error.raw_os_error().unwrap_or_default()).kind();
        Self::new(kind, error)
    }
}

const NEW_LISTENER: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;

/// Give up new privileges for good and install `program`; returns the descriptor that its
/// notifications come from (close-on-exec). Makes two to three system calls and allocates
/// nothing, so that it may run between fork and exec.
///
/// A call that is notified waits killably once the supervisor has taken it (from Linux 5.19), so
/// that a signal handler's restart does not show the supervisor the same call twice.
///
/// # Errors
/// See [`InstallError`].
pub fn install(program: &[sock_filter]) -> Result<OwnedFd, InstallError> {
    forgo_privileges()?;
    let killable = NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let fd = match set_filter(program, killable) {
        Err(InstallError::Kernel(libc::EINVAL)) => set_filter(program, NEW_LISTENER)?,
        other => other?,
    };
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// As [`install`], for a program that notifies nobody.
///
/// # Errors
/// See [`InstallError`].
pub fn install_without_listener(program: &[sock_filter]) -> Result<(), InstallError> {
    forgo_privileges()?;
    set_filter(program, 0).map(drop)
}

fn forgo_privileges() -> Result<(), InstallError> {
    // SAFETY: takes numbers only.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(InstallError::last()),
    }
}

fn set_filter(program: &[sock_filter], flags: libc::c_ulong) -> Result<RawFd, InstallError> {
    let len = u16::try_from(program.len()).map_err(|_| InstallError::Kernel(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel reads `len` instructions, which lie there as long as the call takes and
    // are laid out as its own.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(InstallError::last)
}

//! Names of error numbers.

/// From 1 on.
const FIRST: [&str; 40] = [
    "EPERM",
    "ENOENT",
    "ESRCH",
    "EINTR",
    "EIO",
    "ENXIO",
    "E2BIG",
    "ENOEXEC",
    "EBADF",
    "ECHILD",
    "EAGAIN",
    "ENOMEM",
    "EACCES",
    "EFAULT",
    "ENOTBLK",
    "EBUSY",
    "EEXIST",
    "EXDEV",
    "ENODEV",
    "ENOTDIR",
    "EISDIR",
    "EINVAL",
    "ENFILE",
    "EMFILE",
    "ENOTTY",
    "ETXTBSY",
    "EFBIG",
    "ENOSPC",
    "ESPIPE",
    "EROFS",
    "EMLINK",
    "EPIPE",
    "EDOM",
    "ERANGE",
    "EDEADLK",
    "ENAMETOOLONG",
    "ENOLCK",
    "ENOSYS",
    "ENOTEMPTY",
    "ELOOP",
];

/// Those of sockets, from 88 on.
const SOCKETS: [&str; 28] = [
    "ENOTSOCK",
    "EDESTADDRREQ",
    "EMSGSIZE",
    "EPROTOTYPE",
    "ENOPROTOOPT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "EOPNOTSUPP",
    "EPFNOSUPPORT",
    "EAFNOSUPPORT",
    "EADDRINUSE",
    "EADDRNOTAVAIL",
    "ENETDOWN",
    "ENETUNREACH",
    "ENETRESET",
    "ECONNABORTED",
    "ECONNRESET",
    "ENOBUFS",
    "EISCONN",
    "ENOTCONN",
    "ESHUTDOWN",
    "ETOOMANYREFS",
    "ETIMEDOUT",
    "ECONNREFUSED",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "EALREADY",
    "EINPROGRESS",
];

/// Where [`SOCKETS`] begins.
const SOCKETS_FROM: usize = 88;

/// The name of an error number, if it is one of the usual ones.
///
/// ```
/// assert_eq!(ext_api::errno::name(2), Some("ENOENT"));
/// assert_eq!(ext_api::errno::number("ECONNREFUSED"), Some(111));
/// ```
#[must_use]
pub fn name(number: i32) -> Option<&'static str> {
    let number = usize::try_from(number).ok()?;
    let first = FIRST.get(number.wrapping_sub(1));
    first.or_else(|| SOCKETS.get(number.wrapping_sub(SOCKETS_FROM))).copied()
}

/// The number with this name, if it is one of the usual ones.
#[must_use]
pub fn number(name: &str) -> Option<i32> {
    let at =
        |names: &[&str], from: usize| Some(names.iter().position(|known| *known == name)? + from);
    at(&FIRST, 1).or_else(|| at(&SOCKETS, SOCKETS_FROM)).map(|number| number as i32)
}

//! What the kernel says of a task in /proc. Names of programs and threads are among it, and are of any bytes.

/// The text of `/proc/PATH`; None if there is none (any more).
#[must_use]
pub fn about(path: std::fmt::Arguments<'_>) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{path}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

//! The log ring: what extensions print and how they fail. Best effort by design: a writer never
//! waits, and text of two writers may interleave by lines.

use crate::context;

/// Append bytes as they are.
pub(crate) fn append(bytes: &[u8]) {
    context::common().log().append(bytes);
}

/// Append `kind: text` as one line.
pub(crate) fn line(kind: &[u8], text: &[u8]) {
    let mut buffer = [0; 320];
    let mut len = 0;
    for byte in kind.iter().chain(b": ").chain(text).take(buffer.len() - 1).chain(b"\n") {
        buffer[len] = *byte;
        len += 1;
    }
    append(&buffer[..len]);
}

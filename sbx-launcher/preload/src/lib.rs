//! What programs load where the launcher may not trace them: before `main`, it joins them to their sandbox
//! as a program does that attaches by itself.
//!
//! Which sandbox, the launcher writes into its copy of this library: no library of ours reads the
//! environment.
#![expect(unsafe_code, reason = "runs before main, and reads bytes that the launcher has changed")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ext_api::client::Sandbox;

/// By which the launcher finds the place of the path.
const MARK: [u8; 19] = *b"sbx-preload-socket:";
/// Longest path of a socket, with its zero.
const PATH_LEN: usize = 108;

/// The mark, and then the path, filled up with zeros.
#[used]
static SOCKET: ([u8; 19], [u8; PATH_LEN]) = (MARK, [0; PATH_LEN]);

/// What the loader calls before `main`, once.
#[used]
#[unsafe(link_section = ".init_array")]
static JOIN: extern "C" fn() = join;

extern "C" fn join() {
    // SAFETY: a constant of ours; volatile, since the file holds other bytes than the compiler knows.
    let (_, path) = unsafe { (&raw const SOCKET).read_volatile() };
    let len = path.iter().position(|&byte| byte == 0).unwrap_or(PATH_LEN);
    let path = Path::new(OsStr::from_bytes(&path[..len]));
    // It is loaded by two names where sandboxes are nested.
    if Sandbox::current().is_ok() {
        return;
    }
    if let Err(error) = Sandbox::attach_by(path) {
        eprintln!("sbx: this program runs outside of the sandbox: {error}");
    }
}

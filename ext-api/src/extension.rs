//! What the code that `#[extension]` writes stands on.
#![expect(unsafe_code, reason = "the other side of the gate's raw pointers")]

use std::fmt::Display;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::abi::{Reply, Runtime, Status};
use crate::config::Config;

static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());

#[inline]
pub(crate) fn runtime() -> Option<&'static Runtime> {
    // SAFETY: null, or libos's table, which lies in the region for good.
    unsafe { RUNTIME.load(Ordering::Acquire).as_ref() }
}

/// What an extension may ask of its surroundings.
#[derive(Debug)]
pub struct Cx {
    name: &'static str,
}

impl Cx {
    /// Name of the extension.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Monotonic time in nanoseconds; 0 outside of a region.
    #[must_use]
    pub fn now_ns() -> u64 {
        runtime().map_or(0, |runtime| (runtime.now_ns)())
    }

    /// Process that the current upcall runs in; 0 outside of a region.
    #[must_use]
    pub fn pid() -> u32 {
        runtime().map_or(0, |runtime| (runtime.pid)())
    }
}

/// The state that an earlier version of an extension has saved.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// What that version calls its form: `#[save(version = ...)]`.
    pub version: u32,
    /// What its `#[save]` returned.
    pub bytes: &'a [u8],
}

impl Saved<'_> {
    /// From libos's words.
    ///
    /// # Safety
    /// `len` bytes are readable at `at` for as long as the value is used, if `len` is not 0.
    #[doc(hidden)]
    #[must_use]
    pub const unsafe fn new(version: u64, at: *const u8, len: usize) -> Self {
        let bytes: &[u8] = if len == 0 {
            &[]
        } else {
            // SAFETY: by contract.
            unsafe { std::slice::from_raw_parts(at, len) }
        };
        Self { version: version as u32, bytes }
    }
}

/// A result of bytes, written straight into the caller's buffer; what does not fit is kept in the
/// extension's heap until the caller has copied it.
#[derive(Debug)]
pub struct Out<'a> {
    reply: &'a mut Reply,
    /// Bytes that the spill has room for.
    spill_cap: usize,
}

impl<'a> Out<'a> {
    /// The result of the upcall that `reply` belongs to.
    pub fn new(reply: &'a mut Reply) -> Self {
        reply.len = 0;
        Self { reply, spill_cap: 0 }
    }

    /// Go on with a result that an earlier `Out` has begun, and left [`Out::spill_cap`] of.
    pub(crate) const fn resumed(reply: &'a mut Reply, spill_cap: usize) -> Self {
        Self { reply, spill_cap }
    }

    pub(crate) const fn spill_cap(&self) -> usize {
        self.spill_cap
    }

    /// Append bytes. If the heap has no room for a result that is larger than the caller's
    /// buffer, the handler panics, which the caller sees.
    pub fn write(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let to = self.room(bytes.len());
            // SAFETY: room for as many; neither is the slice that we were given.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            self.extend(bytes.len());
        }
    }

    /// Where the next `more` bytes go, as [`Out::write`].
    fn room(&mut self, more: usize) -> *mut u8 {
        let len = self.reply.len + more;
        if let Some(room) = self.room_for(more) {
            return room;
        }
        let block = if len <= self.spill_cap { self.reply.spill } else { self.grow(len) };
        block.wrapping_add(self.reply.len)
    }

    /// Where the next `more` bytes go in the caller's buffer, if they fit there.
    #[inline]
    pub(crate) fn room_for(&self, more: usize) -> Option<*mut u8> {
        let fits = self.reply.spill.is_null() && more <= self.reply.cap - self.reply.len;
        fits.then(|| self.reply.buf.wrapping_add(self.reply.len))
    }

    /// `more` bytes have been written where [`Out::room_for`] said.
    #[inline]
    pub(crate) fn extend(&mut self, more: usize) {
        self.reply.len += more;
    }

    /// A block of the extension's heap for `len` bytes or more, with what has been written so far. It
    /// doubles, so that a long result in small pieces is not copied for each of them.
    fn grow(&mut self, len: usize) -> *mut u8 {
        let allocate = runtime().expect("a reply spills only in the region").alloc;
        let cap = len.max(self.spill_cap.saturating_mul(2));
        // SAFETY: takes a number.
        let block = unsafe { allocate(cap) }.cast::<u8>();
        assert!(
            !block.is_null(),
            "the extension's heap is full: no room for a result of {len} bytes"
        );
        let former = self.reply.spill;
        let from = if former.is_null() { self.reply.buf } else { former };
        if self.reply.len > 0 {
            // SAFETY: `from` holds `reply.len` bytes and the block at least as many.
            unsafe { block.copy_from_nonoverlapping(from, self.reply.len) };
        }
        (self.reply.spill, self.spill_cap) = (block, cap);
        // SAFETY: null, or a block that was allocated here and that nobody names any more.
        unsafe { free(former.cast()) };
        block
    }
}

unsafe extern "C" {
    /// The region libc's: the other end of [`Runtime::alloc`].
    fn free(block: *mut std::ffi::c_void);
}

/// Run a handler's body for the gate: panics end here.
///
/// # Safety
/// `reply` is null or the caller's reply, as [`crate::abi::HandlerFn`] says.
#[doc(hidden)]
#[inline]
pub unsafe fn run(
    reply: *mut Reply,
    body: impl FnOnce(&mut Reply) -> Result<Status, Status>,
) -> u32 {
    let mut none = MaybeUninit::uninit();
    // SAFETY: by contract.
    let reply = unsafe { reply.as_mut() }.unwrap_or_else(|| none.write(Reply::empty()));
    let status = match catch_unwind(AssertUnwindSafe(|| body(reply))) {
        Ok(Ok(status) | Err(status)) => status,
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("a panic without a message");
            let len = text.len().min(reply.cap);
            if !reply.buf.is_null() {
                reply.spill = std::ptr::null_mut();
                // SAFETY: `len` bytes fit the caller's buffer.
                unsafe { reply.buf.copy_from_nonoverlapping(text.as_ptr(), len) };
                reply.len = len;
            }
            Status::Panicked
        }
    };
    status as u32
}

/// Run an extension's `init` for the gate.
///
/// # Safety
/// As [`crate::abi::InitFn`] says.
#[doc(hidden)]
pub unsafe fn run_init<E: Display>(
    (config, config_len): (*const u8, usize),
    table: *const Runtime,
    reply: *mut Reply,
    name: &'static str,
    body: impl FnOnce(&Cx, Config) -> Result<(), E>,
) -> u32 {
    RUNTIME.store(table.cast_mut(), Ordering::Release);
    #[cfg(not(loom))]
    if let Some(runtime) = runtime() {
        crate::runtime::learn(runtime);
    }
    let text: &[u8] = if config_len == 0 {
        &[]
    } else {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts(config, config_len) }
    };
    let body = |reply: &mut Reply| {
        let text = String::from_utf8_lossy(text);
        let outcome = Config::parse(&text)
            .map_err(|error| error.to_string())
            .and_then(|config| body(&Cx { name }, config).map_err(|error| error.to_string()));
        match outcome {
            Ok(()) => Ok(Status::Ok),
            Err(text) => {
                Out::new(reply).write(text.as_bytes());
                Ok(Status::Failed)
            }
        }
    };
    // SAFETY: by contract.
    unsafe { run(reply, body) }
}

//! Calling extensions from a program in a sandbox.
#![expect(unsafe_code, reason = "reads the control zone and calls libos at its address")]

use std::fs;
use std::mem::offset_of;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::abi::{
    ABI_VERSION, CONTROL_MAPPING, CallFn, FindFn, Handle, HandlerEntry, ReleaseFn, Reply,
    SUPERBLOCK_MAGIC, Status, Superblock, WaitFn, WaitOnFn, WakeOnFn,
};
use crate::error::CallError;
use crate::limits::{HANDLERS_MAX, SIGNATURE_LEN_MAX};
use crate::wire::{self, Ret};

/// The sandbox that this process is in.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox {
    superblock: &'static Superblock,
    call: CallFn,
    find: FindFn,
    release: ReleaseFn,
    wait: WaitFn,
    wait_on: WaitOnFn,
    wake_on: WakeOnFn,
}

/// Address of the control zone, once it is known; 0 before.
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static ATTACHING: Mutex<()> = Mutex::new(());

impl Sandbox {
    /// The sandbox of this process; in a handler, the one that it runs in, so that it can call other
    /// extensions: an upcall within its own.
    ///
    /// # Errors
    /// [`CallError::NotAttached`], or a sandbox of another version.
    pub fn current() -> Result<Self, CallError> {
        let base = match CURRENT.load(Ordering::Acquire) {
            0 => match crate::extension::runtime() {
                Some(runtime) => (runtime.superblock)() as usize,
                None => find_control().ok_or(CallError::NotAttached)?,
            },
            base => base,
        };
        CURRENT.store(base, Ordering::Release);
        // SAFETY: the control zone is mapped there, read-only and for good, and is larger.
        let superblock = unsafe { &*(base as *const Superblock) };
        let sound = superblock.magic == SUPERBLOCK_MAGIC
            && superblock.abi_version == ABI_VERSION
            && superblock.base == base as u64
            && superblock.size as usize == size_of::<Superblock>();
        if !sound {
            return Err(CallError::Incompatible(format!(
                "ABI version {}, this program has {ABI_VERSION}",
                superblock.abi_version
            )));
        }
        let entry = &superblock.entry;
        Ok(Self {
            superblock,
            // SAFETY: libos's entry point of this type, at one address in every participant.
            call: unsafe { std::mem::transmute::<u64, CallFn>(entry.call) },
            // SAFETY: as above.
            find: unsafe { std::mem::transmute::<u64, FindFn>(entry.find) },
            // SAFETY: as above.
            release: unsafe { std::mem::transmute::<u64, ReleaseFn>(entry.release) },
            // SAFETY: as above.
            wait: unsafe { std::mem::transmute::<u64, WaitFn>(superblock.wait) },
            // SAFETY: as above.
            wait_on: unsafe { std::mem::transmute::<u64, WaitOnFn>(superblock.wait_on) },
            // SAFETY: as above.
            wake_on: unsafe { std::mem::transmute::<u64, WakeOnFn>(superblock.wake_on) },
        })
    }

    /// Make this process a participant of the sandbox `name`, which is up, though the launcher did
    /// not start it. It gets extensions and upcalls, and goes without what the launcher gives: no
    /// filter protects the region from this program's own mistakes, its children join only when
    /// they first make an upcall, programs that it executes do not join, and a `sigaction` of
    /// SIGSEGV and the like takes faults in handlers away from libos. To be called before the
    /// program has other threads, or while they make no upcalls.
    ///
    /// # Errors
    /// [`CallError::AlreadyIn`]; [`CallError::Attach`]: no such sandbox, a refusal, or the
    /// region's addresses are taken.
    pub fn attach(name: &str) -> Result<Self, CallError> {
        let _one = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
        match Self::current() {
            Ok(known) if known.name() == name => return Ok(known),
            Ok(other) => return Err(CallError::AlreadyIn(other.name().to_owned())),
            Err(CallError::NotAttached) => {}
            Err(error) => return Err(error),
        }
        let base = crate::attach::attach(name).map_err(CallError::Attach)?;
        CURRENT.store(base, Ordering::Release);
        Self::current()
    }

    /// As [`Sandbox::attach`], to the sandbox whose control socket is at `socket`.
    ///
    /// # Errors
    /// As [`Sandbox::attach`]; a process that is in a sandbox already is refused, whichever it is.
    pub fn attach_by(socket: &Path) -> Result<Self, CallError> {
        let _one = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
        match Self::current() {
            Ok(known) => return Err(CallError::AlreadyIn(known.name().to_owned())),
            Err(CallError::NotAttached) => {}
            Err(error) => return Err(error),
        }
        let base = crate::attach::attach_by(socket).map_err(CallError::Attach)?;
        CURRENT.store(base, Ordering::Release);
        Self::current()
    }

    pub(crate) const fn wait_entry(&self) -> WaitFn {
        self.wait
    }

    pub(crate) const fn wait_on_entry(&self) -> WaitOnFn {
        self.wait_on
    }

    pub(crate) const fn wake_on_entry(&self) -> WakeOnFn {
        self.wake_on
    }

    /// Ask the sandbox's supervisor, with a descriptor: its answer as JSON, and those that come with it.
    ///
    /// # Errors
    /// The sandbox has no name, or its supervisor is gone; in words.
    #[doc(hidden)]
    pub fn ask_supervisor(
        &self,
        request: &str,
        fd: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<(String, Vec<std::os::fd::OwnedFd>), String> {
        crate::attach::ask(self.name(), request, fd)
    }

    /// Address of the pool of packet buffers; 0 if there is none.
    #[doc(hidden)]
    #[must_use]
    pub fn pool(&self) -> usize {
        self.superblock.pool.load(Ordering::Acquire) as usize
    }

    /// Name of the sandbox.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = &self.superblock.name;
        let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        std::str::from_utf8(&name[..len]).unwrap_or("")
    }

    /// Address of the region, equal in every participant.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.superblock.base
    }

    /// The handler named `extension.handler`.
    ///
    /// # Errors
    /// [`CallError::NotFound`].
    pub fn find(&self, name: &str) -> Result<Handle, CallError> {
        // SAFETY: a text and its length.
        match unsafe { (self.find)(name.as_ptr(), name.len()) } {
            0 => Err(CallError::NotFound(name.to_owned())),
            handle => Ok(handle),
        }
    }

    /// Is the live handler's signature this one?
    pub(crate) fn has_signature(&self, handle: Handle, signature: &str) -> bool {
        let (index, generation) = (handle as u32 as usize, (handle >> 32) as u32);
        if index >= HANDLERS_MAX {
            return false;
        }
        let table = self.superblock.handlers as usize;
        let row = table + index * size_of::<HandlerEntry>();
        let at = |offset: usize| std::ptr::with_exposed_provenance::<()>(row + offset);
        let len = at(offset_of!(HandlerEntry, signature_len)).cast::<u32>();
        // SAFETY: of a row of the table, which is mapped for good. The supervisor does not change it while it
        // is live; whether it was all the time is seen below.
        let len = unsafe { len.read_volatile() };
        let text = at(offset_of!(HandlerEntry, signature)).cast::<[u8; SIGNATURE_LEN_MAX]>();
        // SAFETY: as above.
        let text = unsafe { text.read_volatile() };
        let live = at(offset_of!(HandlerEntry, generation)).cast::<AtomicU32>();
        // SAFETY: as above; an atomic.
        let is_live = unsafe { &*live }.load(Ordering::Acquire) == generation;
        is_live && text.get(..len as usize) == Some(signature.as_bytes())
    }

    /// The gate itself. Returns a [`Status`] as a number.
    ///
    /// # Safety
    /// `args` fits the handler's signature; `reply` is as [`Reply`] says. A `spill` must be given
    /// back with [`Sandbox::release`].
    #[inline]
    pub unsafe fn call_raw(&self, handle: Handle, args: &[u64], reply: &mut Reply) -> u32 {
        // SAFETY: by contract.
        unsafe { (self.call)(handle, args.as_ptr(), reply) }
    }

    /// Call a handler with all its arguments zero or empty; the [`Status`] as a number.
    #[doc(hidden)]
    #[inline]
    pub fn call_null(&self, handle: Handle, reply: &mut Reply) -> u64 {
        static ZEROS: [u64; crate::limits::ARG_WORDS_MAX] = [0; crate::limits::ARG_WORDS_MAX];
        // SAFETY: sixteen zero words fit every signature: byte strings are empty.
        u64::from(unsafe { self.call_raw(handle, &ZEROS, reply) })
    }

    /// Give back a reply's spill, if it has one.
    pub fn release(&self, reply: &mut Reply) {
        if !reply.spill.is_null() {
            // SAFETY: set by the handler of this reply, and given back once.
            unsafe { (self.release)(reply.spill) };
            reply.spill = std::ptr::null_mut();
        }
    }

    /// What a typed client's method does: call, and turn the reply into the handler's type.
    #[doc(hidden)]
    #[inline]
    pub fn invoke<R: Ret>(&self, handle: Handle, args: &[u64]) -> Result<R::Value, CallError> {
        let mut buffer = [const { std::mem::MaybeUninit::<u8>::uninit() }; 256];
        let mut reply = Reply { buf: buffer.as_mut_ptr().cast(), cap: 256, ..Reply::empty() };
        // SAFETY: the macro makes handle and words for the same handler.
        let status = unsafe { self.call_raw(handle, args, &mut reply) };
        let result = match status {
            0 => R::value(Status::Ok, &reply),
            1 => R::value(Status::None, &reply),
            _ => Err(failure(status, &reply)),
        };
        self.release(&mut reply);
        result
    }

    /// As [`Sandbox::invoke`], for handlers that write to an [`crate::extension::Out`].
    #[doc(hidden)]
    pub fn invoke_into<R: Ret>(
        &self,
        handle: Handle,
        args: &[u64],
        into: &mut Vec<u8>,
    ) -> Result<R::Value, CallError> {
        into.clear();
        let mut reply = Reply { buf: into.as_mut_ptr(), cap: into.capacity(), ..Reply::empty() };
        // SAFETY: the macro makes handle and words for the same handler.
        let status = unsafe { self.call_raw(handle, args, &mut reply) };
        let result = match status {
            0 => R::value(Status::Ok, &reply),
            1 => R::value(Status::None, &reply),
            _ => Err(failure(status, &reply)),
        };
        if reply.spill.is_null() {
            // SAFETY: the handler wrote this many bytes into the vector's own buffer.
            unsafe { into.set_len(reply.len.min(reply.cap)) };
        } else {
            let len = reply.len;
            into.reserve(len);
            into.extend_from_slice(wire::bytes(&reply));
        }
        self.release(&mut reply);
        result
    }
}

#[cold]
pub(crate) fn failure(status: u32, reply: &Reply) -> CallError {
    let text = || String::from_utf8_lossy(wire::bytes(reply)).into_owned();
    match Status::from_raw(status) {
        Some(Status::Failed) => CallError::Failed(text()),
        Some(status) if (status as u32) < 32 => CallError::Refused(status),
        Some(status) => CallError::Fault(status, text()),
        None => CallError::Incompatible(format!("unknown status {status}")),
    }
}

/// Where the control zone is mapped, if it is.
fn find_control() -> Option<usize> {
    // Names of files are of any bytes.
    let maps = fs::read("/proc/self/maps").ok()?;
    let maps = String::from_utf8_lossy(&maps);
    let line = maps.lines().find(|line| line.ends_with(CONTROL_MAPPING))?;
    usize::from_str_radix(line.split('-').next()?, 16).ok()
}

//! Memory of the extension's heap that programs use for frames: at one address in every process.
#![expect(unsafe_code, reason = "allocates memory that is aligned to pages")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

const PAGE_LEN: usize = 4096;

/// One block, made when it is first asked for, and kept for good.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    block: AtomicPtr<u8>,
    /// 0 until the block is there.
    len: AtomicUsize,
}

impl Memory {
    /// The block, of at least `len` octets: made with that length, if there is none yet.
    pub(crate) fn block(&self, len: usize) -> Result<u64, String> {
        if len == 0 {
            return Err("memory of no octets".into());
        }
        if self.block.load(Ordering::Acquire).is_null() {
            self.make(len)?;
        }
        match self.len.load(Ordering::Acquire) {
            known if known >= len => Ok(self.block.load(Ordering::Acquire).addr() as u64),
            known => Err(format!("the memory is {known} octets long, and not made anew")),
        }
    }

    fn make(&self, len: usize) -> Result<(), String> {
        let layout = Layout::from_size_align(len, PAGE_LEN).map_err(|error| error.to_string())?;
        // SAFETY: the layout is not empty.
        let made = unsafe { alloc_zeroed(layout) };
        if made.is_null() {
            return Err(format!("the extension's heap has no {len} octets left"));
        }
        let none = std::ptr::null_mut();
        let order = (Ordering::AcqRel, Ordering::Acquire);
        if self.block.compare_exchange(none, made, order.0, order.1).is_ok() {
            self.len.store(len, Ordering::Release);
        } else {
            // SAFETY: another was faster; ours is as it was allocated, and nobody knows of it.
            unsafe { dealloc(made, layout) };
        }
        Ok(())
    }
}

//! What the launcher tells the image before it seals it: the region's place, worked out.

use core::cell::UnsafeCell;

use libos::layout::Place;

/// Addresses that the gate needs at once. Lies in the sealed half of the slot: the launcher
/// writes it before the code zone is sealed, and nobody can after.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Boot {
    /// The context cache.
    pub cache: u64,
    /// The handler table.
    pub handlers: u64,
    /// The first upcall stack.
    pub stacks: u64,
    /// Bytes of all upcall stacks.
    pub stacks_len: u64,
    /// The region's base.
    pub base: u64,
    /// Length of its shared part.
    pub len: u64,
    /// Address of the extension table.
    pub extensions: u64,
}

/// A [`Boot`] that the compiler must not take for the constant it looks like.
#[derive(Debug)]
#[repr(transparent)]
pub struct BootCell(UnsafeCell<Boot>);

// SAFETY: written once, by the launcher, before any process maps it; read-only ever after.
unsafe impl Sync for BootCell {}

/// Found by the launcher under this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.rel.ro.sbx")]
pub static SBX_BOOT: BootCell = BootCell(UnsafeCell::new(Boot {
    cache: 0,
    handlers: 0,
    stacks: 0,
    stacks_len: 0,
    base: 0,
    len: 0,
    extensions: 0,
}));

/// The boot block.
pub(crate) fn boot() -> Boot {
    // SAFETY: nobody writes it while code of the image runs.
    unsafe { SBX_BOOT.0.get().read_volatile() }
}

/// Where the region lies.
#[inline]
pub(crate) fn place() -> Place {
    let boot = SBX_BOOT.0.get();
    // Two words and not the whole block: what asks who it is does so at every change it makes.
    // SAFETY: as above.
    let base = unsafe { (&raw const (*boot).base).read_volatile() };
    // SAFETY: as above.
    let len = unsafe { (&raw const (*boot).len).read_volatile() };
    Place { base: base as usize, len: len as usize }
}

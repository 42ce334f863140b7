//! What the loader reads out of the libos image: its export table.

/// One function that extensions may import.
#[derive(Debug)]
#[repr(C)]
pub struct Export {
    /// Name, not ended by a zero.
    pub name: *const u8,
    /// Bytes of the name.
    pub len: usize,
    /// Address; relocated with the image.
    pub address: *const (),
}

impl Export {
    /// A row of the table.
    #[must_use]
    pub const fn new(name: &'static str, address: *const ()) -> Self {
        Self { name: name.as_ptr(), len: name.len(), address }
    }
}

// SAFETY: the table is immutable, and its addresses are code and text of the image.
#[expect(unsafe_code, reason = "a table of addresses is a static, and statics must be Sync")]
unsafe impl Sync for Export {}

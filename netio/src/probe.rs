//! What this kernel's io_uring offers to this process. Everything is tried on a ring of its own
//! that is gone afterwards.
#![expect(unsafe_code, reason = "hands a buffer ring and a request to the kernel")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, Probe, opcode, types};

/// Entries of the rings that are made here.
const ENTRIES: u32 = 4;

/// What was found.
#[derive(Debug)]
pub struct Offer {
    /// A ring can be made; else why not.
    pub setup: io::Result<()>,
    /// Completions run when this thread asks (from Linux 6.1): no interrupts of the handler.
    pub defer_taskrun: bool,
    /// The kernel takes receive buffers from a ring (from Linux 5.19).
    pub buffer_rings: bool,
    /// One request receives until it is cancelled (from Linux 6.0).
    pub multishot_receive: bool,
    /// The kernel sends from our pages without copying (from Linux 6.0).
    pub zero_copy_send: bool,
}

/// Asks the kernel.
#[must_use]
pub fn probe() -> Offer {
    match IoUring::new(ENTRIES) {
        Err(error) => Offer {
            setup: Err(error),
            defer_taskrun: false,
            buffer_rings: false,
            multishot_receive: false,
            zero_copy_send: false,
        },
        Ok(mut ring) => {
            let zero_copy_send = supports(&ring, opcode::SendZc::CODE);
            let [buffer_rings, multishot_receive] = receive(&mut ring);
            Offer {
                setup: Ok(()),
                defer_taskrun: deferred().is_ok(),
                buffer_rings,
                multishot_receive,
                zero_copy_send,
            }
        }
    }
}

fn supports(ring: &IoUring, code: u8) -> bool {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok() && probe.is_supported(code)
}

fn deferred() -> io::Result<IoUring> {
    IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES)
}

/// Whether buffer rings, and multishot receives from them, work.
fn receive(ring: &mut IoUring) -> [bool; 2] {
    const GROUP: u16 = 1;
    let Some(pages) = Page::new() else { return [false; 2] };
    // SAFETY: the page lives until the group is unregistered below, holds as many entries, and is
    // written by nobody else.
    let registered = unsafe {
        ring.submitter().register_buf_ring_with_flags(pages.0.addr() as u64, 4, GROUP, 0)
    };
    if registered.is_err() {
        return [false; 2];
    }
    let multishot = receive_many(ring, GROUP).unwrap_or(false);
    let gone = ring.submitter().unregister_buf_ring(GROUP);
    if gone.is_err() {
        // The kernel may still look at it.
        std::mem::forget(pages);
    }
    [true, multishot]
}

/// A multishot receive of one byte from a group without buffers: a kernel that knows it misses
/// the buffers, one that does not finds the request invalid.
fn receive_many(ring: &mut IoUring, group: u16) -> io::Result<bool> {
    const ENOBUFS: i32 = 105;
    let (ours, mut theirs) = UnixStream::pair()?;
    theirs.write_all(b"x")?;
    let request = opcode::RecvMulti::new(types::Fd(ours.as_raw_fd()), group).build();
    // SAFETY: the request names a descriptor that outlives it (its completion is awaited below)
    // and no memory.
    unsafe { ring.submission().push(&request) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    Ok(ring.completion().next().is_some_and(|entry| entry.result() == -ENOBUFS))
}

/// A page of zeros, aligned as one.
struct Page(*mut u8);

impl Page {
    const LAYOUT: Layout = match Layout::from_size_align(4096, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("a page is its own alignment"),
    };

    fn new() -> Option<Self> {
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(Self::LAYOUT) };
        (!start.is_null()).then_some(Self(start))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and given back once.
        unsafe { dealloc(self.0, Self::LAYOUT) };
    }
}

#[cfg(test)]
mod tests {
    use super::probe;

    #[test]
    fn what_is_offered_is_consistent() {
        let offer = probe();
        let any = offer.defer_taskrun || offer.buffer_rings || offer.zero_copy_send;
        assert!(offer.setup.is_ok() || !any, "{offer:?}");
        assert!(offer.buffer_rings || !offer.multishot_receive, "{offer:?}");
    }
}

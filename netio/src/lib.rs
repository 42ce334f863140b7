//! The network path of an sbx sandbox.
//!
//! What is here: the question whether this kernel grants an io_uring at all, and with which
//! features. The engine, devices and endpoints are not built yet.

use std::io;

/// What the kernel's io_uring offers to this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Rings whose completions run only when their owner asks.
    pub deferred_taskrun: bool,
    /// `accept`, `recv` and `recvmsg` that answer many times.
    pub multishot: bool,
}

/// Ask the kernel.
///
/// # Errors
/// It has no io_uring, or forbids it to this process.
pub fn probe() -> io::Result<Offer> {
    let ring: io_uring::IoUring = io_uring::IoUring::new(2)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let deferred = io_uring::IoUring::<io_uring::squeue::Entry, io_uring::cqueue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(2)
        .is_ok();
    Ok(Offer {
        deferred_taskrun: deferred,
        multishot: probe.is_supported(io_uring::opcode::AcceptMulti::CODE),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers_one_way_or_the_other() {
        match super::probe() {
            Ok(offer) => assert!(offer.multishot || !offer.deferred_taskrun),
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
    }
}

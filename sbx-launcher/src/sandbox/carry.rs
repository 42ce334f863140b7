//! A sandbox that carries its programs' local sockets.
#![expect(unsafe_code, reason = "writes a table through the supervisor's alias")]

use std::sync::atomic::Ordering;

use libos::layout::{ARENAS_OFFSET, CALLS_OFFSET};
use libos::signals::CallTable;
use libos::sockets::RINGS_LEN;

use super::{Sandbox, SandboxError};

impl Sandbox {
    /// Carry the local sockets of programs that are started from now on.
    ///
    /// # Errors
    /// The region is too small for the rings.
    pub fn carry_sockets(&mut self) -> Result<(), SandboxError> {
        if self.heaps_end() - ARENAS_OFFSET <= RINGS_LEN {
            let least = (ARENAS_OFFSET + RINGS_LEN) >> 20;
            return Err(SandboxError::Refused(format!(
                "to carry sockets the region needs more than {least} MiB: give a larger --size"
            )));
        }
        for word in &self.common().sockets().bell {
            let drawn = crate::zones::random().map_err(|error| {
                SandboxError::Refused(format!("to carry sockets takes random numbers: {error}"))
            })?;
            word.store(drawn, Ordering::Relaxed);
        }
        self.carries_sockets = true;
        let at = self.zones.control.alias().wrapping_add(CALLS_OFFSET).cast::<CallTable>();
        // SAFETY: the control zone has room for it there; all atomics.
        unsafe { &*at }.sockets.store(1, Ordering::Release);
        Ok(())
    }

    /// Where the heaps' part of the region ends.
    pub(super) fn heaps_end(&self) -> usize {
        self.zones.place.len - if self.carries_sockets { RINGS_LEN } else { 0 }
    }

    /// A process has ended, and with it what it had of connections.
    pub(super) fn take_sockets_back(&self, pid: u32) {
        if !self.carries_sockets {
            return;
        }
        let common = self.common();
        common.sockets().end_process(pid, crate::clock::now_ns());
        if common.rows().all(|row| common.process(row).claim.load().pid == 0) {
            common.sockets().clear();
        }
    }
}

//! Calls that a stopped program makes for us: to map libos before it begins, to close descriptors that
//! it should not have.
//!
//! It makes them from instructions of libos's that are there for this, or, if it has no libos (yet), from
//! ours in place of some of its own. Whoever is to put those back
//! may be killed at any moment, so the order of the steps is such that the task then waits behind a
//! jump to itself, and what is needed to go on is in hand before the first of them:
//!
//! ```text
//!  at      jmp $      before the call, and after it
//!  at + 2  syscall    the call
//!  at + 4  jmp $      it has been made
//! ```
use std::io;
use std::os::unix::fs::MetadataExt;

use ext_api::abi::Entry;
use libos::layout::{Place, code_file_offset};

use crate::failpoint::{Point, pass, pass_with};
use crate::hand::{Found, Hand, Patch, Purpose};
use crate::memory;
use crate::tracee::{let_go, mask, peek, poke, registers, set_mask, set_registers, to_system_call};

/// The instructions.
const CALL: u64 = u64::from_le_bytes([0xeb, 0xfe, 0x0f, 0x05, 0xeb, 0xfe, 0xcc, 0xcc]);
/// Where the call is in them, and where it returns to.
const CALLS_AT: u64 = 2;
const RETURNS_TO: u64 = 4;

/// What a program is let in with.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// Descriptors of the zones in its table.
    pub fds: [i32; 3],
    /// Signals that are hooked in it.
    pub armed: u64,
}

/// What makes stopped programs call.
#[derive(Debug)]
pub struct Injector {
    /// Where libos is entered.
    pub entry: Entry,
    /// Where libos has the instructions.
    pub lent_call: u64,
    /// Where the region is.
    pub place: Place,
    /// The zones' descriptors, as we have them.
    pub fds: [i32; 3],
    /// What the keeper has to know.
    pub hand: Hand,
}

impl Injector {
    /// Have a program that has not begun map the code half of slot 0 and go on at libos's exec stub. It
    /// is traced no longer then.
    ///
    /// # Errors
    /// It is of another kind, its addresses are taken, or it has ended.
    pub fn let_in(
        &self,
        pid: i32,
        original: libc::user_regs_struct,
        given: Given,
    ) -> io::Result<()> {
        let at = original.rip;
        let patch = Patch { at, saved: peek(pid, at)?, regs: original, mask: 0 };
        self.hand.patch(pid, Purpose::Join, patch);
        pass_with(Point::JoinNoted, pid, at);
        self.join(pid, patch, given)
    }

    /// As [`Self::let_in`], of a program for which that is noted.
    fn join(&self, pid: i32, patch: Patch, given: Given) -> io::Result<()> {
        let Given { fds: [control, code, data], armed } = given;
        let Patch { at, saved, regs: original, .. } = patch;
        poke(pid, at, CALL)?;
        pass_with(Point::JoinPatched, pid, at);
        let half = self.place.code_half(0);
        let call = libc::user_regs_struct {
            rip: at + CALLS_AT,
            rax: libc::SYS_mmap as u64,
            orig_rax: u64::MAX,
            rdi: half.start as u64,
            rsi: half.len() as u64,
            rdx: (libc::PROT_READ | libc::PROT_EXEC) as u64,
            r10: (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64,
            r8: code as u64,
            r9: code_file_offset(0) as u64,
            // For the stub, which finds them where the call leaves them.
            rbx: at,
            r12: control as u64,
            r13: code as u64,
            r14: data as u64,
            r15: armed,
            ..original
        };
        let killed = || io::Error::other("it was killed while it joined");
        set_registers(pid, &call)?;
        pass_with(Point::JoinSet, pid, at);
        if !to_system_call(pid)? {
            return Err(killed());
        }
        pass_with(Point::JoinCalls, pid, at);
        // Within the call: it returns to the stub.
        let entered = registers(pid)?;
        set_registers(pid, &libc::user_regs_struct { rip: self.entry.exec_stub, ..entered })?;
        pass_with(Point::JoinSent, pid, at);
        poke(pid, at, saved)?;
        pass_with(Point::JoinRestored, pid, at);
        if !to_system_call(pid)? {
            return Err(killed());
        }
        let mapped = registers(pid)?;
        if mapped.rax == half.start as u64 {
            pass_with(Point::JoinMapped, pid, at);
            return let_go(pid, 0);
        }
        let errno = (mapped.rax as i64).wrapping_neg() as i32;
        poke(pid, at, CALL)?;
        let (rax, orig_rax) = (libc::SYS_exit_group as u64, u64::MAX);
        let exit =
            libc::user_regs_struct { rip: at + CALLS_AT, rax, orig_rax, rdi: 125, ..original };
        set_registers(pid, &exit)?;
        let_go(pid, 0)?;
        Err(refusal(errno))
    }

    /// Finish what a supervisor that died had begun with a task that is stopped somewhere, which stays
    /// traced or not; whether it is inside.
    ///
    /// # Errors
    /// It could not be let in, or has ended.
    pub fn finish(&self, found: Found) -> io::Result<bool> {
        let pid = found.tid;
        let is_mapped = || self.has_libos(pid);
        let Some((purpose, patch)) = found.patched else {
            // The exec was not seen, or failed.
            return self.take_back(pid, found.fds).map(|()| is_mapped());
        };
        let Patch { at, saved, regs: own, mask } = patch;
        let now = registers(pid)?;
        let is_patched = peek(pid, at).is_ok_and(|word| word == CALL);
        let waits = is_patched && (at..=at + RETURNS_TO).contains(&now.rip);
        match purpose {
            Purpose::Close => {
                if waits {
                    self.restore(pid, &patch)?;
                }
                set_mask(pid, mask)?;
                self.take_back(pid, found.fds).map(|()| is_mapped())
            }
            Purpose::Join if !waits => {
                if is_patched {
                    poke(pid, at, saved)?;
                } else if !is_mapped() {
                    // It began before it was patched.
                    self.take_back(pid, found.fds)?;
                }
                Ok(is_mapped())
            }
            Purpose::Join if !is_mapped() => {
                let given = Given { fds: found.fds, armed: found.armed };
                self.join(pid, patch, given).map(|()| true)
            }
            Purpose::Join => {
                // It waits before the stub, or has been through it and found us where its own code
                // begins.
                let stub = libc::user_regs_struct { rip: self.entry.exec_stub, ..now };
                set_registers(pid, if now.rip == at { &own } else { &stub })?;
                poke(pid, at, saved).map(|()| true)
            }
        }
    }

    /// Close descriptors that were given to a stopped task, as far as they are still the zones.
    ///
    /// # Errors
    /// It has ended.
    pub fn take_back(&self, pid: i32, fds: [i32; 3]) -> io::Result<()> {
        let file = |path: String| std::fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
        let is_ours = |&(ours, theirs): &(i32, i32)| {
            let found = file(format!("/proc/{pid}/fd/{theirs}"));
            found.is_some() && found == file(format!("/proc/self/fd/{ours}"))
        };
        let left: Vec<i32> =
            self.fds.into_iter().zip(fds).filter(is_ours).map(|(_, theirs)| theirs).collect();
        if left.is_empty() {
            return Ok(());
        }
        let regs = restarted(registers(pid)?);
        let at = if self.has_libos(pid) { self.lent_call } else { regs.rip };
        let patch = Patch { at, saved: peek(pid, at)?, regs, mask: mask(pid)? };
        self.hand.patch(pid, Purpose::Close, patch);
        pass(Point::CloseNoted);
        // A signal that comes meanwhile waits: its handler would begin on top of our call, and be taken for it.
        set_mask(pid, !0)?;
        put(pid, &patch, CALL)?;
        pass(Point::ClosePatched);
        for fd in left {
            let close = libc::user_regs_struct {
                rip: patch.at + CALLS_AT,
                rax: libc::SYS_close as u64,
                rdi: fd as u64,
                ..regs
            };
            set_registers(pid, &close)?;
            pass(Point::CloseSet);
            if !(to_system_call(pid)? && to_system_call(pid)?) {
                return Ok(());
            }
            pass(Point::CloseClosed);
        }
        self.restore(pid, &patch)
    }

    /// Let a task that waits behind our instructions go on with its own.
    fn restore(&self, pid: i32, patch: &Patch) -> io::Result<()> {
        set_registers(pid, &patch.regs)?;
        pass(Point::CloseBack);
        put(pid, patch, patch.saved)?;
        set_mask(pid, patch.mask)?;
        pass(Point::CloseRestored);
        Ok(())
    }

    /// Is libos mapped in a task?
    fn has_libos(&self, pid: i32) -> bool {
        memory::read(pid, self.place.code_half(0).start as u64, &mut [0]).is_ok()
    }

    /// Let a forked child begin at libos's fork stub, which returns to where it was.
    ///
    /// # Errors
    /// It has ended.
    pub fn start_child(&self, pid: i32) -> io::Result<()> {
        const RED_ZONE: u64 = 128;
        let mut regs = registers(pid)?;
        regs.rsp -= RED_ZONE + 8;
        poke(pid, regs.rsp, regs.rip)?;
        let at = regs.rip;
        regs.rip = self.entry.fork_stub;
        regs.orig_rax = u64::MAX;
        set_registers(pid, &regs)?;
        pass_with(Point::ChildSent, pid, at);
        let_go(pid, 0)
    }
}

/// Put `word` where our instructions go, unless they are libos's, which are there for good.
fn put(pid: i32, patch: &Patch, word: u64) -> io::Result<()> {
    if patch.saved == CALL { Ok(()) } else { poke(pid, patch.at, word) }
}

/// The registers with which a task goes on that was stopped in a system call, or in none: the call is
/// made again if it was interrupted, as the kernel would have it.
fn restarted(mut regs: libc::user_regs_struct) -> libc::user_regs_struct {
    /// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, and ERESTART_RESTARTBLOCK.
    const AGAIN: [i64; 3] = [-512, -513, -514];
    const WITH_WHAT_IS_LEFT: i64 = -516;
    const SYSCALL_LEN: u64 = 2;
    let result = regs.rax as i64;
    if regs.orig_rax as i64 >= 0 && (AGAIN.contains(&result) || result == WITH_WHAT_IS_LEFT) {
        regs.rax = if result == WITH_WHAT_IS_LEFT {
            libc::SYS_restart_syscall as u64
        } else {
            regs.orig_rax
        };
        regs.rip -= SYSCALL_LEN;
    }
    regs.orig_rax = u64::MAX;
    regs
}

/// What a failed mapping at the region's address means.
fn refusal(errno: i32) -> io::Error {
    match errno {
        libc::EEXIST => io::Error::other("its address range is taken by the program (EEXIST)"),
        libc::ENOMEM => io::Error::other("RLIMIT_AS is too small for the region (ENOMEM)"),
        errno => io::Error::from_raw_os_error(errno),
    }
}

//! The gate on x86-64.
//!
//! ```text
//!  caller's stack            upcall stack (private to the process, address unique to the context)
//!  ┌──────────────┐          ┌───────────────────────────────┐
//!  │ return addr  │          │ (pad) depth reply saved_rsp   │
//!  │ rbp rbx r12  │ <──────┐ │ handler entry   previous frame│ <- stack_top = context.frame
//!  │ r13 r14 r15  │        └─┤ ... the handler's own frames  │
//!  └──────────────┘          └───────────────────────────────┘
//! ```
//!
//! The fast path finds the context of the thread in the process's private cache by FS base, and
//! believes it if the context agrees on the FS base and on the neighbourhood of the stack. The
//! ABI has every thread keep its FS base in the first word there, and reading that word costs
//! nothing where `rdfsbase` costs 4.6 ns; a thread of a program that does not (Go) is found by the
//! instruction instead. A word that is another thread's FS base by chance cannot pass for it: the
//! stack has to agree too. The path then makes the sequence odd, looks the handler up (index and generation), and calls. There is no
//! atomic operation: before anyone trusts an even sequence it issues a global membarrier.
//!
//! A caller that has not saved its vector registers enters at `sbx_gate_bare`, which takes code only that
//! is known to leave them alone.
//!
//! A fault leaves by [`leave_upcall`], which drops everything above the innermost frame.

use core::arch::{asm, naked_asm};

use ext_api::abi::{Handle, HandlerEntry, Reply, Status};
use ext_api::limits::{HANDLERS_MAX, STACK_LEN};
use libos::data::Context;
use libos::layout::{CACHE_ENTRIES, GUARD_OFFSET, WINDOW_LEN};

use crate::boot::{Boot, SBX_BOOT};
use crate::context::Frame;

/// 64 bits of the golden ratio: spreads FS bases, which differ in a few middle bits only.
pub(super) const HASH: u64 = 0x9e37_79b9_7f4a_7c15;
pub(super) const HASH_SHIFT: u32 = 64 - CACHE_ENTRIES.trailing_zeros();

const _: () = {
    assert!(core::mem::offset_of!(Context, sequence) == 0);
    assert!(core::mem::offset_of!(Context, fs_base) == 8);
    assert!(core::mem::offset_of!(Context, window) == 16);
    assert!(core::mem::offset_of!(Context, stack_top) == 24);
    assert!(core::mem::offset_of!(Context, frame) == 32);
    assert!(core::mem::offset_of!(Context, pending) == 40);
    assert!(core::mem::offset_of!(Context, code) == 48);
    assert!(core::mem::offset_of!(Context, mark) == 56);
    assert!(core::mem::offset_of!(HandlerEntry, code) == 8);
    assert!(core::mem::offset_of!(Boot, cache) == 0);
    assert!(core::mem::offset_of!(Boot, handlers) == 8);
    assert!(core::mem::offset_of!(Boot, stacks) == 16);
    assert!(core::mem::offset_of!(Boot, stacks_len) == 24);
};

/// What `sbx_gate_bare` returns if the handler's code may change vector registers: it has not run.
pub(super) const NOT_BARE: i32 = -1;

/// Index of `fs` in the context cache: what the gate computes.
pub(crate) const fn cache_index(fs: u64) -> usize {
    (fs.wrapping_mul(HASH) >> HASH_SHIFT) as usize
}

/// The gate: [`ext_api::abi::CallFn`].
///
/// # Safety
/// `args` and `reply` fit the handler's signature, as every caller of a handler promises.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_call(handle: Handle, args: *const u64, reply: *mut Reply) -> u32 {
    naked_asm!(
        ".cfi_startproc",
        // The context: cache[hash(fs)], if it agrees with this thread.
        ".hidden sbx_gate_first",
        ".globl sbx_gate_first",
        "sbx_gate_first:",
        "mov rax, fs:[0]",
        "xor r10d, r10d",
        "10:",
        ".hidden sbx_gate_lookup",
        ".globl sbx_gate_lookup",
        "sbx_gate_lookup:",
        "movabs rcx, {hash}",
        "imul rcx, rax",
        "shr rcx, {shift}",
        "mov r8, [rip + {boot}]",
        "mov r9, [r8 + rcx*8]",
        "test r9, r9",
        "je 20f",
        "cmp [r9 + 8], rax",
        "jne 20f",
        "mov r8, rsp",
        "sub r8, [r9 + 16]",
        "cmp r8, {window}",
        "jae 20f",
        // Another thread may have the place of one that has ended.
        "mov r8, [r9 + 56]",
        "mov r8d, [r8]",
        "cmp r8d, [r9 + {tid}]",
        "jne 20f",
        // Enter: odd sequence, then the handler.
        "30:",
        ".hidden sbx_gate_enters",
        ".globl sbx_gate_enters",
        "sbx_gate_enters:",
        "mov r8, [r9]",
        "test r8b, 1",
        "jne 50f",
        "inc r8",
        "mov [r9], r8",
        "mov ecx, edi",
        "cmp ecx, {handlers_max}",
        "jae 60f",
        "shl rcx, 8",
        "add rcx, [rip + {boot} + 8]",
        "shr rdi, 32",
        "cmp [rcx], edi",
        "jne 60f",
        "mov rax, [rcx + 8]",
        "40:",
        ".cfi_remember_state",
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        ".cfi_def_cfa_offset 56",
        // What leaving needs is kept where handlers keep it for us: in registers.
        "mov rbp, rsp",
        "mov rbx, r9",
        "lea r12, [r8 + 1]",
        // The outermost frame lies at one place for good; its other fields were set with it.
        "mov rsp, [r9 + 24]",
        "mov [r9 + 48], rax",
        "mov [rsp + 8], rcx",
        "mov [rsp + 16], rbp",
        "mov [rsp + 24], rdx",
        // Nothing unwinds past a handler: its caller is another world.
        ".cfi_undefined rip",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "call rax",
        "mov [rbx], r12",
        "mov rsp, rbp",
        // Events that have come are delivered from here, outside of the upcall.
        ".hidden sbx_gate_looks",
        ".globl sbx_gate_looks",
        "sbx_gate_looks:",
        "mov rcx, [rbx + 40]",
        "cmp dword ptr [rcx], 0",
        "jne 70f",
        ".hidden sbx_gate_delivered",
        ".globl sbx_gate_delivered",
        "sbx_gate_delivered:",
        "mov r12, [rbp + 24]",
        "mov rbx, [rbp + 32]",
        "mov rbp, [rbp + 40]",
        "add rsp, 48",
        "ret",
        ".cfi_restore_state",
        // As from 30 on, for a handler in rdi, its row in rcx and a context in r9, if the code is known.
        ".p2align 6",
        ".hidden sbx_gate_bare",
        ".globl sbx_gate_bare",
        "sbx_gate_bare:",
        "mov r8, [r9]",
        "test r8b, 1",
        "jne 46f",
        "inc r8",
        "mov [r9], r8",
        "shr rdi, 32",
        "cmp [rcx], edi",
        "jne 60f",
        "mov rax, [rcx + 8]",
        "cmp rax, [rcx + {bare}]",
        "je 40b",
        "inc qword ptr [r9]",
        "46:",
        "mov eax, {not_bare}",
        "ret",
        ".hidden sbx_gate_bare_end",
        ".globl sbx_gate_bare_end",
        "sbx_gate_bare_end:",
        // Slow: an upcall within an upcall, or a thread that the cache does not know.
        "20:",
        "mov r8, rsp",
        "sub r8, [rip + {boot} + 16]",
        "cmp r8, [rip + {boot} + 24]",
        "jae 22f",
        // A signal stack lies below it.
        "and r8d, {room_mask}",
        "cmp r8d, {guard}",
        "jae {nested}",
        "22:",
        // Once more with the true FS base: not every program keeps it at its own address.
        "test r10d, r10d",
        "jne 25f",
        ".hidden sbx_gate_true_base",
        ".globl sbx_gate_true_base",
        "sbx_gate_true_base:",
        "mov r10d, 1",
        "rdfsbase rax",
        "jmp 10b",
        "25:",
        "push rdi",
        "push rsi",
        "push rdx",
        "rdfsbase rdi",
        "mov rsi, rsp",
        "call {slow}",
        "26:",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "mov r9, rax",
        "cmp rax, 64",
        "jae 30b",
        "ret",
        // Inside an upcall already, unless that has been left.
        "50:",
        "push rdi",
        "push rsi",
        "push rdx",
        "mov rdi, r9",
        "mov rsi, rsp",
        "call {reentered}",
        "jmp 26b",
        "60:",
        "inc qword ptr [r9]",
        "mov eax, {stale}",
        "ret",
        "70:",
        "mov r12d, eax",
        "mov rdi, rbx",
        // Who has come in at `sbx_gate_bare` has not saved its vector registers.
        "lea rcx, [rip + sbx_gate_bare_returns]",
        "cmp [rbp + 48], rcx",
        "je 72f",
        "sub rsp, 8",
        "call {deliver}",
        "71:",
        "mov rsp, rbp",
        "mov eax, r12d",
        "jmp sbx_gate_delivered",
        "72:",
        "lea rax, [rip + {deliver}]",
        "call {keeping_vectors}",
        "jmp 71b",
        ".hidden sbx_gate_end",
        ".globl sbx_gate_end",
        "sbx_gate_end:",
        ".cfi_endproc",
        hash = const HASH,
        shift = const HASH_SHIFT,
        boot = sym SBX_BOOT,
        window = const WINDOW_LEN,
        tid = const core::mem::offset_of!(Context, tid),
        room_mask = const STACK_LEN - 1,
        guard = const GUARD_OFFSET,
        handlers_max = const HANDLERS_MAX,
        slow = sym crate::context::sbx_context_slow,
        deliver = sym crate::events::sbx_deliver,
        keeping_vectors = sym super::patched::sbx_keeping_vectors,
        bare = const core::mem::offset_of!(HandlerEntry, bare),
        not_bare = const NOT_BARE,
        nested = sym nested_call,
        reentered = sym crate::left::sbx_reentered,
        stale = const Status::Stale as u32,
    )
}

/// [`ext_api::abi::Entry::call_block`].
///
/// # Safety
/// As [`sbx_call`], for the three words at `block`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_call_block(block: *const [u64; 3]) -> u32 {
    naked_asm!(
        ".cfi_startproc",
        "mov rdx, [rdi + 16]",
        "mov rsi, [rdi + 8]",
        "mov rdi, [rdi]",
        "jmp {gate}",
        ".cfi_endproc",
        gate = sym sbx_call,
    )
}

/// [`sbx_call`] for a thread whose FS base may be 0, so that it has no first word: the first
/// upcall of a program, before its libc has begun.
///
/// # Safety
/// As [`sbx_call`].
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn early_call(handle: Handle, args: *const u64, r: *mut Reply) -> u32 {
    naked_asm!(
        ".cfi_startproc",
        "rdfsbase rax",
        "mov r10d, 1",
        "jmp sbx_gate_lookup",
        ".cfi_endproc",
    )
}

/// [`sbx_call`] of a thread whose context is known, from any stack but an upcall's.
///
/// # Safety
/// As [`sbx_call`]; the calling thread holds `context`.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn sbx_call_in(
    handle: Handle,
    args: *const u64,
    reply: *mut Reply,
    context: *const Context,
) -> u32 {
    naked_asm!(".cfi_startproc", "mov r9, rcx", "jmp sbx_gate_enters", ".cfi_endproc")
}

/// An upcall made by a handler: same stack, a frame of its own.
#[unsafe(naked)]
unsafe extern "C" fn nested_call(handle: Handle, args: *const u64, reply: *mut Reply) -> u32 {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rsi",
        "push rdx",
        // 8 pushes after a call: the stack pointer is 8 short of alignment.
        "sub rsp, 8",
        "mov rsi, rsp",
        // Returns the context, or a status; the handler's entry in rdx.
        "call {check}",
        "add rsp, 8",
        "mov rcx, rdx",
        "pop rdx",
        "pop rsi",
        "cmp rax, 64",
        "jb 10f",
        "mov rbx, rax",
        "mov rax, rsp",
        "mov r8, [rbx + 32]",
        "mov r9, [r8 + 32]",
        "inc r9",
        // Three words short of alignment after 6 pushes and the return address: take 56 - 8.
        "sub rsp, 56",
        "mov [rsp], r8",
        "mov [rsp + 8], rcx",
        "mov [rsp + 16], rax",
        "mov [rsp + 24], rdx",
        "mov [rsp + 32], r9",
        "mov rax, [rcx + 8]",
        "mov [rsp + 40], rax",
        "mov [rbx + 32], rsp",
        ".cfi_undefined rip",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "call rax",
        "mov rcx, [rbx + 32]",
        "mov r8, [rcx]",
        "mov [rbx + 32], r8",
        "mov rsp, [rcx + 16]",
        "10:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        ".hidden sbx_nested_end",
        ".globl sbx_nested_end",
        "sbx_nested_end:",
        ".cfi_endproc",
        check = sym crate::context::nested_check,
    )
}

/// Drop everything above the innermost frame of `context` and return `status` from its gate.
///
/// # Safety
/// The calling thread holds `context` and is inside an upcall on it.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn leave_upcall(context: *const Context, status: u32) -> ! {
    naked_asm!(
        ".cfi_startproc",
        "mov eax, esi",
        "cld",
        "mov rcx, [rdi + 32]",
        "mov rsp, [rcx + 16]",
        "mov r8, [rcx]",
        "test r8, r8",
        "jne 10f",
        "inc qword ptr [rdi]",
        "jmp 20f",
        "10:",
        "mov [rdi + 32], r8",
        "20:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        // As above, with the frame's saved stack pointer in place of a context.
        ".hidden sbx_leave_for_caller",
        ".globl sbx_leave_for_caller",
        "sbx_leave_for_caller:",
        "mov eax, esi",
        "cld",
        "mov rsp, rdi",
        "jmp 20b",
        ".hidden sbx_leave_end",
        ".globl sbx_leave_end",
        "sbx_leave_end:",
        ".cfi_endproc",
    )
}

/// The registers in a signal's user context.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Registers {
    r8_to_r15: [u64; 8],
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    pub(crate) rsp: u64,
    pub(crate) rip: u64,
    flags: u64,
    others: [u64; 5],
}

/// From where a frame has `rip` to where it has the code segment.
pub(crate) const SEGMENT_ABOVE_RIP: usize =
    core::mem::offset_of!(Registers, others) - core::mem::offset_of!(Registers, rip);

/// Is it that of 64-bit code of a program?
pub(crate) const fn is_user_segment(word: u64) -> bool {
    const CODE_SEGMENT: u64 = 0x33;
    word & 0xffff == CODE_SEGMENT
}

impl Registers {
    /// Is it 64-bit code of the program's that they are of?
    pub(crate) const fn is_of_user(&self) -> bool {
        is_user_segment(self.others[0])
    }

    /// What the processor says of the fault that they are from.
    pub(crate) const fn fault_code(&self) -> u64 {
        self.others[1]
    }

    /// Arguments of a system call that was about to be made.
    pub(crate) const fn call_args(&self) -> [u64; 6] {
        let [r8, r9, r10, ..] = self.r8_to_r15;
        [self.rdi, self.rsi, self.rdx, r10, r8, r9]
    }

    /// Its result.
    pub(crate) const fn set_result(&mut self, result: u64) {
        self.rax = result;
    }
}

/// How to enter an application's signal handler.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Jump {
    pub(crate) handler: u64,
    /// Address of the signal frame, whose first word is the handler's return address.
    pub(crate) frame: usize,
    pub(crate) signal: u64,
    pub(crate) info: u64,
    pub(crate) user: u64,
}

/// Where the kernel delivers the signals that libos handles.
///
/// # Safety
/// The kernel's alone to call.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn sbx_signal_entry() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "lea rax, [rsp]",
        "sub rsp, 56",
        "mov [rsp + 8], rax",
        "mov rcx, rsp",
        "call {handler}",
        "test al, al",
        "jne 10f",
        "add rsp, 56",
        "ret",
        "10:",
        "mov r11, [rsp]",
        "mov rdi, [rsp + 16]",
        "mov rsi, [rsp + 24]",
        "mov rdx, [rsp + 32]",
        "mov rsp, [rsp + 8]",
        "xor eax, eax",
        "jmp r11",
        ".cfi_endproc",
        handler = sym crate::signals::sbx_on_signal,
    )
}

/// Where our signal handler returns to.
///
/// # Safety
/// On a signal frame only.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn sbx_restorer() {
    naked_asm!("mov eax, 15", "syscall", "ud2")
}

unsafe extern "C" {
    /// Labels within [`sbx_call`].
    static sbx_gate_first: u8;
    static sbx_gate_true_base: u8;
    static sbx_gate_looks: u8;
    static sbx_gate_delivered: u8;
    static sbx_gate_bare: u8;
    static sbx_gate_bare_end: u8;
    static sbx_gate_end: u8;
    static sbx_nested_end: u8;
    static sbx_leave_end: u8;
    static sbx_leave_for_caller: u8;
}

/// Where the gate's code begins and ends, then that of nested upcalls, then the way out of a
/// fault: the supervisor reads it, to interrupt no upcall that is not whole.
#[unsafe(no_mangle)]
pub static SBX_GATE: Ends = Ends([
    sbx_call as *const (),
    (&raw const sbx_gate_end).cast(),
    nested_call as *const (),
    (&raw const sbx_nested_end).cast(),
    leave_upcall as *const (),
    (&raw const sbx_leave_end).cast(),
]);

/// Addresses of code.
#[derive(Debug)]
#[repr(transparent)]
pub struct Ends([*const (); 6]);

// SAFETY: nobody writes them, and nobody reads through them.
unsafe impl Sync for Ends {}

/// Is this an address in the gate, where an upcall is not whole: about to begin, or over?
pub(crate) fn in_gate(rip: u64) -> bool {
    let at = rip as usize as *const ();
    SBX_GATE.0.chunks_exact(2).any(|ends| (ends[0]..ends[1]).contains(&at))
}

/// Is the interrupted code in the gate, where it will look for events on its way out? If it has
/// just looked, it looks again.
pub(crate) fn is_between_upcalls(regs: &mut Registers) -> bool {
    let (looks, last) = (&raw const sbx_gate_looks as u64, &raw const sbx_gate_delivered as u64);
    if (looks..=last).contains(&regs.rip) {
        regs.rip = looks;
    }
    let bare = &raw const sbx_gate_bare as u64..&raw const sbx_gate_bare_end as u64;
    (sbx_call as *const () as u64..last).contains(&regs.rip) || bare.contains(&regs.rip)
}

/// A call that a signal interrupted and that would go on begins anew: have it fail with EINTR
/// instead, as without `SA_RESTART`.
pub(crate) fn fail_with_eintr(regs: &mut Registers) {
    /// read write open ioctl readv writev connect accept sendto recvfrom sendmsg recvmsg wait4
    /// msgsnd msgrcv fcntl flock creat futex mq_timedsend mq_timedreceive waitid openat splice tee
    /// accept4 preadv pwritev recvmmsg sendmmsg getrandom
    const CAN: [u64; 31] = [
        0, 1, 2, 16, 19, 20, 42, 43, 44, 45, 46, 47, 61, 69, 70, 72, 73, 85, 202, 242, 243, 247,
        257, 275, 276, 288, 295, 296, 299, 307, 318,
    ];
    const EINTR: u64 = 4;
    if !CAN.contains(&regs.rax) {
        return;
    }
    // SAFETY: the program was about to execute these bytes, so they can be read.
    let bytes = unsafe { (regs.rip as *const [u8; 2]).read() };
    if bytes == [0x0f, 0x05] {
        regs.rax = EINTR.wrapping_neg();
        regs.rip += 2;
    }
}

/// The thread's FS base.
pub(crate) fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: reads a register; the launcher refuses machines without the instruction.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// A thread with FS base 0 faults on the gate's first instruction: let it take the other way. True
/// if that is what happened.
pub(crate) fn mend_gate(regs: &mut Registers) -> bool {
    if regs.rip as usize != &raw const sbx_gate_first as usize {
        return super::patched::mend_entry(&mut regs.rip);
    }
    regs.rip = &raw const sbx_gate_true_base as u64;
    true
}

/// Have interrupted code go on at [`leave_upcall`].
pub(crate) fn redirect(regs: &mut Registers, context: *const Context, status: Status) {
    go_on_at(regs, leave_upcall as *const () as u64, [context as u64, status as u64]);
}

/// Have interrupted code return from the gate to the caller of `frame`, whatever its context is now.
pub(crate) fn redirect_to_caller(regs: &mut Registers, frame: &Frame, status: Status) {
    let way = &raw const sbx_leave_for_caller as u64;
    go_on_at(regs, way, [frame.saved_stack as u64, status as u64]);
}

fn go_on_at(regs: &mut Registers, rip: u64, [rdi, rsi]: [u64; 2]) {
    (regs.rip, regs.rdi, regs.rsi) = (rip, rdi, rsi);
    regs.flags &= !DIRECTION_TRAP_ALIGNMENT;
}

/// Have interrupted code go on elsewhere, as if what it had called had returned `rax`.
pub(super) fn go_on_with(regs: &mut Registers, rip: u64, rsp: u64, rax: u64) {
    (regs.rip, regs.rsp, regs.rax) = (rip, rsp, rax);
    regs.flags &= !DIRECTION_TRAP_ALIGNMENT;
}

/// Flags that compiled code finds clear.
const DIRECTION_TRAP_ALIGNMENT: u64 = 0x4_0500;

/// Where a program starts after exec: with the descriptors of the three zones in `r12d`, `r13d` and
/// `r14d`, the signals to be hooked in `r15`, and its true entry point in `rbx`. Joins, then enters the program with every register
/// zero, as the kernel would have.
///
/// # Safety
/// Only the launcher sends a process here, at the exec stop.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_exec_stub() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "push rbx",
        "mov rbp, rsp",
        "and rsp, -16",
        "mov edi, r12d",
        "mov esi, r13d",
        "mov edx, r14d",
        "mov rcx, r15",
        "call {join}",
        "mov rsp, rbp",
        "xor eax, eax",
        "xor ebx, ebx",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor ebp, ebp",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "xor r12d, r12d",
        "xor r13d, r13d",
        "xor r14d, r14d",
        "xor r15d, r15d",
        "ret",
        ".cfi_endproc",
        join = sym crate::start::join_after_exec,
    )
}

/// Where a forked child starts. The launcher has put the address to go on at below the red zone
/// of the stack. Every register, the x87 and SSE state and the flags are as before afterwards;
/// nothing here touches the wider vector state.
///
/// # Safety
/// Only the launcher sends a process here, at the child's first stop.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_fork_stub() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "pushfq",
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push rbp",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov rbp, rsp",
        "sub rsp, 512",
        "and rsp, -64",
        "fxsave64 [rsp]",
        "cld",
        "call {join}",
        "fxrstor64 [rsp]",
        "mov rsp, rbp",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rbp",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        "popfq",
        "ret 128",
        ".cfi_endproc",
        join = sym crate::start::join_after_fork,
    )
}

/// A system call, as the kernel takes it.
///
/// # Safety
/// As the call itself: the arguments are valid for it.
pub(crate) unsafe fn syscall6(number: usize, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's convention; rcx and r11 are given up, memory may change.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// A system call of two arguments, made while the stack pointer is `stack`.
///
/// # Safety
/// As the call itself; every signal is blocked, since there need be no stack.
pub(crate) unsafe fn syscall2_on(stack: usize, number: usize, args: [usize; 2]) -> isize {
    let result: isize;
    // SAFETY: the stack pointer is back before anything uses it; the kernel's convention.
    unsafe {
        asm!(
            "xchg rsp, {stack}",
            "syscall",
            "xchg rsp, {stack}",
            stack = inout(reg) stack => _,
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The stack pointer, about.
pub(crate) fn stack_pointer() -> usize {
    let rsp: usize;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    rsp
}

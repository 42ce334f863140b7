//! Where patched system calls of a program arrive, on x86-64.
//!
//! ```text
//!  program             stub nearby                entry, in libos
//!  mov $nr, %eax  ──►  mov $nr, %eax              leave the red zone
//!  (now a jump)        lea back, %rcx             keep what a call must not change
//!  syscall             jmp entry             ──►  ask: the short way, or Rust
//!  ...            ◄──  back: lea behind, %rcx ◄── pass: everything as it was, syscall
//!                      syscall               ◄──  the program's own, for one that is to be trapped
//! ```
//!
//! A stub jumps here and is jumped back to: a kernel may leave nothing of what the CPU remembers of calls
//! by the time that one returns.
//!
//! The short way is for what is most frequent: one handler is asked, before the call, which libos does not
//! look at itself ([`CallTable::only`] says so), and the gate's cache knows the thread. It builds the
//! handler's block from registers and enters the gate, and saves the vector registers only if the handler's
//! code may change them ([`HandlerEntry::bare`]); whatever is not as it expects goes on in Rust, where
//! all of this is decided as well.

use core::arch::naked_asm;
use core::mem::offset_of;

use ext_api::abi::{CALL_TAKEN, CallBlock, HandlerEntry, Reply, ScratchMark};
use ext_api::limits::STACK_LEN;
use libos::data::Context;
use libos::layout::{
    CALL_ROOM_LEN, CALL_ROOM_OFFSET, CALLS_OFFSET, SCRATCH_LEN, SCRATCH_OFFSET, WINDOW_LEN,
};
use libos::signals::{CALLS, CallTable};

use super::x86_64::{HASH, HASH_SHIFT, NOT_BARE};
use crate::boot::{Boot, SBX_BOOT};
use crate::context::FRAME_LEN;

/// What the entry has kept of the program's registers.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct PatchedCall {
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) r10: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    /// The call's number, then its result.
    pub(crate) rax: u64,
    flags: u64,
    /// Where in the stub the entry goes on.
    back: u64,
}

impl PatchedCall {
    pub(crate) fn args(&self) -> [usize; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9].map(|arg| arg as usize)
    }

    /// The call's number: the kernel does not look at the upper half of the register.
    pub(crate) const fn number(&self) -> usize {
        self.rax as u32 as usize
    }

    /// The call as handlers see it.
    pub(crate) const fn block(&self) -> CallBlock {
        CallBlock {
            number: self.number() as u64,
            args: [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9],
            value: 0,
            took_ns: 0,
            scratch: core::ptr::null_mut(),
            scratch_len: 0,
            scratch_used: 0,
        }
    }

    /// Has nobody changed what is to be called?
    pub(crate) const fn is_that(&self, block: &CallBlock) -> bool {
        let [rdi, rsi, rdx, r10, r8, r9] = block.args;
        self.rdi == rdi
            && self.rsi == rsi
            && self.rdx == rdx
            && self.r10 == r10
            && self.r8 == r8
            && self.r9 == r9
    }
}

/// The frame of the short way, from the stack pointer on.
#[derive(Debug)]
#[repr(C)]
struct Short {
    /// The handler's only argument: where the block is.
    words: u64,
    handle: u64,
    reply: Reply,
    block: CallBlock,
    kept: PatchedCall,
}

/// The call is made with the registers as they were.
pub(crate) const PASS: u32 = 0;
/// It has a result.
pub(crate) const DONE: u32 = 1;
/// The program's own instruction makes it, and is trapped if the filter says so.
pub(crate) const TRAP: u32 = 2;

/// Bytes of a stub.
pub(crate) const STUB_LEN: usize = 64;
/// Bytes of a jump to one.
pub(crate) const JUMP_LEN: usize = 5;

/// First bytes that begin no instruction in 64-bit mode: whoever executes one gets SIGILL there.
pub(crate) const NO_INSTRUCTIONS: [u8; 15] =
    [0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0xce, 0xd4];

/// What a site looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `mov $nr, %eax; syscall`: the jump takes the place of the first.
    Numbered(u32),
    /// `syscall`, then an instruction of this many bytes that means the same anywhere: it takes the
    /// place of both, or of as much as it needs.
    Followed(usize),
}

/// Bytes of a line of the cache.
const LINE_LEN: usize = 64;
const MOV_LEN: usize = 5;
const CALL_LEN: usize = 2;
/// Where in a stub the entry's address is.
const ENTRY_AT: usize = STUB_LEN - 8;
const FOLLOWER_LEN_MAX: usize = 6;
/// Where a stub goes on behind the call.
const STUB_BEHIND: usize = 18;
/// From there to where it goes on for a call that is to be trapped.
const TO_TRAP: usize = 18;

/// The form of the site whose call, which has just been trapped, is at `call`.
pub(crate) fn form_of(call: usize, number: u32) -> Option<Form> {
    let page = |at: usize| at / ext_api::limits::PAGE_LEN;
    let before = call.wrapping_sub(MOV_LEN);
    if page(before) == page(call + CALL_LEN - 1) {
        // SAFETY: on a page that the kernel has just executed from.
        let bytes = unsafe { (before as *const [u8; MOV_LEN + CALL_LEN]).read_unaligned() };
        if let [0xb8, a, b, c, d, 0x0f, 0x05] = bytes
            && u32::from_le_bytes([a, b, c, d]) == number
        {
            return Some(Form::Numbered(number));
        }
    }
    if page(call) != page(call + CALL_LEN + FOLLOWER_LEN_MAX - 1) {
        return None;
    }
    // SAFETY: as above.
    let bytes = unsafe { (call as *const [u8; CALL_LEN + FOLLOWER_LEN_MAX]).read_unaligned() };
    let [0x0f, 0x05, follower @ ..] = bytes else { return None };
    len_of(follower).map(Form::Followed)
}

/// Length of an instruction that means the same anywhere and is long enough: those that libraries have
/// behind a call, which look at its result or put it somewhere.
const fn len_of(bytes: [u8; FOLLOWER_LEN_MAX]) -> Option<usize> {
    const fn is_register(modrm: u8) -> bool {
        modrm >= 0xc0
    }
    match bytes {
        // cmp $imm32, %rax
        [0x48, 0x3d, ..] => Some(6),
        // mov %rax, disp8(%rsp); cmp $imm32, %eax
        [0x48, 0x89, 0x44, 0x24, ..] | [0x3d, ..] => Some(5),
        // mov %eax, disp8(%rsp); cmp $imm8, %rax
        [0x89, 0x44, 0x24, ..] | [0x48, 0x83, 0xf8, ..] => Some(4),
        // cmp $imm8, %eax
        [0x83, 0xf8, ..] => Some(3),
        // mov, test or movslq from register to register, with a prefix
        [0x40..=0x4f, 0x89 | 0x85 | 0x63, modrm, ..] if is_register(modrm) => Some(3),
        _ => None,
    }
}

impl Form {
    /// Where the jump goes.
    pub(crate) const fn start(self, call: usize) -> usize {
        match self {
            Self::Numbered(_) => call - MOV_LEN,
            Self::Followed(_) => call,
        }
    }

    /// May the jump be there while a thread is behind the call?
    pub(crate) fn can_jump(self, jump: [u8; JUMP_LEN]) -> bool {
        !matches!(self, Self::Followed(_)) || NO_INSTRUCTIONS.contains(&jump[CALL_LEN])
    }

    /// Where a stub goes on behind the call.
    pub(crate) const fn behind_in(stub: usize) -> usize {
        stub + STUB_BEHIND
    }
}

/// The stub at `at` for the site whose call is at `call`.
pub(crate) fn stub(form: Form, at: usize, call: usize) -> [u8; STUB_LEN] {
    const NOTHING: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];
    const ENTER_LEN: usize = 6;
    let mut bytes = [0xcc; STUB_LEN];
    let entry = (sbx_patched_entry as *const () as usize).next_multiple_of(LINE_LEN);
    bytes[ENTRY_AT..].copy_from_slice(&entry.to_le_bytes());
    let behind = call + CALL_LEN;
    let mut len = 0;
    let mut put = |piece: &[u8]| {
        bytes[len..len + piece.len()].copy_from_slice(piece);
        len += piece.len();
        at + len
    };
    let distance = |to: usize, from: usize| (to.wrapping_sub(from) as u32).to_le_bytes();
    // Every stub has everything at the same place.
    match form {
        Form::Numbered(number) => {
            put(&[0xb8]);
            put(&number.to_le_bytes());
        }
        Form::Followed(_) => {
            put(&NOTHING);
        }
    }
    put(&[0x48, 0x8d, 0x0d]);
    put(&distance(ENTER_LEN, 0));
    let here = put(&[0xff, 0x25]);
    let goes_on = put(&distance(at + ENTRY_AT, here + 4));
    // rcx as the kernel leaves it.
    let here = put(&[0x48, 0x8d, 0x0d]);
    put(&distance(behind, here + 4));
    let mut next = behind;
    let mut here = put(&[]);
    if let Form::Followed(len) = form {
        // SAFETY: the site, all of which could be read and is not changed yet.
        let bytes = unsafe { (behind as *const [u8; FOLLOWER_LEN_MAX]).read_unaligned() };
        next += len;
        put(&[0x90; FOLLOWER_LEN_MAX][len..]);
        here = put(&bytes[..len]);
    }
    put(&jump(here, next));
    if let Form::Numbered(_) = form {
        put(&[0xcc; FOLLOWER_LEN_MAX]);
    }
    let here = put(&[0x0f, 0x05]);
    put(&[0xeb, goes_on.wrapping_sub(here + 2) as u8]);
    bytes
}

/// The jump at `site`.
pub(crate) fn jump(site: usize, to: usize) -> [u8; JUMP_LEN] {
    let mut bytes = [0xe9; JUMP_LEN];
    bytes[1..].copy_from_slice(&(to.wrapping_sub(site + JUMP_LEN) as u32).to_le_bytes());
    bytes
}

/// Have a thread go on that has no first word, since its FS base is 0. True if it was that.
pub(crate) fn mend_entry(rip: &mut u64) -> bool {
    let is_that = *rip == &raw const sbx_patched_first as u64;
    if is_that {
        *rip = &raw const sbx_patched_long as u64;
    }
    is_that
}

unsafe extern "C" {
    /// Labels within [`sbx_patched_entry`].
    static sbx_patched_first: u8;
    static sbx_patched_long: u8;
    static sbx_patched_asked: u8;
    /// And within [`sbx_keeping_vectors`].
    static sbx_vectors_kept: u8;
    static sbx_vectors_left: u8;
}

/// Upper half of the addresses where Go has its heap, and goroutines have their stacks: small ones.
const GOROUTINES: u32 = 0xc0;
const CALL_ROOM_END: usize = CALL_ROOM_OFFSET + CALL_ROOM_LEN;
/// From a context's outermost frame down to its scratch room.
const TO_SCRATCH: isize = (SCRATCH_OFFSET + FRAME_LEN) as isize - STACK_LEN as isize;

/// The direction flag, which compiled code finds clear.
const DIRECTION: u32 = 0x400;
/// Pops the flags that compiled code changes, and r11 with all of them. Uses rcx. `popfq` takes several
/// times the time.
macro_rules! restore_flags {
    () => {
        "mov r11, [rsp]
        lea rsp, [rsp + 8]
        mov rcx, rax
        mov eax, r11d
        mov ah, al
        bt r11d, 11
        setc al
        add al, 0x7f
        sahf
        mov rax, rcx"
    };
}

/// Pops what the entry has kept, but for the flags.
macro_rules! pop_kept {
    () => {
        "pop r9
        pop r8
        pop r10
        pop rdx
        pop rsi
        pop rdi
        pop rax"
    };
}

/// Leaves for the stub.
macro_rules! go_back {
    () => {
        "pop rcx
        lea rsp, [rsp + 128]
        jmp rcx"
    };
}

/// What stubs jump to, at the first line of the cache that begins in it, with where they go on in rcx.
///
/// # Safety
/// For stubs only.
#[unsafe(naked)]
unsafe extern "C" fn sbx_patched_entry() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        ".p2align {line}",
        "lea rsp, [rsp - 128]",
        "push rcx",
        "pushfq",
        "push rax",
        "push rdi",
        "push rsi",
        "push rdx",
        "push r10",
        "push r8",
        "push r9",
        // The short way, if there is one handler to ask.
        "cmp rax, {calls}",
        "jae 40f",
        "mov rcx, [rip + {boot} + {base}]",
        "mov rcx, [rcx + rax*8 + {only}]",
        "test rcx, rcx",
        "je 40f",
        "test dword ptr [rsp + {flags}], {direction}",
        "jne 40f",
        "mov rax, rsp",
        "shr rax, 32",
        "cmp eax, {goroutines}",
        "je 40f",
        // The thread's context, as the gate finds it.
        ".hidden sbx_patched_first",
        ".globl sbx_patched_first",
        "sbx_patched_first:",
        "mov rax, fs:[0]",
        "movabs r11, {hash}",
        "imul r11, rax",
        "shr r11, {shift}",
        "shl r11, 3",
        "add r11, [rip + {boot}]",
        "mov r11, [r11]",
        "test r11, r11",
        "je 40f",
        "cmp [r11 + 8], rax",
        "jne 40f",
        "mov rax, rsp",
        "sub rax, [r11 + 16]",
        "cmp rax, {window}",
        "jae 40f",
        "mov rax, [r11 + 56]",
        "mov eax, [rax]",
        "cmp eax, [r11 + {tid}]",
        "jne 40f",
        // In no call that has paths in the scratch room.
        "mov rax, [r11 + 24]",
        "cmp qword ptr [rax + {to_mark}], 0",
        "jne 40f",
        "inc qword ptr [r11 + {calls_patched}]",
        // The block, from its end; then the reply, which is empty.
        "push 0",
        "push {scratch_len}",
        "add rax, {to_scratch}",
        "push rax",
        "push 0",
        "push 0",
        "push r9",
        "push r8",
        "push r10",
        "push rdx",
        "push rsi",
        "push rdi",
        "push [rsp + {number_above}]",
        "mov rax, rsp",
        "push 0",
        "push 0",
        "push 0",
        "push 0",
        "push 0",
        "mov rdx, rsp",
        "push rcx",
        "push rax",
        "mov rsi, rsp",
        "mov rdi, rcx",
        "mov r9, r11",
        "mov ecx, ecx",
        "shl rcx, {row_shift}",
        "add rcx, [rip + {boot} + {handlers}]",
        "mov rax, [rcx + {code}]",
        "cmp rax, [rcx + {bare}]",
        "jne 11f",
        "call sbx_gate_bare",
        ".hidden sbx_gate_bare_returns",
        ".globl sbx_gate_bare_returns",
        "sbx_gate_bare_returns:",
        "cmp eax, {not_bare}",
        "je 11f",
        "10:",
        // A handler that has failed has not been asked, nor one of a thread that is in an upcall.
        "test eax, eax",
        "jne 16f",
        "cmp qword ptr [rsp + {word}], {taken}",
        "je 13f",
        "mov rdi, [rsp + {rdi}]",
        "cmp rdi, [rsp + {args}]",
        "jne 17f",
        "mov rsi, [rsp + {rsi}]",
        "cmp rsi, [rsp + {args} + 8]",
        "jne 17f",
        "mov rdx, [rsp + {rdx}]",
        "cmp rdx, [rsp + {args} + 16]",
        "jne 17f",
        "mov r10, [rsp + {r10}]",
        "cmp r10, [rsp + {args} + 24]",
        "jne 17f",
        "mov r8, [rsp + {r8}]",
        "cmp r8, [rsp + {args} + 32]",
        "jne 17f",
        "mov r9, [rsp + {r9}]",
        "cmp r9, [rsp + {args} + 40]",
        "jne 17f",
        "lea rsp, [rsp + {rax}]",
        "pop rax",
        "jmp 18f",
        // It has an answer.
        "13:",
        "mov rax, [rsp + {value}]",
        "12:",
        "mov [rsp + {rax}], rax",
        "lea rsp, [rsp + {r9}]",
        "14:",
        pop_kept!(),
        restore_flags!(),
        go_back!(),
        "16:",
        "lea rsp, [rsp + {r9}]",
        "19:",
        pop_kept!(),
        "jmp 18f",
        // One line of the cache, so that the kernel comes back to one that is there.
        ".p2align {line}",
        "18:",
        restore_flags!(),
        "syscall",
        go_back!(),
        // Its code may change vector registers, or it is other code since.
        "11:",
        "mov rdi, [rsp + {handle}]",
        "lea rax, [rip + sbx_gate_enters]",
        "call {keeping_vectors}",
        "jmp 10b",
        // It is to be another call than the program's.
        "17:",
        "lea rdi, [rsp + {block}]",
        "lea rax, [rip + {make}]",
        "call {keeping_vectors}",
        "jmp 12b",
        // The long way.
        ".hidden sbx_patched_long",
        ".globl sbx_patched_long",
        "sbx_patched_long:",
        "40:",
        "push rbx",
        "push rbp",
        "mov rbp, rsp",
        "rdfsbase rsi",
        "xor ebx, ebx",
        "mov rax, rsp",
        "shr rax, 32",
        "cmp eax, {goroutines}",
        "je 50f",
        "41:",
        "lea rdi, [rbp + 16]",
        "mov rdx, rbx",
        "cld",
        "lea rax, [rip + {ask}]",
        "call {keeping_vectors}",
        ".hidden sbx_patched_asked",
        ".globl sbx_patched_asked",
        "sbx_patched_asked:",
        "mov rsp, rbp",
        "test rbx, rbx",
        "je 42f",
        "mov dword ptr [rbx + {call_room}], 0",
        "42:",
        "pop rbp",
        "pop rbx",
        "test dword ptr [rsp + {flags}], {direction}",
        "jne 60f",
        "cmp eax, {done}",
        "je 14b",
        "jb 19b",
        // To be trapped: elsewhere in the stub.
        "43:",
        pop_kept!(),
        "add qword ptr [rsp + 8], {to_trap}",
        "popfq",
        go_back!(),
        // With the direction flag, which `sahf` does not set.
        "60:",
        "cmp eax, {done}",
        "je 61f",
        "ja 43b",
        pop_kept!(),
        "popfq",
        "syscall",
        go_back!(),
        "61:",
        pop_kept!(),
        "mov r11, [rsp]",
        "popfq",
        go_back!(),
        // From a small stack: on the call room of the thread's context, if that is free.
        "50:",
        "movabs rdx, {hash}",
        "imul rdx, rsi",
        "shr rdx, {shift}",
        "mov rax, [rip + {boot}]",
        "mov rbx, [rax + rdx*8]",
        "test rbx, rbx",
        "je 51f",
        "cmp [rbx + 8], rsi",
        "jne 51f",
        "mov rax, [rbx + 56]",
        "mov eax, [rax]",
        "cmp eax, [rbx + {tid}]",
        "jne 51f",
        "mov eax, 1",
        "xchg [rbx + {call_room}], eax",
        "test eax, eax",
        "jne 51f",
        "mov rsp, [rbx + 24]",
        "and rsp, {stack_mask}",
        "add rsp, {room_end}",
        "jmp 41b",
        "51:",
        "xor ebx, ebx",
        "mov eax, {trap}",
        "jmp 42b",
        ".cfi_endproc",
        ask = sym crate::calls::sbx_patched,
        make = sym crate::calls::sbx_make,
        keeping_vectors = sym sbx_keeping_vectors,
        calls = const CALLS,
        line = const LINE_LEN.trailing_zeros(),
        base = const offset_of!(Boot, base),
        handlers = const offset_of!(Boot, handlers),
        row_shift = const size_of::<HandlerEntry>().trailing_zeros(),
        code = const offset_of!(HandlerEntry, code),
        bare = const offset_of!(HandlerEntry, bare),
        not_bare = const NOT_BARE,
        handle = const offset_of!(Short, handle),
        only = const CALLS_OFFSET + offset_of!(CallTable, only),
        flags = const offset_of!(PatchedCall, flags),
        direction = const DIRECTION,
        window = const WINDOW_LEN,
        tid = const core::mem::offset_of!(Context, tid),
        to_mark = const TO_SCRATCH + SCRATCH_LEN as isize + offset_of!(ScratchMark, at) as isize,
        calls_patched = const offset_of!(Context, calls_patched),
        scratch_len = const SCRATCH_LEN,
        to_scratch = const TO_SCRATCH,
        number_above = const offset_of!(Short, kept.rax) - offset_of!(Short, block.args),
        word = const offset_of!(Short, reply.word),
        taken = const CALL_TAKEN,
        block = const offset_of!(Short, block),
        args = const offset_of!(Short, block.args),
        value = const offset_of!(Short, block.value),
        rdi = const offset_of!(Short, kept.rdi),
        rsi = const offset_of!(Short, kept.rsi),
        rdx = const offset_of!(Short, kept.rdx),
        r10 = const offset_of!(Short, kept.r10),
        r8 = const offset_of!(Short, kept.r8),
        r9 = const offset_of!(Short, kept.r9),
        rax = const offset_of!(Short, kept.rax),
        to_trap = const TO_TRAP,
        done = const DONE,
        trap = const TRAP,
        goroutines = const GOROUTINES,
        call_room = const offset_of!(Context, call_room),
        hash = const HASH,
        shift = const HASH_SHIFT,
        boot = sym SBX_BOOT,
        stack_mask = const -(STACK_LEN as isize),
        room_end = const CALL_ROOM_END,
    )
}

/// Calls what is in rax, and has the vector registers afterwards as before, as far as code without AVX can
/// change them: the upper parts stay.
///
/// # Safety
/// As what is called, whose arguments are in registers.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn sbx_keeping_vectors() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "push rbp",
        "mov rbp, rsp",
        "sub rsp, 320",
        "and rsp, -16",
        "stmxcsr [rsp + 256]",
        "movaps [rsp + 0], xmm0",
        "movaps [rsp + 16], xmm1",
        "movaps [rsp + 32], xmm2",
        "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4",
        "movaps [rsp + 80], xmm5",
        "movaps [rsp + 96], xmm6",
        "movaps [rsp + 112], xmm7",
        "movaps [rsp + 128], xmm8",
        "movaps [rsp + 144], xmm9",
        "movaps [rsp + 160], xmm10",
        "movaps [rsp + 176], xmm11",
        "movaps [rsp + 192], xmm12",
        "movaps [rsp + 208], xmm13",
        "movaps [rsp + 224], xmm14",
        "movaps [rsp + 240], xmm15",
        // For a copy of this that a child leaves.
        "mov [rsp + {base}], rbp",
        "mov [rsp + {rbx}], rbx",
        "mov [rsp + {rbx} + 8], r12",
        "mov [rsp + {rbx} + 16], r13",
        "mov [rsp + {rbx} + 24], r14",
        "mov [rsp + {rbx} + 32], r15",
        "call rax",
        ".hidden sbx_vectors_kept",
        ".globl sbx_vectors_kept",
        "sbx_vectors_kept:",
        "movaps xmm0, [rsp + 0]",
        "movaps xmm1, [rsp + 16]",
        "movaps xmm2, [rsp + 32]",
        "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]",
        "movaps xmm5, [rsp + 80]",
        "movaps xmm6, [rsp + 96]",
        "movaps xmm7, [rsp + 112]",
        "movaps xmm8, [rsp + 128]",
        "movaps xmm9, [rsp + 144]",
        "movaps xmm10, [rsp + 160]",
        "movaps xmm11, [rsp + 176]",
        "movaps xmm12, [rsp + 192]",
        "movaps xmm13, [rsp + 208]",
        "movaps xmm14, [rsp + 224]",
        "movaps xmm15, [rsp + 240]",
        "stmxcsr [rsp + 260]",
        "mov ecx, [rsp + 260]",
        "cmp ecx, [rsp + 256]",
        "jne 10f",
        "11:",
        "mov rsp, rbp",
        "pop rbp",
        "ret",
        "10:",
        "ldmxcsr [rsp + 256]",
        "jmp 11b",
        ".hidden sbx_vectors_left",
        ".globl sbx_vectors_left",
        "sbx_vectors_left:",
        "mov rbp, [rsp + {base}]",
        "mov rbx, [rsp + {rbx}]",
        "mov r12, [rsp + {rbx} + 8]",
        "mov r13, [rsp + {rbx} + 16]",
        "mov r14, [rsp + {rbx} + 24]",
        "mov r15, [rsp + {rbx} + 32]",
        "jmp sbx_vectors_kept",
        ".cfi_endproc",
        base = const BASE_AT,
        rbx = const RBX_AT,
    )
}

/// In what [`sbx_keeping_vectors`] keeps, from the stack pointer at its call on: its own frame's address, then rbx and r12
/// to r15.
const BASE_AT: usize = 264;
const RBX_AT: usize = BASE_AT + 8;
/// From there to its frame.
const KEPT_LEN_MAX: usize = 320 + 16;
/// From a word that says that a patched call may be under way to the end of what is known of that.
pub(crate) const COPY_LEN_MAX: usize = 8 + KEPT_LEN_MAX + 4 * 8 + size_of::<PatchedCall>();

/// Does a word of a stack say that a patched call may be under way there?
pub(crate) fn is_under_way(word: u64) -> bool {
    word == &raw const sbx_vectors_kept as u64
}

/// Have `regs`, of a thread that was forked in a call with such a word at `at` of its own stack, leave that with
/// `result`. False if it is none.
///
/// # Safety
/// The stack can be read for [`COPY_LEN_MAX`] from there.
pub(crate) unsafe fn leave_copy(at: usize, regs: &mut super::Registers, result: i64) -> bool {
    let kept = at + 8;
    // SAFETY: by contract.
    let word = |at: usize| unsafe { (at as *const u64).read() };
    let base = word(kept + BASE_AT) as usize;
    // One on the context's call room is its parent's.
    if !(kept..=kept + KEPT_LEN_MAX).contains(&base) || word(kept + RBX_AT) != 0 {
        return false;
    }
    let entry = base + 16;
    if word(base + 8) != &raw const sbx_patched_asked as u64 || word(base) as usize != entry {
        return false;
    }
    let call = (entry + 16) as *mut PatchedCall;
    // SAFETY: the entry has kept it there, above what it has pushed since.
    unsafe { (&raw mut (*call).rax).write(result as u64) };
    super::x86_64::go_on_with(regs, &raw const sbx_vectors_left as u64, kept as u64, DONE.into());
    true
}

//! Where patched system calls of a program arrive, on x86-64.
//!
//! ```text
//!  program             stub nearby                entry, in libos
//!  mov $nr, %eax  ──►  mov $nr, %eax              keep what a call must not change
//!  (now a jump)        leave the red zone         ask (Rust)
//!  syscall             call entry            ──►  pass: everything as it was, syscall
//!  ...            ◄──  back; lea behind, %rcx ◄── return
//!                      syscall               ◄──  the program's own, for one that is to be trapped
//! ```

use core::arch::naked_asm;

use ext_api::limits::STACK_LEN;
use libos::data::Context;
use libos::layout::{CALL_ROOM_LEN, CALL_ROOM_OFFSET};

use super::x86_64::{HASH, HASH_SHIFT};
use crate::boot::SBX_BOOT;

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
    /// Where in the stub the entry returns to.
    back: u64,
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

const MOV_LEN: usize = 5;
const CALL_LEN: usize = 2;
/// Where in a stub the entry's address is.
const ENTRY_AT: usize = STUB_LEN - 8;
const FOLLOWER_LEN_MAX: usize = 6;
/// Where the stub of a [`Form::Followed`] goes on behind the call.
const STUB_BEHIND: usize = 24;
/// From where the entry returns to where it does for a call that is to be trapped.
const TO_TRAP: usize = 26;

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
    const LEAVE_RED_ZONE: [u8; 5] = [0x48, 0x8d, 0x64, 0x24, 0x80];
    const NOTHING: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];
    const BACK: [u8; 8] = [0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0];
    let mut bytes = [0xcc; STUB_LEN];
    bytes[ENTRY_AT..].copy_from_slice(&(sbx_patched_entry as *const () as u64).to_le_bytes());
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
    put(&LEAVE_RED_ZONE);
    let here = put(&[0xff, 0x15]);
    put(&distance(at + ENTRY_AT, here + 4));
    let goes_on = put(&BACK);
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
    put(&BACK);
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
        *rip = &raw const sbx_patched_true_base as u64;
    }
    is_that
}

unsafe extern "C" {
    /// Labels within [`sbx_patched_entry`].
    static sbx_patched_first: u8;
    static sbx_patched_true_base: u8;
}

/// Upper half of the addresses where Go has its heap, and goroutines have their stacks: small ones.
const GOROUTINES: u32 = 0xc0;
const CALL_ROOM_END: usize = CALL_ROOM_OFFSET + CALL_ROOM_LEN;

/// Trap, direction, alignment check: `popfq` sets them, in several times the time.
const UNUSUAL_FLAGS: u32 = 0x4_0500;

/// Pops the other flags, and r11 with all of them. Uses rcx.
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

/// What stubs call, below the red zone.
///
/// # Safety
/// For stubs only.
#[unsafe(naked)]
unsafe extern "C" fn sbx_patched_entry() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "pushfq",
        "push rax",
        "push rdi",
        "push rsi",
        "push rdx",
        "push r10",
        "push r8",
        "push r9",
        "push rbx",
        "push rbp",
        "mov rbp, rsp",
        "mov rax, rsp",
        "shr rax, 32",
        "cmp eax, {goroutines}",
        "je 40f",
        "xor ebx, ebx",
        ".hidden sbx_patched_first",
        ".globl sbx_patched_first",
        "sbx_patched_first:",
        "mov rsi, fs:[0]",
        "10:",
        "lea rdi, [rbp + 16]",
        "mov rdx, rbx",
        // The vector registers as far as code without AVX can change them: the upper parts stay.
        "sub rsp, 272",
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
        "cld",
        "call {ask}",
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
        "jne 50f",
        "12:",
        "mov rsp, rbp",
        "test rbx, rbx",
        "je 15f",
        "mov dword ptr [rbx + {call_room}], 0",
        "15:",
        "pop rbp",
        "pop rbx",
        "mov r11d, eax",
        "pop r9",
        "pop r8",
        "pop r10",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "pop rax",
        "test dword ptr [rsp], {unusual}",
        "jne 60f",
        "cmp r11d, {done}",
        "ja 30f",
        "je 20f",
        restore_flags!(),
        "syscall",
        "ret",
        "20:",
        restore_flags!(),
        "ret",
        "50:",
        "ldmxcsr [rsp + 256]",
        "jmp 12b",
        // Flags that are not restored by arithmetic.
        "60:",
        "cmp r11d, {done}",
        "ja 30f",
        "je 61f",
        "popfq",
        "syscall",
        "ret",
        "61:",
        "mov r11, [rsp]",
        "popfq",
        "ret",
        // To be trapped: elsewhere in the stub.
        "30:",
        "add qword ptr [rsp + 8], {to_trap}",
        "popfq",
        "ret",
        ".hidden sbx_patched_true_base",
        ".globl sbx_patched_true_base",
        "sbx_patched_true_base:",
        "rdfsbase rsi",
        "jmp 10b",
        // From a small stack: on the call room of the thread's context, if that is free.
        "40:",
        "rdfsbase rsi",
        "movabs rdx, {hash}",
        "imul rdx, rsi",
        "shr rdx, {shift}",
        "mov rax, [rip + {boot}]",
        "mov rbx, [rax + rdx*8]",
        "test rbx, rbx",
        "je 45f",
        "cmp [rbx + 8], rsi",
        "jne 45f",
        "mov eax, 1",
        "xchg [rbx + {call_room}], eax",
        "test eax, eax",
        "jne 45f",
        "mov rsp, [rbx + 24]",
        "and rsp, {stack_mask}",
        "add rsp, {room_end}",
        "jmp 10b",
        "45:",
        "xor ebx, ebx",
        "mov eax, {trap}",
        "jmp 15b",
        ".cfi_endproc",
        ask = sym crate::calls::sbx_patched,
        unusual = const UNUSUAL_FLAGS,
        to_trap = const TO_TRAP,
        done = const DONE,
        trap = const TRAP,
        goroutines = const GOROUTINES,
        call_room = const core::mem::offset_of!(Context, call_room),
        hash = const HASH,
        shift = const HASH_SHIFT,
        boot = sym SBX_BOOT,
        stack_mask = const -(STACK_LEN as isize),
        room_end = const CALL_ROOM_END,
    )
}

//! Which handlers leave the vector registers alone, for certain: found by reading their code.
//!
//! A system call changes no vector register, so neither may what is run in its place, and to keep them
//! takes longer than all else. Most of the handlers that only look at numbers and count consist of
//! instructions that know of general registers and memory only. Here every instruction that such a handler
//! can come to is decoded, from its first on, through jumps and calls whose targets are fixed (in the code,
//! or in a word that is sealed with it). What is not in the short list below, an indirect jump or more than
//! [`INSTRUCTIONS_MAX`] make a handler one that is not *bare*. The bytes are those that will run: they are
//! sealed.
//!
//! An instruction that faults leaves the handler by a signal, which keeps vector registers; so does being
//! stopped. To unwind takes code that is reached by the image's tables alone, from calls that are not bare.

use std::collections::BTreeSet;

/// How much is read of one handler.
pub const INSTRUCTIONS_MAX: usize = 500;
/// The longest instruction.
const LEN_MAX: usize = 15;

/// Where an instruction leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the next one.
    On,
    /// To the next one, or by so much further.
    Branch(i64),
    /// By so much further than the next one.
    Jump(i64),
    /// There, and then to the next one.
    Call(i64),
    /// As a jump, to the address in the word that lies so much further than the next one.
    JumpBy(i64),
    /// As a call.
    CallBy(i64),
    /// Nowhere: it returns, or faults.
    End,
}

/// Does the code at `entry` leave the vector registers alone? `sealed` has the bytes from an address on, of
/// code and constants that nobody can change.
#[must_use]
pub fn is_bare<'a>(entry: u64, sealed: impl Fn(u64) -> Option<&'a [u8]>) -> bool {
    let (mut seen, mut todo) = (BTreeSet::new(), Vec::from([entry]));
    while let Some(at) = todo.pop() {
        if !seen.insert(at) {
            continue;
        }
        let decoded = sealed(at).and_then(|bytes| decode(&bytes[..bytes.len().min(LEN_MAX)]));
        let Some((len, way)) = decoded.filter(|_| seen.len() <= INSTRUCTIONS_MAX) else {
            return false;
        };
        let next = at.wrapping_add(len as u64);
        let to = |by: i64| next.wrapping_add_signed(by);
        let word = |by: i64| Some(u64::from_le_bytes(*sealed(to(by))?.first_chunk()?));
        match way {
            Way::On => todo.push(next),
            Way::Branch(by) | Way::Call(by) => todo.extend([next, to(by)]),
            Way::Jump(by) => todo.push(to(by)),
            Way::JumpBy(by) | Way::CallBy(by) => {
                let Some(target) = word(by) else { return false };
                todo.push(target);
                todo.extend(matches!(way, Way::CallBy(_)).then_some(next));
            }
            Way::End => {}
        }
    }
    true
}

/// Prefixes of an instruction.
#[derive(Debug, Clone, Copy, Default)]
struct Prefixes {
    /// 66: operands of 16 bits.
    short: bool,
    /// F3.
    repeated: bool,
    /// REX.W: operands of 64 bits.
    long: bool,
}

/// What lies behind an opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing.
    Plain,
    /// So many bytes of a constant.
    Value(usize),
    /// Register or memory, then so many bytes.
    Operand(usize),
}

/// Length of the first instruction of `bytes`, and where it leads; None if it is not in the list.
fn decode(bytes: &[u8]) -> Option<(usize, Way)> {
    let (prefixes, first) = prefixes(bytes)?;
    let opcode = *bytes.get(first)?;
    let rest = bytes.get(first + 1..)?;
    if opcode == 0x0f {
        let opcode = *rest.first()?;
        return finish(bytes, first + 2, two_bytes(opcode, prefixes, &rest[1..])?);
    }
    if prefixes.repeated && opcode != 0x90 {
        return None;
    }
    finish(bytes, first + 1, one_byte(opcode, prefixes, rest)?)
}

/// Prefixes that mean nothing else than they say, and where the opcode is.
fn prefixes(bytes: &[u8]) -> Option<(Prefixes, usize)> {
    let mut found = Prefixes::default();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0x66 => found.short = true,
            0xf3 => found.repeated = true,
            // A segment that is ignored, and the lock.
            0x2e | 0xf0 => {}
            // The last one; a prefix behind it would undo it.
            0x40..=0x4f => {
                found.long = byte & 8 != 0;
                let is_last =
                    !matches!(bytes.get(at + 1)?, 0x66 | 0xf3 | 0x2e | 0xf0 | 0x40..=0x4f);
                return is_last.then_some((found, at + 1));
            }
            _ => return Some((found, at)),
        }
    }
    None
}

/// Bytes of a constant that is as long as the operands, up to 4.
const fn constant(prefixes: Prefixes) -> usize {
    if prefixes.short && !prefixes.long { 2 } else { 4 }
}

fn one_byte(opcode: u8, prefixes: Prefixes, rest: &[u8]) -> Option<(Form, Way)> {
    let value = constant(prefixes);
    let wide = if prefixes.long { 8 } else { value };
    let field = rest.first().map(|byte| byte >> 3 & 7);
    let form = match opcode {
        // add, or, adc, sbb, and, sub, xor, cmp
        0x00..=0x3f if opcode & 7 < 4 => Form::Operand(0),
        0x00..=0x3f if opcode & 7 == 4 => Form::Value(1),
        0x00..=0x3f if opcode & 7 == 5 => Form::Value(value),
        // push, pop; nop, xchg, sign extensions; leave
        0x50..=0x5f | 0x90..=0x99 | 0xc9 => Form::Plain,
        // movsxd; test, xchg, mov; lea; shifts
        0x63 | 0x84..=0x8b | 0x8d | 0xd0..=0xd3 => Form::Operand(0),
        // push, test
        0x68 | 0xa9 => Form::Value(value),
        0x6a | 0xa8 => Form::Value(1),
        // imul, arithmetic with constants
        0x69 | 0x81 => Form::Operand(value),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 => Form::Operand(1),
        // mov
        0xb0..=0xb7 => Form::Value(1),
        0xb8..=0xbf => Form::Value(wide),
        0xc6 if field == Some(0) => Form::Operand(1),
        0xc7 if field == Some(0) => Form::Operand(value),
        // test; not, neg, mul, imul, div, idiv
        0xf6 => Form::Operand(usize::from(field? < 2)),
        0xf7 => Form::Operand(if field? < 2 { value } else { 0 }),
        // inc, dec; push
        0xfe | 0xff if field? < 2 => Form::Operand(0),
        0xff if field == Some(6) => Form::Operand(0),
        _ => return flow(opcode, prefixes, rest),
    };
    Some((form, Way::On))
}

/// Instructions that lead elsewhere.
fn flow(opcode: u8, prefixes: Prefixes, rest: &[u8]) -> Option<(Form, Way)> {
    if prefixes.short {
        return None;
    }
    let near = || Some(i64::from(rest.first()?.cast_signed()));
    let far = || Some(i64::from(i32::from_le_bytes(*rest.first_chunk()?)));
    let by_word = || Some(i64::from(i32::from_le_bytes(*rest.get(1..)?.first_chunk()?)));
    Some(match opcode {
        0x70..=0x7f => (Form::Value(1), Way::Branch(near()?)),
        0xe8 => (Form::Value(4), Way::Call(far()?)),
        0xe9 => (Form::Value(4), Way::Jump(far()?)),
        0xeb => (Form::Value(1), Way::Jump(near()?)),
        0xc3 => (Form::Plain, Way::End),
        // By a word that is found relative to the instruction.
        0xff if rest.first() == Some(&0x15) => (Form::Operand(0), Way::CallBy(by_word()?)),
        0xff if rest.first() == Some(&0x25) => (Form::Operand(0), Way::JumpBy(by_word()?)),
        _ => return None,
    })
}

fn two_bytes(opcode: u8, prefixes: Prefixes, rest: &[u8]) -> Option<(Form, Way)> {
    let field = || Some(rest.first()? >> 3 & 7);
    let is_memory = || rest.first().is_some_and(|byte| *byte < 0xc0);
    if prefixes.repeated {
        // popcnt, tzcnt, lzcnt, and endbr64, which does nothing.
        let known =
            matches!(opcode, 0xb8 | 0xbc | 0xbd) || opcode == 0x1e && rest.first() == Some(&0xfa);
        return known.then_some((Form::Operand(0), Way::On));
    }
    let form = match opcode {
        // ud2
        0x0b => return Some((Form::Plain, Way::End)),
        0x80..=0x8f if !prefixes.short => {
            let by = i64::from(i32::from_le_bytes(*rest.first_chunk()?));
            return Some((Form::Value(4), Way::Branch(by)));
        }
        // nop; cmov; set; bt, bts, btr, btc; shld, shrd by cl; imul; cmpxchg; movzx, movsx; bsf, bsr; xadd
        0x1f
        | 0x40..=0x4f
        | 0x90..=0x9f
        | 0xa3
        | 0xab
        | 0xb3
        | 0xbb
        | 0xa5
        | 0xad
        | 0xaf..=0xb1
        | 0xb6
        | 0xb7
        | 0xbc..=0xbf
        | 0xc0
        | 0xc1 => Form::Operand(0),
        // shld, shrd, bt and its like by a constant
        0xa4 | 0xac => Form::Operand(1),
        0xba if field()? >= 4 => Form::Operand(1),
        // cmpxchg16b
        0xc7 if field()? == 1 && is_memory() => Form::Operand(0),
        // bswap
        0xc8..=0xcf => Form::Plain,
        _ => return None,
    };
    Some((form, Way::On))
}

/// The whole length, if there are so many bytes.
fn finish(bytes: &[u8], at: usize, (form, way): (Form, Way)) -> Option<(usize, Way)> {
    let len = match form {
        Form::Plain => at,
        Form::Value(value) => at + value,
        Form::Operand(value) => at + operand_len(bytes.get(at..)?)? + value,
    };
    (len <= bytes.len()).then_some((len, way))
}

/// Bytes that say which register or what memory: the first, an index, a displacement.
fn operand_len(bytes: &[u8]) -> Option<usize> {
    let first = *bytes.first()?;
    let (mode, register) = (first >> 6, first & 7);
    if mode == 3 {
        return Some(1);
    }
    let (index, base) = match register {
        4 => (1, bytes.get(1)? & 7),
        other => (0, other),
    };
    let displacement = match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(1 + index + displacement)
}

#[cfg(test)]
mod tests {
    use super::{Way, decode, is_bare};

    /// Instructions as an assembler makes them, each with its length.
    const KNOWN: &[&[u8]] = &[
        &[0x48, 0x8b, 0x0f],                                  // mov (%rdi),%rcx
        &[0x8b, 0x15, 0x87, 0x2e, 0x04, 0x00],                // mov 0x42e87(%rip),%edx
        &[0xb8, 0x10, 0, 0, 0],                               // mov $16,%eax
        &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8],                // movabs
        &[0x48, 0x3b, 0x05, 0x6b, 0x2e, 0x04, 0x00],          // cmp 0x42e6b(%rip),%rax
        &[0x48, 0x3d, 0, 2, 0, 0],                            // cmp $512,%rax
        &[0x66, 0x3d, 0, 2],                                  // cmp $512,%ax
        &[0xf0, 0x48, 0xff, 0x04, 0xc1],                      // lock incq (%rcx,%rax,8)
        &[0xf0, 0x48, 0x0f, 0xb1, 0x94, 0x24, 0x80, 0, 0, 0], // lock cmpxchg %rdx,0x80(%rsp)
        &[0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], // a long nop
        &[0xf3, 0x0f, 0x1e, 0xfa],                            // endbr64
        &[0xf3, 0x48, 0x0f, 0xb8, 0xc1],                      // popcnt %rcx,%rax
        &[0xf6, 0x04, 0x25, 0, 0, 0, 0, 1],                   // testb $1,0
        &[0xf7, 0xd8],                                        // neg %eax
        &[0x48, 0xc7, 0x45, 0xf8, 1, 0, 0, 0],                // movq $1,-8(%rbp)
        &[0x66, 0xc7, 0x00, 1, 0],                            // movw $1,(%rax)
        &[0x0f, 0xba, 0xe0, 0x0b],                            // bt $11,%eax
        &[0x41, 0x54],                                        // push %r12
        &[0xf3, 0x90],                                        // pause
    ];

    /// With vector or other state, or a target that nobody knows.
    const OTHERS: &[&[u8]] = &[
        &[0x0f, 0x57, 0xc0],                         // xorps %xmm0,%xmm0
        &[0x66, 0x0f, 0xef, 0xc0],                   // pxor
        &[0xf3, 0x0f, 0x7e, 0x07],                   // movq (%rdi),%xmm0
        &[0xf2, 0x0f, 0x10, 0x07],                   // movsd
        &[0x66, 0x48, 0x0f, 0x6e, 0xc0],             // movq %rax,%xmm0
        &[0xc5, 0xf8, 0x77],                         // vzeroupper
        &[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc0],       // vmovaps %zmm0,%zmm0
        &[0x0f, 0xae, 0x18],                         // stmxcsr
        &[0xd9, 0xc0],                               // fld
        &[0x0f, 0x77],                               // emms
        &[0x0f, 0x05],                               // syscall
        &[0xff, 0xd0],                               // call *%rax
        &[0xff, 0x50, 0x08],                         // call *8(%rax)
        &[0xff, 0xe0],                               // jmp *%rax
        &[0x9d],                                     // popf
        &[0xfd],                                     // std
        &[0x0f, 0xc7, 0xf0],                         // rdrand
        &[0xf3, 0xa4],                               // rep movsb
        &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0], // mov %fs:0,%rax
        &[0x48, 0x66, 0x90],                         // REX in front of a prefix
    ];

    #[test]
    fn instructions_are_as_long_as_they_are() {
        for bytes in KNOWN {
            let mut more = bytes.to_vec();
            more.extend([0xcc; 15]);
            assert_eq!(decode(&more), Some((bytes.len(), Way::On)), "{bytes:02x?}");
            for len in 0..bytes.len() {
                assert!(
                    decode(&bytes[..len]).is_none_or(|(found, _)| found <= len),
                    "{bytes:02x?}"
                );
            }
        }
        for bytes in OTHERS {
            let mut more = bytes.to_vec();
            more.extend([0x90; 15]);
            assert_eq!(decode(&more), None, "{bytes:02x?}");
        }
    }

    fn bare(code: &[u8]) -> bool {
        const AT: u64 = 0x1000;
        is_bare(AT, |address| code.get(usize::try_from(address.checked_sub(AT)?).ok()?..))
    }

    #[test]
    fn every_way_through_a_handler_is_looked_at() {
        // ret; then: je over xorps, ret
        assert!(bare(&[0xc3]));
        assert!(!bare(&[0x74, 0x01, 0xc3, 0x0f, 0x57, 0xc0, 0xc3]));
        assert!(bare(&[0x74, 0x01, 0xc3, 0x31, 0xc0, 0xc3]));
        // Code that nothing leads to does not count.
        assert!(bare(&[0xeb, 0x03, 0x0f, 0x57, 0xc0, 0xc3]));
        // A call is followed, and what is behind it; a loop ends.
        assert!(!bare(&[0xe8, 1, 0, 0, 0, 0xc3, 0x0f, 0x57, 0xc0, 0xc3]));
        assert!(bare(&[0xe8, 1, 0, 0, 0, 0xc3, 0xeb, 0xfe]));
        // By a word: to the ret behind it, and elsewhere.
        let mut by_word = vec![0xff, 0x25, 0, 0, 0, 0];
        by_word.extend(0x100e_u64.to_le_bytes());
        by_word.push(0xc3);
        assert!(bare(&by_word));
        by_word[6] = 0xff;
        assert!(!bare(&by_word));
        // Out of what is sealed, and over its end.
        assert!(!bare(&[0xe9, 0, 1, 0, 0]) && !bare(&[0x90]) && !bare(&[0xb8, 1]));
        // Longer than anybody looks.
        assert!(!bare(&[0x90; 3000]));
    }
}

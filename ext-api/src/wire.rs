//! How arguments become words and results become replies; see [`crate::abi::HandlerFn`].
#![expect(unsafe_code, reason = "reads the caller's words and fills the caller's reply")]

use crate::abi::{Reply, Status};
use crate::error::CallError;
use crate::extension::Out;

/// Argument words, taken one after the other.
#[derive(Debug)]
pub struct Words(*const u64);

impl Words {
    /// # Safety
    /// As many words as the handler's signature takes are readable at `at`, and the byte strings
    /// that they name stay valid for the call.
    #[must_use]
    pub const unsafe fn new(at: *const u64) -> Self {
        Self(at)
    }

    fn next(&mut self) -> u64 {
        // SAFETY: by the contract of `new`, since handlers take what they declare.
        let word = unsafe { self.0.read() };
        self.0 = self.0.wrapping_add(1);
        word
    }
}

/// A type that a handler may take.
pub trait Arg<'a>: Sized {
    /// From words, in the handler.
    ///
    /// # Errors
    /// [`Status::BadArgs`]: text that is not UTF-8.
    fn take(words: &mut Words) -> Result<Self, Status>;
    /// Into words, in the caller; the number used.
    fn give(self, words: &mut [u64]) -> usize;
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Arg<'_> for $type {
            fn take(words: &mut Words) -> Result<Self, Status> {
                Ok(words.next() as $type)
            }
            #[inline]
            fn give(self, words: &mut [u64]) -> usize {
                words[0] = self as u64;
                1
            }
        }
        impl Ret for $type {
            type Value = $type;
            fn put(self, reply: &mut Reply) -> Status {
                reply.word = self as u64;
                Status::Ok
            }
            #[inline]
            fn value(_: Status, reply: &Reply) -> Result<$type, CallError> {
                Ok(reply.word as $type)
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);

impl Arg<'_> for bool {
    fn take(words: &mut Words) -> Result<Self, Status> {
        Ok(words.next() != 0)
    }

    fn give(self, words: &mut [u64]) -> usize {
        words[0] = u64::from(self);
        1
    }
}

impl Arg<'_> for f64 {
    fn take(words: &mut Words) -> Result<Self, Status> {
        Ok(Self::from_bits(words.next()))
    }

    fn give(self, words: &mut [u64]) -> usize {
        words[0] = self.to_bits();
        1
    }
}

impl<'a> Arg<'a> for &'a [u8] {
    fn take(words: &mut Words) -> Result<Self, Status> {
        let (at, len) = (words.next() as *const u8, words.next() as usize);
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: the caller's byte string, valid for the call by the contract of `Words::new`.
        Ok(unsafe { std::slice::from_raw_parts(at, len) })
    }

    #[inline]
    fn give(self, words: &mut [u64]) -> usize {
        words[0] = self.as_ptr() as u64;
        words[1] = self.len() as u64;
        2
    }
}

impl<'a> Arg<'a> for &'a str {
    fn take(words: &mut Words) -> Result<Self, Status> {
        std::str::from_utf8(<&[u8]>::take(words)?).map_err(|_| Status::BadArgs)
    }

    #[inline]
    fn give(self, words: &mut [u64]) -> usize {
        self.as_bytes().give(words)
    }
}

/// A type that a handler may return.
pub trait Ret: Sized {
    /// What the caller gets.
    type Value;
    /// Into a reply, in the handler.
    fn put(self, reply: &mut Reply) -> Status;
    /// Out of a reply, in the caller.
    ///
    /// # Errors
    /// The handler's own error.
    fn value(status: Status, reply: &Reply) -> Result<Self::Value, CallError>;
}

impl Ret for () {
    type Value = ();
    fn put(self, _: &mut Reply) -> Status {
        Status::Ok
    }
    fn value(_: Status, _: &Reply) -> Result<(), CallError> {
        Ok(())
    }
}

impl Ret for bool {
    type Value = Self;
    fn put(self, reply: &mut Reply) -> Status {
        reply.word = u64::from(self);
        Status::Ok
    }
    fn value(_: Status, reply: &Reply) -> Result<Self, CallError> {
        Ok(reply.word != 0)
    }
}

impl Ret for f64 {
    type Value = Self;
    fn put(self, reply: &mut Reply) -> Status {
        reply.word = self.to_bits();
        Status::Ok
    }
    fn value(_: Status, reply: &Reply) -> Result<Self, CallError> {
        Ok(Self::from_bits(reply.word))
    }
}

/// The bytes of a reply, wherever they lie.
pub(crate) fn bytes(reply: &Reply) -> &[u8] {
    let at = if reply.spill.is_null() { reply.buf.cast_const() } else { reply.spill.cast_const() };
    if at.is_null() || reply.len == 0 {
        return &[];
    }
    let len = if reply.spill.is_null() { reply.len.min(reply.cap) } else { reply.len };
    // SAFETY: libos and handlers set `len` to what they wrote there.
    unsafe { std::slice::from_raw_parts(at, len) }
}

impl Ret for Vec<u8> {
    type Value = Self;
    fn put(self, reply: &mut Reply) -> Status {
        Out::new(reply).write(&self);
        Status::Ok
    }
    fn value(_: Status, reply: &Reply) -> Result<Self, CallError> {
        Ok(bytes(reply).to_vec())
    }
}

impl Ret for String {
    type Value = Self;
    fn put(self, reply: &mut Reply) -> Status {
        Out::new(reply).write(self.as_bytes());
        Status::Ok
    }
    fn value(_: Status, reply: &Reply) -> Result<Self, CallError> {
        Ok(Self::from_utf8_lossy(bytes(reply)).into_owned())
    }
}

impl<T: Ret> Ret for Option<T> {
    type Value = Option<T::Value>;
    fn put(self, reply: &mut Reply) -> Status {
        self.map_or(Status::None, |value| value.put(reply))
    }
    #[inline]
    fn value(status: Status, reply: &Reply) -> Result<Self::Value, CallError> {
        if status == Status::None { Ok(None) } else { T::value(status, reply).map(Some) }
    }
}

impl<T: Ret, E: std::fmt::Display> Ret for Result<T, E> {
    type Value = T::Value;
    fn put(self, reply: &mut Reply) -> Status {
        match self {
            Ok(value) => value.put(reply),
            Err(error) => {
                Out::new(reply).write(error.to_string().as_bytes());
                Status::Failed
            }
        }
    }
    #[inline]
    fn value(status: Status, reply: &Reply) -> Result<T::Value, CallError> {
        T::value(status, reply)
    }
}

//! Short texts without a heap.

/// A line of at most `N` bytes; what does not fit is dropped.
#[derive(Debug)]
pub(crate) struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Line<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes.iter().take(N - self.len) {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }

    /// `0x...` without leading zeros.
    pub(crate) fn push_hex(&mut self, word: u64) {
        self.push(b"0x");
        let digits = (16 - word.leading_zeros() / 4).max(1);
        for digit in (0..digits).rev() {
            let nibble = (word >> (digit * 4)) as usize & 15;
            self.push(&[b"0123456789abcdef"[nibble]]);
        }
    }

    pub(crate) fn push_decimal(&mut self, number: u32) {
        let mut divisor = 10_u32.pow(number.checked_ilog10().unwrap_or(0));
        while divisor != 0 {
            self.push(&[b'0' + (number / divisor % 10) as u8]);
            divisor /= 10;
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

//! Packed files: blocks that are compressed each by itself.
//!
//! ```text
//! "SBXpack1" │ bytes of the original │ bytes of a block │ end of each block in what follows │ blocks
//!             8                        8                  8 each
//! ```
//!
//! A block whose packed form has the length of a block is stored as it is, the last one with zeros behind it.

/// First bytes of a packed file.
const MAGIC: [u8; 8] = *b"SBXpack1";
const HEAD_LEN: usize = 24;
/// Blocks are whole pages.
const PAGE_LEN: usize = 4096;
/// Largest block.
const BLOCK_LEN_MAX: usize = 1 << 20;

/// A packed file in memory.
#[derive(Debug)]
pub struct Packed {
    len: usize,
    block_len: usize,
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl Packed {
    /// Check a file. What is compressed is checked when it is unpacked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(mut file: Vec<u8>) -> Result<Self, String> {
        let word = |at: usize| {
            let bytes = file.get(at..at + 8).ok_or("it is cut off")?;
            Ok::<_, String>(u64::from_le_bytes(bytes.try_into().map_err(|_| "8 bytes")?) as usize)
        };
        if file.get(..8) != Some(&MAGIC) {
            return Err("it is no packed file (pager-caller pack IN OUT makes one)".into());
        }
        let (len, block_len) = (word(8)?, word(16)?);
        let sound = block_len.is_multiple_of(PAGE_LEN) && (1..=BLOCK_LEN_MAX).contains(&block_len);
        let blocks =
            len.checked_div(block_len).filter(|_| sound).ok_or("its block length is bad")?;
        let blocks = blocks + usize::from(!len.is_multiple_of(block_len));
        let table_len = blocks.checked_mul(8).filter(|len| *len < file.len());
        let bytes_at = HEAD_LEN + table_len.ok_or("it is cut off")?;
        let ends: Vec<usize> =
            (0..blocks).map(|block| word(HEAD_LEN + block * 8)).collect::<Result<_, _>>()?;
        let bytes_len = file.len() - bytes_at;
        let in_order = ends.is_sorted() && ends.last().is_none_or(|&end| end == bytes_len);
        if !in_order || blocks == 0 {
            return Err("its table of blocks is bad".into());
        }
        file.drain(..bytes_at);
        Ok(Self { len, block_len, ends, bytes: file })
    }

    /// Bytes of the original.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty file is not packed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_len(&self) -> usize {
        self.block_len
    }

    /// Bytes of all blocks.
    #[must_use]
    pub const fn span(&self) -> usize {
        self.ends.len() * self.block_len
    }

    /// Unpack a block into `to`, which has its length and is zero.
    ///
    /// # Errors
    /// There is no such block, or it is damaged.
    pub fn unpack(&self, block: usize, to: &mut [u8]) -> Result<(), String> {
        let start = if block == 0 { 0 } else { self.ends.get(block - 1).copied().unwrap_or(0) };
        let end = *self.ends.get(block).ok_or("there is no such block")?;
        let from = &self.bytes[start..end];
        if from.len() == to.len() {
            to.copy_from_slice(from);
            return Ok(());
        }
        let expected = self.block_len.min(self.len - block * self.block_len);
        match lz4_flex::block::decompress_into(from, to) {
            Ok(len) if len == expected => Ok(()),
            _ => Err(format!("block {block} is damaged")),
        }
    }
}

/// Pack bytes.
///
/// # Panics
/// There are none, or `block_len` is not one of whole pages up to 1 MiB.
#[must_use]
pub fn pack(original: &[u8], block_len: usize) -> Vec<u8> {
    assert!(!original.is_empty() && block_len.is_multiple_of(PAGE_LEN));
    assert!((1..=BLOCK_LEN_MAX).contains(&block_len));
    let (mut ends, mut bytes) = (Vec::new(), Vec::new());
    for block in original.chunks(block_len) {
        let packed = lz4_flex::block::compress(block);
        if packed.len() < block_len {
            bytes.extend(packed);
        } else {
            bytes.extend(block);
            bytes.resize(bytes.len() + block_len - block.len(), 0);
        }
        ends.extend((bytes.len() as u64).to_le_bytes());
    }
    let head = [(original.len() as u64).to_le_bytes(), (block_len as u64).to_le_bytes()];
    [&MAGIC[..], &head.concat(), &ends, &bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::{Packed, pack};

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let random = |seed: u64| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
        for len in [1usize, 4090, 4095, 4096, 4097, 8190, 100_000] {
            let original: Vec<u8> =
                (0..len).map(|at| if at % 9000 < 8192 { random(at as u64) } else { 7 }).collect();
            let packed = Packed::parse(pack(&original, 4096)).expect("it is whole");
            let mut out = vec![0; packed.span()];
            for (block, to) in out.chunks_mut(4096).enumerate() {
                packed.unpack(block, to).expect("it is whole");
            }
            assert_eq!(out[..len], original);
        }
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let file = pack(&[5; 50_000], 8192);
        for len in 0..file.len() {
            if let Ok(packed) = Packed::parse(file[..len].to_vec()) {
                panic!("{len} of {} bytes pass: {packed:?}", file.len());
            }
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0xff;
            if let Ok(packed) = Packed::parse(damaged) {
                // What it says must not be believed beyond its bounds.
                let mut block = vec![0; packed.block_len()];
                let _ = packed.unpack(0, &mut block);
            }
        }
    }
}

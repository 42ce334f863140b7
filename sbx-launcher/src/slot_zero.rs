//! libos as it lies in slot 0.
//!
//! It is the same for every sandbox but for the words that hold addresses, so the build script has
//! placed and relocated it already, for the lowest base; what is left to do for another base is to add
//! the distance to some hundred words.

use libos::image::{self, Image, NoImports};
use libos::layout::{Place, code_file_offset};

/// What the build script makes of the image.
struct Placed {
    /// The base that it is relocated for.
    base: u64,
    bias: u64,
    /// Address of the first byte.
    start: u64,
    /// Address of the first byte in the slot's writable half.
    boundary: u64,
    text: [u64; 2],
    eh_frame_hdr: u64,
    tls: [u64; 4],
    bytes: &'static [u8],
    /// Offsets of the words that hold addresses, in order.
    addresses: &'static [u32],
    symbols: &'static [(&'static str, u64)],
}

static PLACED: Placed = include!(concat!(env!("OUT_DIR"), "/slot_zero.rs"));

/// The file that it was made from.
pub static LIBOS: &[u8] = include_bytes!(env!("SBX_LIBOS_IMAGE"));

/// libos in a region.
#[derive(Debug, Clone, Copy)]
pub struct SlotZero {
    place: Place,
    /// How far above the base that it was relocated for the region's is.
    up: u64,
}

impl SlotZero {
    /// libos in the region at `place`.
    #[must_use]
    pub const fn at(place: Place) -> Self {
        Self { place, up: place.base as u64 - PLACED.base }
    }

    /// The sealed part as it is in every code zone, and its offset in the zone's file.
    #[must_use]
    pub const fn code() -> (usize, &'static [u8]) {
        let lowest = Place { base: PLACED.base as usize, len: 0 };
        let in_half = PLACED.start as usize - lowest.code_half(0).start;
        let sealed = (PLACED.boundary - PLACED.start) as usize;
        (code_file_offset(0) + in_half, PLACED.bytes.split_at(sealed).0)
    }

    /// What its writable half begins with, addresses aside.
    #[must_use]
    pub fn data() -> &'static [u8] {
        &PLACED.bytes[(PLACED.boundary - PLACED.start) as usize..]
    }

    /// Each word that holds an address: where it lies, and what it is here.
    pub fn addresses(self) -> impl Iterator<Item = (u64, u64)> {
        let words = PLACED.addresses.iter();
        words.map(move |&at| (PLACED.start + self.up + u64::from(at), word(at) + self.up))
    }

    /// Address of a symbol.
    ///
    /// # Panics
    /// libos has none of this name, so that this launcher could not use it.
    #[must_use]
    pub fn symbol(self, name: &str) -> u64 {
        let found = PLACED.symbols.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("libos has no symbol {name}")).1 + self.up
    }

    /// The `count` words from an address on, which libos has initialised with addresses.
    #[must_use]
    pub fn addresses_at<const COUNT: usize>(self, address: u64) -> [u64; COUNT] {
        let at = (address - self.up - PLACED.start) as u32;
        std::array::from_fn(|index| word(at + index as u32 * 8) + self.up)
    }

    /// What the tables say of it. It has no bytes: they are in the zones.
    #[must_use]
    pub fn described(self) -> Image {
        let moved = |address: u64| if address == 0 { 0 } else { address + self.up };
        let [tls, rest @ ..] = PLACED.tls;
        Image {
            bias: PLACED.bias + self.up,
            start: PLACED.start + self.up,
            boundary: PLACED.boundary + self.up,
            bytes: Vec::new(),
            text: PLACED.text.map(moved),
            eh_frame_hdr: moved(PLACED.eh_frame_hdr),
            tls: [moved(tls), rest[0], rest[1], rest[2]],
            constructors: [0; 2],
            missing: Vec::new(),
            exports: Vec::new(),
        }
    }

    /// Names and addresses of what it offers to extensions.
    #[must_use]
    pub fn exports(self) -> Vec<(String, u64)> {
        let image = image::place(LIBOS, 0, self.place, &NoImports);
        let image = image.expect("the build script has placed it");
        let word = |address| image.word_at(address).unwrap_or(0);
        let table = self.symbol("SBX_EXPORTS");
        let (first, count) = (word(table), word(table + 8));
        let row = |at: u64| {
            let name = image.bytes_at(word(at), word(at + 8) as usize)?;
            Some((std::str::from_utf8(name).ok()?.to_owned(), word(at + 16)))
        };
        (0..count).filter_map(|index| row(first + index * 24)).collect()
    }
}

/// The word at an offset.
fn word(at: u32) -> u64 {
    let at = at as usize;
    u64::from_le_bytes(std::array::from_fn(|byte| PLACED.bytes[at + byte]))
}

#[cfg(test)]
mod tests {
    use ext_api::limits::{BASE_MAX, HUGE_PAGE_LEN};
    use libos::image::{self, NoImports};
    use libos::layout::{LEN_MIN, PRIVATE_LEN, Place};

    use super::{LIBOS, PLACED, SlotZero};

    #[test]
    fn is_what_the_loader_would_make_of_it() {
        let place = Place::new(BASE_MAX - LEN_MIN - PRIVATE_LEN - HUGE_PAGE_LEN, LEN_MIN).unwrap();
        let loaded = image::place(LIBOS, 0, place, &NoImports).unwrap();
        let here = SlotZero::at(place);
        let mut bytes = PLACED.bytes.to_vec();
        for (address, value) in here.addresses() {
            let at = (address - loaded.start) as usize;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        assert_eq!(bytes, loaded.bytes);
        assert!(loaded.exports.iter().all(|(name, address)| here.symbol(name) == *address));
        let described = here.described();
        assert_eq!(
            (described.bias, described.start, described.boundary, described.text),
            (loaded.bias, loaded.start, loaded.boundary, loaded.text)
        );
        assert_eq!((described.eh_frame_hdr, described.tls), (loaded.eh_frame_hdr, loaded.tls));
        assert_eq!([SlotZero::code().1, SlotZero::data()].concat(), PLACED.bytes);
        assert!(here.exports().len() > 100);
    }
}

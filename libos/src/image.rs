//! From an ELF file to bytes that can be copied into a slot.
//!
//! An image is placed so that the end of its RELRO part falls on the boundary of the slot's
//! halves: code, constants and everything that relocation writes lie below it and are sealed;
//! only `.data` and `.bss` lie above. It is relocated once, here, for all processes.
//!
//! Nothing in a file is believed: every offset is checked before it is used, and what the region
//! cannot support is refused by name.

use core::fmt;
use core::ops::Range;

use ext_api::limits::PAGE_LEN;
use object::read::elf::{ElfFile64, FileHeader};
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind, elf};

use crate::layout::Place;

/// Why a file cannot be an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageError {
    /// Not an ELF file that can be read; the text says where it stops making sense.
    Malformed(String),
    /// A sound file that uses something that the region does not support.
    Unsupported(String),
    /// Larger than the halves of a slot.
    TooLarge {
        /// Bytes that would be sealed.
        code: usize,
        /// Bytes that would be writable.
        data: usize,
        /// Bytes of one half.
        half: usize,
    },
    /// The manifest is missing or says something impossible.
    Manifest(String),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "not a usable ELF image: {what}"),
            Self::Unsupported(what) => write!(f, "unsupported image: {what}"),
            Self::TooLarge { code, data, half } => write!(
                f,
                "the image needs {code} bytes of code and {data} of data; a slot has {half} of each"
            ),
            Self::Manifest(what) => write!(f, "bad manifest: {what}"),
        }
    }
}

impl std::error::Error for ImageError {}

/// Where imports lead.
pub trait Imports {
    /// Address of an imported symbol, if the region has it.
    fn find(&self, name: &str) -> Option<u64>;
    /// Address of `sbx_missing_import`; 0 for an image that must not import anything.
    fn missing(&self) -> u64;
}

/// The imports of libos: none.
#[derive(Debug)]
pub struct NoImports;

impl Imports for NoImports {
    fn find(&self, _: &str) -> Option<u64> {
        None
    }

    fn missing(&self) -> u64 {
        0
    }
}

/// An image relocated for its slot, ready to be copied there.
#[derive(Debug)]
pub struct Image {
    /// What the file's address 0 becomes.
    pub bias: u64,
    /// Address of `bytes[0]`; everything from here to `boundary` goes into the sealed half.
    pub start: u64,
    /// Where the halves meet.
    pub boundary: u64,
    /// The image's memory, from `start`, with zeros for `.bss`.
    pub bytes: Vec<u8>,
    /// First and last-but-one address of executable code.
    pub text: [u64; 2],
    /// Address of `.eh_frame_hdr`, or 0.
    pub eh_frame_hdr: u64,
    /// Initial thread-local block: address, bytes with contents, bytes in all, alignment.
    pub tls: [u64; 4],
    /// Constructors: address of the array, and their number.
    pub constructors: [u64; 2],
    /// Imports that the region does not have; using one fails the upcall that does.
    pub missing: Vec<String>,
    /// Exported symbols and their addresses.
    pub exports: Vec<(String, u64)>,
}

fn malformed(what: impl Into<String>) -> ImageError {
    ImageError::Malformed(what.into())
}

fn unsupported(what: impl Into<String>) -> ImageError {
    ImageError::Unsupported(what.into())
}

type Header = elf::FileHeader64<LittleEndian>;
type Segment = elf::ProgramHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// Place and relocate the ELF file `file` for slot `slot` of the region at `place`.
///
/// # Errors
/// [`ImageError`], which names what is wrong with the file.
pub fn place(
    file: &[u8],
    slot: usize,
    place: Place,
    imports: &dyn Imports,
) -> Result<Image, ImageError> {
    let header = check_header(file)?;
    let segments = header
        .program_headers(LE, file)
        .map_err(|error| malformed(format!("program headers: {error}")))?;
    let extent = Extent::of(segments, file.len())?;
    let mut image = extent.copy(segments, file, slot, place)?;
    note_segments(&mut image, segments)?;
    image.exports = exported(file, image.bias)?;
    let dynamic = Dynamic::read(&image, segments)?;
    dynamic.refuse_unsupported()?;
    relocate(&mut image, &dynamic, slot, place, imports)?;
    image.constructors = dynamic.constructors(&image)?;
    Ok(image)
}

/// What [`place`] looks at in a file of `len` bytes that begins with `head`: all that is loaded, and the table of the
/// sections. What debuggers want lies between, and is most of a file. None if `head` does not tell.
#[must_use]
pub fn needed(head: &[u8], len: u64) -> Option<[Range<u64>; 2]> {
    let header = check_header(head).ok()?;
    let segments = header.program_headers(LE, head).ok()?;
    let ends = segments.iter().filter(|segment| segment.p_type.get(LE) == elf::PT_LOAD);
    let mut ends = ends.map(|one| one.p_offset.get(LE).checked_add(one.p_filesz.get(LE)));
    let end = ends.try_fold(0, |end, one| Some(one?.max(end)))?;
    let table = header.e_shoff.get(LE);
    let table_len = u64::from(header.e_shentsize.get(LE)) * u64::from(header.e_shnum.get(LE));
    let table_end = table.checked_add(table_len)?;
    (end <= len && table_end <= len).then_some([0..end, table..table_end])
}

fn check_header(file: &[u8]) -> Result<&Header, ImageError> {
    let header = Header::parse(file).map_err(|error| malformed(error.to_string()))?;
    if !header.is_little_endian() {
        return Err(unsupported("it is big-endian"));
    }
    let machine = header.e_machine.get(LE);
    if machine != elf::EM_X86_64 {
        return Err(unsupported(format!("it is for machine {machine:?}, not x86-64")));
    }
    let kind = header.e_type.get(LE);
    if kind != elf::ET_DYN {
        return Err(unsupported(
            "it is not a shared object (build it as a cdylib or with -shared)",
        ));
    }
    Ok(header)
}

/// Which addresses of the file are used, and where writable ones begin.
struct Extent {
    low: u64,
    high: u64,
    boundary: u64,
}

impl Extent {
    fn of(segments: &[Segment], file_len: usize) -> Result<Self, ImageError> {
        let mut extent = Self { low: u64::MAX, high: 0, boundary: u64::MAX };
        let mut relro_end = 0;
        for segment in segments {
            let (start, len) = (segment.p_vaddr.get(LE), segment.p_memsz.get(LE));
            let end = start.checked_add(len).filter(|&end| end < 1 << 32);
            let end = end.ok_or_else(|| malformed("a segment reaches beyond 4 GiB"))?;
            match segment.p_type.get(LE) {
                elf::PT_LOAD => extent.add(segment, start, end, file_len)?,
                elf::PT_GNU_RELRO => relro_end = end,
                _ => {}
            }
        }
        if extent.high == 0 {
            return Err(malformed("it has no loadable segment"));
        }
        if extent.boundary == u64::MAX {
            extent.boundary = extent.high.next_multiple_of(PAGE_LEN as u64);
        }
        // Sealed up to the last whole page of RELRO.
        let sealed = relro_end & !(PAGE_LEN as u64 - 1);
        extent.boundary = extent.boundary.max(sealed) & !(PAGE_LEN as u64 - 1);
        Ok(extent)
    }

    fn add(
        &mut self,
        segment: &Segment,
        start: u64,
        end: u64,
        file_len: usize,
    ) -> Result<(), ImageError> {
        let (offset, len) = (segment.p_offset.get(LE), segment.p_filesz.get(LE));
        let in_file = offset.checked_add(len).is_some_and(|end| end <= file_len as u64);
        if !in_file || len > segment.p_memsz.get(LE) {
            return Err(malformed("a segment reaches beyond the end of the file (truncated?)"));
        }
        let flags = segment.p_flags.get(LE);
        if flags.contains(elf::PF_X) && (flags.contains(elf::PF_W) || self.boundary != u64::MAX) {
            return Err(unsupported("code that is writable, or lies behind writable data"));
        }
        if flags.contains(elf::PF_W) {
            self.boundary = self.boundary.min(start);
        }
        self.low = self.low.min(start & !(PAGE_LEN as u64 - 1));
        self.high = self.high.max(end);
        Ok(())
    }

    fn copy(
        &self,
        segments: &[Segment],
        file: &[u8],
        slot: usize,
        place: Place,
    ) -> Result<Image, ImageError> {
        let half = place.code_half(slot);
        let code = (self.boundary - self.low) as usize + PAGE_LEN;
        let data = self.high.saturating_sub(self.boundary) as usize;
        if code > half.len() || data > half.len() {
            return Err(ImageError::TooLarge { code, data, half: half.len() });
        }
        let boundary = half.end as u64;
        let bias = boundary - self.boundary;
        let mut bytes = vec![0; (self.high - self.low) as usize];
        for segment in segments.iter().filter(|s| s.p_type.get(LE) == elf::PT_LOAD) {
            let (offset, len) =
                (segment.p_offset.get(LE) as usize, segment.p_filesz.get(LE) as usize);
            let to = (segment.p_vaddr.get(LE) - self.low) as usize;
            bytes[to..to + len].copy_from_slice(&file[offset..offset + len]);
        }
        Ok(Image {
            bias,
            start: self.low + bias,
            boundary,
            bytes,
            text: [u64::MAX, 0],
            eh_frame_hdr: 0,
            tls: [0; 4],
            constructors: [0; 2],
            missing: Vec::new(),
            exports: Vec::new(),
        })
    }
}

fn note_segments(image: &mut Image, segments: &[Segment]) -> Result<(), ImageError> {
    for segment in segments {
        let start = image.bias + segment.p_vaddr.get(LE);
        let (file_len, len) = (segment.p_filesz.get(LE), segment.p_memsz.get(LE));
        match segment.p_type.get(LE) {
            elf::PT_LOAD if segment.p_flags.get(LE).contains(elf::PF_X) => {
                image.text = [image.text[0].min(start), image.text[1].max(start + len)];
            }
            elf::PT_GNU_EH_FRAME => image.eh_frame_hdr = start,
            elf::PT_TLS => {
                let align = segment.p_align.get(LE).max(1);
                let sound = file_len <= len && align.is_power_of_two() && align <= 4096;
                if !sound || image.bytes_at(start, file_len as usize).is_none() {
                    return Err(malformed("the thread-local segment"));
                }
                image.tls = [start, file_len, len, align];
            }
            _ => {}
        }
    }
    Ok(())
}

fn exported(file: &[u8], bias: u64) -> Result<Vec<(String, u64)>, ImageError> {
    let parsed = ElfFile64::<LittleEndian>::parse(file)
        .map_err(|error| malformed(format!("sections: {error}")))?;
    Ok(parsed
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .filter_map(|symbol| {
            Some((symbol.name().ok()?.to_owned(), bias.wrapping_add(symbol.address())))
        })
        .collect())
}

/// A function of an image's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name, as the compiler has it.
    pub name: String,
    /// Where it is, in the file's own addresses.
    pub address: u64,
    /// Its length; 0 if the file does not say.
    pub len: u64,
}

/// The functions that a file names, for people who look at where time goes: all that the compiler left
/// in, or what is exported. None if it is no file of ours.
#[must_use]
pub fn functions(file: &[u8]) -> Vec<Function> {
    let Ok(parsed) = ElfFile64::<LittleEndian>::parse(file) else { return Vec::new() };
    let is_stripped = parsed.symbols().next().is_none();
    let symbols = if is_stripped { parsed.dynamic_symbols() } else { parsed.symbols() };
    symbols
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let name = symbol.name().ok()?.to_owned();
            Some(Function { name, address: symbol.address(), len: symbol.size() })
        })
        .collect()
}

impl Image {
    /// Address of an exported symbol.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.exports.iter().find(|(known, _)| known == name).map(|&(_, address)| address)
    }

    /// The image's bytes at an address, if it has so many there.
    #[must_use]
    pub fn bytes_at(&self, address: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    /// The 64-bit word at an address.
    #[must_use]
    pub fn word_at(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes_at(address, 8)?.try_into().ok()?))
    }

    /// Write a word.
    ///
    /// # Errors
    /// The image has no such address.
    pub fn set_word(&mut self, address: u64, value: u64) -> Result<(), ImageError> {
        let start = address.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let place = start.and_then(|at| self.bytes.get_mut(at..at.checked_add(8)?));
        let place = place.ok_or_else(|| malformed("a relocation outside of the image"))?;
        place.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    /// Is this the address of code?
    #[must_use]
    pub fn is_code(&self, address: u64) -> bool {
        (self.text[0]..self.text[1]).contains(&address)
    }

    /// Text that ends with a zero.
    fn text_at(&self, address: u64) -> Option<&str> {
        let start = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let rest = self.bytes.get(start..)?;
        let len = rest.iter().take(4096).position(|&byte| byte == 0)?;
        core::str::from_utf8(&rest[..len]).ok()
    }
}

/// The dynamic section, tag by tag.
struct Dynamic {
    tags: Vec<(u64, u64)>,
}

/// Tags by their numbers in the ELF specification.
mod tag {
    pub(super) const PLT_REL_LEN: u64 = 2;
    pub(super) const STRINGS: u64 = 5;
    pub(super) const SYMBOLS: u64 = 6;
    pub(super) const RELA: u64 = 7;
    pub(super) const RELA_LEN: u64 = 8;
    pub(super) const REL: u64 = 17;
    pub(super) const TEXT_REL: u64 = 22;
    pub(super) const PLT_RELA: u64 = 23;
    pub(super) const INIT_ARRAY: u64 = 25;
    pub(super) const INIT_ARRAY_LEN: u64 = 27;
    pub(super) const FLAGS: u64 = 30;
    pub(super) const RELR: u64 = 36;
}

impl Dynamic {
    fn read(image: &Image, segments: &[Segment]) -> Result<Self, ImageError> {
        let segment = segments
            .iter()
            .find(|segment| segment.p_type.get(LE) == elf::PT_DYNAMIC)
            .ok_or_else(|| malformed("it has no dynamic section"))?;
        let start = image.bias + segment.p_vaddr.get(LE);
        let count = segment.p_filesz.get(LE) / 16;
        let mut tags = Vec::new();
        for index in 0..count {
            let entry = start + index * 16;
            let pair = image.word_at(entry).zip(image.word_at(entry + 8));
            let (tag, value) = pair.ok_or_else(|| malformed("the dynamic section"))?;
            if tag == 0 {
                break;
            }
            tags.push((tag, value));
        }
        Ok(Self { tags })
    }

    fn get(&self, tag: u64) -> Option<u64> {
        self.tags.iter().find(|&&(known, _)| known == tag).map(|&(_, value)| value)
    }

    fn refuse_unsupported(&self) -> Result<(), ImageError> {
        const STATIC_TLS: u64 = 0x10;
        if self.get(tag::TEXT_REL).is_some() {
            return Err(unsupported("relocations in its code (build it with -fPIC)"));
        }
        if self.get(tag::REL).is_some() || self.get(tag::RELR).is_some() {
            return Err(unsupported("DT_REL or DT_RELR relocations"));
        }
        if self.get(tag::FLAGS).unwrap_or(0) & STATIC_TLS != 0 {
            return Err(unsupported("initial-exec thread-locals (use the default TLS model)"));
        }
        Ok(())
    }

    fn constructors(&self, image: &Image) -> Result<[u64; 2], ImageError> {
        let Some(array) = self.get(tag::INIT_ARRAY) else { return Ok([0; 2]) };
        let (array, len) =
            (image.bias.wrapping_add(array), self.get(tag::INIT_ARRAY_LEN).unwrap_or(0));
        for index in 0..len / 8 {
            let constructor = array.checked_add(index * 8).and_then(|at| image.word_at(at));
            let sound = constructor.is_some_and(|address| address == 0 || image.is_code(address));
            if !sound {
                return Err(malformed("a constructor outside of its code"));
            }
        }
        Ok([array, len / 8])
    }
}

/// One relocation with an addend.
struct Rela {
    place: u64,
    kind: u32,
    symbol: u64,
    addend: u64,
}

/// What a symbol of the image is.
struct Symbol {
    name: String,
    value: u64,
    defined: bool,
    weak: bool,
    ifunc: bool,
}

fn symbol(image: &Image, dynamic: &Dynamic, index: u64) -> Result<Symbol, ImageError> {
    let bad = || malformed("a relocation against a symbol that does not exist");
    let table = image.bias.wrapping_add(dynamic.get(tag::SYMBOLS).ok_or_else(bad)?);
    let strings = image.bias.wrapping_add(dynamic.get(tag::STRINGS).ok_or_else(bad)?);
    let entry = index.checked_mul(24).and_then(|at| table.checked_add(at)).ok_or_else(bad)?;
    let (head, value) = image.word_at(entry).zip(image.word_at(entry + 8)).ok_or_else(bad)?;
    let name = strings.checked_add(head & 0xffff_ffff).and_then(|at| image.text_at(at));
    let info = head >> 32 & 0xff;
    Ok(Symbol {
        name: name.ok_or_else(bad)?.to_owned(),
        value,
        defined: head >> 48 != 0,
        weak: info >> 4 == 2,
        ifunc: info & 0xf == 10,
    })
}

fn relocate(
    image: &mut Image,
    dynamic: &Dynamic,
    slot: usize,
    place: Place,
    imports: &dyn Imports,
) -> Result<(), ImageError> {
    let mut stubs = Stubs::new(image, place.code_half(slot).start as u64, imports.missing());
    for (table, len) in [(tag::RELA, tag::RELA_LEN), (tag::PLT_RELA, tag::PLT_REL_LEN)] {
        let Some(table) = dynamic.get(table) else { continue };
        let table = image.bias.wrapping_add(table);
        for index in 0..dynamic.get(len).unwrap_or(0) / 24 {
            let rela = table.checked_add(index * 24).and_then(|entry| {
                let info = image.word_at(entry + 8)?;
                Some(Rela {
                    place: image.bias.wrapping_add(image.word_at(entry)?),
                    kind: info as u32,
                    symbol: info >> 32,
                    addend: image.word_at(entry + 16)?,
                })
            });
            let rela = rela.ok_or_else(|| malformed("the relocation table"))?;
            let value = value_of(image, dynamic, &rela, slot, imports, &mut stubs)?;
            image.set_word(rela.place, value)?;
        }
    }
    image.missing = stubs.names.clone();
    stubs.finish(image)
}

fn value_of(
    image: &Image,
    dynamic: &Dynamic,
    rela: &Rela,
    slot: usize,
    imports: &dyn Imports,
    stubs: &mut Stubs,
) -> Result<u64, ImageError> {
    const ADDRESS: u32 = 1;
    const COPY: u32 = 5;
    const GLOB_DAT: u32 = 6;
    const JUMP_SLOT: u32 = 7;
    const RELATIVE: u32 = 8;
    const TLS_MODULE: u32 = 16;
    const TLS_OFFSET: u32 = 17;
    const TLS_STATIC: u32 = 18;
    const TLS_DESCRIPTOR: u32 = 36;
    const IRELATIVE: u32 = 37;
    match rela.kind {
        RELATIVE => Ok(image.bias.wrapping_add(rela.addend)),
        TLS_MODULE => Ok(slot as u64),
        TLS_OFFSET => Ok(symbol(image, dynamic, rela.symbol)?.value.wrapping_add(rela.addend)),
        ADDRESS | GLOB_DAT | JUMP_SLOT => {
            let symbol = symbol(image, dynamic, rela.symbol)?;
            let addend = if rela.kind == ADDRESS { rela.addend } else { 0 };
            let address = if symbol.ifunc {
                return Err(unsupported(format!("IFUNC symbol {}", symbol.name)));
            } else if symbol.defined {
                image.bias.wrapping_add(symbol.value)
            } else if let Some(address) = imports.find(&symbol.name) {
                address
            } else if symbol.weak {
                return Ok(0);
            } else {
                stubs.of(&symbol.name)?
            };
            Ok(address.wrapping_add(addend))
        }
        TLS_STATIC => Err(unsupported("initial-exec thread-locals (R_X86_64_TPOFF64)")),
        TLS_DESCRIPTOR => Err(unsupported("TLS descriptors (build with -mtls-dialect=gnu)")),
        IRELATIVE => Err(unsupported("IFUNC (R_X86_64_IRELATIVE)")),
        COPY => Err(unsupported("COPY relocations (build it as a shared object)")),
        kind => Err(unsupported(format!("relocation type {kind}"))),
    }
}

/// Small pieces of code in front of the image, one for each import that is missing: each calls
/// `sbx_missing_import` with the symbol's name.
struct Stubs {
    /// Where the image begins: the first stub lies right below, and so on downwards.
    end: u64,
    room: usize,
    missing: u64,
    names: Vec<String>,
    /// The stubs, the last one first.
    code: Vec<u8>,
}

impl Stubs {
    const NAME_LEN_MAX: usize = 256;
    const LEN: usize = 24 + Self::NAME_LEN_MAX;

    fn new(image: &Image, base: u64, missing: u64) -> Self {
        let room = (image.start - base) as usize;
        Self { end: image.start, room, missing, names: Vec::new(), code: Vec::new() }
    }

    fn of(&mut self, name: &str) -> Result<u64, ImageError> {
        if self.missing == 0 {
            return Err(unsupported(format!("libos must not import anything, but wants {name}")));
        }
        if name.len() > Self::NAME_LEN_MAX || self.code.len() + Self::LEN > self.room {
            return Err(unsupported(format!("too many missing imports (at {name})")));
        }
        let mut stub = vec![0x48, 0x8d, 0x3d, 17, 0, 0, 0]; // lea rdi, [rip + 17]: the name
        stub.push(0xbe); // mov esi, len
        stub.extend((name.len() as u32).to_le_bytes());
        stub.extend([0x48, 0xb8]); // mov rax, sbx_missing_import
        stub.extend(self.missing.to_le_bytes());
        stub.extend([0xff, 0xe0]); // jmp rax
        stub.extend(name.as_bytes());
        stub.resize(Self::LEN, 0);
        self.code.splice(..0, stub);
        self.names.push(name.to_owned());
        Ok(self.end - self.code.len() as u64)
    }

    /// Put the stubs in front of the image, which then begins some pages earlier.
    fn finish(self, image: &mut Image) -> Result<(), ImageError> {
        if self.code.is_empty() {
            return Ok(());
        }
        let len = self.code.len().next_multiple_of(PAGE_LEN);
        image.start -= len as u64;
        image.text[0] = image.start;
        let mut bytes = vec![0; len - self.code.len()];
        bytes.extend(self.code);
        bytes.append(&mut image.bytes);
        image.bytes = bytes;
        Ok(())
    }
}

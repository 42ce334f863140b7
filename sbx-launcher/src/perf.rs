//! Names for perf: an ELF file that has the symbols of everything in a code zone.
//!
//! To perf, code of the region is a file `/memfd:sbx-code (deleted)`, which is nowhere to be found; but
//! it looks below the folder that `--symfs` names. A symbol's value there is its offset in the zone's
//! file, which is the same in every process. There is no code in it.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use libos::image;
use libos::layout::{CODE_FILE_LEN, Place, code_file_offset};

/// What perf calls the code zone, below the folder.
pub const FILE: &str = "memfd:sbx-code (deleted)";

const HEAD_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u64 = 56;
const SYMBOL_LEN: u64 = 24;
/// Where the contents of the tables begin, behind the headers of file and program.
const TABLES: u64 = HEAD_LEN + PROGRAM_HEADER_LEN;
/// Names of the sections: none, the code, and three tables.
const SECTIONS: &[u8] = b"\0.text\0.symtab\0.strtab\0.shstrtab\0";
/// The code begins behind the first page, lest a symbol be 0.
const FIRST: u64 = 4096;

/// Write the file into `folder`, with the symbols of image files and what their addresses 0 have become
/// in a region at `place`. The rest of the machine is linked there, for perf to find all other programs.
///
/// # Errors
/// The kernel's, with the path.
pub fn write(folder: &Path, place: Place, images: &[(PathBuf, u64)]) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    let mut symbols = Vec::new();
    for (path, bias) in images {
        let bytes = std::fs::read(path).map_err(|error| named(path, error))?;
        symbols.extend(image::functions(&bytes).into_iter().filter_map(|function| {
            let address = function.address.checked_add(*bias)? as usize;
            let slot = place.slot_of(address)?;
            let half = place.code_half(slot);
            let at = half.contains(&address).then(|| code_file_offset(slot) + address - half.start);
            Some((function.name, at? as u64, function.len))
        }));
    }
    std::fs::create_dir_all(folder).map_err(|error| named(folder, error))?;
    for entry in std::fs::read_dir("/")? {
        let entry = entry?.path();
        let link = folder.join(entry.strip_prefix("/").unwrap_or(&entry));
        match symlink(&entry, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(named(&link, error));
            }
            _ => {}
        }
    }
    let file = folder.join(FILE);
    std::fs::write(&file, elf(&symbols)).map_err(|error| named(&file, error))
}

/// An ELF file with symbols: name, value, length.
fn elf(symbols: &[(String, u64, u64)]) -> Vec<u8> {
    let (mut table, mut names) = (vec![0; SYMBOL_LEN as usize], vec![0]);
    for (name, value, len) in symbols {
        const LOCAL_FUNCTION: u8 = 2;
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([LOCAL_FUNCTION, 0]);
        table.extend(1u16.to_le_bytes());
        table.extend([*value, *len].map(u64::to_le_bytes).concat());
        names.extend(name.as_bytes());
        names.push(0);
    }
    let (code_len, count) = (CODE_FILE_LEN as u64, table.len() as u64 / SYMBOL_LEN);
    let at_names = TABLES + table.len() as u64;
    let at_sections = at_names + names.len() as u64;
    let end = at_sections + SECTIONS.len() as u64;
    // Name, kind, flags, address, offset, length, other section, a number, alignment, entry.
    const CODE: u64 = 8; // occupies no bytes of the file
    let sections = [
        [0; 10],
        [1, CODE, 6, FIRST, FIRST, code_len - FIRST, 0, 0, 16, 0],
        [7, 2, 0, 0, TABLES, table.len() as u64, 3, count, 8, SYMBOL_LEN],
        [15, 3, 0, 0, at_names, names.len() as u64, 0, 0, 1, 0],
        [23, 3, 0, 0, at_sections, SECTIONS.len() as u64, 0, 0, 1, 0],
    ];
    let mut file = header(end, sections.len() as u16);
    file.extend([1u32, 5].map(u32::to_le_bytes).concat());
    file.extend([0, 0, 0, code_len, code_len, 4096u64].map(u64::to_le_bytes).concat());
    file.extend(table);
    file.extend(names);
    file.extend(SECTIONS);
    for section in sections {
        for (index, word) in section.into_iter().enumerate() {
            // Four fields are half as long.
            match index {
                0 | 1 | 6 | 7 => file.extend((word as u32).to_le_bytes()),
                _ => file.extend(word.to_le_bytes()),
            }
        }
    }
    file
}

/// The head of a shared object for x86-64 whose section headers begin at `sections`.
fn header(sections: u64, count: u16) -> Vec<u8> {
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (shared_object, machine, version) = (3u16, 62u16, 1u32);
    head.extend([shared_object, machine].map(u16::to_le_bytes).concat());
    head.extend(version.to_le_bytes());
    head.extend([0, HEAD_LEN, sections].map(u64::to_le_bytes).concat());
    head.extend(0u32.to_le_bytes());
    let lens = [HEAD_LEN as u16, PROGRAM_HEADER_LEN as u16, 1, 64, count, count - 1];
    head.extend(lens.map(u16::to_le_bytes).concat());
    head
}

#[cfg(test)]
mod tests {
    use libos::image::{self, Function};

    #[test]
    fn what_is_written_can_be_read() {
        let file = super::elf(&[("one".into(), 5000, 16), ("two".into(), 9000, 0)]);
        let function = |name: &str, address, len| Function { name: name.into(), address, len };
        assert_eq!(image::functions(&file), [function("one", 5000, 16), function("two", 9000, 0)]);
    }
}

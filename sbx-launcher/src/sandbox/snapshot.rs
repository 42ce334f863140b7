//! The state of extensions as a file, and back: the region has one address, so that the bytes can
//! be put back where they were and every pointer in them is right.
//!
//! ```text
//! magic | length of the head | head (JSON) | per extension: image, then pages (offset, bytes) | sum
//! ```
//!
//! Pages of zeros are left out. The sum is over all that comes before it. A snapshot can be
//! restored by the very build of the launcher that made it, at the address where it was made.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ext_api::limits::PAGE_LEN;
use libos::image;
use libos::layout::slot_offset;
use libos::manifest;
use serde::{Deserialize, Serialize};

use super::extensions::{Life, Loading, Purpose, Room};
use super::terms::Terms;
use super::{Sandbox, SandboxError};
use crate::slot_zero::LIBOS;
use crate::zones::Pages;

const MAGIC: [u8; 8] = *b"SBXsnap1";
/// Longest head that is read.
const HEAD_LEN_MAX: u64 = 1 << 20;
/// How long upcalls may take to leave the extensions.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Sum of the libos that the state was made with.
    libos: u64,
    base: usize,
    len: usize,
    extensions: Vec<Extension>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Extension {
    file: String,
    terms: Terms,
    slot: usize,
    heap: (usize, usize),
    image_len: usize,
    pages: usize,
}

/// A sum that damage changes: FNV-1a, by words.
#[derive(Debug, Clone, Copy)]
struct Sum(u64);

impl Sum {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain((!rest.is_empty()).then_some(&last)) {
            self.0 = (self.0 ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3);
            self.0 ^= self.0 >> 29;
        }
    }

    fn of(bytes: &[u8]) -> u64 {
        let mut sum = Self::new();
        sum.add(bytes);
        sum.0
    }
}

fn bad(why: impl Into<String>) -> SandboxError {
    SandboxError::Refused(format!("this snapshot cannot be restored: {}", why.into()))
}

/// Writes, or reads, and sums up what went through.
struct Summed<T> {
    inner: T,
    sum: Sum,
}

impl<T: Write> Summed<T> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.add(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Summed<T> {
    fn take(&mut self, bytes: &mut [u8]) -> Result<(), SandboxError> {
        self.inner.read_exact(bytes).map_err(|_| bad("the file is cut short"))?;
        self.sum.add(bytes);
        Ok(())
    }

    fn number(&mut self) -> Result<u64, SandboxError> {
        let mut bytes = [0; 8];
        self.take(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Sandbox {
    /// Write the state of all extensions to `file`. Calls wait meanwhile. `has_ended` says so of the pid of a process.
    ///
    /// # Errors
    /// An upcall does not end, or its process has ended in it, an extension is not live, or the file cannot be written; no
    /// file is left then.
    pub fn snapshot(
        &self,
        file: &Path,
        has_ended: impl Fn(u32) -> bool,
    ) -> Result<usize, SandboxError> {
        if let Some(other) = self.loaded.iter().find(|known| known.life != Life::Live) {
            return Err(SandboxError::Refused(format!("{} is not live; try again", other.name)));
        }
        let kernel = |error| SandboxError::Kernel("writing the snapshot", error);
        let file = destination(file).map_err(kernel)?;
        let all: Vec<_> = self.loaded.iter().collect();
        for known in &all {
            let slot = known.room.map_or(0, |room| room.slot);
            for handler in &known.handlers {
                self.repoint(handler.row, slot, self.waiting);
            }
        }
        super::global_barrier();
        let partial = partial(&file);
        let result =
            self.drain(has_ended).and_then(|()| self.write_snapshot(&partial).map_err(kernel));
        for known in &all {
            let slot = known.room.map_or(0, |room| room.slot);
            for handler in &known.handlers {
                self.repoint(handler.row, slot, handler.code);
            }
        }
        let written = result.and_then(|()| std::fs::rename(&partial, &file).map_err(kernel));
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        written.map(|()| all.len())
    }

    /// Wait until no upcall is open but those that wait themselves.
    fn drain(&self, has_ended: impl Fn(u32) -> bool) -> Result<(), SandboxError> {
        let mut open = self.open_upcalls();
        let start = Instant::now();
        loop {
            open.retain(|&one| {
                let waits = || self.frames_of(one.0).iter().any(|f| f.code == self.waiting);
                self.still_open(one) && !waits()
            });
            let Some(&(context, _)) = open.first() else { return Ok(()) };
            let pid = self.common().claim(context).load().pid;
            if has_ended(pid) {
                return Err(SandboxError::Ended(pid));
            }
            if start.elapsed() > PATIENCE {
                let why = format!("an upcall of pid {pid} does not end; try again");
                return Err(SandboxError::Refused(why));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn write_snapshot(&self, file: &Path) -> io::Result<()> {
        let rooms = self.loaded.iter().filter_map(|known| Some((known, known.room?)));
        let parts: Vec<_> =
            rooms.map(|(known, room)| (known, room, self.pages_in_use(room))).collect();
        let head = Head {
            libos: Sum::of(LIBOS),
            base: self.zones.place.base,
            len: self.zones.place.len,
            extensions: parts
                .iter()
                .map(|(known, room, pages)| Extension {
                    file: known.file.clone(),
                    // Where it listened is for that machine.
                    terms: Terms { listen: Vec::new(), ..known.terms.clone() },
                    slot: room.slot,
                    heap: room.arena,
                    image_len: known.image().len(),
                    pages: pages.len(),
                })
                .collect(),
        };
        let head = serde_json::to_vec(&head)?;
        let mut to = Summed { inner: BufWriter::new(File::create(file)?), sum: Sum::new() };
        to.put(&MAGIC)?;
        to.put(&(head.len() as u64).to_le_bytes())?;
        to.put(&head)?;
        for (known, _, pages) in &parts {
            to.put(known.image())?;
            for &offset in pages {
                to.put(&(offset as u64).to_le_bytes())?;
                to.put(self.zones.data.page(offset))?;
            }
        }
        let sum = to.sum.0;
        to.inner.write_all(&sum.to_le_bytes())?;
        to.inner.flush()
    }

    /// Offsets of the pages of a room that are not all zeros.
    fn pages_in_use(&self, room: Room) -> Vec<usize> {
        let pages = ranges_of(room).into_iter().flat_map(|range| range.step_by(PAGE_LEN));
        let used = |&offset: &usize| self.zones.data.page(offset).iter().any(|&byte| byte != 0);
        pages.filter(used).collect()
    }

    /// A sandbox with the extensions of a snapshot, as they were.
    ///
    /// # Errors
    /// The file is damaged or of another build.
    pub fn restore(name: &str, file: &Path) -> Result<Self, SandboxError> {
        let kernel = |error| SandboxError::Kernel("opening the snapshot", error);
        let inner = BufReader::new(File::open(file).map_err(kernel)?);
        let mut from = Summed { inner, sum: Sum::new() };
        let mut magic = [0; 8];
        from.take(&mut magic)?;
        if magic != MAGIC {
            return Err(bad("it is no snapshot of this version"));
        }
        let len = from.number()?;
        if len > HEAD_LEN_MAX {
            return Err(bad("its head is too long"));
        }
        let mut head = vec![0; len as usize];
        from.take(&mut head)?;
        let head: Head = serde_json::from_slice(&head).map_err(|_| bad("its head is damaged"))?;
        if head.libos != Sum::of(LIBOS) {
            return Err(bad("it was made by another build of sbx-launcher"));
        }
        let mut sandbox = Self::create_at(name, head.len, Some(head.base), Pages::Huge)?;
        for extension in head.extensions {
            sandbox.restore_extension(extension, &mut from)?;
        }
        sandbox.open_restored_ports()?;
        let sum = from.sum.0;
        if from.number()? != sum {
            return Err(bad("its checksum is wrong: the file is damaged"));
        }
        Ok(sandbox)
    }

    /// Open the ports that the restored handlers are hooked to: when all heaps are where they were.
    fn open_restored_ports(&mut self) -> Result<(), SandboxError> {
        for index in 0..self.loaded.len() {
            let handlers: Vec<_> = self.loaded[index]
                .handlers
                .iter()
                .map(|one| (one.hook, one.name.clone()))
                .collect();
            self.loaded[index].ports = self.open_ports(&handlers, &[], &[])?;
        }
        Ok(())
    }

    fn restore_extension(
        &mut self,
        extension: Extension,
        from: &mut Summed<BufReader<File>>,
    ) -> Result<(), SandboxError> {
        let Extension { file, terms, slot, heap, image_len, pages } = extension;
        let fits = slot > 0
            && slot < ext_api::limits::SLOTS_MAX
            && image_len <= 1 << 30
            && heap.0 >= libos::layout::ARENAS_OFFSET
            && heap.0.checked_add(heap.1).is_some_and(|end| end <= self.zones.place.len)
            && !self.rooms.iter().any(|room| room.slot == slot);
        if !fits {
            return Err(bad("its head is damaged"));
        }
        let room = Room { slot, arena: heap };
        let mut bytes = vec![0; image_len];
        from.take(&mut bytes)?;
        let as_image = |error| SandboxError::Image(file.clone(), error);
        let placed =
            image::place(&bytes, slot, self.zones.place, &self.imports).map_err(as_image)?;
        let next = manifest::read(&placed).map_err(as_image)?;
        let clamp = self.clamp(&next, &terms)?;
        self.zones
            .commit(heap.0, heap.1)
            .map_err(|error| SandboxError::Kernel("reserving memory for the heap", error))?;
        self.install(&placed, slot);
        let ranges = ranges_of(room);
        self.zones.discard(ranges[0].start, ranges[0].len());
        let mut page = [0; PAGE_LEN];
        for _ in 0..pages {
            let offset = from.number()? as usize;
            from.take(&mut page)?;
            let within = |range: &Range<usize>| range.contains(&offset);
            if !offset.is_multiple_of(PAGE_LEN) || !ranges.iter().any(within) {
                return Err(bad("a page lies outside of its extension"));
            }
            self.zones.data.write(offset, &page);
        }
        self.publish_extension(&placed, slot, &next.name, Some(heap));
        let rows = self.reserve_rows(next.handlers.len())?;
        let origin = (placed.bias, placed.missing);
        let given = (file, terms, clamp);
        self.admit(Loading::restored(room, next, origin, given, Rc::new(bytes), rows));
        Ok(())
    }
}

/// The file that a snapshot called `file` is to replace: the one that a link leads to.
fn destination(file: &Path) -> io::Result<PathBuf> {
    match std::fs::metadata(file) {
        Ok(found) if found.is_file() => file.canonicalize(),
        Ok(_) => Err(io::Error::other("what has that name is no regular file")),
        Err(_) => Ok(file.to_owned()),
    }
}

/// What it is called until it is whole.
fn partial(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// What of the data zone a room takes: the data half of its slot, and its heap.
fn ranges_of(room: Room) -> [Range<usize>; 2] {
    let (offset, half) = slot_offset(room.slot);
    [offset + half..offset + 2 * half, room.arena.0..room.arena.0 + room.arena.1]
}

impl Loading {
    fn restored(
        room: Room,
        extension: manifest::Extension,
        (bias, missing): (u64, Vec<String>),
        (file, terms, clamp): (String, Terms, Option<Rc<usize>>),
        image: Rc<Vec<u8>>,
        rows: Vec<usize>,
    ) -> Self {
        Self {
            purpose: Purpose::Load,
            name: extension.name,
            file,
            terms,
            clamp,
            image,
            room,
            handlers: extension.handlers,
            bias,
            missing,
            kill_safe: extension.kill_safe,
            save: extension.save,
            state_version: extension.state_version,
            rows,
            init_row: 0,
            ports: Vec::new(),
        }
    }
}

//! A sandbox: its zones, what is loaded into them, and the tables that participants read.
#![expect(unsafe_code, reason = "writes the tables through the supervisor's aliases")]

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ext_api::abi::{
    ABI_VERSION, Entry, ExtensionEntry, HandlerEntry, MAPS_MAX, MapRecord, SUPERBLOCK_MAGIC,
    Superblock,
};
use ext_api::limits::{CONTEXTS_MAX, HANDLERS_MAX, HUGE_PAGE_LEN, PROCESSES_MAX, SLOTS_MAX};
use libos::arena::Arena;
use libos::data::Common;
use libos::image::{self, Image, ImageError, Imports, NoImports};
use libos::layout::{
    self, ARENAS_OFFSET, EXTENSIONS_OFFSET, HANDLERS_OFFSET, LIBOS_ARENA_LEN, slot_offset,
};
use libos::manifest;

use crate::worker::{self, Outcome};
use crate::zones::{Zones, random};

static LIBOS: &[u8] = include_bytes!(env!("SBX_LIBOS_IMAGE"));

/// Why the sandbox could not do what it was asked.
#[derive(Debug)]
pub enum SandboxError {
    /// The kernel refused; what was being done, and its error.
    Kernel(&'static str, io::Error),
    /// The file is no image.
    Image(String, ImageError),
    /// The extension's `init` did not succeed.
    Init(String),
    /// Something that has a limit is full, or a name is taken or unknown.
    Refused(String),
}

impl fmt::Display for SandboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(doing, error) => write!(f, "{doing}: {error}"),
            Self::Image(file, error) => write!(f, "{file}: {error}"),
            Self::Init(why) => write!(f, "the extension's init failed: {why}"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for SandboxError {}

/// Where extensions' imports lead: into libos.
struct LibosImports {
    exports: HashMap<String, u64>,
    missing: u64,
}

impl Imports for LibosImports {
    fn find(&self, name: &str) -> Option<u64> {
        self.exports.get(name).copied()
    }

    fn missing(&self) -> u64 {
        self.missing
    }
}

/// One loaded extension.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its name.
    pub name: String,
    /// The file it came from.
    pub file: String,
    /// Its slot.
    pub slot: usize,
    /// Names of its handlers.
    pub handlers: Vec<String>,
    /// Imports that the region does not have.
    pub missing: Vec<String>,
    rows: Vec<usize>,
    arena: (usize, usize),
}

/// A sandbox, in the process that owns it.
pub struct Sandbox {
    /// The zones.
    pub zones: Zones,
    /// Its name.
    pub name: String,
    /// Entry points of libos.
    pub entry: Entry,
    /// What is loaded.
    pub loaded: Vec<Loaded>,
    imports: LibosImports,
    run_init: u64,
    join_worker: u64,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Make a sandbox with libos in slot 0.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(name: &str, len: usize) -> Result<Self, SandboxError> {
        let zones =
            Zones::create(len).map_err(|error| SandboxError::Kernel("making the zones", error))?;
        let place = zones.place;
        let mut image = image::place(LIBOS, 0, place, &NoImports)
            .map_err(|error| SandboxError::Image("the built-in libos".into(), error))?;
        let symbol = |name: &str| image.symbol(name).unwrap_or(0);
        let entry = Entry {
            call: symbol("sbx_call"),
            find: symbol("sbx_find"),
            release: symbol("sbx_release"),
            touch: symbol("sbx_touch"),
            join: symbol("sbx_join"),
            exec_stub: symbol("sbx_exec_stub"),
            fork_stub: symbol("sbx_fork_stub"),
        };
        let imports =
            LibosImports { exports: exports(&image), missing: symbol("sbx_missing_import") };
        let (run_init, join_worker) = (symbol("sbx_run_init"), symbol("sbx_join_worker"));
        let (boot, hello) = (symbol("SBX_BOOT"), symbol("sbx_hello"));
        let words = [
            place.cache(),
            place.base + HANDLERS_OFFSET,
            place.stacks(),
            CONTEXTS_MAX * ext_api::limits::STACK_LEN,
            place.base,
            place.len,
            place.base + EXTENSIONS_OFFSET,
        ];
        for (index, word) in words.into_iter().enumerate() {
            image
                .set_word(boot + index as u64 * 8, word as u64)
                .map_err(|error| SandboxError::Image("the built-in libos".into(), error))?;
        }
        let sandbox = Self {
            zones,
            name: name.to_owned(),
            entry,
            loaded: Vec::new(),
            imports,
            run_init,
            join_worker,
        };
        sandbox.install(&image, 0);
        sandbox.make_arena(ARENAS_OFFSET, LIBOS_ARENA_LEN)?;
        sandbox.publish_extension(&image, 0, "libos", (ARENAS_OFFSET, LIBOS_ARENA_LEN));
        sandbox.publish_handler(0, 0, hello, "libos.hello", "()");
        sandbox.write_superblock()?;
        Ok(sandbox)
    }

    /// The common area.
    #[must_use]
    pub fn common(&self) -> Common {
        // SAFETY: the alias covers the data zone and lives as long as the sandbox.
        unsafe { Common::at_alias(self.zones.data.alias() as usize) }
    }

    fn write_superblock(&self) -> Result<(), SandboxError> {
        let place = self.zones.place;
        let empty = MapRecord { addr: 0, len: 0, prot: 0, zone: 0, offset: 0 };
        let mut maps = [empty; MAPS_MAX];
        let mut map_count = 0;
        for (to, record) in maps.iter_mut().zip(layout::maps(place)) {
            *to = record;
            map_count += 1;
        }
        let mut name = [0; 32];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let superblock = Superblock {
            magic: SUPERBLOCK_MAGIC,
            abi_version: ABI_VERSION,
            size: size_of::<Superblock>() as u32,
            base: place.base as u64,
            len: place.len as u64,
            sandbox_id: random().map_err(|e| SandboxError::Kernel("drawing an id", e))?,
            flags: 0,
            supervisor_pid: std::process::id(),
            map_count,
            entry: self.entry,
            name,
            maps,
            handlers: (place.base + HANDLERS_OFFSET) as u64,
            extensions: (place.base + EXTENSIONS_OFFSET) as u64,
        };
        // SAFETY: the control zone begins with the superblock, and nobody else has it yet.
        unsafe { self.zones.control.alias().cast::<Superblock>().write(superblock) };
        Ok(())
    }

    /// Copy an image into its slot.
    fn install(&self, image: &Image, slot: usize) {
        let place = self.zones.place;
        let sealed = (image.boundary - image.start) as usize;
        let (code, data) = image.bytes.split_at(sealed.min(image.bytes.len()));
        let in_half = (image.start - place.code_half(slot).start as u64) as usize;
        self.zones.code.write(layout::code_file_offset(slot) + in_half, code);
        self.zones.data.write(place.data_half(slot).start - place.base, data);
    }

    fn make_arena(&self, offset: usize, len: usize) -> Result<(), SandboxError> {
        self.zones
            .commit(offset, len)
            .map_err(|error| SandboxError::Kernel("reserving memory for the heap", error))?;
        // SAFETY: within the data zone's alias, zero, and in no arena that is in use.
        let base = unsafe { self.zones.data.alias().add(offset) };
        // SAFETY: as above.
        let arena = unsafe { Arena::format(base, len) };
        arena.map(|_| ()).ok_or_else(|| SandboxError::Refused(format!("a heap of {len} bytes")))
    }

    fn extension_row(&self, slot: usize) -> *mut ExtensionEntry {
        assert!(slot < SLOTS_MAX);
        let first = self.zones.control.alias().wrapping_add(EXTENSIONS_OFFSET);
        first.cast::<ExtensionEntry>().wrapping_add(slot)
    }

    fn handler_row(&self, index: usize) -> *mut HandlerEntry {
        assert!(index < HANDLERS_MAX);
        let first = self.zones.control.alias().wrapping_add(HANDLERS_OFFSET);
        first.cast::<HandlerEntry>().wrapping_add(index)
    }

    fn publish_extension(&self, image: &Image, slot: usize, name: &str, arena: (usize, usize)) {
        // SAFETY: only the supervisor writes the row; readers check the generation.
        let row = unsafe { &mut *self.extension_row(slot) };
        row.name_len = name.len() as u32;
        row.name = [0; 32];
        row.name[..name.len()].copy_from_slice(name.as_bytes());
        row.text = image.text;
        row.eh_frame_hdr = image.eh_frame_hdr;
        row.image = image.start;
        [row.tls_init, row.tls_init_len, row.tls_len, row.tls_align] = image.tls;
        row.arena = (self.zones.place.base + arena.0) as u64;
        row.arena_len = arena.1 as u64;
        row.generation.fetch_add(1, Ordering::Release);
    }

    /// Write a handler's row and make it live; its handle.
    fn publish_handler(&self, index: usize, slot: usize, code: u64, name: &str, sig: &str) -> u64 {
        // SAFETY: only the supervisor writes the row, which is not live.
        let row = unsafe { &mut *self.handler_row(index) };
        row.slot = slot as u32;
        row.code.store(code, Ordering::Relaxed);
        row.name_len = name.len() as u32;
        row.name[..name.len()].copy_from_slice(name.as_bytes());
        row.signature_len = sig.len() as u32;
        row.signature[..sig.len()].copy_from_slice(sig.as_bytes());
        let generation = row.generation.fetch_add(1, Ordering::Release) + 1;
        u64::from(generation) << 32 | index as u64
    }

    fn retire_handler(&self, index: usize) {
        // SAFETY: only the supervisor writes the row.
        let row = unsafe { &*self.handler_row(index) };
        row.generation.fetch_add(1, Ordering::Release);
    }

    fn free_rows(&self, count: usize) -> Result<Vec<usize>, SandboxError> {
        let rows: Vec<usize> = (1..HANDLERS_MAX)
            .filter(|&index| {
                // SAFETY: a row of the table.
                let row = unsafe { &*self.handler_row(index) };
                row.generation.load(Ordering::Relaxed).is_multiple_of(2)
            })
            .take(count)
            .collect();
        if rows.len() == count {
            return Ok(rows);
        }
        Err(SandboxError::Refused(format!(
            "the handler table is full ({HANDLERS_MAX} rows); unload an extension first"
        )))
    }

    /// First gap between arenas that is large enough.
    fn free_arena(&self, len: usize) -> Result<usize, SandboxError> {
        let mut taken: Vec<_> = self.loaded.iter().map(|ext| ext.arena).collect();
        taken.sort_unstable();
        let mut at = ARENAS_OFFSET + LIBOS_ARENA_LEN;
        for (start, taken_len) in taken {
            if at + len <= start {
                break;
            }
            at = start + taken_len;
        }
        if at + len <= self.zones.place.len {
            return Ok(at);
        }
        Err(SandboxError::Refused(format!(
            "the region has no room for a heap of {} MiB; start the sandbox with a larger --size",
            len >> 20
        )))
    }

    /// Load an extension from a file and run its `init` in a worker. Its place in the list.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing stays loaded then.
    pub fn load(&mut self, file: &Path, config: &str) -> Result<&Loaded, SandboxError> {
        let shown = file.display().to_string();
        let bytes = std::fs::read(file)
            .map_err(|error| SandboxError::Refused(format!("{shown}: {error}")))?;
        let as_image = |error| SandboxError::Image(shown.clone(), error);
        let (slot, image, extension) = self.place_in_free_slot(&bytes).map_err(as_image)?;
        if self.loaded.iter().any(|known| known.name == extension.name) {
            return Err(SandboxError::Refused(format!(
                "an extension named {} is loaded already",
                extension.name
            )));
        }
        let arena = (self.free_arena(extension.heap_len)?, extension.heap_len);
        let rows = self.free_rows(extension.handlers.len().max(1))?;
        self.make_arena(arena.0, arena.1)?;
        self.install(&image, slot);
        self.publish_extension(&image, slot, &extension.name, arena);
        if let Err(error) = self.init(&image, slot, &extension, rows[0], config) {
            self.clear_slot(slot, arena);
            return Err(error);
        }
        for (handler, &row) in extension.handlers.iter().zip(&rows) {
            self.publish_handler(row, slot, handler.code, &handler.name, &handler.signature);
        }
        self.loaded.push(Loaded {
            name: extension.name,
            file: shown,
            slot,
            handlers: extension.handlers.iter().map(|handler| handler.name.clone()).collect(),
            missing: image.missing,
            rows: rows.into_iter().take(extension.handlers.len()).collect(),
            arena,
        });
        Ok(&self.loaded[self.loaded.len() - 1])
    }

    /// The first free slot that the image fits, small ones first.
    fn place_in_free_slot(
        &self,
        bytes: &[u8],
    ) -> Result<(usize, Image, manifest::Extension), ImageError> {
        let mut refusal = ImageError::Manifest("every slot is in use; unload an extension".into());
        for slot in 1..SLOTS_MAX {
            if self.loaded.iter().any(|known| known.slot == slot) {
                continue;
            }
            match image::place(bytes, slot, self.zones.place, &self.imports) {
                Ok(image) => {
                    let extension = manifest::read(&image)?;
                    return Ok((slot, image, extension));
                }
                Err(error @ ImageError::TooLarge { .. }) => refusal = error,
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    fn init(
        &self,
        image: &Image,
        slot: usize,
        extension: &manifest::Extension,
        row: usize,
        config: &str,
    ) -> Result<(), SandboxError> {
        let handle = self.publish_handler(row, slot, self.run_init, "libos.init", "");
        let [first, count] = image.constructors;
        let args = [first, count, extension.init, config.as_ptr() as u64, config.len() as u64];
        let outcome = self.call_in_worker(handle, &args);
        self.retire_handler(row);
        match outcome? {
            Outcome { status: 0 | 1, .. } => Ok(()),
            Outcome { bytes, status, .. } => Err(SandboxError::Init(if bytes.is_empty() {
                format!("status {status}")
            } else {
                String::from_utf8_lossy(&bytes).into_owned()
            })),
        }
    }

    /// Run one upcall in a fresh worker.
    ///
    /// # Errors
    /// The worker could not be made, or died.
    pub fn call_in_worker(&self, handle: u64, args: &[u64]) -> Result<Outcome, SandboxError> {
        let swept = |pid, status| self.sweep(pid, status);
        worker::call(&self.zones, self.entry.call, self.join_worker, handle, args, swept)
            .map_err(|error| SandboxError::Kernel("the worker", error))
    }

    /// Handle and signature of a live handler.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(u64, String)> {
        (1..HANDLERS_MAX).find_map(|index| {
            // SAFETY: a row of the table.
            let row = unsafe { &*self.handler_row(index) };
            let generation = row.generation.load(Ordering::Relaxed);
            let same = row.name.get(..row.name_len as usize) == Some(name.as_bytes());
            let signature = row.signature.get(..row.signature_len as usize)?;
            (generation % 2 == 1 && same).then(|| {
                let handle = u64::from(generation) << 32 | index as u64;
                (handle, String::from_utf8_lossy(signature).into_owned())
            })
        })
    }

    /// Unload an extension: stop new upcalls, wait until none is inside, give its memory back.
    ///
    /// # Errors
    /// No such extension, or an upcall that does not end within five seconds.
    pub fn unload(&mut self, name: &str) -> Result<(), SandboxError> {
        let index =
            self.loaded.iter().position(|known| known.name == name).ok_or_else(|| {
                SandboxError::Refused(format!("no extension named {name} is loaded"))
            })?;
        for &row in &self.loaded[index].rows {
            // SAFETY: only the supervisor writes the row.
            let live = unsafe { &*self.handler_row(row) };
            if live.generation.load(Ordering::Relaxed) % 2 == 1 {
                self.retire_handler(row);
            }
        }
        self.wait_until_left(Duration::from_secs(5))?;
        let extension = self.loaded.remove(index);
        self.clear_slot(extension.slot, extension.arena);
        Ok(())
    }

    fn clear_slot(&self, slot: usize, arena: (usize, usize)) {
        // SAFETY: only the supervisor writes the row.
        let row = unsafe { &mut *self.extension_row(slot) };
        row.generation.fetch_add(1, Ordering::Release);
        (row.arena, row.arena_len) = (0, 0);
        let (offset, half) = slot_offset(slot);
        self.zones.discard(offset + half, half);
        self.zones.discard(arena.0, arena.1.next_multiple_of(HUGE_PAGE_LEN));
    }

    /// Wait until every upcall that was open when this began has ended.
    fn wait_until_left(&self, patience: Duration) -> Result<(), SandboxError> {
        global_barrier();
        let common = self.common();
        let mut open: Vec<(usize, u64)> = (0..CONTEXTS_MAX)
            .filter(|&index| common.claim(index).load().pid != 0)
            .map(|index| (index, common.context(index).sequence.load(Ordering::Acquire)))
            .filter(|(_, sequence)| sequence % 2 == 1)
            .collect();
        let start = Instant::now();
        loop {
            open.retain(|&(index, sequence)| {
                common.claim(index).load().pid != 0
                    && common.context(index).sequence.load(Ordering::Acquire) == sequence
            });
            if open.is_empty() {
                return Ok(());
            }
            if start.elapsed() > patience {
                return Err(SandboxError::Refused(format!(
                    "{} upcalls are still inside; the extension takes no new ones, unload it later",
                    open.len()
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Take back what the process `pid` held: it is dead.
    pub fn sweep(&self, pid: u32, status: i32) {
        let common = self.common();
        for index in 0..CONTEXTS_MAX {
            let seen = common.claim(index).load();
            if seen.pid == pid {
                common.end_context(index, seen);
            }
        }
        for row in 0..PROCESSES_MAX {
            let process = common.process(row);
            let seen = process.claim.load();
            if seen.pid == pid {
                process.status.store(status, Ordering::Relaxed);
                process.ended_pid.store(pid, Ordering::Relaxed);
                process.ended.store(seen.generation, Ordering::Release);
                process.claim.free(seen);
            }
        }
    }
}

/// The table of what libos offers.
fn exports(image: &Image) -> HashMap<String, u64> {
    let table = image.symbol("SBX_EXPORTS").unwrap_or(0);
    let (first, count) = (image.word_at(table).unwrap_or(0), image.word_at(table + 8).unwrap_or(0));
    (0..count)
        .filter_map(|index| {
            let row = first + index * 24;
            let (name, len) = (image.word_at(row)?, image.word_at(row + 8)?);
            let name = std::str::from_utf8(image.bytes_at(name, len as usize)?).ok()?;
            Some((name.to_owned(), image.word_at(row + 16)?))
        })
        .collect()
}

/// Make every participant's earlier stores visible, and its later loads see ours.
fn global_barrier() {
    const GLOBAL: usize = 1;
    const GLOBAL_EXPEDITED: usize = 2;
    for command in [GLOBAL_EXPEDITED, GLOBAL] {
        // SAFETY: takes numbers only.
        if unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } == 0 {
            return;
        }
    }
}

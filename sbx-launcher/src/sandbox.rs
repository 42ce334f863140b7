//! A sandbox: its zones, what is loaded into them, and the tables that participants read.
#![expect(unsafe_code, reason = "writes the tables through the supervisor's aliases")]

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use ext_api::abi::{
    ABI_VERSION, Entry, ExtensionEntry, HandlerEntry, MAPS_MAX, MapRecord, NO_EVENT,
    SUPERBLOCK_MAGIC, Status, Superblock,
};
use ext_api::calls::SET_WORDS;
use ext_api::limits::{
    BUDGET_NS_DEFAULT, CONTEXTS_MAX, HANDLERS_MAX, INBOX_EVENTS_MAX, NESTING_MAX, PROCESSES_MAX,
    SLOTS_MAX, TIMERS_MAX,
};
use libos::arena::Arena;
use libos::bare::is_bare;
use libos::data::{Common, Joined};
use libos::image::{Image, ImageError, Imports};
use libos::layout::{self, ARENAS_OFFSET, EXTENSIONS_OFFSET, HANDLERS_OFFSET};
use libos::mailbox::{EVENT_WORDS, Taken};

use crate::failpoint::{Point, pass};
use crate::hooks::Happened;
use crate::memory;
use crate::slot_zero::{LIBOS, SlotZero};
use crate::spaces::{Named, Spaces};
use crate::zones::{Pages, Zones, random};

pub mod asked;
mod carry;
pub mod extensions;
mod image_file;
pub mod ports;
mod snapshot;
pub mod terms;
pub mod upgrade;

use extensions::{Loaded, Retired, Room};
use upgrade::Upgrading;

/// Rows of the handler table that are libos's own.
const LIBOS_ROWS: usize = 7;
const POST_SIGNATURE: &str =
    "(how: u64, to: u64, handler: u64, a: u64, b: u64, c: u64, d: u64) -> u64";

const TIMER_SIGNATURE: &str = "(first_ns: u64, flags: u64, period_ns: u64, slack_ns: u64, how: u64, \
                               to: u64, handler: u64, a: u64, b: u64) -> u64";

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
    /// This process has ended in an upcall that was waited for.
    Ended(u32),
}

impl fmt::Display for SandboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(doing, error) => write!(f, "{doing}: {error}"),
            Self::Image(file, error) => write!(f, "{file}: {error}"),
            Self::Init(why) => write!(f, "the extension's init failed: {why}"),
            Self::Refused(why) => f.write_str(why),
            Self::Ended(pid) => write!(f, "pid {pid} has ended inside of an upcall; try again"),
        }
    }
}

impl std::error::Error for SandboxError {}

/// Where extensions' imports lead: into libos.
struct LibosImports {
    libos: SlotZero,
    /// Made when the first extension is loaded: most sandboxes that live for one command have none.
    exports: OnceCell<HashMap<String, u64>>,
}

impl Imports for LibosImports {
    fn find(&self, name: &str) -> Option<u64> {
        let exports = self.exports.get_or_init(|| self.libos.exports().into_iter().collect());
        exports.get(name).copied()
    }

    fn missing(&self) -> u64 {
        self.libos.symbol("sbx_missing_import")
    }
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
    /// Where the gate's code is, in which an upcall is not whole, and its way out.
    pub gate: Gate,
    imports: LibosImports,
    run_init: u64,
    join_worker: u64,
    serve: u64,
    runtime: u64,
    wait: u64,
    wait_on: [u64; 2],
    /// What tainted and quarantined handlers run instead.
    restarting: u64,
    quarantined: u64,
    /// What handlers run while their extension is upgraded, and what hands the state over.
    waiting: u64,
    run_upgrade: u64,
    upgrading: Option<Upgrading>,
    /// Why the last upgrade came to nothing, until somebody asks.
    pub upgrade_failed: Option<String>,
    /// Participants of other pid namespaces.
    pub spaces: Spaces,
    /// Names of extensions that are loaded or being loaded.
    names: Vec<String>,
    /// Names of those that are being restarted.
    starting: Vec<String>,
    /// Rooms that are taken.
    rooms: Vec<Room>,
    retired: Vec<Retired>,
    /// Participants that are no more.
    pub ended: Ended,
    /// Rows of the handler table that are taken, and their handlers' CPU time.
    rows: BTreeSet<usize>,
    budgets: HashMap<usize, u64>,
    /// Counts the changes to what is above.
    pub changes: u64,
    /// How many of them the keeper knows; none if there is no keeper.
    pub kept: Option<u64>,
    /// What has happened to processes since the hooks ran last.
    pub happened: Vec<Happened>,
    /// Processes that hooks were told of, and of whose end they are to be told.
    told_of: HashSet<u32>,
    /// Handlers that policies ask, and about which calls.
    by_policy: Vec<(String, [u64; SET_WORDS])>,
    /// Local sockets of its programs go through the region.
    carries_sockets: bool,
    /// How the network's worker waits.
    pub network_waits: ports::Waits,
    /// Offset of the pool of buffers, once there is one.
    pool: Option<usize>,
    port_numbers: ports::Numbers,
    seat_numbers: ports::Numbers,
    clamp_numbers: ports::Numbers,
    next_seat: usize,
    /// Ports that processes serve themselves.
    shared: Vec<ports::Shared>,
    /// The changes that the hook table knows.
    hooks_of: Option<u64>,
}

/// An upcall that is open, as its frame says.
#[derive(Debug, Clone, Copy)]
pub struct OpenFrame {
    /// Row of the handler table.
    pub row: usize,
    /// The code that runs.
    pub code: u64,
    /// Its slot, which may be another than the row's by now.
    pub slot: usize,
}

/// How many participants have ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended {
    /// All.
    pub processes: u64,
    /// Those of them that were killed inside an upcall.
    pub inside: u64,
}

/// Addresses of the gate.
#[derive(Debug, Clone)]
pub struct Gate {
    /// Code in which an upcall is about to begin, or over.
    pub ranges: [Range<u64>; 3],
    /// Ends the innermost upcall of a context.
    pub leave: u64,
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
    pub fn create(name: &str, len: usize, pages: Pages) -> Result<Self, SandboxError> {
        Self::create_at(name, len, None, pages)
    }

    /// As [`Sandbox::create`], with the region at `base`.
    fn create_at(
        name: &str,
        len: usize,
        base: Option<usize>,
        pages: Pages,
    ) -> Result<Self, SandboxError> {
        let zones = Zones::create(len, base, pages)
            .map_err(|error| SandboxError::Kernel("making the zones", error))?;
        let place = zones.place;
        let libos = SlotZero::at(place);
        let symbol = |name: &str| libos.symbol(name);
        let entry = Entry {
            call: symbol("sbx_call"),
            find: symbol("sbx_find"),
            release: symbol("sbx_release"),
            touch: symbol("sbx_touch"),
            join: symbol("sbx_join"),
            exec_stub: symbol("sbx_exec_stub"),
            fork_stub: symbol("sbx_fork_stub"),
            call_block: symbol("sbx_call_block"),
        };
        let (run_init, join_worker) = (symbol("sbx_run_init"), symbol("sbx_join_worker"));
        let (hello, wait) = (symbol("sbx_hello"), symbol("sbx_wait"));
        let (post, peer) = (symbol("sbx_post"), symbol("sbx_peer"));
        let timers = ["sbx_timer", "sbx_cancel", "sbx_expire", "sbx_lend"].map(symbol);
        let (serve, runtime) = (symbol("sbx_serve"), symbol("SBX_RUNTIME"));
        let wait_on = [symbol("sbx_wait_on"), symbol("sbx_wake_on")];
        let stubs = [
            symbol("sbx_restarting"),
            symbol("sbx_quarantined"),
            symbol("sbx_upgrading"),
            symbol("sbx_run_upgrade"),
        ];
        let words: [u64; 6] = libos.addresses_at(symbol("SBX_GATE"));
        let range = |index: usize| words[index]..words[index + 1];
        let gate = Gate { ranges: [0, 2, 4].map(range), leave: words[4] };
        let sandbox = Self {
            zones,
            name: name.to_owned(),
            entry,
            loaded: Vec::new(),
            gate,
            imports: LibosImports { libos, exports: OnceCell::new() },
            run_init,
            join_worker,
            serve,
            runtime,
            wait,
            wait_on,
            restarting: stubs[0],
            quarantined: stubs[1],
            waiting: stubs[2],
            run_upgrade: stubs[3],
            upgrading: None,
            spaces: Spaces::default(),
            upgrade_failed: None,
            names: Vec::new(),
            starting: Vec::new(),
            rooms: Vec::new(),
            retired: Vec::new(),
            ended: Ended::default(),
            rows: BTreeSet::new(),
            budgets: HashMap::new(),
            changes: 0,
            kept: None,
            happened: Vec::new(),
            told_of: HashSet::new(),
            by_policy: Vec::new(),
            carries_sockets: false,
            network_waits: ports::Waits::default(),
            pool: None,
            port_numbers: ports::Numbers::new(),
            seat_numbers: ports::Numbers::new(),
            clamp_numbers: ports::Numbers::new(),
            next_seat: 0,
            shared: Vec::new(),
            hooks_of: None,
        };
        sandbox.complete_libos(libos);
        let first_life = random().map_err(|e| SandboxError::Kernel("drawing a number", e))? as u32;
        sandbox.common().timers().first_life.store(first_life, Ordering::Relaxed);
        // No heap: whatever libos allocates, it does for the extension that runs.
        sandbox.publish_extension(&libos.described(), 0, "libos", None);
        sandbox.publish_handler(0, 0, hello, "libos.hello", "()");
        sandbox.publish_handler(1, 0, post, "libos.post", POST_SIGNATURE);
        sandbox.publish_handler(2, 0, peer, "libos.peer", "(pid: u64) -> u64");
        sandbox.publish_handler(3, 0, timers[0], "libos.timer", TIMER_SIGNATURE);
        sandbox.publish_handler(4, 0, timers[1], "libos.cancel", "(timer: u64) -> bool");
        sandbox.publish_handler(5, 0, timers[2], "libos.expire", "(timer: u64)");
        sandbox.publish_handler(6, 0, timers[3], "libos.lend", "()");
        sandbox.write_superblock()?;
        Ok(sandbox)
    }

    /// Addresses that a server needs: libos's `join` and `serve`.
    #[must_use]
    pub const fn server_entries(&self) -> [u64; 2] {
        [self.join_worker, self.serve]
    }

    /// Addresses that the network's worker needs: libos's `join` and its runtime.
    #[must_use]
    pub const fn network_entries(&self) -> [u64; 2] {
        [self.join_worker, self.runtime]
    }

    /// The common area.
    #[must_use]
    pub fn common(&self) -> Common {
        // SAFETY: the alias covers the data zone and lives as long as the sandbox.
        unsafe { Common::at_alias(self.zones.data.alias() as usize) }
    }

    /// Make slot 0, whose code is in its zone already, what it is in this region.
    fn complete_libos(&self, libos: SlotZero) {
        let place = self.zones.place;
        let (code, data) = (place.code_half(0), place.data_half(0).start);
        self.zones.data.write(data - place.base, SlotZero::data());
        let boot = [
            place.cache(),
            place.base + HANDLERS_OFFSET,
            place.stacks(),
            CONTEXTS_MAX * ext_api::limits::STACK_LEN,
            place.base,
            place.len,
            place.base + EXTENSIONS_OFFSET,
        ];
        let boot = (0..).step_by(8).zip(boot);
        let boot = boot.map(|(at, word)| (libos.symbol("SBX_BOOT") + at, word as u64));
        for (address, word) in libos.addresses().chain(boot) {
            let (address, word) = (address as usize, word.to_le_bytes());
            if code.contains(&address) {
                self.zones.code.write(layout::code_file_offset(0) + address - code.start, &word);
            } else {
                self.zones.data.write(address - place.base, &word);
            }
        }
    }

    fn write_superblock(&self) -> Result<(), SandboxError> {
        let place = self.zones.place;
        let empty = MapRecord { addr: 0, len: 0, prot: 0, zone: 0, offset: 0 };
        let mut maps = [empty; MAPS_MAX];
        let mut map_count = 0;
        let slots = if self.zones.pages == Pages::Small { 1 } else { SLOTS_MAX };
        let needed = layout::maps(place).take(layout::MAPS_BEFORE_SLOTS + slots);
        for (to, record) in maps.iter_mut().zip(needed) {
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
            wait: self.wait,
            wait_on: self.wait_on[0],
            wake_on: self.wait_on[1],
            pool: 0.into(),
        };
        // SAFETY: the control zone begins with the superblock, and nobody else has it yet.
        unsafe { self.zones.control.alias().cast::<Superblock>().write(superblock) };
        Ok(())
    }

    /// What the keeper has to know is no longer what it was.
    pub const fn changed(&mut self) {
        self.changes += 1;
    }

    /// Is there something that the keeper does not know?
    #[must_use]
    pub fn is_unkept(&self) -> bool {
        self.kept != Some(self.changes)
    }

    /// The calling process is the supervisor.
    pub fn set_supervisor(&self) {
        let superblock = self.zones.control.alias().cast::<Superblock>();
        // SAFETY: the control zone begins with the superblock.
        let pid = unsafe { &raw mut (*superblock).supervisor_pid };
        // SAFETY: only the supervisor writes it; a whole word.
        unsafe { pid.write_volatile(std::process::id()) };
        self.common().supervisor().store(std::process::id(), Ordering::Relaxed);
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

    /// The built-in libos as an ELF file, and what its address 0 has become.
    #[must_use]
    pub fn libos(&self) -> (&'static [u8], u64) {
        (LIBOS, self.imports.libos.described().bias)
    }

    /// Bytes used of the heap at `offset`, as the heap says.
    #[must_use]
    pub fn heap_used(&self, offset: usize) -> Option<usize> {
        let base = self.zones.data.alias().wrapping_add(offset);
        // SAFETY: within the data zone's alias.
        unsafe { Arena::at(base) }.ok().map(|arena| arena.used())
    }

    /// How much is used of what is limited: its name, the use, the limit.
    #[must_use]
    pub fn uses(&self) -> [(&'static str, u64, u64); 6] {
        let common = self.common();
        let claimed = |range: Range<usize>, is: &dyn Fn(usize) -> bool| {
            range.filter(|&index| is(index)).count() as u64
        };
        let processes = claimed(common.rows(), &|row| common.process(row).claim.load().pid != 0);
        let contexts = claimed(common.contexts(), &|index| common.claim(index).load().pid != 0);
        let heaps: usize = self.rooms.iter().map(|room| room.arena.1).sum();
        let room_for_heaps = self.heaps_end() - ARENAS_OFFSET;
        [
            ("participants", processes, PROCESSES_MAX as u64),
            ("contexts", contexts, CONTEXTS_MAX as u64),
            ("slots", self.rooms.len() as u64 + 1, SLOTS_MAX as u64),
            ("handlers", self.rows.len() as u64, HANDLERS_MAX as u64),
            ("timers", common.timers().active() as u64, TIMERS_MAX as u64),
            ("heap MiB", (heaps >> 20) as u64, (room_for_heaps >> 20) as u64),
        ]
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

    fn publish_extension(
        &self,
        image: &Image,
        slot: usize,
        name: &str,
        arena: Option<(usize, usize)>,
    ) {
        // SAFETY: only the supervisor writes the row; readers check the generation.
        let row = unsafe { &mut *self.extension_row(slot) };
        row.name_len = name.len() as u32;
        row.name = [0; 32];
        row.name[..name.len()].copy_from_slice(name.as_bytes());
        row.text = image.text;
        row.eh_frame_hdr = image.eh_frame_hdr;
        row.image = image.start;
        [row.tls_init, row.tls_init_len, row.tls_len, row.tls_align] = image.tls;
        let arena = arena.map(|(offset, len)| (self.zones.place.base + offset, len));
        (row.arena, row.arena_len) = arena.map_or((0, 0), |(at, len)| (at as u64, len as u64));
        row.generation.fetch_add(1, Ordering::Release);
    }

    /// Write a handler's row and make it live; its handle.
    fn publish_handler(&self, index: usize, slot: usize, code: u64, name: &str, sig: &str) -> u64 {
        // SAFETY: only the supervisor writes the row, which is not live.
        let row = unsafe { &mut *self.handler_row(index) };
        row.slot = slot as u32;
        row.bare.store(0, Ordering::Relaxed);
        row.code.store(code, Ordering::Release);
        row.name_len = name.len() as u32;
        row.name[..name.len()].copy_from_slice(name.as_bytes());
        row.event_words = event_words(sig);
        row.signature_len = sig.len() as u32;
        row.signature[..sig.len()].copy_from_slice(sig.as_bytes());
        let generation = row.generation.fetch_add(1, Ordering::Release) + 1;
        u64::from(generation) << 32 | index as u64
    }

    /// Rows of the handler table for `count` handlers that are about to be live.
    fn reserve_rows(&mut self, count: usize) -> Result<Vec<usize>, SandboxError> {
        let rows: Vec<usize> =
            (LIBOS_ROWS..HANDLERS_MAX).filter(|row| !self.rows.contains(row)).take(count).collect();
        if rows.len() < count {
            return Err(SandboxError::Refused(format!(
                "the handler table is full ({HANDLERS_MAX} rows); unload an extension first"
            )));
        }
        self.rows.extend(&rows);
        Ok(rows)
    }

    fn release_rows(&mut self, rows: &[usize]) {
        self.rows.retain(|row| !rows.contains(row));
    }

    /// Make a handler stale, if it is live, and its row free.
    fn withdraw(&mut self, row: usize) {
        self.make_stale(row);
        self.budgets.remove(&row);
        self.release_rows(&[row]);
    }

    fn make_stale(&self, row: usize) {
        if self.is_live(row) {
            // SAFETY: only the supervisor writes the row.
            unsafe { &*self.handler_row(row) }.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// The handle of the handler in `row`, as it is now.
    fn handle_of(&self, row: usize) -> u64 {
        // SAFETY: only the supervisor writes the row.
        let generation = unsafe { &*self.handler_row(row) }.generation.load(Ordering::Relaxed);
        u64::from(generation) << 32 | row as u64
    }

    /// Row and generation of the process `pid`, once it has joined.
    #[must_use]
    pub fn joined_as(&self, pid: u32) -> Option<(usize, u32)> {
        let common = self.common();
        common.rows().find_map(|row| {
            let (process, seen) = (common.process(row), common.process(row).claim.load());
            // The first upcall is the last thing that joining does.
            let joined = seen.pid == pid && process.joined.load(Ordering::Acquire) != 0;
            joined.then_some((row, seen.generation))
        })
    }

    fn is_live(&self, row: usize) -> bool {
        // SAFETY: only the supervisor writes the row.
        unsafe { &*self.handler_row(row) }.generation.load(Ordering::Relaxed) % 2 == 1
    }

    /// Let the live handler of `row` be other code from now on.
    fn repoint(&self, row: usize, slot: usize, code: u64) {
        // SAFETY: only the supervisor writes the row; nobody else holds a reference to `slot`.
        let row = unsafe { &mut *self.handler_row(row) };
        row.slot = slot as u32;
        row.bare.store(0, Ordering::Relaxed);
        row.code.store(code, Ordering::Release);
    }

    /// Say of the handler in `row` whether its code is known to leave the vector registers alone.
    fn publish_bare(&self, row: usize) {
        // SAFETY: only the supervisor writes the row.
        let row = unsafe { &*self.handler_row(row) };
        let code = row.code.load(Ordering::Relaxed);
        if row.bare.load(Ordering::Relaxed) != code && is_bare(code, |at| self.sealed_at(at)) {
            row.bare.store(code, Ordering::Release);
        }
    }

    /// The bytes of a slot's sealed half, from an address on.
    fn sealed_at(&self, address: u64) -> Option<&[u8]> {
        let address = usize::try_from(address).ok()?;
        let slot = self.zones.place.slot_of(address)?;
        let half = self.zones.place.code_half(slot);
        let offset = layout::code_file_offset(slot) + address.checked_sub(half.start)?;
        let left = half.end.checked_sub(address)?;
        Some(self.zones.code.bytes(offset, left))
    }

    /// CPU time that an upcall of the handler in `row` may take, in nanoseconds.
    #[must_use]
    pub fn budget_of(&self, row: usize) -> u64 {
        self.budgets.get(&row).copied().unwrap_or(BUDGET_NS_DEFAULT)
    }

    /// The handlers that context `index` is inside of, innermost first.
    #[must_use]
    pub fn frames_of(&self, index: usize) -> Vec<OpenFrame> {
        let context = self.common().context(index);
        let Some((_, tid)) = self.thread_of(index) else { return Vec::new() };
        let first = (self.zones.place.base + HANDLERS_OFFSET) as u64;
        let mut frames = Vec::new();
        let mut at = context.frame.load(Ordering::Relaxed);
        while at != 0 && frames.len() < NESTING_MAX {
            // The next outer one, the handler's row; last the code, unless it is the outermost.
            let Ok([outer, row, _, _, _, code]) = memory::read_words::<6>(tid, at) else { break };
            let row = row.wrapping_sub(first) as usize / size_of::<HandlerEntry>();
            let code = if outer == 0 { context.code.load(Ordering::Relaxed) } else { code };
            frames.push(OpenFrame { row, code, slot: self.slot_of(code) });
            at = outer;
        }
        frames
    }

    /// The process and the thread that hold context `index`, as they are called here. None if nobody knows that.
    #[must_use]
    pub fn thread_of(&self, index: usize) -> Option<(i32, i32)> {
        let common = self.common();
        let tid = common.context(index).tid.load(Ordering::Relaxed);
        let (space, pid) = (common.pid_space_of(index), common.claim(index).load().pid);
        self.spaces.here(Named { space, pid }, tid)
    }

    /// The slot that holds `code`; 0 for libos's own.
    fn slot_of(&self, code: u64) -> usize {
        self.zones.place.slot_of(code as usize).unwrap_or(0)
    }

    /// Note that an upcall of context `index` was ended from outside.
    pub fn note_fault(&self, index: usize, status: Status) {
        let frames = self.frames_of(index);
        if let Some(frame) = frames.first().filter(|_| status != Status::Restarting) {
            self.taint(frame.slot, status);
        }
    }

    /// The thread of context `index` has ended within the upcall `sequence`, and its process lives: what the upcall
    /// held is a dead one's from here on.
    pub fn end_upcall_of_dead(&self, index: usize, sequence: u64) {
        let context = self.common().context(index);
        let code = context.code.load(Ordering::Relaxed);
        if context.sequence.load(Ordering::Acquire) != sequence {
            return;
        }
        context.frame.store(context.stack_top.load(Ordering::Relaxed), Ordering::Relaxed);
        context.starved.store(0, Ordering::Relaxed);
        let next = sequence.wrapping_add(1);
        let ended =
            context.sequence.compare_exchange(sequence, next, Ordering::AcqRel, Ordering::Relaxed);
        if ended.is_ok() {
            self.taint(self.slot_of(code), Status::Aborted);
        }
    }

    /// An upcall of code in `slot` ended in the middle.
    fn taint(&self, slot: usize, status: Status) {
        let trouble = self.common().trouble(slot);
        trouble.faults.fetch_add(1, Ordering::Relaxed);
        trouble.status.store(status as u32, Ordering::Relaxed);
        // SAFETY: only the supervisor writes the row.
        let generation = unsafe { &*self.extension_row(slot) }.generation.load(Ordering::Relaxed);
        trouble.tainted.store(generation, Ordering::Relaxed);
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

    /// Take out what nobody will read; how many events.
    fn clear_inbox(&self, row: usize) -> u64 {
        let inbox = self.common().inbox(row);
        let mut lost = 0;
        // As many as fit: others may go on to post.
        for _ in 0..INBOX_EVENTS_MAX {
            let Taken::Event(_) = inbox.mail.pop(|_| false) else { break };
            lost += 1;
        }
        inbox.tally.lost.fetch_add(lost, Ordering::Relaxed);
        lost
    }

    /// Tell hooks that a process takes part from now on, and of its end, be that before it has joined.
    pub fn tell_of(&mut self, one: Happened) {
        self.told_of.insert(one.pid);
        self.happened.push(one);
    }

    /// Take back what the process `pid` held: it is dead.
    pub fn sweep(&mut self, pid: u32, status: i32) {
        pass(Point::SweepBegun);
        let common = self.common();
        let mut inside = false;
        let mut unread = self.told_of.remove(&pid).then_some(0);
        let named = self.spaces.named(pid);
        let is_its =
            |claimed: u32, space: u64| claimed == named.pid && (space == 0 || space == named.space);
        for index in common.contexts() {
            let seen = common.claim(index).load();
            if !is_its(seen.pid, common.pid_space_of(index)) {
                continue;
            }
            if let Some(code) = common.end_context(index, seen) {
                self.taint(self.slot_of(code), Status::Aborted);
                inside = true;
            }
        }
        self.ended.inside += u64::from(inside);
        for row in common.rows() {
            let process = common.process(row);
            let seen = process.claim.load();
            if is_its(seen.pid, process.pid_space.load(Ordering::Relaxed)) {
                let lost = self.clear_inbox(row);
                if process.joined.load(Ordering::Relaxed) != Joined::Worker as u32 {
                    if unread.is_none() {
                        // Nobody has taken notice of it until now.
                        self.happened.push(Happened::came(pid, process));
                    }
                    unread = Some(unread.unwrap_or(0) + lost);
                }
                if lost != 0 {
                    let text = format!("sbx: pid {pid} ended before {lost} events reached it\n");
                    common.log().append(text.as_bytes());
                }
                // Until somebody has the row anew nobody waits for events there.
                common.pool().idle[row / 64].fetch_and(!(1 << (row % 64)), Ordering::Relaxed);
                common.inbox(row).bell.reset();
                process.status.store(status, Ordering::Relaxed);
                process.ended_pid.store(seen.pid, Ordering::Relaxed);
                process.pid_space.store(0, Ordering::Relaxed);
                process.ended.store(seen.generation, Ordering::Release);
                process.claim.free(seen);
                self.ended.processes += 1;
            }
        }
        if let Some(unread) = unread {
            self.happened.push(Happened::went(pid, status, unread));
        }
        // Connections know who holds them by their pids alone.
        if common.rows().all(|row| common.process(row).claim.load().pid != named.pid) {
            self.take_sockets_back(named.pid);
        }
        self.spaces.forget(pid);
        self.leave_seat(pid, None);
        pass(Point::SweepDone);
    }
}

/// A status for people.
#[must_use]
pub fn status_text(status: u32) -> String {
    match Status::from_raw(status) {
        Some(known) => format!("{known:?}: {known}"),
        None => format!("status {status}"),
    }
}

/// Argument words of a handler, if an event can carry them; else [`NO_EVENT`].
#[must_use]
pub fn event_words(signature: &str) -> u32 {
    let parameters = signature.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let Some((parameters, _)) = parameters else { return NO_EVENT };
    let kinds: Vec<&str> = parameters.split(',').filter_map(|one| one.split(": ").nth(1)).collect();
    let numbers = kinds.iter().all(|kind| !matches!(*kind, "bytes" | "str" | "call" | "packet"));
    if numbers && kinds.len() <= EVENT_WORDS { kinds.len() as u32 } else { NO_EVENT }
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

//! Loading, restarting and unloading extensions.
//!
//! ```text
//!  begin ──► room, relocated image, init in a worker ──► finish: handlers live
//!                                                            │ a fault leaves the state in doubt
//!  finish ◄── begin again, in another room ◄── taint: handlers say `Restarting`, room retired
//! ```
//!
//! A room is cleared for others once every upcall that was open when it was retired has ended: a
//! thread that sleeps inside the old image must never wake up in a new one.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ext_api::limits::{HANDLERS_MAX, HUGE_PAGE_LEN, INIT_BUDGET_NS, SLOTS_MAX};
use ext_api::pool::POOL_LEN;
use libos::image::{self, Image, ImageError};
use libos::layout::{ARENAS_OFFSET, slot_offset};
use libos::manifest::{self, Hook};

use super::ports::{Opened, Whose};
use super::terms::Terms;
use super::{LIBOS_ROWS, Sandbox, SandboxError, global_barrier, image_file};
use crate::failpoint::{Point, pass};
use crate::worker::{self, Job, Outcome};

/// So many restarts within [`RESTARTS_WITHIN`] put an extension into quarantine.
pub const RESTARTS_MAX: usize = 5;
/// See [`RESTARTS_MAX`].
pub const RESTARTS_WITHIN: Duration = Duration::from_secs(10);
/// First quarantine; each further one lasts twice as long, up to [`QUARANTINE_MAX`].
const QUARANTINE_MIN: Duration = Duration::from_secs(1);
const QUARANTINE_MAX: Duration = Duration::from_secs(60);
/// How long an upcall may go on inside a retired image before it is stopped.
const GRACE: Duration = Duration::from_millis(20);

/// What an image occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Its slot.
    pub slot: usize,
    /// Offset and length of its heap.
    pub arena: (usize, usize),
}

/// How an extension is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Its handlers run.
    Live,
    /// It failed; a fresh copy is being made.
    Restarting,
    /// Its next version is taking its state over.
    Upgrading,
    /// It failed too often; the next attempt is at this time.
    Quarantined(Instant),
}

/// One handler of a loaded extension.
#[derive(Debug, Clone)]
pub struct LoadedHandler {
    /// `extension.handler`.
    pub name: String,
    pub(super) row: usize,
    pub(super) code: u64,
    /// When it runs by itself.
    pub hook: Hook,
}

/// A handler that runs by itself.
#[derive(Debug, Clone, Copy)]
pub struct Hooked {
    /// Its row of the handler table.
    pub row: usize,
    /// Its handle.
    pub handle: u64,
}

/// One loaded extension.
#[derive(Debug)]
pub struct Loaded {
    /// Its name.
    pub name: String,
    /// The file it came from.
    pub file: String,
    /// What it occupies; nothing while it waits for a restart.
    pub room: Option<Room>,
    /// Its handlers.
    pub handlers: Vec<LoadedHandler>,
    /// Imports that the region does not have.
    pub missing: Vec<String>,
    /// How it is.
    pub life: Life,
    /// How often it was restarted.
    pub restarts: usize,
    /// What the file's address 0 has become.
    pub bias: u64,
    pub(super) kill_safe: bool,
    pub(super) save: u64,
    pub(super) state_version: u64,
    recent: Vec<Instant>,
    quarantine: Duration,
    /// On what terms it was loaded.
    pub terms: Terms,
    /// The number of its clamp, if it has one.
    pub(super) clamp: Option<Rc<usize>>,
    /// The ports that its handlers are hooked to.
    pub ports: Vec<Opened>,
    image: Rc<Vec<u8>>,
}

impl Loaded {
    /// Its file, as it was read.
    pub(super) fn image(&self) -> &[u8] {
        &self.image
    }
}

/// What an extension is being loaded for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be there.
    Load,
    /// To take the place of a copy that has failed.
    Restart,
    /// To take the state of another version over.
    Upgrade,
}

/// An extension whose `init` is running.
#[derive(Debug)]
pub struct Loading {
    pub(super) purpose: Purpose,
    pub(super) name: String,
    pub(super) file: String,
    pub(super) terms: Terms,
    pub(super) clamp: Option<Rc<usize>>,
    pub(super) image: Rc<Vec<u8>>,
    pub(super) room: Room,
    pub(super) handlers: Vec<manifest::Handler>,
    pub(super) bias: u64,
    pub(super) missing: Vec<String>,
    pub(super) kill_safe: bool,
    pub(super) save: u64,
    pub(super) state_version: u64,
    pub(super) rows: Vec<usize>,
    pub(super) init_row: usize,
    pub(super) ports: Vec<Opened>,
}

/// The worker that runs an `init`, and what it is for.
pub type Begun = (Job, Loading);

/// An open upcall: a context and its sequence.
pub(super) type Open = (usize, u64);

/// A room that nobody enters any more, but that upcalls may still be in.
#[derive(Debug)]
pub struct Retired {
    room: Room,
    /// All upcalls that were open then: each may have been about to enter.
    open: Vec<Open>,
    since: Instant,
    /// The keeper must know of this change before others get the room.
    change: u64,
}

impl Sandbox {
    /// Place an extension and start its `init`.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing stays behind then.
    pub fn begin_load(
        &mut self,
        file: &Path,
        terms: &Terms,
        whose: Whose,
    ) -> Result<Begun, SandboxError> {
        let shown = file.display().to_string();
        let bytes = image_file::read(file)
            .map_err(|error| SandboxError::Refused(format!("{shown}: {error}")))?;
        self.begin(Rc::new(bytes), shown, (terms, whose), None)
    }

    fn begin(
        &mut self,
        image: Rc<Vec<u8>>,
        file: String,
        (terms, whose): (&Terms, Whose),
        rows: Option<Vec<usize>>,
    ) -> Result<Begun, SandboxError> {
        self.changed();
        let as_image = |error| SandboxError::Image(file.clone(), error);
        let (slot, placed, extension) = self.place_in_free_slot(&image).map_err(as_image)?;
        pass(Point::LoadPlaced);
        let restart = rows.is_some();
        if !restart && self.names.contains(&extension.name) {
            return Err(SandboxError::Refused(format!(
                "an extension named {} is loaded already",
                extension.name
            )));
        }
        let hooks = hooks_of(&extension);
        if whose == Whose::One {
            Self::check_listen_of(&hooks, &terms.listen)?;
            let name = std::iter::once(&extension.name[..]);
            terms.check_names(name).map_err(SandboxError::Refused)?;
        }
        let terms = terms.of(&extension.name);
        // A restart goes on with the ports that are open, and with its clamp.
        let (ports, clamp) = if restart {
            (Vec::new(), None)
        } else {
            let clamp = self.clamp(&extension, &terms)?;
            (self.open_ports(&hooks, &terms.listen, &[])?, clamp)
        };
        let room = Room { slot, arena: (self.free_arena(extension.heap_len)?, extension.heap_len) };
        let rows = match rows {
            Some(rows) => rows,
            None => self.reserve_rows(extension.handlers.len())?,
        };
        let [first, count] = placed.constructors;
        let text = [terms.config.as_ptr() as u64, terms.config.len() as u64];
        let args = [first, count, extension.init, text[0], text[1]];
        let run = (self.run_init, "libos.init");
        let begun = self.begin_init(&placed, room, &extension, run, &args);
        let (job, init_row) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                if !restart {
                    self.release_rows(&rows);
                }
                return Err(error);
            }
        };
        self.rooms.push(room);
        if !restart {
            self.names.push(extension.name.clone());
        }
        let purpose = if restart { Purpose::Restart } else { Purpose::Load };
        let loading = Loading {
            purpose,
            name: extension.name,
            file,
            terms,
            clamp,
            image,
            room,
            handlers: extension.handlers,
            bias: placed.bias,
            missing: placed.missing,
            kill_safe: extension.kill_safe,
            save: extension.save,
            state_version: extension.state_version,
            rows,
            init_row,
            ports,
        };
        Ok((job, loading))
    }

    /// Place the next version of the extension at `index` and have it take the state over. Nobody
    /// may be inside the old one.
    pub(super) fn begin_hand_over(
        &mut self,
        index: usize,
        image: Rc<Vec<u8>>,
        file: String,
        config: String,
    ) -> Result<Begun, SandboxError> {
        self.changed();
        let as_image = |error| SandboxError::Image(file.clone(), error);
        let (slot, placed, extension) = self.place_in_free_slot(&image).map_err(as_image)?;
        pass(Point::LoadPlaced);
        let room = Room { slot, arena: (self.free_arena(extension.heap_len)?, extension.heap_len) };
        let kept = self.loaded[index].ports.clone();
        let terms = Terms { config, ..self.loaded[index].terms.clone() };
        let ports = self.open_ports(&hooks_of(&extension), &terms.listen, &kept)?;
        let rows = self.rows_of_next(index, &extension.handlers)?;
        let (save, version) = (self.loaded[index].save, self.loaded[index].state_version);
        let [first, count] = placed.constructors;
        let text = [terms.config.as_ptr() as u64, terms.config.len() as u64];
        let args = [first, count, save, extension.upgrade, version, text[0], text[1]];
        let run = (self.run_upgrade, "libos.upgrade");
        let (job, init_row) = match self.begin_init(&placed, room, &extension, run, &args) {
            Ok(begun) => begun,
            Err(error) => {
                self.release_new_rows(index, &rows);
                return Err(error);
            }
        };
        self.rooms.push(room);
        let loading = Loading {
            purpose: Purpose::Upgrade,
            name: extension.name,
            file,
            terms,
            clamp: None,
            image,
            room,
            handlers: extension.handlers,
            bias: placed.bias,
            missing: placed.missing,
            kill_safe: extension.kill_safe,
            save: extension.save,
            state_version: extension.state_version,
            rows,
            init_row,
            ports,
        };
        Ok((job, loading))
    }

    /// The version that has taken the state over takes the place of the one at `index`.
    pub(super) fn succeed(&mut self, index: usize, loading: Loading) {
        self.changed();
        let known = &mut self.loaded[index];
        let (former, now) = (known.room.replace(loading.room), loading.handlers.into_iter());
        let old: Vec<usize> = known.handlers.iter().map(|handler| handler.row).collect();
        (known.file, known.terms, known.image) = (loading.file, loading.terms, loading.image);
        (known.save, known.state_version) = (loading.save, loading.state_version);
        (known.missing, known.kill_safe) = (loading.missing, loading.kill_safe);
        known.ports = loading.ports;
        known.bias = loading.bias;
        known.life = Life::Live;
        known.handlers = now
            .clone()
            .zip(&loading.rows)
            .map(|(handler, &row)| LoadedHandler {
                name: handler.name,
                row,
                code: handler.code,
                hook: handler.hook,
            })
            .collect();
        let slot = loading.room.slot;
        for (handler, &row) in now.zip(&loading.rows) {
            self.budgets.insert(row, handler.budget_ns);
            if old.contains(&row) {
                self.repoint(row, slot, handler.code);
            } else {
                self.publish_handler(row, slot, handler.code, &handler.name, &handler.signature);
            }
        }
        for row in old.into_iter().filter(|row| !loading.rows.contains(row)) {
            self.withdraw(row);
        }
        if let Some(room) = former {
            self.retire(room);
        }
    }

    /// Install the image and start its `init`, or what takes its place, in a worker.
    fn begin_init(
        &mut self,
        image: &Image,
        room: Room,
        extension: &manifest::Extension,
        (code, name): (u64, &str),
        args: &[u64],
    ) -> Result<(Job, usize), SandboxError> {
        let init_row = self.reserve_rows(1)?[0];
        let begun = self.make_arena(room.arena.0, room.arena.1).and_then(|()| {
            self.install(image, room.slot);
            self.publish_extension(image, room.slot, &extension.name, Some(room.arena));
            let handle = self.publish_handler(init_row, room.slot, code, name, "");
            self.budgets.insert(init_row, INIT_BUDGET_NS);
            self.start_worker(handle, args)
        });
        begun.map(|job| (job, init_row)).inspect_err(|_| {
            self.withdraw(init_row);
            self.clear(room);
        })
    }

    /// Run one upcall in a fresh worker.
    ///
    /// # Errors
    /// The worker could not be made.
    pub fn start_worker(&self, handle: u64, args: &[u64]) -> Result<Job, SandboxError> {
        worker::start(&self.zones, self.entry.call, self.join_worker, handle, args)
            .map_err(|error| SandboxError::Kernel("starting a worker", error))
    }

    /// Make what was loaded live, or take it away again: its `init` has ended. Its place in the
    /// list.
    ///
    /// # Errors
    /// `init` failed.
    pub fn finish_load(
        &mut self,
        loading: Loading,
        outcome: Result<Outcome, SandboxError>,
    ) -> Result<usize, SandboxError> {
        self.changed();
        self.withdraw(loading.init_row);
        self.starting.retain(|starting| *starting != loading.name);
        match outcome {
            Ok(Outcome { status: 0 | 1, .. }) if loading.purpose == Purpose::Upgrade => {
                let index = self.index_of(&loading.name)?;
                self.succeed(index, loading);
                Ok(index)
            }
            Ok(Outcome { status: 0 | 1, .. }) => {
                let index = self.make_live(loading);
                pass(Point::LoadDone);
                Ok(index)
            }
            failed => {
                self.clear(loading.room);
                match loading.purpose {
                    Purpose::Restart => self.quarantine(&loading.name),
                    Purpose::Upgrade => {
                        let index = self.index_of(&loading.name)?;
                        self.release_new_rows(index, &loading.rows);
                        self.stay(index);
                    }
                    Purpose::Load => {
                        self.release_rows(&loading.rows);
                        self.names.retain(|name| *name != loading.name);
                    }
                }
                let outcome = failed?;
                Err(SandboxError::Init(if outcome.bytes.is_empty() {
                    super::status_text(outcome.status)
                } else {
                    String::from_utf8_lossy(&outcome.bytes).into_owned()
                }))
            }
        }
    }

    /// Make live what has been put into its room already.
    pub(super) fn admit(&mut self, loading: Loading) {
        self.rooms.push(loading.room);
        self.names.push(loading.name.clone());
        self.make_live(loading);
    }

    fn make_live(&mut self, loading: Loading) -> usize {
        self.changed();
        let slot = loading.room.slot;
        for (handler, &row) in loading.handlers.iter().zip(&loading.rows) {
            self.budgets.insert(row, handler.budget_ns);
            if loading.purpose == Purpose::Restart {
                self.repoint(row, slot, handler.code);
            } else {
                self.publish_handler(row, slot, handler.code, &handler.name, &handler.signature);
            }
        }
        if let Some(index) = self.loaded.iter().position(|known| known.name == loading.name) {
            let known = &mut self.loaded[index];
            (known.room, known.life) = (Some(loading.room), Life::Live);
            known.restarts += 1;
            known.bias = loading.bias;
            for (known, handler) in known.handlers.iter_mut().zip(&loading.handlers) {
                known.code = handler.code;
            }
            return index;
        }
        let named = loading.handlers.into_iter().zip(loading.rows);
        self.loaded.push(Loaded {
            name: loading.name,
            file: loading.file,
            room: Some(loading.room),
            handlers: named
                .map(|(handler, row)| LoadedHandler {
                    name: handler.name,
                    row,
                    code: handler.code,
                    hook: handler.hook,
                })
                .collect(),
            missing: loading.missing,
            life: Life::Live,
            restarts: 0,
            bias: loading.bias,
            kill_safe: loading.kill_safe,
            save: loading.save,
            state_version: loading.state_version,
            recent: Vec::new(),
            quarantine: QUARANTINE_MIN,
            terms: loading.terms,
            clamp: loading.clamp,
            ports: loading.ports,
            image: loading.image,
        });
        self.loaded.len() - 1
    }

    /// The first free slot that the image fits, small ones first.
    pub(super) fn place_in_free_slot(
        &self,
        bytes: &[u8],
    ) -> Result<(usize, Image, manifest::Extension), ImageError> {
        let mut refusal = ImageError::Manifest("every slot is in use; unload an extension".into());
        for slot in 1..SLOTS_MAX {
            if self.rooms.iter().any(|room| room.slot == slot) {
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

    /// First gap between arenas that is large enough.
    pub(super) fn free_arena(&self, len: usize) -> Result<usize, SandboxError> {
        let mut taken: Vec<_> = self.rooms.iter().map(|room| room.arena).collect();
        taken.extend(self.pool.map(|offset| (offset, POOL_LEN)));
        taken.sort_unstable();
        let mut at = ARENAS_OFFSET;
        for (start, taken_len) in taken {
            if at + len <= start {
                break;
            }
            at = start + taken_len;
        }
        if at + len <= self.heaps_end() {
            return Ok(at);
        }
        Err(SandboxError::Refused(format!(
            "the region has no room for a heap of {} MiB; start the sandbox with a larger --size",
            len >> 20
        )))
    }

    /// Unload an extension: nobody enters it from now on. Its room is given back when the last
    /// upcall has left it.
    ///
    /// # Errors
    /// No such extension.
    pub fn unload(&mut self, name: &str) -> Result<(), SandboxError> {
        let index = self.index_of(name)?;
        if self.loaded[index].life == Life::Upgrading {
            return Err(SandboxError::Refused(format!("{name} is being upgraded; try again")));
        }
        if self.is_asked_by_policy(name) {
            return Err(SandboxError::Refused(format!("a policy in force asks {name}; it stays")));
        }
        pass(Point::UnloadBegun);
        let known = self.loaded.remove(index);
        let rows: Vec<usize> = known.handlers.iter().map(|handler| handler.row).collect();
        rows.iter().for_each(|&row| self.withdraw(row));
        self.names.retain(|known| known != name);
        if let Some(room) = known.room {
            self.retire(room);
        }
        pass(Point::UnloadDone);
        Ok(())
    }

    /// Live handlers that run by themselves, and when: within their clamps.
    pub fn hooked(&self, which: impl Fn(Hook) -> bool) -> impl Iterator<Item = (Hook, Hooked)> {
        let handlers = self.loaded.iter().flat_map(|known| {
            known.handlers.iter().map(|one| (known.terms.within(one.hook), one.row))
        });
        handlers.filter_map(move |(hook, row)| {
            let wanted = hook != Hook::None && which(hook);
            wanted.then(|| (hook, Hooked { row, handle: self.handle_of(row) }))
        })
    }

    pub(super) fn index_of(&self, name: &str) -> Result<usize, SandboxError> {
        self.loaded
            .iter()
            .position(|known| known.name == name)
            .ok_or_else(|| SandboxError::Refused(format!("no extension named {name} is loaded")))
    }

    /// Make the tables say what this state says, which is that of a supervisor before its last,
    /// unfinished changes.
    pub fn restore_tables(&mut self) {
        self.forget_published();
        let ours: Vec<usize> =
            self.loaded.iter().flat_map(|one| &one.handlers).map(|one| one.row).collect();
        (LIBOS_ROWS..HANDLERS_MAX)
            .filter(|row| !ours.contains(row))
            .for_each(|row| self.make_stale(row));
        // What was being unloaded is unloaded: its callers have seen that it is gone.
        let gone: Vec<String> = self
            .loaded
            .iter()
            .filter(|one| !one.handlers.iter().all(|handler| self.is_live(handler.row)))
            .map(|one| one.name.clone())
            .collect();
        for name in gone {
            // An upgrade of it is over with the worker that had it.
            if let Ok(index) = self.index_of(&name) {
                self.loaded[index].life = Life::Live;
            }
            let _ = self.unload(&name);
        }
        for index in 0..self.loaded.len() {
            let known = &self.loaded[index];
            let slot = known.room.map_or(0, |room| room.slot);
            let elsewhere = match known.life {
                Life::Live => None,
                Life::Restarting => Some(self.restarting),
                Life::Quarantined(_) => Some(self.quarantined),
                Life::Upgrading => Some(self.waiting),
            };
            let handlers: Vec<_> = known.handlers.iter().map(|one| (one.row, one.code)).collect();
            for (row, code) in handlers {
                self.repoint(row, slot, elsewhere.unwrap_or(code));
            }
        }
        // Upcalls have begun since the state that this one is.
        global_barrier();
        let open = self.open_upcalls();
        self.retired.iter_mut().for_each(|old| old.open.clone_from(&open));
    }

    /// Nobody can be on the way into `room` but those inside an upcall now.
    fn retire(&mut self, room: Room) {
        self.changed();
        global_barrier();
        let open = self.open_upcalls();
        let change = self.changes;
        self.retired.push(Retired { room, open, since: Instant::now(), change });
    }

    pub(super) fn open_upcalls(&self) -> Vec<Open> {
        let common = self.common();
        common
            .contexts()
            .filter(|&index| common.claim(index).load().pid != 0)
            .map(|index| (index, common.context(index).sequence.load(Ordering::Acquire)))
            .filter(|(_, sequence)| sequence % 2 == 1)
            .collect()
    }

    pub(super) fn still_open(&self, (index, sequence): Open) -> bool {
        let common = self.common();
        common.claim(index).load().pid != 0
            && common.context(index).sequence.load(Ordering::Acquire) == sequence
    }

    /// Those of `open` that run, or wait within, code of `slot`.
    fn inside(&self, open: &[Open], slot: usize) -> Vec<Open> {
        let inside = |index| self.frames_of(index).iter().any(|frame| frame.slot == slot);
        open.iter().copied().filter(|&(index, _)| inside(index)).collect()
    }

    /// Taint what has failed, restart what can be, clear the rooms that all have left. What it
    /// began is for the caller to wait for; what must be stopped comes with its upcalls.
    pub fn look_after_extensions(&mut self) -> (Vec<Begun>, Vec<Open>) {
        for index in 0..self.loaded.len() {
            if self.loaded[index].life != Life::Upgrading && self.tainted(index) {
                self.send_away(index);
            }
        }
        let mut retired = std::mem::take(&mut self.retired);
        retired.retain_mut(|old| {
            old.open.retain(|&open| self.still_open(open));
            let left = old.open.is_empty() && self.kept.is_none_or(|kept| kept >= old.change);
            if left {
                self.clear(old.room);
            }
            !left
        });
        let late = retired.iter().filter(|old| old.since.elapsed() > GRACE);
        let stop = late.flat_map(|old| self.inside(&old.open, old.room.slot)).collect();
        self.retired = retired;
        let waiting: Vec<String> = self
            .loaded
            .iter()
            .filter(|known| known.room.is_none() && !self.is_starting(&known.name))
            .filter(|known| match known.life {
                Life::Quarantined(until) => Instant::now() >= until,
                _ => true,
            })
            .map(|known| known.name.clone())
            .collect();
        let mut begun: Vec<Begun> = waiting.iter().filter_map(|name| self.restart(name)).collect();
        begun.extend(self.look_after_upgrade());
        (begun, stop)
    }

    /// True while something is to be watched for: a restart, or a room to be cleared.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.retired.is_empty()
            || self.upgrading.is_some()
            || self.loaded.iter().any(|known| known.life == Life::Restarting)
    }

    fn is_starting(&self, name: &str) -> bool {
        self.starting.iter().any(|known| known == name)
    }

    fn tainted(&self, index: usize) -> bool {
        let known = &self.loaded[index];
        let Some(room) = known.room.filter(|_| !known.kill_safe) else { return false };
        let tainted = self.common().trouble(room.slot).tainted.load(Ordering::Relaxed);
        // SAFETY: only the supervisor writes the row.
        let row = unsafe { &*self.extension_row(room.slot) };
        tainted != 0 && tainted == row.generation.load(Ordering::Relaxed)
    }

    /// Its state can no longer be trusted: send callers away and leave the room.
    fn send_away(&mut self, index: usize) {
        self.changed();
        let now = Instant::now();
        let known = &mut self.loaded[index];
        known.recent.retain(|when| now.duration_since(*when) < RESTARTS_WITHIN);
        known.recent.push(now);
        known.life = Life::Restarting;
        if known.recent.len() == 1 {
            known.quarantine = QUARANTINE_MIN;
        }
        let too_often = known.recent.len() > RESTARTS_MAX;
        let room = known.room.take();
        let name = known.name.clone();
        let rows: Vec<usize> = known.handlers.iter().map(|handler| handler.row).collect();
        for row in rows {
            self.repoint(row, 0, self.restarting);
        }
        if let Some(room) = room {
            self.retire(room);
        }
        if too_often {
            self.quarantine(&name);
        }
    }

    fn quarantine(&mut self, name: &str) {
        self.changed();
        let Ok(index) = self.index_of(name) else { return };
        let known = &mut self.loaded[index];
        known.life = Life::Quarantined(Instant::now() + known.quarantine);
        known.quarantine = (known.quarantine * 2).min(QUARANTINE_MAX);
        let rows: Vec<usize> = known.handlers.iter().map(|handler| handler.row).collect();
        self.starting.retain(|starting| starting != name);
        for row in rows {
            self.repoint(row, 0, self.quarantined);
        }
    }

    /// Begin a fresh copy. A full region is tried again when a retired room has been cleared.
    fn restart(&mut self, name: &str) -> Option<Begun> {
        let index = self.index_of(name).ok()?;
        let known = &self.loaded[index];
        let (image, file) = (known.image.clone(), known.file.clone());
        let rows = known.handlers.iter().map(|handler| handler.row).collect();
        let terms = known.terms.clone();
        match self.begin(image, file, (&terms, Whose::Any), Some(rows)) {
            Ok(begun) => {
                self.starting.push(name.to_owned());
                Some(begun)
            }
            Err(_) if !self.retired.is_empty() => None,
            Err(_) => {
                self.quarantine(name);
                None
            }
        }
    }

    /// Empty a room for others.
    fn clear(&mut self, room: Room) {
        self.changed();
        // SAFETY: only the supervisor writes the row.
        let row = unsafe { &mut *self.extension_row(room.slot) };
        if row.generation.load(Ordering::Relaxed) % 2 == 1 {
            row.generation.fetch_add(1, Ordering::Release);
        }
        (row.arena, row.arena_len) = (0, 0);
        let (offset, half) = slot_offset(room.slot);
        self.zones.discard(offset + half, half);
        self.zones.discard(room.arena.0, room.arena.1.next_multiple_of(HUGE_PAGE_LEN));
        self.rooms.retain(|known| *known != room);
    }
}

/// When its handlers run by themselves, and their names.
fn hooks_of(extension: &manifest::Extension) -> Vec<(Hook, String)> {
    extension.handlers.iter().map(|one| (one.hook, one.name.clone())).collect()
}

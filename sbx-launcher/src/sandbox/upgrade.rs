//! Putting another version in the place of a loaded extension, with its state.
//!
//! Calls that arrive meanwhile wait in libos. When the last upcall has left the old version, one
//! upcall in the worker has the old version save its state and the new one begin with it; then the
//! handlers are the new version's. If anything fails before that, they are the old one's again,
//! whose state nobody has touched.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use libos::manifest;

use super::extensions::{Begun, Life, Loading, Open, Purpose};
use super::{Sandbox, SandboxError, image_file};

/// How long upcalls may take to leave the old version.
const PATIENCE: Duration = Duration::from_secs(1);

/// An upgrade that waits for the old version to be left.
#[derive(Debug)]
pub struct Upgrading {
    name: String,
    image: Rc<Vec<u8>>,
    file: String,
    config: String,
    open: Vec<Open>,
    since: Instant,
}

impl Loading {
    /// Is this another version of what is loaded?
    #[must_use]
    pub fn is_upgrade(&self) -> bool {
        self.purpose == Purpose::Upgrade
    }
}

impl Sandbox {
    /// Begin to upgrade the extension that the image in `file` is a version of.
    ///
    /// # Errors
    /// [`SandboxError`]; the old version stays as it is then.
    pub fn begin_upgrade(
        &mut self,
        file: &Path,
        config: Option<String>,
    ) -> Result<(), SandboxError> {
        let shown = file.display().to_string();
        let refuse = |why: String| Err(SandboxError::Refused(why));
        let image = image_file::read(file)
            .map_err(|error| SandboxError::Refused(format!("{shown}: {error}")))?;
        let placed = self.place_in_free_slot(&image);
        let (_, _, next) = placed.map_err(|error| SandboxError::Image(shown.clone(), error))?;
        let index = self.index_of(&next.name)?;
        let known = &self.loaded[index];
        let name = &next.name;
        if self.upgrading.is_some() || self.loaded.iter().any(|one| one.life == Life::Upgrading) {
            return refuse("another upgrade is going on; try again".into());
        }
        if known.life != Life::Live {
            return refuse(format!("{name} is not live; try again"));
        }
        if known.save == 0 {
            return refuse(format!("the {name} that is loaded has no #[save]: unload it instead"));
        }
        if next.upgrade == 0 {
            return refuse(format!("{shown} has no #[upgrade]: unload {name} and load it instead"));
        }
        let config = config.unwrap_or_else(|| known.terms.config.clone());
        let rows: Vec<usize> = known.handlers.iter().map(|handler| handler.row).collect();
        let slot = known.room.map_or(0, |room| room.slot);
        self.changed();
        self.loaded[index].life = Life::Upgrading;
        for row in rows {
            self.repoint(row, slot, self.waiting);
        }
        super::global_barrier();
        let open = self.open_upcalls();
        self.upgrading = Some(Upgrading {
            name: next.name,
            image: Rc::new(image),
            file: shown,
            config,
            open,
            since: Instant::now(),
        });
        Ok(())
    }

    /// Go on with the upgrade, if there is one: hand the state over once nobody is inside.
    pub(super) fn look_after_upgrade(&mut self) -> Option<Begun> {
        let mut upgrading = self.upgrading.take()?;
        // Each may have been about to enter the old version when its handlers were changed. Those
        // that have come to the place where calls wait were not.
        upgrading.open.retain(|&open| {
            let frames = || self.frames_of(open.0);
            self.still_open(open) && !frames().iter().any(|frame| frame.code == self.waiting)
        });
        let index = self.index_of(&upgrading.name).ok()?;
        if let Some(&(context, _)) = upgrading.open.first() {
            if upgrading.since.elapsed() < PATIENCE {
                self.upgrading = Some(upgrading);
                return None;
            }
            let pid = self.common().claim(context).load().pid;
            self.stay(index);
            self.upgrade_failed =
                Some(format!("an upcall of pid {pid} does not end; {} stays", upgrading.name));
            return None;
        }
        let Upgrading { image, file, config, .. } = upgrading;
        let begun = self.begin_hand_over(index, image, file, config);
        begun
            .map_err(|error| {
                self.stay(index);
                self.upgrade_failed = Some(error.to_string());
            })
            .ok()
    }

    /// The old version goes on.
    pub(super) fn stay(&mut self, index: usize) {
        self.changed();
        let known = &mut self.loaded[index];
        known.life = Life::Live;
        let slot = known.room.map_or(0, |room| room.slot);
        let handlers: Vec<_> = known.handlers.iter().map(|one| (one.row, one.code)).collect();
        for (row, code) in handlers {
            self.repoint(row, slot, code);
        }
    }

    /// Rows for the handlers of the next version: those of the old that are called and declared
    /// alike keep theirs, so that handles stay good.
    pub(super) fn rows_of_next(
        &mut self,
        index: usize,
        next: &[manifest::Handler],
    ) -> Result<Vec<usize>, SandboxError> {
        let alike = |handler: &manifest::Handler| {
            let known = self.loaded[index].handlers.iter();
            let (_, signature) = self.find(&handler.name)?;
            let row = known.filter(|one| one.name == handler.name).map(|one| one.row).next()?;
            (signature == handler.signature).then_some(row)
        };
        let kept: Vec<Option<usize>> = next.iter().map(alike).collect();
        let fresh = kept.iter().filter(|row| row.is_none()).count();
        let mut fresh = self.reserve_rows(fresh)?.into_iter();
        Ok(kept.into_iter().filter_map(|row| row.or_else(|| fresh.next())).collect())
    }

    /// Give back rows of a next version that came to nothing.
    pub(super) fn release_new_rows(&mut self, index: usize, rows: &[usize]) {
        let old: Vec<usize> = self.loaded[index].handlers.iter().map(|one| one.row).collect();
        let fresh: Vec<usize> = rows.iter().copied().filter(|row| !old.contains(row)).collect();
        self.release_rows(&fresh);
    }
}

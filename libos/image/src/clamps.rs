//! Whether a clamp holds for a system call of the program's.
//!
//! A path is copied before it is looked at, once, as handlers do: what was looked at is what they see and
//! the kernel gets, also where the clamp does not hold. One that cannot be copied is none to the kernel either.
//! One that is relative begins in the folder that the kernel names: the working directory, or that of the
//! descriptor before it (by /proc). Where that cannot be told, no clamp of paths holds. An empty path, or
//! none, is about the descriptor itself.

use core::ops::Range;

use ext_api::abi::CallBlock;
use ext_api::calls::{Arg, PATH_LEN_MAX, args_of};
use libos::clamps::{Clamp, ClampTable, clamp_of};
use libos::layout::CLAMPS_OFFSET;

use crate::arch::copy_or_fail;
use crate::{boot, scratch, start, sys};

/// Its first argument is a descriptor, and its path does not begin there.
const INOTIFY_ADD_WATCH: u64 = 254;
const AT_FDCWD: i32 = -100;

/// What the kernel gets in place of a path that is too long for a copy.
static TOO_LONG: [u8; PATH_LEN_MAX] = [b'.'; PATH_LEN_MAX];
/// And in place of one that cannot be read.
const NOWHERE: u64 = u64::MAX;

/// Where in the scratch room a text lies.
type Place = Range<usize>;

/// Does the clamp that `word` names hold? Yes, if it names none.
pub(crate) fn holds(word: u64, block: &mut CallBlock) -> bool {
    let clamp = clamp_of(word).map(clamp);
    clamp.is_none_or(|clamp| {
        holds_process(clamp) && holds_descriptor(clamp, block) && holds_path(clamp, block)
    })
}

/// Have all the call's paths be copies.
pub(crate) fn copy_paths(block: &mut CallBlock) {
    for at in places_of(block.number, Arg::Path) {
        path(block, at);
    }
}

fn clamp(number: usize) -> &'static Clamp {
    let at = (boot::place().base + CLAMPS_OFFSET) as *const ClampTable;
    // SAFETY: in the control zone, which is mapped in every participant; all atomics.
    let table = unsafe { &*at };
    &table.clamps[number % table.clamps.len()]
}

fn holds_process(clamp: &Clamp) -> bool {
    let own = start::this_process();
    own.is_some_and(|own| clamp.holds_process(own.pid, start::process_name()))
}

fn holds_descriptor(clamp: &Clamp, block: &mut CallBlock) -> bool {
    let number = block.number;
    let mut is_held = |at: usize| {
        u32::try_from(block.args[at] as i32).is_ok_and(|it| clamp.holds_descriptor(it))
            && (!is_folder(number, at) || path(block, at + 1).is_some_and(|path| path.is_empty()))
    };
    !clamp.has_descriptors() || places_of(number, Arg::Fd).any(&mut is_held)
}

fn holds_path(clamp: &Clamp, block: &mut CallBlock) -> bool {
    let mut places = places_of(block.number, Arg::Path);
    !clamp.has_paths() || places.any(|at| holds_path_at(clamp, block, at))
}

fn holds_path_at(clamp: &Clamp, block: &mut CallBlock, at: usize) -> bool {
    let Some(path) = path(block, at) else { return false };
    let folder = if bytes(block, &path).first() == Some(&b'/') {
        Some(0..0)
    } else {
        let before = at.checked_sub(1).filter(|&before| is_folder(block.number, before));
        folder(block, before.map_or(AT_FDCWD, |before| block.args[before] as i32))
    };
    folder.is_some_and(|folder| clamp.holds_path(bytes(block, &folder), bytes(block, &path)))
}

/// Which of a call's arguments are of this kind.
fn places_of(number: u64, kind: Arg) -> impl Iterator<Item = usize> {
    args_of(number).enumerate().filter(move |(_, found)| *found == kind).map(|(at, _)| at)
}

/// Is argument `at`, a descriptor, the folder that the path behind it begins in?
fn is_folder(number: u64, at: usize) -> bool {
    let mut kinds = args_of(number).skip(at);
    let is_before_path = kinds.next() == Some(Arg::Fd) && kinds.next() == Some(Arg::Path);
    is_before_path && number != INOTIFY_ADD_WATCH
}

fn bytes<'a>(block: &'a CallBlock, place: &Place) -> &'a [u8] {
    // SAFETY: a place in the call's scratch room, which nobody else writes meanwhile.
    unsafe { core::slice::from_raw_parts(block.scratch.wrapping_add(place.start), place.len()) }
}

/// The path that argument `at` points to, which is copied if it is the program's. Empty if there is none;
/// None if it cannot be had.
fn path(block: &mut CallBlock, at: usize) -> Option<Place> {
    let from = block.args[at] as usize;
    let offset = from.wrapping_sub(block.scratch as usize);
    if from == 0 {
        return Some(0..0);
    }
    if offset < block.scratch_used {
        // A copy that was made before, which ends with a zero.
        let rest = bytes(block, &(offset..block.scratch_used));
        return Some(offset..offset + rest.iter().position(|byte| *byte == 0)?);
    }
    let to = block.scratch_used;
    let room = block.scratch_len.saturating_sub(to).min(PATH_LEN_MAX);
    scratch::reserve(block, room);
    let copied = copy_text(block.scratch as usize + to, from, room);
    block.args[at] =
        copied.map_or_else(|instead| instead, |_| (block.scratch as usize + to) as u64);
    block.scratch_used += copied.map_or(0, |len| len + 1);
    scratch::reserve(block, 0);
    copied.ok().map(|len| to..to + len)
}

/// Copy a text of the program's with its final zero; its length without. What the kernel gets if that fails.
fn copy_text(to: usize, from: usize, room: usize) -> Result<usize, u64> {
    /// No page ends within.
    const PIECE: usize = 64;
    let mut len = 0;
    loop {
        let at = from.wrapping_add(len);
        let piece = (PIECE - at % PIECE).min(room - len);
        if piece == 0 {
            // Of a room that is full, the kernel gets what the program has there.
            let is_too_long = room == PATH_LEN_MAX;
            return Err(if is_too_long { TOO_LONG.as_ptr() as u64 } else { from as u64 });
        }
        // SAFETY: so much of the scratch room is the call's; the other side is the program's.
        if unsafe { copy_or_fail(to + len, at, piece) } != 0 {
            return Err(NOWHERE);
        }
        // SAFETY: just written.
        let copy = unsafe { core::slice::from_raw_parts((to + len) as *const u8, piece) };
        match copy.iter().position(|byte| *byte == 0) {
            Some(end) => return Ok(len + end),
            None => len += piece,
        }
    }
}

/// The folder of a descriptor, as the kernel names it, behind what is in use of the scratch room.
fn folder(block: &CallBlock, fd: i32) -> Option<Place> {
    let used = block.scratch_used;
    // A call that interrupts this one needs room as well.
    let room = (block.scratch_len.saturating_sub(used) / 2).min(PATH_LEN_MAX);
    scratch::reserve(block, room);
    let to = block.scratch.wrapping_add(used);
    // SAFETY: of the rest of the scratch room, which is the call's.
    let to = unsafe { core::slice::from_raw_parts_mut(to, room) };
    let len = match u32::try_from(fd) {
        Ok(fd) => sys::path_of(fd, to).ok()?,
        Err(_) if fd == AT_FDCWD => sys::working_folder(to).ok()?,
        Err(_) => return None,
    };
    // A name that may have been cut short is not one; nor is that of a pipe or of an unreachable folder.
    (len < room && to.first() == Some(&b'/')).then_some(used..used + len)
}

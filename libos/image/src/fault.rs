//! Ending an upcall that cannot go on.

use core::sync::atomic::Ordering::Relaxed;

use ext_api::abi::{Reply, Status};
use ext_api::limits::FAULT_TEXT_LEN_MAX;
use libos::data::{Context, DOORBELL};

use crate::context::Frame;
use crate::text::Line;
use crate::{arch, boot, context, log, sys, tls};

/// End the innermost upcall of this thread with `status`; `text` goes to its caller and the log.
/// Outside of an upcall there is nobody to tell: the process ends, as if it had called `abort`.
pub(crate) fn abort(status: Status, text: &[u8]) -> ! {
    let open = context::current().and_then(|context| Some((context, context::frame(context)?)));
    let Some((context, frame)) = open else {
        sys::write_all(2, b"sbx: region code failed outside of an upcall: ");
        sys::write_all(2, text);
        sys::write_all(2, b"\n");
        sys::exit_group(134);
    };
    let starved = context.starved.swap(0, Relaxed) != 0 && status == Status::Aborted;
    let (status, text): (_, &[u8]) = if starved {
        (Status::OutOfMemory, b"the extension's heap is full")
    } else {
        (status, text)
    };
    tell(context, frame, status, text, None);
    // SAFETY: this thread is inside an upcall on its own context.
    unsafe { arch::leave_upcall(context, status as u32) }
}

/// As [`abort`], for an upcall of this thread that a signal interrupted: it goes on from there.
/// `slot` is where its code was, if that is known.
pub(crate) fn report(context: &Context, status: Status, text: &[u8], slot: Option<usize>) {
    if let Some(frame) = context::frame(context) {
        tell(context, frame, status, text, slot);
    }
}

/// Tell the caller, the log and the supervisor that the upcall of `frame` fails.
fn tell(context: &Context, frame: &Frame, status: Status, text: &[u8], slot: Option<usize>) {
    // SAFETY: the gate stored the address of a row of the handler table.
    let handler = unsafe { frame.handler.as_ref() };
    let mut line = Line::<FAULT_TEXT_LEN_MAX>::new();
    if let Some(name) = handler.and_then(|row| row.name.get(..row.name_len as usize)) {
        line.push(name);
        line.push(b": ");
    }
    line.push(text);
    keep(context, text);
    log::line(b"fault", line.bytes());
    if status != Status::Restarting {
        taint(slot.unwrap_or_else(|| context::slot_of(context, frame)), status);
    }
    // SAFETY: the gate got this pointer from the upcall's caller, whose frame is below ours.
    unsafe { answer(frame.reply, text) };
}

/// A thread ended inside an upcall whose code is at `address`.
pub(crate) fn died_inside(address: u64) {
    if let Some(slot) = boot::place().slot_of(address as usize) {
        taint(slot, Status::Aborted);
    }
}

/// The state of the extension in `slot` is in doubt: an upcall ended in the middle.
fn taint(slot: usize, status: Status) {
    let trouble = context::common().trouble(slot);
    trouble.faults.fetch_add(1, Relaxed);
    trouble.status.store(status as u32, Relaxed);
    if let Some(extension) = tls::extension(slot) {
        trouble.tainted.store(extension.generation.load(Relaxed), Relaxed);
        // It would see by itself, but later, and others enter until then.
        sys::kill(context::common().supervisor().load(Relaxed), DOORBELL);
    }
}

/// Leave `text` in the context, where the supervisor can read it.
pub(crate) fn keep(context: &Context, text: &[u8]) {
    let len = text.len().min(FAULT_TEXT_LEN_MAX);
    for (to, from) in context.text.iter().zip(text) {
        to.store(*from, Relaxed);
    }
    context.text_len.store(len as u32, Relaxed);
}

/// Put `text` into a reply, as far as its buffer reaches.
///
/// # Safety
/// `reply` is null or a reply whose buffer is writable.
pub(crate) unsafe fn answer(reply: *mut Reply, text: &[u8]) {
    if reply.is_null() {
        return;
    }
    // SAFETY: not null, so a reply by contract.
    let reply = unsafe { &mut *reply };
    let len = text.len().min(reply.cap);
    if reply.buf.is_null() {
        return;
    }
    // SAFETY: `len` bytes fit both sides, which cannot overlap: the text is ours.
    unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), reply.buf, len) };
    reply.len = len;
    reply.spill = core::ptr::null_mut();
}

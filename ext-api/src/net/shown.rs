//! Frames that a program has itself, shown to a handler: to an extension's, by an upcall in the thread that has
//! the frame, or to a closure of the program's own. The handler sees the frame where it lies, and what it says is
//! the program's to carry out.
#![expect(unsafe_code, reason = "gives handlers blocks, and takes what they wrote")]

use crate::abi::{
    Handle, NET_DROP, NET_PASS, NET_REPLY, NET_REPLY_IN_PLACE, NetAddress, PacketBlock, Reply,
    Status,
};
use crate::client::{Sandbox, failure};
use crate::error::CallError;
use crate::wire;

use super::{Packet, Verdict};

/// What handlers of frames have as their signature; the macro writes it.
const SIGNATURE: &str = "(frame: packet) -> verdict";

/// What a handler has said about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It is for whoever comes next.
    Pass,
    /// The answer goes back.
    Reply,
    /// So many of its own first octets, as they are now, go back.
    ReplyInPlace(usize),
    /// Nothing becomes of it.
    Drop,
    /// What only the worker that serves the network does: to send it on, or hand it to a process.
    Elsewhere,
}

/// A handler of an extension that is hooked to frames: `#[on(packet = "*")]`, or to an interface's.
#[derive(Debug, Clone)]
pub struct FrameHandler {
    sandbox: Sandbox,
    name: String,
    handle: Handle,
}

impl FrameHandler {
    /// The handler named `extension.handler` of the sandbox that this process is in.
    ///
    /// # Errors
    /// The process is in none, there is no such handler, or ([`Status::BadArgs`]) it is none of frames.
    pub fn find(name: &str) -> Result<Self, CallError> {
        let sandbox = Sandbox::current()?;
        let handle = find(&sandbox, name)?;
        Ok(Self { sandbox, name: name.to_owned(), handle })
    }

    /// Show it a frame. With [`Said::Reply`] its answer is in `answer`, whose room is used before the
    /// extension's heap is. An extension that was unloaded and loaded again is found by its name.
    ///
    /// # Errors
    /// The handler was not asked, or failed.
    pub fn show(&mut self, frame: &mut [u8], answer: &mut Vec<u8>) -> Result<Said, CallError> {
        match self.show_once(frame, answer) {
            Err(CallError::Refused(Status::Stale)) => {
                self.handle = find(&self.sandbox, &self.name)?;
                self.show_once(frame, answer)
            }
            said => said,
        }
    }

    fn show_once(&self, frame: &mut [u8], answer: &mut Vec<u8>) -> Result<Said, CallError> {
        let mut block = block_of(frame);
        let args = [std::ptr::from_mut(&mut block).expose_provenance() as u64];
        answer.clear();
        let mut reply =
            Reply { buf: answer.as_mut_ptr(), cap: answer.capacity(), ..Reply::empty() };
        // SAFETY: the handler takes the address of a block, as its signature says; the reply's buffer is the
        // vector's room.
        let status = unsafe { self.sandbox.call_raw(self.handle, &args, &mut reply) };
        let said = match status {
            0 => Ok(said(&block)),
            _ => Err(failure(status, &reply)),
        };
        take(&reply, answer);
        self.sandbox.release(&mut reply);
        said
    }
}

/// Show a frame to a closure of the program's own.
///
/// # Panics
/// It answers with more than `answer` has room for.
pub fn show_to(
    handler: impl FnOnce(&mut Packet<'_>) -> Verdict,
    frame: &mut [u8],
    answer: &mut Vec<u8>,
) -> Said {
    let mut block = block_of(frame);
    let word = std::ptr::from_mut(&mut block).expose_provenance() as u64;
    answer.clear();
    let mut reply = Reply { buf: answer.as_mut_ptr(), cap: answer.capacity(), ..Reply::empty() };
    // SAFETY: the block is there, and nobody else's until this returns.
    unsafe { Packet::with(word, &mut reply, handler) };
    take(&reply, answer);
    said(&block)
}

fn find(sandbox: &Sandbox, name: &str) -> Result<Handle, CallError> {
    let handle = sandbox.find(name)?;
    match sandbox.has_signature(handle, SIGNATURE) {
        true => Ok(handle),
        false => Err(CallError::Refused(Status::BadArgs)),
    }
}

fn block_of(frame: &mut [u8]) -> PacketBlock {
    PacketBlock {
        data: frame.as_mut_ptr(),
        len: frame.len(),
        used: 0,
        in_place: 0,
        from: NetAddress::default(),
        to: NetAddress::default(),
        next: NetAddress::default(),
        flags: 0,
        word: 0,
        verdict: NET_PASS,
        hand: [0; 3],
    }
}

fn said(block: &PacketBlock) -> Said {
    match block.verdict {
        NET_PASS => Said::Pass,
        NET_REPLY => Said::Reply,
        NET_REPLY_IN_PLACE => Said::ReplyInPlace(block.in_place.min(block.len)),
        NET_DROP => Said::Drop,
        _ => Said::Elsewhere,
    }
}

/// Have `answer` hold what was written, which lies in its own room unless that was too small.
fn take(reply: &Reply, answer: &mut Vec<u8>) {
    if reply.spill.is_null() {
        // SAFETY: a handler sets the length to what it has written there, and no more than the room counts.
        unsafe { answer.set_len(reply.len.min(reply.cap)) };
    } else {
        answer.extend_from_slice(wire::bytes(reply));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_says_what_becomes_of_a_frame() {
        let (mut frame, mut answer) = (*b"frame", Vec::with_capacity(64));
        let mut show = |handler: fn(&mut Packet<'_>) -> Verdict| {
            let said = show_to(handler, &mut frame, &mut answer);
            (said, answer.clone())
        };
        assert_eq!(show(|_| Verdict::Pass), (Said::Pass, vec![]));
        assert_eq!(show(|_| Verdict::Drop), (Said::Drop, vec![]));
        assert_eq!(show(|it| it.reply(b"answer")), (Said::Reply, b"answer".to_vec()));
        assert_eq!(show(|it| it.reply_in_place(3)), (Said::ReplyInPlace(3), vec![]));
        assert_eq!(show(|it| it.reply_in_place(99)), (Said::ReplyInPlace(5), vec![]));
        let on = |_: &mut Packet<'_>| Verdict::Forward(([10, 0, 0, 1], 7).into());
        assert_eq!(show(on), (Said::Elsewhere, vec![]));
        let change = |it: &mut Packet<'_>| {
            it.bytes_mut()[0] = b'F';
            Verdict::Pass
        };
        show(change);
        assert_eq!(&frame, b"Frame");
    }

    #[test]
    fn without_a_sandbox_there_is_no_handler() {
        assert_eq!(FrameHandler::find("guard.frame").err(), Some(CallError::NotAttached));
    }
}

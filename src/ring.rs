//! The two halves of a ring between programs that trust each other.
//!
//! To *send* is to write items, then raise the ring's count of items. To *receive* is to read items,
//! then lower the count: that gives their room back. Both changes are releases, and each look at the
//! count is an acquire ([`shmem_ipc::ringbuf`]): who sees it raised sees the items, who sees it
//! lowered knows that they have been read. Where in the ring it goes on, each side keeps to itself.
//!
//! shmem-ipc lends slices of the ring, and Rust takes for granted that nobody changes a slice while
//! it is borrowed. Another process can, so each `send_trusted` and `receive_trusted` is `unsafe`.
//! Here the promise is given once, by whoever chooses the other program. (The halves carry [`Item`]
//! and are not generic: to name what shmem-ipc asks of a type takes zerocopy, one more crate.)

use std::fs::File;

use anyhow::{Context, Result};
use shmem_ipc::sharedring::{Receiver, Sender};

use super::Item;

/// Items that are lent at a time: 640 KiB of them, and at least one. Room goes back after each piece,
/// one piece late: what was read last is still in this core's own cache (of 1 MiB, say), and a
/// sender that wrote there would have to wait for each cache line.
pub const PIECE: usize = (640 * 1024_usize).div_ceil(size_of::<Item>());

/// shmem-ipc's [`Sender`], with a receiver that is trusted.
pub struct TrustedSender(Sender<Item>);

/// shmem-ipc's [`Receiver`], with a sender that is trusted.
pub struct TrustedReceiver(Receiver<Item>);

impl TrustedSender {
    /// Trusts whoever has the other half.
    ///
    /// # Safety
    ///
    /// While this value exists, nobody may read or write the ring's items, in whatever process, but
    /// it and one receiver, which is set up for the same ring and leaves alone what is not sent yet.
    /// (The terms of [`Sender::send_trusted`].)
    pub unsafe fn new(sender: Sender<Item>) -> Self {
        Self(sender)
    }

    /// Lends `write` the free part of the ring, up to the ring's end, and sends as many items from
    /// its front as `write` returns. Returns that number, or `None` if the ring is full. If there is
    /// more room at the ring's beginning, that takes a second call.
    ///
    /// # Errors
    ///
    /// If the count is out of range, which takes a receiver that breaks the rules, or if `write`
    /// returns more than it was lent.
    pub fn send(&mut self, write: impl FnOnce(&mut [Item]) -> usize) -> Result<Option<usize>> {
        let mut num = None; // A full ring does not call the closure.
        // SAFETY: whoever called `new` has promised what `send_trusted` asks for.
        let sent = unsafe { self.0.send_trusted(|free| *num.insert(write(free))) };
        sent.context("failed to send")?;
        Ok(num)
    }

    /// What to sleep on while the ring is full.
    pub fn full_signal(&self) -> &File {
        self.0.full_signal()
    }
}

impl TrustedReceiver {
    /// Trusts whoever has the other half.
    ///
    /// # Safety
    ///
    /// As for [`TrustedSender::new`]: the one sender leaves alone what it has sent.
    pub unsafe fn new(receiver: Receiver<Item>) -> Self {
        Self(receiver)
    }

    /// Lends `read` what there is, piece after piece in order, up to where the ring is empty or to
    /// its end. Returns the number of items. There may be more at the ring's beginning, so call until
    /// the result is 0: then it is empty.
    ///
    /// Items that are sent meanwhile are included, one turn of the ring at most. If `read` panics, its
    /// piece and the one before stay in the ring.
    ///
    /// # Errors
    ///
    /// If the count is out of range, which takes a sender that breaks the rules.
    pub fn receive(&mut self, mut read: impl FnMut(&[Item])) -> Result<usize> {
        let mut num = 0;
        let mut kept = 0; // Items that have been lent and not given back.
        loop {
            let mut more = false; // An empty ring does not call the closure.
            // SAFETY: whoever called `new` has promised what `receive_trusted` asks for.
            let received = unsafe {
                self.0.receive_trusted(|readable| {
                    // Nothing, if a hostile sender has lowered the count under us.
                    let new = readable.get(kept..).unwrap_or_default();
                    let piece = &new[..new.len().min(PIECE)];
                    if !piece.is_empty() {
                        read(piece);
                    }
                    num += piece.len();
                    more = piece.len() != new.len();
                    // One piece late, but all of it in the end: a ring that is not empty gets no
                    // signal when the sender sends.
                    let back = if more { kept } else { kept + piece.len() };
                    kept = piece.len();
                    back
                })
            };
            received.context("failed to receive")?;
            if !more {
                return Ok(num);
            }
        }
    }

    /// What to sleep on while the ring is empty.
    pub fn empty_signal(&self) -> &File {
        self.0.empty_signal()
    }
}

//! The ring's two directions, side by side: a producer publishes items, a consumer takes them.
//!
//! The memory begins with a *count* of the items in the ring; behind it are the places for items,
//! used round and round. To *publish* is to write items, then raise the count; to *give room back*
//! is to read items, then lower it. Both changes are releases, and each look at the count is an
//! acquire ([`shmem_ipc::ringbuf`]): who sees it raised sees the items, who sees it lowered knows
//! that they have been read. Where in the ring it goes on, each side keeps to itself.
//!
//! ```
//! # use shmem_test::{Item, handover, ring::{Consumer, Producer}};
//! # let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
//! let (receiver, _) = handover::make()?;
//! handover::give(&ours, &receiver)?;
//! let (sender, _) = handover::take(&theirs)?; // Here in the same process.
//! // SAFETY: both halves are this program's, and nobody else has the ring.
//! let (mut producer, mut consumer) = unsafe { (Producer::trust(sender), Consumer::trust(receiver)) };
//!
//! let published = producer.publish(|free| {
//!     free[..3].fill(Item::default());
//!     3
//! })?;
//! let consumed = consumer.consume(|piece| assert_eq!(piece, [Item::default(); 3]))?;
//! assert_eq!((published, consumed), (Some(3), 3));
//! # Ok::<_, anyhow::Error>(())
//! ```

use std::fs::File;

use anyhow::{Context, Error, Result, anyhow};
use shmem_ipc::sharedring::{Receiver, Sender};

use super::Item;

/// Items that are lent at a time: 640 KiB of them, and at least one. Room goes back after each piece,
/// one piece late: what was read last is still in this core's own cache (of 1 MiB, say), and a
/// producer that wrote there would have to wait for each cache line.
pub const PIECE: usize = (640 * 1024_usize).div_ceil(size_of::<Item>());

/// The half that writes.
pub struct Producer(Sender<Item>);

/// The half that reads.
pub struct Consumer(Receiver<Item>);

impl Producer {
    /// Trusts whoever has the other half.
    ///
    /// # Safety
    ///
    /// While this `Producer` exists, nobody may read or write the ring's items, in whatever process,
    /// but it and one consumer, which is set up for the same ring and leaves alone what is not
    /// published. (The terms of [`Sender::send_trusted`].)
    pub unsafe fn trust(sender: Sender<Item>) -> Self {
        Self(sender)
    }

    /// Lends `write` the free part of the ring, up to the ring's end, and publishes as many items
    /// from its front as `write` returns. Returns that number, or `None` if the ring is full. If
    /// there is more room at the ring's beginning, that takes a second call.
    ///
    /// # Errors
    ///
    /// If the count is out of range, which takes a consumer that breaks the rules, or if `write`
    /// returns more than it was lent.
    pub fn publish(&mut self, write: impl FnOnce(&mut [Item]) -> usize) -> Result<Option<usize>> {
        let mut num = None; // A full ring does not call the closure.
        // SAFETY: whoever called `trust` has promised what `send_trusted` asks for.
        let published = unsafe {
            self.0.send_trusted(|free| {
                let written = write(free);
                num = Some(written);
                written
            })
        };
        published.map_err(root_cause).context("failed to publish")?;
        Ok(num)
    }

    /// What to sleep on while the ring is full.
    pub fn full_signal(&self) -> &File {
        self.0.full_signal()
    }
}

impl Consumer {
    /// Trusts whoever has the other half.
    ///
    /// # Safety
    ///
    /// As for [`Producer::trust`]: the one producer leaves alone what is published.
    pub unsafe fn trust(receiver: Receiver<Item>) -> Self {
        Self(receiver)
    }

    /// Lends `read` what is readable, piece after piece in order, up to where the ring is empty or
    /// to its end. Returns the number of items; 0 means that the ring is empty.
    ///
    /// Items that are published meanwhile are included, one turn of the ring at most. There may be
    /// more at its beginning, so call until the result is 0. If `read` panics, its piece and the one
    /// before stay in the ring.
    ///
    /// # Errors
    ///
    /// If the count is out of range, which takes a producer that breaks the rules.
    pub fn consume(&mut self, mut read: impl FnMut(&[Item])) -> Result<usize> {
        let mut num = 0;
        let mut kept = 0; // Items that have been lent and not given back.
        loop {
            let mut more = false; // An empty ring does not call the closure.
            // SAFETY: whoever called `trust` has promised what `receive_trusted` asks for.
            let consumed = unsafe {
                self.0.receive_trusted(|readable| {
                    let new = readable.get(kept..).unwrap_or_default();
                    let Some(piece) = new.chunks(PIECE).next() else {
                        return kept; // The count was lowered under us. An error, if below `kept`.
                    };
                    read(piece);
                    num += piece.len();
                    more = piece.len() != new.len();
                    // One piece late, but all of it in the end: a ring that is not empty gets no
                    // signal when the producer publishes.
                    let back = if more { kept } else { kept + piece.len() };
                    kept = piece.len();
                    back
                })
            };
            consumed.map_err(root_cause).context("failed to consume")?;
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

/// What is behind an error of shmem-ipc. Its own text says the same in other words.
pub(super) fn root_cause(error: shmem_ipc::Error) -> Error {
    anyhow!("{}", Error::from(error).root_cause())
}

//! The two halves of a ring between programs that trust each other.
//!
//! To *send* is to write items, then raise the ring's count of items. To *receive* is to read items,
//! then lower the count: that gives their room back. Both changes are releases, and each look at the
//! count is an acquire ([`shmem_ipc::ringbuf`]): who sees it raised sees the items, who sees it
//! lowered knows that they have been read. Where in the ring it goes on, each side keeps to itself.
//!
//! shmem-ipc lends slices of the ring, and Rust takes for granted that nobody changes a slice while
//! it is borrowed. Another process can, so each `send_trusted` and `receive_trusted` is `unsafe`.
//! Here the promise is given once, by whoever chooses the other program. (Not generic, because to
//! name what shmem-ipc asks of a type takes one more crate, zerocopy.)

use std::fs::File;
use std::time::{Duration, Instant};
use std::{hint, mem};

use anyhow::{Context, Result};
use shmem_ipc::sharedring::{Receiver, Sender};

use super::{CAPACITY, Item};

/// Items that are lent at a time: 320 KiB of them, and at least one. Room goes back after each piece,
/// one piece late: what was read last is still in this core's own cache (of 512 KiB or 1 MiB), and a
/// sender that wrote there would have to wait for each cache line.
pub const PIECE: usize = (320 * 1024_usize).div_ceil(size_of::<Item>());

/// About what it takes to wake a thread: 10 to 25 us on virtual machines with AMD Zen 3, 4 and 5.
const WAKE_UP: Duration = Duration::from_micros(20);

/// shmem-ipc's [`Sender`], with a receiver that is trusted.
pub struct TrustedSender {
    sender: Sender<Item>,
    /// When the ring was full for the last time, and how many items were sent since.
    full: (Instant, u64),
}

/// shmem-ipc's [`Receiver`], with a sender that is trusted.
pub struct TrustedReceiver {
    receiver: Receiver<Item>,
    looks: Looks,
}

impl TrustedSender {
    /// Trusts whoever has the other half.
    ///
    /// # Safety
    /// While this value exists, nobody may read or write the ring's items, in whatever process, but
    /// it and one receiver, which is set up for the same ring and leaves alone what is not sent yet.
    /// (The terms of [`Sender::send_trusted`].)
    pub unsafe fn new(sender: Sender<Item>) -> Self {
        let full = (Instant::now(), 0);
        Self { sender, full }
    }

    /// Lends `write` the free part of the ring, up to the ring's end, and sends as many items from
    /// its front as `write` returns. Returns that number, or `None` if the ring is full. If there is
    /// more room at the ring's beginning, that takes a second call.
    ///
    /// # Errors
    /// If the count is out of range, which takes a receiver that breaks the rules, or if `write`
    /// returns more than it was lent.
    pub fn send(&mut self, write: impl FnOnce(&mut [Item]) -> usize) -> Result<Option<usize>> {
        let mut num = None; // A full ring does not call the closure.
        // SAFETY: whoever called `new` has promised what `send_trusted` asks for.
        let sent = unsafe { self.sender.send_trusted(|free| *num.insert(write(free))) };
        sent.context("failed to send")?;
        self.full.1 += num.unwrap_or(0) as u64;
        Ok(num)
    }

    /// How long to leave the ring alone when `send` finds it full, so that room adds up: a fifth of the
    /// time in which the receiver empties a full ring, by its pace since the last call, and 1 ms at
    /// most. Without it, the receiver has to wake the sender for each piece.
    pub fn refill_pause(&mut self) -> Duration {
        let (last, sent) = mem::replace(&mut self.full, (Instant::now(), 0));
        let whole = last.elapsed().mul_f64(CAPACITY as f64 / sent.max(1) as f64);
        (whole / 5).min(Duration::from_millis(1))
    }

    /// What to sleep on while the ring is full.
    pub fn full_signal(&self) -> &File {
        self.sender.full_signal()
    }
}

impl TrustedReceiver {
    /// Trusts whoever has the other half.
    ///
    /// # Safety
    /// As for [`TrustedSender::new`]: the one sender leaves alone what it has sent.
    pub unsafe fn new(receiver: Receiver<Item>) -> Self {
        let looks = Looks::default();
        Self { receiver, looks }
    }

    /// Lends `read` what there is, piece after piece in order, up to where the ring is empty or to
    /// its end. Returns the number of items. There may be more at the ring's beginning, so call until
    /// the result is 0: then it is empty, also after it was looked at again for a moment ([`Looks`]).
    ///
    /// Items that are sent meanwhile are included, one turn of the ring at most. If `read` panics, its
    /// piece and the one before stay in the ring.
    ///
    /// # Errors
    /// If the count is out of range, which takes a sender that breaks the rules.
    pub fn receive(&mut self, mut read: impl FnMut(&[Item])) -> Result<usize> {
        let ring = self.receiver.receiver_mut();
        let looked = self.looks.until(|| Ok(ring.read_count()? > 0));
        looked.context("failed to receive")?;
        let mut num = 0;
        let mut kept = 0; // Items that have been lent and not given back.
        loop {
            let mut more = false; // An empty ring does not call the closure.
            // SAFETY: whoever called `new` has promised what `receive_trusted` asks for.
            let received = unsafe {
                self.receiver.receive_trusted(|readable| {
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
        self.receiver.empty_signal()
    }
}

/// Looks again before one goes to sleep: what comes within the time of a wake-up then needs none.
///
/// To look for as long as a wake-up takes costs at most twice what the best choice would have, to look
/// for longer can cost any amount. While it is in vain, it is done the 1st, 2nd, 4th, 8th time and so
/// on, and in the end each 64th time: whoever is sent items at a slow pace pays next to nothing.
#[derive(Debug, Default)]
pub struct Looks {
    /// How often in a row there was nothing at first, since looking again last found something.
    nothing: u32,
}

impl Looks {
    /// Calls `look`, and if that finds nothing, again and again for a moment, unless that is left out.
    /// Returns an error of `look`.
    pub fn until(&mut self, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
        if look()? {
            return Ok(());
        }
        self.nothing = self.nothing.wrapping_add(1);
        if self.nothing.is_power_of_two() || self.nothing.is_multiple_of(64) {
            let start = Instant::now();
            while !look()? {
                if start.elapsed() >= WAKE_UP {
                    return Ok(());
                }
                hint::spin_loop();
            }
            self.nothing = 0;
        }
        Ok(())
    }
}

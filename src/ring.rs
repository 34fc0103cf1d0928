//! The two halves of a ring between programs that trust each other.
//!
//! To *send* is to write items, then raise the ring's count of items. To *receive* is to read items,
//! then lower the count: that gives their room back. Both changes are releases, and each look at the
//! count is an acquire ([`shmem_ipc::ringbuf`]): who sees it raised sees the items, who sees it
//! lowered knows that they have been read. Where in the ring it goes on, each side keeps to itself.
//!
//! shmem-ipc lends slices of the ring, and Rust takes for granted that nobody changes a slice while
//! it is borrowed. Another process can, so each `send_trusted` and `receive_trusted` is `unsafe`.
//! Here the promise is given once, by whoever chooses the other program.

use std::fs::File;
use std::hint;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shmem_ipc::sharedring::{Receiver, Sender};

use super::{CAPACITY, Item};

/// Items whose room goes back at once: half of the ring, which fills whole pages. While the receiver
/// reads one half, the sender writes the other one.
pub const HALF: usize =
    (64 + CAPACITY * size_of::<Item>()).next_multiple_of(4096) / size_of::<Item>() / 2 + 1;

/// Items that are lent at a time, 2 KiB of them and at least one, and how far ahead of these the
/// processor is told to fetch, 8 KiB. What another core has just written comes from that core's cache,
/// which can take as long as from memory.
const PIECE: usize = 2048_usize.div_ceil(size_of::<Item>());
const AHEAD: usize = 8192_usize.div_ceil(size_of::<Item>());

/// Items in each part of a large message, 32 KiB of them and at least one: see [`TrustedSender::send`].
pub const PART: usize = 32_768_usize.div_ceil(size_of::<Item>());

/// About what it takes to wake a thread: 2 to 45 us on virtual machines (AMD Zen 3 to 5, a large Intel).
const WAKE_UP: Duration = Duration::from_micros(20);

/// shmem-ipc's [`Sender`], with a receiver that is trusted.
pub struct TrustedSender {
    sender: Sender<Item>,
}

/// shmem-ipc's [`Receiver`], with a sender that is trusted.
pub struct TrustedReceiver {
    receiver: Receiver<Item>,
    back_off: BackOff,
}

impl TrustedSender {
    /// Trusts whoever has the other half.
    ///
    /// # Safety
    ///
    /// While this value exists, nobody may read or write the ring's items, in whatever process, but
    /// it and one receiver, which is set up for the same ring and leaves alone what is not sent yet
    /// (the terms of [`Sender::send_trusted`]).
    pub unsafe fn new(sender: Sender<Item>) -> Self {
        Self { sender }
    }

    /// Lends `write` the free part of the ring, up to the ring's end, and sends as many items from
    /// its front as `write` returns. Returns that number, or `None` if the ring is full. If there is
    /// more room at the ring's beginning, that takes a second call. The receiver sees nothing of it
    /// before `write` has returned: send a large message in parts of [`PART`] items, so that the first
    /// ones are read while the next ones are written.
    ///
    /// # Errors
    ///
    /// If the count is out of range, which takes a receiver that breaks the rules, or if `write`
    /// returns more than it was lent.
    pub fn send(&mut self, write: impl FnOnce(&mut [Item]) -> usize) -> Result<Option<usize>> {
        let mut num = None; // A full ring does not call the closure.
        // SAFETY: whoever called `new` has promised what `send_trusted` asks for.
        let sent = unsafe { self.sender.send_trusted(|free| *num.insert(write(free))) };
        sent.context("failed to send")?;
        Ok(num)
    }

    /// How many items have room, by now maybe more. (Fails if the count is out of range.)
    pub fn write_count(&mut self) -> Result<usize> {
        let room = self.sender.sender_mut().write_count();
        room.context("failed to count the room")
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
    ///
    /// As for [`TrustedSender::new`]: the one sender leaves alone what it has sent.
    pub unsafe fn new(receiver: Receiver<Item>) -> Self {
        let back_off = BackOff::default();
        Self { receiver, back_off }
    }

    /// Lends `read` the items that there are, piece after piece in order. It stops at the ring's end:
    /// items at the ring's beginning take a second call. Returns the number of items. 0 means that the
    /// ring was empty, and still was after a moment ([`BackOff`]): call until then, and then sleep.
    /// Items that are sent meanwhile may be included. If `read` panics, the half of the ring that it was
    /// in stays there.
    ///
    /// # Errors
    ///
    /// If the count is out of range, which takes a sender that breaks the rules.
    pub fn receive(&mut self, mut read: impl FnMut(&[Item])) -> Result<usize> {
        let ring = self.receiver.receiver_mut();
        let looked = self.back_off.look(|| Ok(ring.read_count()? > 0));
        looked.context("failed to receive")?;
        let mut num = 0;
        loop {
            let mut more = false; // An empty ring does not call the closure.
            // SAFETY: whoever called `new` has promised what `receive_trusted` asks for.
            let received = unsafe {
                self.receiver.receive_trusted(|readable| {
                    let half = &readable[..readable.len().min(HALF)];
                    for (begin, piece) in (0..).step_by(PIECE).zip(half.chunks(PIECE)) {
                        let next = readable.get(begin + AHEAD..).unwrap_or_default();
                        fetch(&next[..next.len().min(PIECE)]);
                        read(piece);
                    }
                    num += half.len();
                    more = half.len() < readable.len();
                    half.len()
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

/// Has the processor fetch items into this core's cache: 8 KiB at most, the beginning of a large item.
/// (The standard library has a call for that on x86-64 alone.)
#[inline]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn fetch(items: &[Item]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(items).min(8192)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let place = items.as_ptr().cast::<i8>().wrapping_add(line);
        // SAFETY: a hint reads nothing that a program could see, and may point anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(place) };
    }
}

/// Looks again before one goes to sleep: what comes within the time of a wake-up then needs none.
///
/// Whoever looks for that long, and then sleeps, has spent at most twice what the better of the two
/// would have cost. While looking again is in vain, it is left out more and more: it is done the 1st,
/// 2nd, 4th, 8th time and so on, in the end each 64th time. So a slow sender costs next to nothing.
#[derive(Debug, Default)]
pub struct BackOff {
    /// How often in a row there was nothing at first, since looking again last found something.
    nothing: u32,
}

impl BackOff {
    /// Calls `look` until it finds something, for a moment at most, or only once if that is left out.
    pub fn look(&mut self, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
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

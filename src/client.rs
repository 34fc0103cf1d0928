//! The sender: takes a ring from the server and streams numbers into it.
//!
//! `server.rs` explains the words. The client's part: connect; take the ring's sending half; send;
//! sleep while the ring is full; say goodbye, and hear from the server that all items were summed.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shmem_ipc::sharedring::Sender;
use shmem_test::{Item, cli, handover, peer::Peer, ring::TrustedSender, socket};

fn main() {
    cli::exit(run())
}

fn run() -> Result<()> {
    let (path, work) = cli::client_options();
    let at = path.display();
    let start = format!("cargo run --release --bin server -- --socket {at}");
    let stream = socket::connect(&path, &start)?;
    let done = Client::take_ring(stream).and_then(|client| match work {
        cli::Work::Batches(count, interval) => client.send_batches(count, interval),
        cli::Work::Flood(items) => client.flood(items),
    });
    done.with_context(|| format!("failed to stream to the server at `{at}`"))
}

/// A ring, the server that takes out what is put in, and how many items that was so far.
struct Client {
    ring: TrustedSender,
    server: Peer,
    sent: u64,
}

impl Client {
    fn take_ring(stream: UnixStream) -> Result<Self> {
        let sender: Sender<Item> = handover::take(&stream).context("failed to take over a ring")?;
        let signals = [sender.empty_signal(), sender.full_signal()];
        let server = Peer::watch(stream, &signals).context("failed to watch its socket")?;
        // SAFETY: `sender` is the only sending half, because the server makes a ring for each
        // connection. That it does so, and leaves alone what is not sent yet, is trust in the
        // server. If it did not, `free` would change while it is borrowed: undefined behaviour.
        let ring = unsafe { TrustedSender::new(sender) };
        let sent = 0;
        Ok(Self { ring, server, sent })
    }

    fn send_batches(mut self, count: u64, interval: Duration) -> Result<()> {
        for k in 1..=count {
            if k > 1 {
                ensure!(self.server.pause(interval), "it is gone");
            }
            // Each batch asks for more than the one before, to show what a ring makes of it: one
            // send takes what fits before the ring's end, and the rest of this batch is dropped.
            let items = k * 100_000;
            let item = 1.0 / items as f64;
            let num = self.send(|free| fill(free, items, item))?;
            let total = num as f64 * item;
            cli::print(format!("Sending {num} items of {item}, in total {total}"))?;
        }
        self.goodbye()
    }

    fn flood(mut self, items: u64) -> Result<()> {
        let start = Instant::now();
        let mut left = items;
        while left > 0 {
            // What does not fit this time is sent the next time.
            left -= self.send(|free| fill(free, left, 1.0))?;
        }
        // The clock runs until the last item is summed: what is merely in the ring has not arrived.
        self.goodbye()?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = items as f64 * size_of::<Item>() as f64 / 1e9 / seconds;
        let figures = format!("{seconds:.3} s: {rate:.2} GB/s");
        cli::print(format!("Sent {items} items in {figures}"))
    }

    /// Sends once, as [`TrustedSender::send`] does, and returns the number of items.
    ///
    /// Sleeps while the ring is full. This is *back-pressure*: a sender that is faster than its
    /// receiver is slowed down to its pace, and nothing is skipped or piled up.
    fn send(&mut self, mut write: impl FnMut(&mut [Item]) -> usize) -> Result<u64> {
        loop {
            if let Some(num) = self.ring.send(&mut write)? {
                self.sent += num as u64;
                return Ok(num as u64);
            }
            // Full. A signal that came in between is not lost.
            ensure!(self.server.wait(self.ring.full_signal()), "it is gone");
        }
    }

    /// Says that this was the last item, and has the server confirm that it summed them all.
    fn goodbye(self) -> Result<()> {
        let sent = self.sent;
        let confirmed = self.server.goodbye();
        let summed = confirmed.context("it is gone before it confirmed the sum")?;
        ensure!(summed == sent, "it summed {summed} items of {sent}");
        Ok(())
    }
}

/// Writes `item` into up to `items` places of `free`, and returns how many.
fn fill(free: &mut [Item], items: u64, item: f64) -> usize {
    let num = items.min(free.len() as u64) as usize;
    // Written once, in place: the server reads it from here.
    free[..num].fill(item);
    num
}

//! The producer: takes a ring from the server and streams numbers into it.
//!
//! `server.rs` explains the words. The client's part: connect; take the ring; write items and
//! publish them; sleep while the ring is full; say goodbye, and hear from the server that all
//! items were summed.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use shmem_ipc::sharedring::Sender;
use shmem_test::handover::{self, cause};
use shmem_test::peer::Peer;
use shmem_test::{Item, cli};

/// How long a full ring is left alone before more is written to it, so that room adds up. A timer
/// of ours ends this pause. Woken for each piece of room instead, we would cost the server, which
/// has to do the waking, some 8 % of its speed.
const REFILL_PAUSE: Duration = Duration::from_micros(100);

fn main() {
    cli::exit(run())
}

fn run() -> Result<()> {
    let (path, work) = cli::client_options();
    let client = Client::connect(path)?;
    match work {
        cli::Work::Batches { count, interval } => client.send_batches(count, interval),
        cli::Work::Flood(items) => client.flood(items),
    }
}

/// The sending half of a ring, and the server that has the other half.
struct Client {
    path: PathBuf,
    r: Sender<Item>,
    server: Peer,
    sent: u64,
}

impl Client {
    fn connect(path: PathBuf) -> Result<Self> {
        let at = path.display();
        let stream = connect(&path)?;
        let (r, signals) = handover::take(&stream)
            .with_context(|| format!("failed to take over a ring from the server at `{at}`"))?;
        let server = Peer::watch(stream, signals).context("failed to watch the server")?;
        Ok(Self {
            path,
            r,
            server,
            sent: 0,
        })
    }

    fn send_batches(mut self, count: u64, interval: Duration) -> Result<()> {
        for k in 1..=count {
            if k > 1 {
                self.check(self.server.stays(interval))?;
            }
            // Each batch asks for more than the one before, to show what a ring makes of it: one
            // send takes what fits in one piece, and the rest of this batch is not sent.
            let items = k * 100_000;
            let item = 1.0 / items as f64;
            let num = self.send(|p| fill(p, items, item))?;
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
            left -= self.send(|p| fill(p, left, 1.0))?;
        }
        // The clock runs on until the server has summed the last item: what is merely in the ring
        // has not arrived.
        self.goodbye()?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = items as f64 * size_of::<Item>() as f64 / 1e9 / seconds;
        cli::print(format!(
            "Sent {items} items in {seconds:.3} s: {rate:.2} GB/s"
        ))
    }

    /// Has `write` write into the free part of the ring, up to the ring's end, and publishes as
    /// many items as it says. Returns their number.
    ///
    /// Sleeps while the ring is full. This is *back-pressure*: a producer that is faster than its
    /// consumer is slowed down to its pace, and nothing is skipped or piled up.
    fn send(&mut self, mut write: impl FnMut(&mut [Item]) -> usize) -> Result<u64> {
        loop {
            let mut num = None;
            // SAFETY: nobody may touch the ring's items but one sender and one receiver, correctly
            // set up. This is the only sender, for the server makes a ring for each connection,
            // and `handover::take` has checked that it is empty. The receiver reads only what is
            // published, and `p` is what is not. A server that lies about either would touch `p`
            // under this borrow: undefined behaviour, which `send_raw` and volatile writes avoid.
            let published = unsafe { self.r.send_trusted(|p: &mut [Item]| *num.insert(write(p))) };
            published
                .map_err(cause)
                .context("failed to publish items")?;
            if let Some(num) = num {
                self.sent += num as u64;
                return Ok(num as u64);
            }

            // The ring is full: the closure was not called. Some time for room to add up, then
            // the signal that there is room. If it came before, there is no sleep.
            self.check(self.server.stays(REFILL_PAUSE))?;
            let there = self.server.wait(self.r.full_signal());
            self.check(there.context("failed to sleep on the full signal")?)?;
        }
    }

    fn check(&self, there: bool) -> Result<()> {
        ensure!(there, "the server at `{}` is gone", self.path.display());
        Ok(())
    }

    /// Says that this was the last item, and has the server confirm that it summed them all.
    fn goodbye(self) -> Result<()> {
        let (at, sent) = (self.path.display(), self.sent);
        let Some(summed) = self.server.goodbye() else {
            bail!("the server at `{at}` is gone before it confirmed the sum");
        };
        ensure!(
            summed == sent,
            "the server at `{at}` summed {summed} items of {sent}"
        );
        Ok(())
    }
}

fn connect(path: &Path) -> Result<UnixStream> {
    let at = path.display();
    UnixStream::connect(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::from(e).context(format!(
            "no server at `{at}`, start it: `cargo run --release --bin server -- --socket {at}`"
        )),
        _ => Error::from(e).context(format!("failed to connect to `{at}`")),
    })
}

/// Writes `item` into up to `items` places of `p`, and returns how many.
fn fill(p: &mut [Item], items: u64, item: f64) -> usize {
    let num = items.min(p.len() as u64) as usize;
    // Written once, in place: the server reads it from here.
    p[..num].fill(item);
    num
}

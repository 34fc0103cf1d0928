//! The producer: takes a ring from the server and streams numbers into it.
//!
//! `server.rs` explains the words. The client's part: connect; receive three descriptors, the
//! ring's memfd and its two eventfds; map the memfd; write items and publish them; sleep while the
//! ring is full; say goodbye, and hear from the server that all items were summed.
//!
//! One thread does all that. A second one does nothing but read from the socket, because that is
//! where the end of the server shows, and the first one may be asleep on the ring by then.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd};
use shmem_ipc::ringbuf::channel_bufsize;
use shmem_ipc::sharedring::Sender;
use shmem_test::{CAPACITY, PIECE, cli, signal, socket};

/// How long a server may take to hand over the next descriptor. A live one takes microseconds; one
/// that is stopped, or no such server, would take forever.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a full ring is left alone before more is written to it. To be woken for each piece of
/// room would cost both sides more than the piece is worth; in this time the server frees up to
/// half of the ring, and the other half keeps it busy meanwhile.
const REFILL_PAUSE: Duration = Duration::from_micros(200);

fn main() -> ExitCode {
    cli::exit(cli::CLIENT_HELP, run())
}

fn run() -> Result<()> {
    let (path, work) = cli::client_options()?;
    let mut client = Client::connect(&path)?;
    match work {
        cli::Work::Batches { count, interval } => {
            client.send_batches(count, interval)?;
            client.goodbye()
        }
        cli::Work::Flood(items) => {
            let start = Instant::now();
            client.flood(items)?;
            // The clock runs on until the server has summed the last item: what is merely in the
            // ring has not arrived.
            client.goodbye()?;
            let seconds = start.elapsed().as_secs_f64();
            let rate = items as f64 * size_of::<f64>() as f64 / 1e9 / seconds;
            cli::print(format!(
                "Sent {items} items in {seconds:.3} s: {rate:.2} GB/s"
            ))
        }
    }
}

/// The sending half of a ring, and the socket that tells whether the other half lives.
struct Client {
    path: PathBuf,
    stream: UnixStream,
    r: Sender<f64>,
    /// What the socket says when it ends: the server's count, or an error if there is none.
    hang_up: mpsc::Receiver<io::Result<u64>>,
    sent: u64,
}

impl Client {
    fn connect(path: &Path) -> Result<Self> {
        let at = path.display();
        let stream = socket::connect(path)?;
        let (r, signals) = take_ring(&stream)
            .with_context(|| format!("failed to take over a ring from the server at `{at}`"))?;

        let (report, hang_up) = mpsc::channel();
        let mut watched = stream.try_clone().context("failed to clone the socket")?;
        Builder::new()
            .name("hang-up".into())
            .spawn(move || {
                // Sleeps until the server answers our goodbye, or is gone.
                let mut count = [0; 8];
                let end = watched.read_exact(&mut count);
                // First the report, then the wake-up: who wakes finds it. Ignored, because it
                // fails only where nobody is left to be told.
                let _ = report.send(end.map(|()| u64::from_ne_bytes(count)));
                wake_until_the_end(signals)
            })
            .context("no thread to watch the socket")?;
        let path = path.into();
        Ok(Self {
            path,
            stream,
            r,
            hang_up,
            sent: 0,
        })
    }

    fn send_batches(&mut self, count: u64, interval: Duration) -> Result<()> {
        for k in 1..=count {
            if k > 1 {
                self.stay_connected(interval)?;
            }
            // Each batch asks for more than the one before, to show what a ring makes of it: one
            // send takes what fits in one piece, and the rest of this batch is not sent.
            let items = k * 100_000;
            let item = 1.0 / items as f64;
            let num = self.send(items, item)?;
            let total = num as f64 * item;
            cli::print(format!("Sending {num} items of {item}, in total {total}"))?;
        }
        Ok(())
    }

    fn flood(&mut self, items: u64) -> Result<()> {
        let mut left = items;
        while left > 0 {
            // In pieces, so that the server starts on the first while we write the next. What does
            // not fit this time is sent the next time.
            left -= self.send(left.min(PIECE as u64), 1.0)?;
        }
        Ok(())
    }

    /// Publishes up to `items` items, as many as there is room for in one piece, at least one.
    /// Returns their number.
    ///
    /// Sleeps while the ring is full. This is *back-pressure*: a producer that is faster than its
    /// consumer is slowed down to its pace, and nothing is skipped or piled up.
    fn send(&mut self, items: u64, item: f64) -> Result<u64> {
        loop {
            let mut num = 0;
            // SAFETY: nobody may touch the ring's items but one sender and one receiver, correctly
            // set up. This is the only sender, for the server makes a ring for each connection,
            // and `take_ring` has checked that it is unused. The receiver reads only what is
            // published, and `p` is what is not. A server that lies about either would touch `p`
            // under this borrow, which is undefined behaviour; `send_raw` and volatile writes
            // stand that.
            let published = unsafe {
                self.r.send_trusted(|p: &mut [f64]| {
                    num = items.min(p.len() as u64) as usize;
                    // Written once, in place: the server reads it from here.
                    p[..num].fill(item);
                    num
                })
            };
            published.context("failed to publish in the ring")?;
            if num > 0 {
                self.sent += num as u64;
                return Ok(num as u64);
            }

            // The ring is full: the closure was not called. Some time for room to add up, then
            // the signal that there is room. If it came before, there is no sleep: a signal keeps
            // until it is read.
            self.stay_connected(REFILL_PAUSE)?;
            signal::wait(self.r.full_signal()).context("failed to wait for the full signal")?;
        }
    }

    /// Sleeps for `interval`. An error if the server is gone by then, as soon as it is.
    fn stay_connected(&self, interval: Duration) -> Result<()> {
        match self.hang_up.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(anyhow!("the server at `{}` is gone", self.path.display())),
        }
    }

    /// Says that this was the last item, and has the server confirm that it summed them all.
    fn goodbye(self) -> Result<()> {
        let at = self.path.display();
        // The server sees the end of the socket, as if we were gone, but we still read from it.
        // Ignored, because a server that is gone is what the next line finds out.
        let _ = self.stream.shutdown(Shutdown::Write);
        let answer = self.hang_up.recv().context("nobody watches the socket")?;
        let summed = answer
            .with_context(|| format!("the server at `{at}` is gone before it confirmed the sum"))?;
        let sent = self.sent;
        ensure!(
            summed == sent,
            "the server at `{at}` summed {summed} items of {sent}"
        );
        Ok(())
    }
}

/// Wakes the thread that sends, which then finds the report that the server is gone. The error
/// would be that these are no eventfds, which `take_ring` has ruled out.
fn wake_until_the_end([mut empty, mut full]: [File; 2]) -> io::Result<()> {
    loop {
        empty = signal::wake(empty)?;
        full = signal::wake(full)?;
        // Usually, the program ends here. If not, somebody else has read the signal.
        thread::sleep(signal::WAKE_PAUSE);
    }
}

/// Receives the ring's three descriptors and maps its memory.
///
/// Returns the sending half, and clones of both signals for the thread that watches the socket.
fn take_ring(stream: &UnixStream) -> Result<(Sender<f64>, [File; 2])> {
    stream.set_read_timeout(Some(HAND_OVER_TIMEOUT))?;
    let m = recv_file(stream).context("no memfd")?;
    let e = recv_file(stream).context("no empty signal")?;
    let f = recv_file(stream).context("no full signal")?;
    // From here on, silence is what the socket is for.
    stream.set_read_timeout(None)?;
    for signal in [&e, &f] {
        ensure!(signal::is_eventfd(signal)?, "a signal is no eventfd");
    }
    let signals = [e.try_clone()?, f.try_clone()?];

    // Whoever touches mapped memory past the end of its file dies of SIGBUS (mmap(2)). So: forbid
    // that the file ever shrinks, then measure it, and only then map it.
    let m = Memfd::try_from_file(m).map_err(|_| anyhow!("the memory is no memfd"))?;
    if !m.seals()?.contains(&FileSeal::SealShrink) {
        m.add_seal(FileSeal::SealShrink)
            .context("the memfd can't be sealed")?;
    }
    let len = m.as_file().metadata()?.len();
    let needed = channel_bufsize::<f64>(CAPACITY) as u64;
    ensure!(
        len >= needed,
        "the memfd has {len} bytes, a ring needs {needed}"
    );
    let mut r = Sender::open(CAPACITY, m.into_file(), e, f).context("failed to map the ring")?;

    // All of it must be free: in a used ring, we would go on in the wrong place. And in a longer
    // file, the server's ring would end in another place than ours. (An item whose size does not
    // divide the pages leaves a rest at their end.)
    let room = r
        .sender_mut()
        .write_count()
        .context("the ring is corrupt")?;
    let free = channel_bufsize::<f64>(room) as u64;
    let rest = len.checked_sub(free);
    ensure!(
        rest.is_some_and(|rest| rest < size_of::<f64>() as u64),
        "of {len} bytes in the memfd, {free} are an unused ring"
    );
    Ok((r, signals))
}

/// Receives one descriptor.
fn recv_file(stream: &UnixStream) -> Result<File> {
    loop {
        match stream.recv_fd() {
            // SAFETY: a `File` must be the only owner of an open descriptor. The kernel has opened
            // this one for this message, and nobody else has seen its number. A second owner would
            // close it under us.
            Ok(fd) => return Ok(unsafe { File::from_raw_fd(fd) }),
            // To be stopped and continued ends a read that has a timeout (signal(7)).
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                bail!("nothing came for {HAND_OVER_TIMEOUT:?}");
            }
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                return Err(e).context("a message without a descriptor, or none left to open here");
            }
            Err(e) => return Err(e.into()),
        }
    }
}

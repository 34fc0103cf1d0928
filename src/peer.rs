//! The other program: sleep until it has something for us, and learn when it is gone.
//!
//! Each side of a ring sleeps on an *eventfd*, a counter in the kernel that is held like an open
//! file: `write` adds to the counter, `read` returns it and sets it to zero, and a `read` of zero
//! sleeps until somebody writes (eventfd(2)). The ring writes to its *empty signal* when it is no
//! longer empty, and to its *full signal* when it is no longer full.
//!
//! A peer that is killed writes nothing, so whoever sleeps on its signal would sleep forever. But
//! the kernel closes its socket. So a second thread reads from the socket, and when that ends, it
//! writes to the signals itself.
//!
//! Both programs hold the same two counters, and a peer may do to them what it likes: write
//! without a cause, read what is not meant for it, fill a counter up so that the next write
//! sleeps, set `O_NONBLOCK`, which belongs to the shared open file. With that it can spoil its own
//! ring, and keep for good the two threads that serve it, with all that they hold.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::Builder;
use std::time::Duration;

/// From one wake-up to the next, until the sleeper has heard: another program that holds the
/// signal may have read the last one.
const WAKE_PAUSE: Duration = Duration::from_millis(100);

/// The program at the other end of a socket, with which we share a ring.
///
/// Dropped, for whatever reason, it hangs up: the peer sees the end of its socket, and the thread
/// that watches ours ends.
pub struct Peer {
    stream: Arc<UnixStream>,
    /// From the watching thread. Carries the peer's answer, and ends when the peer has hung up.
    news: Receiver<u64>,
    /// To the watching thread. Carries nothing, and ends when this is dropped.
    _needed: Sender<()>,
}

impl Peer {
    /// Starts to watch the other end of `stream`, for a thread of ours that sleeps on a ring.
    ///
    /// `signals` are clones of the ring's empty and full signal (of each ring, if there are more),
    /// to wake that thread.
    ///
    /// # Errors
    ///
    /// If the system has no thread left.
    pub fn watch<const N: usize>(stream: UnixStream, signals: [File; N]) -> io::Result<Self> {
        let stream = Arc::new(stream);
        let (report, news) = mpsc::channel();
        let (_needed, needed) = mpsc::channel();
        let watched = Arc::clone(&stream);
        // `Builder`, because `thread::spawn` panics where the system has no thread left.
        Builder::new().name("watch".into()).spawn(move || {
            read_to_the_end(&watched, report);
            wake_while_needed(&signals, &needed);
        })?;
        Ok(Self {
            stream,
            news,
            _needed,
        })
    }

    /// Sleeps until somebody writes to `signal`, or has done so since the last call. Says whether
    /// the peer is still there.
    ///
    /// `true` may come without a cause: look at the ring, and wait again if there is nothing. After
    /// `false`, drain the ring once more: as this was found out first, everything that the peer
    /// has published is there by then.
    ///
    /// # Errors
    ///
    /// If `signal` can't be read, for example because it is no eventfd.
    pub fn wait(&self, mut signal: &File) -> io::Result<bool> {
        match signal.read_exact(&mut [0; 8]) {
            // `O_NONBLOCK` is shared, and the peer has set it. Clear it, or our caller never sleeps.
            Err(e) if e.kind() == ErrorKind::WouldBlock => set_nonblocking(signal, false)?,
            read => read?,
        }
        Ok(self.news.try_recv() != Err(TryRecvError::Disconnected))
    }

    /// Sleeps for `pause`, or until the peer is gone. Says whether it is still there.
    #[must_use]
    pub fn stays(&self, pause: Duration) -> bool {
        self.news.recv_timeout(pause) != Err(RecvTimeoutError::Disconnected)
    }

    /// Says that nothing more will come, and returns the peer's answer; `None` if it has hung up
    /// without one. Waits for as long as it takes: a peer that is stopped may go on.
    #[must_use]
    pub fn goodbye(self) -> Option<u64> {
        // The peer reads the end of our socket, and can still write to us. Ignored, because a peer
        // that is gone is what the next line finds out.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.news.recv().ok()
    }

    /// Answers a goodbye with `number`, and says whether anybody was there to read it: a peer that
    /// was killed has closed its socket for good, and a write to that fails (unix(7), `EPIPE`).
    #[must_use]
    pub fn answer(self, number: u64) -> bool {
        (&*self.stream).write_all(&number.to_ne_bytes()).is_ok()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ends our thread's read as well. Ignored, because it fails only where the peer was first.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Sleeps until the peer hangs up. On the way, passes on its answer: the first 8 bytes.
fn read_to_the_end(mut stream: &UnixStream, report: Sender<u64>) {
    let mut number = [0; 8];
    // Whatever fails here is ignored: an error is an end of the socket, too ("connection reset"),
    // and if nobody takes the answer, nobody needs it.
    if stream.read_exact(&mut number).is_ok() {
        let _ = report.send(u64::from_ne_bytes(number));
    }
    let _ = io::copy(&mut stream, &mut io::sink());
    // `report` ends here: first the news, then the wake-up, so that whoever wakes finds it.
}

/// Wakes our sleeper, again and again, for as long as there is one.
fn wake_while_needed(signals: &[File], needed: &Receiver<()>) {
    for signal in signals {
        // So that the writes below don't sleep. If it fails, they sleep only on a full counter.
        let _ = set_nonblocking(signal, true);
    }
    loop {
        for mut signal in signals {
            // Both signals, because our thread may also be asleep in a write, to a counter that
            // the peer has filled up: a read frees it.
            if signal.write(&1u64.to_ne_bytes()).is_err() {
                let _ = signal.read(&mut [0; 8]);
            }
        }
        if needed.recv_timeout(WAKE_PAUSE) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Sets or clears `O_NONBLOCK`, for every process that holds this eventfd.
fn set_nonblocking(signal: &File, nonblocking: bool) -> io::Result<()> {
    // std has this call for sockets only, but it is the same for any descriptor: FIONBIO, ioctl(2).
    UnixStream::from(OwnedFd::from(signal.try_clone()?)).set_nonblocking(nonblocking)
}

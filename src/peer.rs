//! The other program: sleep until it has something for us, and learn that it is gone.
//!
//! Each side of a ring sleeps on an *eventfd*, a counter in the kernel (eventfd(2)). A `write` adds
//! to it, a `read` returns it and sets it to zero. A `read` of zero sleeps until somebody writes, a
//! `write` to a full counter until somebody reads. A peer that is killed writes nothing. But the
//! kernel closes its socket: the peer *hangs up*. So a second thread reads from the socket, and when
//! that ends, it writes to the signals itself. (A child that the peer has forked keeps the socket
//! open until the child ends or calls exec(2).)
//!
//! The peer has the same signals: it can write without a cause, read what is not meant for it, fill a
//! counter, set or clear `O_NONBLOCK`. With that it spoils its own ring. At worst, if it fights while it
//! hangs up, its two threads here sleep on, and keep what they hold while this program runs.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::Builder;
use std::time::Duration;

use anyhow::Result;

/// From one wake-up to the next: another program that holds the signal may have read the last one.
const WAKE_PAUSE: Duration = Duration::from_millis(100);

/// The program at the other end of a socket, with which we share a ring. Keep it for as long as the ring.
/// Dropped, it hangs up: the peer takes us for dead, and the thread that watches the socket ends. It can
/// be moved to another thread, but not shared by two (`Send`, not `Sync`).
#[derive(Debug)]
#[must_use = "dropped, it hangs up (and `let _ =` drops at once)"]
pub struct Peer {
    /// Read by the watching thread, written by `confirm`.
    stream: Arc<UnixStream>,
    /// The number that the peer confirms: from the watching thread, for `goodbye`.
    confirmed: Receiver<u64>,
    /// Its end tells that the peer is gone: from the watching thread, for `wait` and `pause`.
    gone: Receiver<()>,
    /// Its end tells that there is nobody left to wake: for the watching thread.
    here: Option<Sender<()>>,
}

impl Peer {
    /// Watches the other end of `stream` (a [`UnixStream`], or an [`Arc`] of one if you mean to try again
    /// after an error), which blocks from now on, without a time limit. `signals` are both signals of the
    /// ring, or of each ring. A clone of each takes a descriptor. Fails if there is none, or no thread.
    pub fn watch(stream: impl Into<Arc<UnixStream>>, signals: &[&File]) -> Result<Self> {
        let stream = stream.into();
        let signals = signals.iter().map(|signal| signal.try_clone());
        let signals = signals.collect::<io::Result<Vec<_>>>()?;
        let (confirming, confirmed) = mpsc::channel();
        let (connected, gone) = mpsc::channel();
        let (we, here) = mpsc::channel();
        let watched = Arc::clone(&stream);
        // `Builder`, because `thread::spawn` panics where the system has no thread left.
        Builder::new().name("watch".into()).spawn(move || {
            // `confirming` goes with it, and its end is what a `goodbye` without an answer hears.
            read_to_the_end(&watched, confirming);
            // First the news, then the wake-up, so that whoever wakes finds it.
            drop(connected);
            wake_while_here(signals, &here);
        })?;
        let here = Some(we);
        Ok(Self {
            stream,
            confirmed,
            gone,
            here,
        })
    }

    /// Sleeps until `signal` is written to, if that has not happened since the last call, or until
    /// the peer is gone. May return early. The signal has to be one that [`watch`](Self::watch) got,
    /// or nobody writes to it when the peer is gone. To wake this thread for another reason, write a 1
    /// (8 bytes, [`u64::to_ne_bytes`]) to a clone of the signal.
    ///
    /// `true`: use the ring until it is empty (or full), then wait again. `false`: the peer is gone.
    /// All that it has sent is in the ring by now; receive it, then stop.
    #[must_use]
    pub fn wait(&self, mut signal: &File) -> bool {
        let rung = signal.read_exact(&mut [0; 8]);
        // An error: somebody has set `O_NONBLOCK`. It has to be cleared, or our caller never sleeps.
        let blocks = rung.or_else(|_| signal.try_clone().map(|s| drop(set_nonblocking(s, false))));
        // Out of descriptors for that, our caller looks at the ring ten times a second.
        self.pause(blocks.map_or(WAKE_PAUSE, |()| Duration::ZERO))
    }

    /// Sleeps for `pause`, or until the peer is gone. Says whether it is still there.
    #[must_use]
    pub fn pause(&self, pause: Duration) -> bool {
        self.gone.recv_timeout(pause) != Err(RecvTimeoutError::Disconnected)
    }

    /// Says that nothing more will come, and waits for the peer to confirm, also for one that is stopped.
    /// `None` if it is gone and has not confirmed.
    #[must_use]
    pub fn goodbye(self) -> Option<u64> {
        // The peer can still write to us. If this fails, it is gone, as the next line finds out.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.confirmed.recv().ok()
    }

    /// Answers a goodbye with the number of items that have arrived. Says whether the peer was there
    /// to read it: after a kill its socket is closed, and a write to that fails (unix(7), `EPIPE`). With
    /// Rust 1.89 (not with 1.95), SIGPIPE then ends a program in which that has its default action.
    #[must_use]
    pub fn confirm(self, number: u64) -> bool {
        (&*self.stream).write_all(&number.to_ne_bytes()).is_ok()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // First, so that our thread wakes nobody and leaves the signals alone: the peer still has them.
        self.here = None;
        // Ends our thread's read, and the peer's, whoever else has this socket open.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Sleeps until the peer hangs up. On the way, passes on what it confirms: the first 8 bytes.
fn read_to_the_end(mut stream: &UnixStream, confirming: Sender<u64>) {
    let (mut number, mut bytes) = (vec![], [0; 4096]);
    loop {
        match stream.read(&mut bytes) {
            // "Not yet" is no hang-up: the socket came non-blocking or with a time limit, or whoever has
            // a clone of it has changed that.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(None);
            }
            Ok(0) | Err(_) => return, // For example "connection reset": that is an end, too.
            Ok(len) if number.len() < 8 => {
                number.extend_from_slice(&bytes[..len]);
                if let Some(first) = number.first_chunk() {
                    let _ = confirming.send(u64::from_ne_bytes(*first)); // Nobody may need it.
                }
            }
            Ok(_) => {} // A client has nothing to say.
        }
    }
}

/// Wakes our sleeper, again and again, for as long as it is there. (Not if it was us who hung up.)
fn wake_while_here(mut signals: Vec<File>, here: &Receiver<()>) {
    let mut pause = Duration::ZERO;
    while here.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        pause = WAKE_PAUSE;
        // So that the calls below don't sleep, unless a `wait` clears the flag just then.
        let nonblocking = signals.into_iter().map(|s| set_nonblocking(s, true));
        signals = nonblocking.collect();
        for mut signal in &signals {
            // Both signals, because our thread may also be asleep in a write, to a counter that
            // the peer has filled up: a read frees it.
            if signal.write(&1u64.to_ne_bytes()).is_err() {
                let _ = signal.read(&mut [0; 8]);
            }
        }
    }
}

/// Sets or clears `O_NONBLOCK`, for every process that holds this eventfd.
fn set_nonblocking(signal: File, nonblocking: bool) -> File {
    // std has this for sockets alone. The kernel does the same for every file, and does not fail.
    let socket = UnixStream::from(OwnedFd::from(signal));
    let _ = socket.set_nonblocking(nonblocking);
    OwnedFd::from(socket).into()
}

//! The other program: sleep until it has something for us, and learn that it is gone.
//!
//! Each side of a ring sleeps on an *eventfd*, a counter in the kernel (eventfd(2)). A `write` adds
//! to it, a `read` returns it and sets it to zero. A `read` of zero sleeps until somebody writes, a
//! `write` to a full counter until somebody reads. A peer that is killed writes nothing. But the
//! kernel closes its socket: the peer *hangs up*. So a second thread reads from the socket, and when
//! that ends, it writes to the signals itself. (A child that the peer has forked keeps the socket
//! open until the child ends or calls exec(2).)
//!
//! The peer holds the same signals and may do with them what it likes: write without a cause, read
//! what is not meant for it, fill a counter, set or clear `O_NONBLOCK`, which belongs to the shared
//! open file. With that it spoils its own ring. At worst, if it fights while it hangs up, the two
//! threads that serve it sleep on after its death, and keep what they hold while this program runs.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::Builder;
use std::time::Duration;

/// From one wake-up to the next: another program that holds the signal may have read the last one.
const WAKE_PAUSE: Duration = Duration::from_millis(100);

/// The program at the other end of a socket, with which we share a ring. Dropped, for whatever
/// reason, it hangs up: the peer sees the end of its socket, and the thread that watches ours ends.
/// It can be moved to another thread, but not shared by two (`Send`, not `Sync`).
#[derive(Debug)]
pub struct Peer {
    /// Read by the watching thread, written by `confirm`.
    stream: Arc<UnixStream>,
    /// The number that the peer confirms: from the watching thread, for `goodbye`.
    confirmed: Receiver<u64>,
    /// Carries nothing: the watching thread ends it when the peer is gone, for `wait` and `pause`.
    gone: Receiver<()>,
    /// Carries nothing: dropping it tells the watching thread that there is nobody left to wake.
    _here: Sender<()>,
}

impl Peer {
    /// Starts to watch the other end of `stream` (a [`UnixStream`], or an [`Arc`] of one if you mean to
    /// try again after an error), which blocks from now on, with no time limit. `signals` are both
    /// signals of the ring, or of each ring if there are more. A clone of each takes a descriptor.
    ///
    /// # Errors
    /// If the system has no descriptor or no thread left.
    pub fn watch(stream: impl Into<Arc<UnixStream>>, signals: &[&File]) -> io::Result<Self> {
        let stream = stream.into();
        make_patient(&stream)?;
        let signals = signals.iter().map(|signal| signal.try_clone());
        let signals = signals.collect::<io::Result<Vec<_>>>()?;
        let (confirming, confirmed) = mpsc::channel();
        let (connected, gone) = mpsc::channel();
        let (_here, here) = mpsc::channel();
        let watched = Arc::clone(&stream);
        // `Builder`, because `thread::spawn` panics where the system has no thread left.
        Builder::new().name("watch".into()).spawn(move || {
            // `confirming` goes with it, and its end is what a `goodbye` without an answer hears.
            read_to_the_end(&watched, confirming);
            // First the news, then the wake-up, so that whoever wakes finds it.
            drop(connected);
            wake_while_here(signals, &here);
        })?;
        Ok(Self {
            stream,
            confirmed,
            gone,
            _here,
        })
    }

    /// Sleeps until `signal` is written to, if that has not happened since the last call, or until
    /// the peer is gone. May return early. The signal has to be one that [`watch`](Self::watch) got,
    /// or nobody writes to it when the peer is gone.
    ///
    /// `true`: use the ring until it is empty (or full), then wait again. `false`: the peer is gone.
    /// All that it has sent is in the ring by now; receive it, then stop.
    #[must_use]
    pub fn wait(&self, mut signal: &File) -> bool {
        let mut pause = Duration::ZERO;
        if signal.read_exact(&mut [0; 8]).is_err() {
            // Somebody has set `O_NONBLOCK`. Clear it, or our caller never sleeps. Out of descriptors
            // for that, it looks at the ring ten times a second.
            match signal.try_clone() {
                Ok(clone) => drop(set_nonblocking(clone, false)),
                Err(_) => pause = WAKE_PAUSE,
            }
        }
        self.pause(pause)
    }

    /// Sleeps for `pause`, or until the peer is gone. Says whether it is still there.
    #[must_use]
    pub fn pause(&self, pause: Duration) -> bool {
        self.gone.recv_timeout(pause) != Err(RecvTimeoutError::Disconnected)
    }

    /// Says that nothing more will come, and waits until the peer confirms, for as long as it takes.
    /// `None` if it is gone and has not confirmed.
    #[must_use]
    pub fn goodbye(self) -> Option<u64> {
        // The peer can still write to us. If this fails, it is gone, as the next line finds out.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.confirmed.recv().ok()
    }

    /// Answers a goodbye with the number of items that have arrived. Says whether the peer was there
    /// to read it: after a kill its socket is closed, and a write to that fails (unix(7), `EPIPE`).
    #[must_use]
    pub fn confirm(self, number: u64) -> bool {
        (&*self.stream).write_all(&number.to_ne_bytes()).is_ok()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ends our thread's read as well. It fails where the peer was first.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Sleeps until the peer hangs up. On the way, passes on what it confirms: the first 8 bytes.
fn read_to_the_end(mut stream: &UnixStream, confirming: Sender<u64>) {
    let (mut number, mut bytes) = (vec![], [0; 4096]);
    loop {
        match stream.read(&mut bytes) {
            // "Not yet" is no hang-up. Whoever has a clone of the socket may have changed its state.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                let _ = make_patient(stream);
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

fn make_patient(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)
}

/// Wakes our sleeper, again and again, for as long as it is there.
fn wake_while_here(signals: Vec<File>, here: &Receiver<()>) {
    // So that the calls below don't sleep on a full counter, unless a `wait` has just cleared the flag.
    let signals = signals.into_iter().map(|s| set_nonblocking(s, true));
    let signals: Vec<_> = signals.collect();
    loop {
        for mut signal in &signals {
            // Both signals, because our thread may also be asleep in a write, to a counter that
            // the peer has filled up: a read frees it.
            if signal.write(&1u64.to_ne_bytes()).is_err() {
                let _ = signal.read(&mut [0; 8]);
            }
        }
        if here.recv_timeout(WAKE_PAUSE) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Sets or clears `O_NONBLOCK`, for every process that holds this eventfd.
fn set_nonblocking(signal: File, nonblocking: bool) -> File {
    // std has this for sockets alone, but the kernel does the same for every open file, and that
    // does not fail (`ioctl_fionbio` in its fs/ioctl.c).
    let socket = UnixStream::from(OwnedFd::from(signal));
    let _ = socket.set_nonblocking(nonblocking);
    OwnedFd::from(socket).into()
}

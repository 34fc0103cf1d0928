//! The receiver: gives each client a ring of its own and sums what arrives in it.
//!
//! A *ring* is a buffer whose end is followed by its beginning. One *sender*, the client, puts items
//! in; one *receiver*, this server, takes them out; they share a count of the items in it. The ring
//! lives in a *memfd*, a file that is nothing but memory and that both have mapped. Two *eventfds* go
//! with it, counters in the kernel on which a thread can sleep: the *empty signal* wakes the receiver
//! of an empty ring, the *full signal* the sender of a full one. A client that is gone *hangs up*,
//! however it ended: the kernel closes its socket.
//!
//! `main` prints the sum. Each client has a thread that waits for it, makes its ring and sums what it
//! sends, and another one, in [`Peer`], that watches its socket.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use shmem_ipc::sharedring::Receiver;
use shmem_test::{CAPACITY, Item, cli, handover, peer::Peer, ring::TrustedReceiver, socket};

fn main() {
    cli::exit(run())
}

fn run() -> Result<()> {
    let path = cli::server_options();
    let at = path.display();
    let said = format!("failed to listen on `{at}` (try another --socket)");
    let state = Arc::new(State {
        listener: Mutex::new(socket::listen(&path).context(said)?),
        sum: Mutex::new(0.0),
        printer: thread::current(),
        last_shortage: Mutex::new(None),
    });
    let nobody_yet = lock(&state.listener); // So that the line below is the first one.
    state.await_client(1)?;
    cli::note(format!("Listening on {at}"));
    drop(nobody_yet);
    // Printing is left to this thread: if stdout is closed, its error ends the program.
    state.print_sums()
}

/// What the threads share.
struct State {
    /// Where clients connect. One thread at a time waits here.
    listener: Mutex<UnixListener>,
    /// Of all items of all clients since the start. Each client's thread adds to it, `main` reads it.
    sum: Mutex<f64>,
    /// `main`, which sleeps until a client's thread has added to the sum and wakes it.
    printer: Thread,
    /// When something was short, so that it is said once and not ten times a second.
    last_shortage: Mutex<Option<Instant>>,
}

impl State {
    /// Starts the thread of the n-th client, which does not need to be there yet.
    fn await_client(self: &Arc<Self>, n: u64) -> Result<()> {
        let started = self.patiently(|| {
            let state = Arc::clone(self);
            let thread = Builder::new().name(format!("client {n}"));
            // If it fails, nobody can come any more.
            thread.spawn(move || state.client(n).unwrap_or_else(|e| cli::exit(Err(e))))
        });
        started.context("no thread for a client").map(drop)
    }

    /// The n-th client, from before it connects until it is gone. A panic, a bug of ours, would cost
    /// this client and no other: it ends this thread, which drops all that is the client's.
    fn client(self: &Arc<Self>, n: u64) -> Result<()> {
        let accepted = self.patiently(|| lock(&self.listener).accept());
        let stream = Arc::new(accepted.context("failed to accept clients")?.0);
        cli::note(format!("Client {n} connected"));
        let added = self.patiently(|| add_receiver(&stream));
        // The next one's turn: a moment ago, it could have taken what was missing here.
        self.await_client(n + 1)?;
        let how = match added.and_then(|(receiver, client)| self.serve(receiver, client)) {
            Ok((items, true)) => format!("left after {items} items"),
            Ok((items, false)) => format!("broke off after {items} items"),
            Err(e) => format!("dropped: {}", cli::reason(&e)),
        };
        cli::note(format!("Client {n} {how}"));
        Ok(())
    }

    /// Sums what the client sends. Returns how many items that was, and whether the client was there
    /// to hear it.
    fn serve(&self, receiver: Receiver<Item>, client: Peer) -> Result<(u64, bool)> {
        // SAFETY: the ring was made for this client, and `receiver` is its only receiving half. That
        // the client has one sending half, and leaves alone what it has sent, is trust in a program
        // of our own user (see `socket`). If it did not, `piece` would change while it is borrowed:
        // undefined behaviour.
        let mut ring = unsafe { TrustedReceiver::new(receiver) };
        let mut items = 0;
        loop {
            // Asleep here, this thread costs nothing. `Receiver::block_until_readable` would not do:
            // it can't say that the client is gone.
            let connected = client.wait(ring.empty_signal());
            items += self.sum_up(&mut ring)?;
            if !connected {
                // A client that waits for this number knows that nothing was lost.
                return Ok((items, client.confirm(items)));
            }
        }
    }

    /// Sums until the ring is empty, and returns how many items that was. The client signals only
    /// when it sends to an empty ring: what we left behind would not wake us again.
    fn sum_up(&self, ring: &mut TrustedReceiver) -> Result<u64> {
        let mut items = 0;
        loop {
            let mut sum = 0.0;
            // One after the other: in another order, the same items have another sum.
            let num = ring.receive(|piece| {
                for item in piece {
                    sum += item;
                }
            })?;
            if num == 0 {
                return Ok(items);
            }
            items += num as u64;
            *lock(&self.sum) += sum;
            self.printer.unpark();
        }
    }

    /// Prints the sum whenever it has changed.
    fn print_sums(&self) -> Result<()> {
        let mut last_line = "Sum: 0".to_string();
        loop {
            // Asleep until `unpark`, or not at all if that came during the pause.
            thread::park();
            // Lines are compared, not sums, because NaN differs from everything, itself included.
            let line = format!("Sum: {}", lock(&self.sum));
            if line != last_line {
                cli::print(&line)?;
                last_line = line;
            }
            // At most 20 lines a second. Whoever stops the server in this pause misses the last one.
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Tries until nothing is missing that others give back, ten times a second: nobody signals when
    /// there is some again. Any other error would come again and again, and is returned.
    fn patiently<T, E: Into<Error>>(&self, attempt: impl Fn() -> Result<T, E>) -> Result<T> {
        loop {
            let error = match attempt().map_err(E::into) {
                Err(e) if is_shortage(&e) => e,
                done => return done,
            };
            let last = lock(&self.last_shortage).replace(Instant::now());
            if last.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
                let cause = cli::reason(&error);
                cli::note(format!("failed to equip a client, will retry: {cause}"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Creates a ring for the client at the other end of `stream`, and sends it the ring's descriptors.
fn add_receiver(stream: &Arc<UnixStream>) -> Result<(Receiver<Item>, Peer)> {
    // This makes a memfd and two eventfds, and maps the memfd.
    let receiver = Receiver::new(CAPACITY).context("failed to make a ring's memfd and eventfds")?;
    let signals = [receiver.empty_signal(), receiver.full_signal()];
    let client = Peer::watch(Arc::clone(stream), &signals).context("failed to watch its socket")?;
    // Last, because what was sent can't be sent again.
    handover::give(stream, &receiver).context("failed to hand over the ring")?;
    Ok((receiver, client))
}

/// Whether an error comes from a lack of threads, memory or descriptors (errno(3)).
fn is_shortage(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    let number = cause.and_then(io::Error::raw_os_error);
    matches!(number, Some(11 | 12 | 23 | 24 | 105)) // EAGAIN, ENOMEM, ENFILE, EMFILE, ENOBUFS
}

/// A panic can't interrupt an addition, so what is behind a poisoned lock would be right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

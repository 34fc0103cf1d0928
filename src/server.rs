//! The receiver: gives each client a ring of its own and sums what arrives in it.
//!
//! A *ring* is a buffer whose end is followed by its beginning. One *sender*, the client, puts items
//! in; one *receiver*, this server, takes them out; they share a count of the items in it. The ring
//! lives in a *memfd*, a file that is nothing but memory and that both have mapped. Two *eventfds* go
//! with it, counters in the kernel on which a thread can sleep: the *empty signal* wakes the receiver
//! of an empty ring, the *full signal* the sender of a full one. A client that is gone *hangs up*,
//! however it ended: the kernel closes its socket.
//!
//! `main` accepts clients. Each has a thread that makes its ring and sums what it sends, and another
//! one, in [`Peer`], that watches its socket. Two more threads print.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, Builder, Thread};
use std::time::Duration;

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
    let listener = socket::listen(&path).context(said)?;
    let sum = Arc::new(Mutex::new(0.0));
    let printed = Arc::clone(&sum);
    // If nobody reads any more, that ends the program.
    let printer = Builder::new().name("sums".into());
    let printer = printer.spawn(move || cli::exit(cli::print_changes(&printed)));
    let printer = printer.context("no thread to print")?.thread().clone();
    let state = State { sum, printer };
    cli::note(format!("Listening on {at}"));
    for n in 1.. {
        let accepted = patiently(|| listener.accept().context("failed to accept a client"));
        let stream = Arc::new(accepted?.0);
        cli::note(format!("Client {n} connected"));
        let equipped = patiently(|| state.start_thread(n, &stream))?;
        // One after the other: two that are short of descriptors could each keep what the other needs.
        let _ = equipped.recv();
    }
    Ok(())
}

/// What the clients' threads share.
#[derive(Clone)]
struct State {
    /// Of all items of all clients since the start.
    sum: Arc<Mutex<f64>>,
    /// Sleeps until a client's thread has added to the sum and wakes it.
    printer: Thread,
}

impl State {
    /// Starts the thread of the n-th client. The channel that this returns ends when the client has its
    /// ring, or when it will never have one.
    fn start_thread(&self, n: u64, stream: &Arc<UnixStream>) -> Result<mpsc::Receiver<()>> {
        let (state, stream) = (self.clone(), Arc::clone(stream));
        let (equipping, equipped) = mpsc::channel();
        let thread = Builder::new().name(format!("client {n}"));
        let started = thread.spawn(move || state.client(n, &stream, equipping));
        started.context("no thread for a client")?;
        Ok(equipped)
    }

    /// The n-th client, until it is gone. A panic, a bug of ours, would end this thread and cut this
    /// client, and no other.
    fn client(&self, n: u64, stream: &Arc<UnixStream>, equipping: mpsc::Sender<()>) {
        let added = add_receiver(stream);
        drop(equipping);
        let how = match added.and_then(|(receiver, client)| self.serve(receiver, client)) {
            Ok((items, true)) => format!("left after {items} items"),
            Ok((items, false)) => format!("broke off after {items} items"),
            Err(e) => format!("dropped: {}", cli::reason(&e)),
        };
        cli::note(format!("Client {n} {how}"));
    }

    /// Sums what the client sends. Returns how many items that was, and whether it was there to hear that.
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
            // A panic can't interrupt an addition, so what is behind a poisoned lock is right.
            *self.sum.lock().unwrap_or_else(PoisonError::into_inner) += sum;
            self.printer.unpark();
        }
    }
}

/// Creates a ring, and gives it to the client at the other end of `stream`.
fn add_receiver(stream: &Arc<UnixStream>) -> Result<(Receiver<Item>, Peer)> {
    let (receiver, client) = patiently(|| {
        // This makes a memfd and two eventfds, and maps the memfd.
        let receiver =
            Receiver::new(CAPACITY).context("failed to make a ring's memfd and eventfds")?;
        let signals = [receiver.empty_signal(), receiver.full_signal()];
        let client =
            Peer::watch(Arc::clone(stream), &signals).context("failed to watch its socket")?;
        Ok((receiver, client))
    })?;
    // Last, when nothing can be short any more: whoever has a ring is served.
    patiently(|| handover::give(stream, &receiver)).context("failed to hand over the ring")?;
    Ok((receiver, client))
}

/// Tries until nothing is short that others give back, ten times a second: nobody signals when there
/// is some again. Any other error would come again and again, and is returned.
fn patiently<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    let mut said = false;
    loop {
        let error = match attempt() {
            Err(e) if is_shortage(&e) => e,
            done => return done,
        };
        if !said {
            let cause = cli::reason(&error);
            cli::note(format!("short of something, trying again: {cause}"));
        }
        said = true;
        thread::sleep(Duration::from_millis(100));
    }
}

/// Whether it is threads, memory or descriptors that are short, or too many descriptors under way.
fn is_shortage(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    let number = cause.and_then(io::Error::raw_os_error);
    // EAGAIN, ENOMEM, ENFILE, EMFILE, ENOBUFS, ETOOMANYREFS (errno(3))
    matches!(number, Some(11 | 12 | 23 | 24 | 105 | 109))
}

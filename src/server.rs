//! The consumer: gives each client a ring of its own and sums what arrives in it.
//!
//! A *ring* is a buffer whose end is followed by its beginning. One *producer*, the client, puts
//! items in; one *consumer*, this server, takes them out; they share a count of the items in it.
//! The ring lives in a *memfd*, a file that is nothing but memory and that both have mapped. Two
//! *eventfds* go with it, counters in the kernel on which a thread can sleep: the *empty signal*
//! wakes the consumer of an empty ring, the *full signal* the producer of a full one. A client
//! that is gone *hangs up*, however it ended: the kernel closes its socket.
//!
//! `main` prints the total, a second thread accepts clients, and each client has a thread that sums
//! its ring (and one in [`Peer`] that watches its socket).

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shmem_test::handover::{self, Ring};
use shmem_test::peer::Peer;
use shmem_test::ring::Consumer;
use shmem_test::{cli, socket};

fn main() {
    cli::exit(run())
}

fn run() -> Result<()> {
    let path = cli::server_options();
    let at = path.display();
    let said = format!("failed to listen on `{at}` (try another --socket)");
    let state = Arc::new(State {
        listener: socket::listen(&path).context(said)?,
        sum: Mutex::new(0.0),
        printer: thread::current(),
    });
    let (acceptor, listening) = (Arc::clone(&state), format!("Listening on {at}"));
    let started = Builder::new().spawn(move || {
        cli::note(listening);
        acceptor.accept_clients();
    });
    started.context("no thread to accept clients")?;
    // Printing is left to this thread: if stdout is closed, its error ends the program.
    state.print_sums()
}

/// What the threads share.
struct State {
    /// Where clients connect. Used by the accepting thread alone.
    listener: UnixListener,
    /// Of all items of all clients since the start. Each client's thread adds to it, `main` reads it.
    sum: Mutex<f64>,
    /// `main`, which sleeps until a client's thread has added to the sum and wakes it.
    printer: Thread,
}

impl State {
    /// Accepts one client after the other, for as long as the server runs.
    fn accept_clients(self: &Arc<Self>) {
        let mut shortage = None;
        for n in 1u64.. {
            let (stream, _) = retried(&mut shortage, || Ok(self.listener.accept()?));
            cli::note(format!("Client {n} connected"));
            let ring = retried(&mut shortage, handover::make);
            let state = Arc::clone(self);
            let started = Builder::new().name(format!("client {n}")).spawn(move || {
                // A panic here, a bug of ours, would cost this client and no other: it ends this
                // thread, which drops all that is the client's and so hangs up.
                let end = state.serve(stream, ring);
                let how = end.unwrap_or_else(|e| format!("dropped: {e:#}"));
                cli::note(format!("Client {n} {how}"));
            });
            if let Err(e) = started {
                cli::note(format!("Client {n} dropped: no thread for it: {e}"));
            }
        }
    }

    /// One client, from the hand-over to the goodbye. Returns how it ended.
    fn serve(&self, stream: UnixStream, (receiver, signals): Ring) -> Result<String> {
        handover::give(&stream, &receiver).context("failed to hand over the ring")?;
        let client = Peer::watch(stream, signals).context("failed to watch its socket")?;
        // SAFETY: the ring was made for this client, and `receiver` is its only receiving half. That
        // the client has one sending half, and leaves alone what is published, is trust in a program
        // of our own user (see `socket`). If it did not, `piece` would change while it is borrowed:
        // undefined behaviour.
        let mut ring = unsafe { Consumer::trust(receiver) };
        let mut items = 0;
        loop {
            // Asleep here, this thread costs nothing. `Receiver::block_until_readable` would not
            // do: it goes back to sleep while the ring is empty, whoever wakes it.
            let connected = client.wait(ring.empty_signal());

            // Until the ring is empty, because the client signals only when it publishes to an
            // empty ring: if we left some behind, there would be no further signal.
            loop {
                let mut sum = 0.0;
                // One after the other: in another order, the same items have another sum.
                let num = ring.consume(|piece| {
                    for item in piece {
                        sum += item;
                    }
                })?;
                if num == 0 {
                    break;
                }
                items += num as u64;
                *self.lock_sum() += sum;
                self.printer.unpark();
            }

            if !connected {
                // A client that waits for this number knows that nothing was lost.
                let told = client.answer(items);
                let how = if told { "left" } else { "broke off" };
                return Ok(format!("{how} after {items} items"));
            }
        }
    }

    /// Prints the sum whenever it has changed.
    fn print_sums(&self) -> Result<()> {
        let mut last_line = "Sum: 0".to_string();
        loop {
            // Asleep until `unpark`, or not at all if that came during the pause.
            thread::park();
            // Lines are compared, not sums, because NaN differs from everything, itself included.
            let line = format!("Sum: {}", self.lock_sum());
            if line != last_line {
                cli::print(&line)?;
                last_line = line;
            }
            thread::sleep(Duration::from_millis(50)); // Nobody reads more than 20 lines a second.
        }
    }

    fn lock_sum(&self) -> MutexGuard<'_, f64> {
        // A panic can't interrupt an addition, so the sum behind a poisoned lock would be right.
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries until it works, ten times a second: nobody signals when there are descriptors again. Says
/// so once a `shortage`, which is over after a second without a failure.
fn retried<T>(shortage: &mut Option<Instant>, attempt: impl Fn() -> Result<T>) -> T {
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(_) if shortage.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) => {}
            Err(e) => cli::note(format!("failed to equip a client, will retry: {e:#}")),
        }
        *shortage = Some(Instant::now());
        thread::sleep(Duration::from_millis(100));
    }
}

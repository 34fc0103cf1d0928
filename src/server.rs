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

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use shmem_ipc::sharedring::Receiver;
use shmem_test::handover::{self, cause};
use shmem_test::peer::Peer;
use shmem_test::{CAPACITY, Item, cli, socket};

/// From one line on stdout to the next: 20 a second, because nobody reads faster.
const PRINT_PAUSE: Duration = Duration::from_millis(50);

/// Items that are summed before room is given back to the client: 640 KiB. The last such piece is
/// kept back. It is still in this core's second-level cache (1 MiB, say), and a client that wrote
/// there would have to wait for each cache line of it.
const PIECE: usize = 640 * 1024 / size_of::<Item>();

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
    listener: UnixListener,
    /// The sum of all items of all clients since the start.
    sum: Mutex<f64>,
    printer: Thread,
}

impl State {
    /// Accepts one client after the other, for as long as the server runs.
    fn accept_clients(self: &Arc<Self>) {
        let mut shortage = None;
        for n in 1u64.. {
            let (stream, _) = patiently(&mut shortage, || Ok(self.listener.accept()?));
            cli::note(format!("Client {n} connected"));
            let ring = patiently(&mut shortage, add_receiver);

            let state = Arc::clone(self);
            let started = Builder::new().name(format!("client {n}")).spawn(move || {
                // A panic would be a bug of ours. It costs this client, and no other.
                let end = catch_unwind(move || state.serve(stream, ring));
                let end = end.unwrap_or_else(|_| Err(anyhow!("its thread panicked")));
                let how = end.unwrap_or_else(|e| format!("dropped: {e:#}"));
                cli::note(format!("Client {n} {how}"));
            });
            if let Err(e) = started {
                cli::note(format!("Client {n} dropped: no thread for it: {e}"));
            }
        }
    }

    /// One client, from the hand-over to the goodbye. Returns how it ended.
    fn serve(&self, stream: UnixStream, (mut r, signals): Ring) -> Result<String> {
        handover::give(&stream, &r).context("failed to hand over the ring")?;
        let client = Peer::watch(stream, signals).context("failed to watch its socket")?;
        let mut items = 0;
        loop {
            // Asleep here, this thread costs nothing. `Receiver::block_until_readable` would not
            // do: it goes back to sleep while the ring is empty, whoever wakes it.
            let connected = client.wait(r.empty_signal()).context("failed to sleep")?;

            // Until the ring is empty, because the client signals only when it puts items into an
            // empty ring: if we left some behind, there would be no further signal.
            while let Some((num, sum)) = sum_readable(&mut r)? {
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
            thread::sleep(PRINT_PAUSE);
        }
    }

    fn lock_sum(&self) -> MutexGuard<'_, f64> {
        // A panic can't interrupt an addition, so the sum behind a poisoned lock is right.
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving half of a ring, and clones of its two signals for [`Peer::watch`].
type Ring = (Receiver<Item>, [File; 2]);

/// Makes a ring for one client: a new memfd, mapped, and two new eventfds.
///
/// Each client needs its own: both sides count for themselves, from 0, where in the ring they are,
/// so a second producer would start to write where the consumer does not read.
fn add_receiver() -> Result<Ring> {
    let r = Receiver::new(CAPACITY).map_err(cause)?;
    let signals = [r.empty_signal().try_clone()?, r.full_signal().try_clone()?];
    Ok((r, signals))
}

/// Adds up what is readable at one look: up to where the ring is empty, or to its end, where it
/// takes a second look to go on from the beginning. Returns the number of items and their sum, or
/// `None` if the ring is empty.
fn sum_readable(r: &mut Receiver<Item>) -> Result<Option<(usize, f64)>> {
    let (mut sum, mut num, mut kept, mut left) = (0.0, 0, 0, usize::MAX);
    loop {
        let mut more = false; // An empty ring does not call the closure.
        // SAFETY: nobody may touch the ring's items but one receiver and one sender, correctly set
        // up. `r` made the ring and is its only receiver; the client that has its descriptors is
        // the sender. That it leaves alone what it has published is trust: it is a program of our
        // own user (see `socket`). If it did not, `p` would change under this borrow: undefined
        // behaviour, which `receive_raw` and volatile reads avoid.
        let taken = unsafe {
            r.receive_trusted(|p: &[Item]| {
                // `p` begins with the piece that is summed already and kept back.
                left = left.min(p.len().saturating_sub(kept));
                let new = left.min(PIECE);
                // One after the other: in another order, the same items have another sum.
                for item in p.iter().skip(kept).take(new) {
                    sum += item;
                }
                left -= new;
                more = left > 0;
                // This much room goes back to the client, which fills it while we go on; in the
                // end all of it, because a ring that is not empty gets no signal.
                let back = if more { kept } else { kept + new };
                (kept, num) = (new, num + back);
                back
            })
        };
        // The ring checks its count at each look, because the client can write anything there.
        taken.map_err(cause).context("failed to take its items")?;
        if !more {
            return Ok((num > 0).then_some((num, sum)));
        }
    }
}

/// Tries ten times a second until it works: nobody signals when there are descriptors again. Says so
/// once a `shortage`, which is over after a second without a failure.
fn patiently<T>(shortage: &mut Option<Instant>, attempt: impl Fn() -> Result<T>) -> T {
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

//! The consumer: gives each client a ring of its own and sums what arrives in it.
//!
//! The words, in the order in which they appear:
//!
//! - *descriptor*: the number by which a process names something that it has open.
//! - *ring*: a buffer whose end is followed by its beginning. One *producer*, the client, puts
//!   items in; one *consumer*, this server, takes them out. They share a count of the items in it.
//! - *memfd*: a file that is nothing but memory. The ring lives in one that both sides have mapped.
//! - *eventfd*: a counter in the kernel on which a thread can sleep. The ring has two: the *empty
//!   signal* wakes the consumer of an empty ring, the *full signal* the producer of a full one.
//! - *hang-up*: the end of the client's socket. It is how the server learns that a client is gone.
//!
//! Three kinds of thread: one accepts clients, two look after each client (one sums its ring, the
//! other watches its socket), and the first one, `main`, prints the total.

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, Thread};
use std::time::Duration;

use anyhow::{Context, Result};
use passfd::FdPassingExt;
use shmem_ipc::sharedring::Receiver;
use shmem_test::{CAPACITY, PIECE, cli, signal, socket};

/// From one line on stdout to the next: 20 a second, because nobody reads faster, and because
/// each line wakes a thread that competes with the summing for a core.
const PRINT_PAUSE: Duration = Duration::from_millis(50);

/// Before another attempt at what the system has run out of, such as descriptors. Nobody signals
/// when there are some again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    cli::exit(cli::SERVER_HELP, run())
}

fn run() -> Result<()> {
    let path = cli::server_options()?;
    let state = Arc::new(State::new(&path)?);

    let acceptor = Arc::clone(&state);
    // `Builder`, because `thread::spawn` panics where the system has no thread left to give.
    Builder::new()
        .name("accept".into())
        .spawn(move || {
            cli::note(format!("Listening on {}", path.display()));
            acceptor.accept_clients();
        })
        .context("failed to start the thread that accepts clients")?;
    // Printing is left to this thread: if stdout is closed, its error ends the program.
    state.print_sums()
}

/// What the threads share.
struct State {
    listener: UnixListener,
    /// The sum of all items of all clients since the start.
    sum: Mutex<f64>,
    /// The thread that prints the sum.
    printer: Thread,
}

impl State {
    fn new(path: &Path) -> Result<Self> {
        Ok(Self {
            listener: socket::listen(path)?,
            sum: Mutex::new(0.0),
            printer: thread::current(),
        })
    }

    /// Accepts one client after the other, for as long as the server runs.
    fn accept_clients(self: &Arc<Self>) {
        for n in 1u64.. {
            let (stream, _) = patiently("accept a client", || Ok(self.listener.accept()?));
            cli::note(format!("Client {n} connected"));
            self.add_receiver(n, stream);
        }
    }

    /// Makes client `n` a ring, and starts the thread that sums it.
    ///
    /// A ring is for one client: each side counts for itself, from 0, where in the ring it is, so
    /// a second producer would start to write where the consumer does not read.
    fn add_receiver(self: &Arc<Self>, n: u64, stream: UnixStream) {
        let (r, signals) = patiently("make a ring", || {
            // A new memfd, mapped, and two new eventfds. All of them go away with `r`.
            let r = Receiver::new(CAPACITY)?;
            // For whoever has to wake the thread that `r` moves to. Made here, because by then
            // there may be no descriptors left.
            let signals = [r.empty_signal().try_clone()?, r.full_signal().try_clone()?];
            Ok((r, signals))
        });
        let state = Arc::clone(self);
        let started = Builder::new().name(format!("client {n}")).spawn(move || {
            // By the time this says that the client is gone, so is all that it cost.
            match state.serve(stream, r, signals) {
                Ok(items) => cli::note(format!("Client {n} left after {items} items")),
                Err(e) => cli::note(format!("Client {n} dropped: {e:#}")),
            }
        });
        if let Err(e) = started {
            cli::note(format!("Client {n} dropped: no thread for it: {e}"));
        }
    }

    /// One client, from the hand-over to the goodbye. Returns the number of its items.
    fn serve(&self, stream: UnixStream, mut r: Receiver<f64>, signals: [File; 2]) -> Result<u64> {
        send_fds(&stream, &r).context("failed to hand over the ring")?;

        // Two threads, because there are two things to wait for: items, which come with a signal,
        // and the hang-up, which comes through the socket. The scope ends when both threads have.
        let gone = AtomicBool::new(false);
        let (report, summed) = mpsc::channel();
        let items = thread::scope(|scope| {
            Builder::new()
                .name("sum".into())
                .spawn_scoped(scope, || {
                    let items = self.sum_until(&gone, &mut r);
                    if items.is_err() {
                        // This time it is we who hang up, and the other thread sees that as well.
                        // Ignored, because it fails only where the client was faster.
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    let _ = report.send(items); // The other thread waits for it.
                })
                .context("no thread to sum its items")?;
            wait_for_hang_up(&stream);
            end_sum(&gone, signals, &summed)
        })?;

        // The goodbye: a client that waits for this number knows that nothing was lost. Ignored,
        // because a client that was killed does not wait.
        let _ = (&stream).write_all(&items.to_ne_bytes());
        Ok(items)
    }

    /// Sums what arrives in the ring, until the client is `gone` and the ring is empty.
    fn sum_until(&self, gone: &AtomicBool, r: &mut Receiver<f64>) -> Result<u64> {
        let mut items = 0;
        loop {
            // Asleep here, this thread costs nothing. `Receiver::block_until_readable` would not
            // do: it goes back to sleep while the ring is empty, whoever wakes it.
            let woken = signal::wait(r.empty_signal());

            // Before the ring is drained, not after: what the client publishes between our last
            // look and its hang-up would be left in the ring. Acquire, to see all that came before
            // the Release in `end_sum`.
            let gone = gone.load(Ordering::Acquire);

            // Until it is empty, because the client signals only when it puts items into an empty
            // ring: if we left some behind, there would be no further signal.
            loop {
                let mut s = 0.0;
                let taken = sum_readable(r, &mut s);
                if s != 0.0 {
                    *self.lock_sum() += s;
                    // A system call only if the printer is asleep, so 20 times a second at most.
                    self.printer.unpark();
                }
                match taken? {
                    0 => break,
                    num => items += num,
                }
            }
            if gone {
                return Ok(items);
            }
            // Only now: `end_sum` may have had a hand in it, and then the client is gone.
            woken.context("failed to wait for the empty signal")?;
        }
    }

    /// Prints the sum whenever it has changed.
    fn print_sums(&self) -> Result<()> {
        let mut last_sum = 0.0;
        loop {
            let sum = *self.lock_sum();
            // NaN differs from everything, itself included. Once is enough.
            if sum == last_sum || (sum.is_nan() && last_sum.is_nan()) {
                // Asleep until `unpark`. One that came since the look at the sum counts as well.
                thread::park();
                continue;
            }
            cli::print(format!("Sum: {sum}"))?;
            last_sum = sum;
            thread::sleep(PRINT_PAUSE);
        }
    }

    fn lock_sum(&self) -> MutexGuard<'_, f64> {
        // A poisoned lock tells of a panic halfway through a change. An addition has no halfway.
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the client descriptors of its own for the same memory and the same two counters: the
/// kernel opens them in the client's process as it receives the message (`SCM_RIGHTS`, unix(7)).
fn send_fds(stream: &UnixStream, r: &Receiver<f64>) -> io::Result<()> {
    stream.send_fd(r.memfd().as_raw_fd())?;
    stream.send_fd(r.empty_signal().as_raw_fd())?;
    stream.send_fd(r.full_signal().as_raw_fd())
}

/// Sleeps until the client hangs up.
///
/// The kernel closes the socket of whoever ends, in whatever way; shared memory has no such end.
fn wait_for_hang_up(mut stream: &UnixStream) {
    // Reads to the end. An error (connection reset) is an end too, and bytes on the way to it
    // mean nothing.
    let _ = io::copy(&mut stream, &mut io::sink());
}

/// Tells the thread that sums that the client is `gone`, and returns what it has `summed`.
fn end_sum(
    gone: &AtomicBool,
    [mut empty, mut full]: [File; 2],
    summed: &mpsc::Receiver<Result<u64>>,
) -> Result<u64> {
    // First the flag, then the wake-up, or the thread could wake, see no flag, and sleep on.
    // Release: whoever sees the flag sees what the client published before it hung up.
    gone.store(true, Ordering::Release);
    loop {
        empty = signal::wake(empty)?;
        full = signal::wake(full)?;
        match summed.recv_timeout(signal::WAKE_PAUSE) {
            // Somebody else has read the signal: a program that has it from the client.
            Err(RecvTimeoutError::Timeout) => {}
            items => return items?,
        }
    }
}

/// Adds to `s` what is readable at one look, and returns the number of items: up to where the
/// ring is empty, or to its end, where it takes a second look to go on from the beginning.
///
/// A client can announce items that it never wrote, or fewer than it wrote. As long as the count
/// is in range, that looks like honest work, and is summed: whatever the memory holds.
fn sum_readable(r: &mut Receiver<f64>, s: &mut f64) -> Result<u64> {
    let mut items = 0;
    let mut left = usize::MAX; // The first look tells.
    while left > 0 {
        let mut num = 0;
        // SAFETY: nobody may touch the ring's items but one receiver and one sender, correctly set
        // up. `r` made the ring and is its only receiver; the one client that has its descriptors
        // is the sender. That this client leaves alone what it has published is trust: it is a
        // program of our own user (see `socket`). One that did not would change `p` under this
        // borrow, which is undefined behaviour; `receive_raw` and volatile reads stand that.
        let taken = unsafe {
            r.receive_trusted(|p: &[f64]| {
                left = left.min(p.len());
                num = left.min(PIECE);
                // One after the other: in another order, the same items have another sum.
                for item in &p[..num] {
                    *s += item;
                }
                // This much room goes back to the client, which fills it while we go on.
                num
            })
        };
        // The ring checks its count at each look, because the client can write anything there.
        taken.context("its ring is corrupt")?;
        if num == 0 {
            break; // An empty ring: the closure was not called.
        }
        left -= num;
        items += num as u64;
    }
    Ok(items)
}

/// Tries until it works. A server that is out of descriptors has clients to serve: it must not
/// end, nor fill stderr, nor use up a core by asking.
fn patiently<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> T {
    let mut said = false;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(e) if !said => {
                cli::note(format!("failed to {what}, trying until it works: {e:#}"));
                said = true;
            }
            Err(_) => thread::sleep(RETRY_PAUSE),
        }
    }
}

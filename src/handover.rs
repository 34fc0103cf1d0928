//! The hand-over: a ring's three descriptors cross the socket.
//!
//! A descriptor is a number that means something in one process only. It takes the kernel to hand
//! one over: whoever receives the message (`SCM_RIGHTS`, unix(7)) gets a descriptor of its own for
//! the same open file, as with dup(2). [`passfd`] sends and receives one such message.
//!
//! Whoever touches mapped memory behind the end of its file dies of SIGBUS (mmap(2)). Here the file is
//! sealed, then measured, so it stays as long as what is mapped. What remains is memory that the system
//! can't find when it is first touched, under strict overcommit: that is a SIGBUS, too.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd, SealsHashSet};
use shmem_ipc::sharedring::{Receiver, Sender};

use super::{CAPACITY, Item};

const _: () = assert!(
    align_of::<Item>() <= 64,
    "a ring's items begin at byte 64: align `Item` to no more"
);

/// How long each of the three descriptors may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Gives the sending half of the ring to whoever is at the other end of `stream`: its memfd, its
/// empty signal, its full signal.
///
/// Each sender needs a ring of its own: a second one would begin at item 0, where the receiver does
/// not read any more. While programs of this user have too many descriptors under way that nobody
/// has received (`ETOOMANYREFS`, unix(7)), this waits. The socket blocks from now on, without a limit.
///
/// # Errors
/// If nobody is there any more, or if the memfd can't be sealed.
pub fn give(stream: &UnixStream, receiver: &Receiver<Item>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(None)?;
    seal(receiver.memfd())?; // Before anybody else has it.
    send(stream, receiver.memfd()).context("failed to send the memfd")?;
    send(stream, receiver.empty_signal()).context("failed to send the empty signal")?;
    send(stream, receiver.full_signal()).context("failed to send the full signal")
}

/// Takes what [`give`] gives, and maps the memory. The socket blocks from now on, without a limit.
///
/// # Errors
/// If one of the descriptors does not come within five seconds (a read that a signal interrupts
/// begins again), or if the three are not an empty ring of [`CAPACITY`] items. Not found out: a ring
/// that was used and emptied, and another type of the same size.
pub fn take(stream: &UnixStream) -> Result<Sender<Item>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let received = receive_three(stream);
    stream.set_read_timeout(None)?;
    let [memory, empty_signal, full_signal] = received?;
    for signal in [&empty_signal, &full_signal] {
        ensure!(is_eventfd(signal)?, "a signal is no eventfd");
    }

    // First seal, then measure, then map. Measured first, it could shrink before it is sealed.
    let memory = Memfd::try_from_file(memory).map_err(|_| anyhow!("the memory is no memfd"))?;
    seal(&memory)?;
    let memory = memory.into_file();
    let len = memory.metadata()?.len();
    let needed = ring_len()?;
    ensure!(len == needed, "the memfd has {len} bytes, a ring {needed}");
    let mut count = [0; 8];
    memory.read_exact_at(&mut count, 0).context("no count")?;
    ensure!(count == [0; 8], "the ring is in use already");
    Sender::open(CAPACITY, memory, empty_signal, full_signal).context("failed to map the ring")
}

/// Sends one descriptor.
fn send(stream: &UnixStream, file: &impl AsRawFd) -> Result<()> {
    const TOO_MANY: Option<i32> = Some(109); // ETOOMANYREFS. On MIPS and SPARC, it is an error.
    loop {
        match stream.send_fd(file.as_raw_fd()) {
            // Nobody tells when there are fewer under way.
            Err(e) if e.raw_os_error() == TOO_MANY => thread::sleep(Duration::from_millis(100)),
            sent => return Ok(sent?),
        }
    }
}

fn receive_three(stream: &UnixStream) -> Result<[File; 3]> {
    Ok([
        receive(stream).context("no memfd")?,
        receive(stream).context("no empty signal")?,
        receive(stream).context("no full signal")?,
    ])
}

/// Receives one descriptor.
fn receive(stream: &UnixStream) -> Result<File> {
    loop {
        match stream.recv_fd() {
            // SAFETY: a `File` must be the only owner of an open descriptor. The kernel has opened
            // this one for us just now, and nobody else has seen its number. A second owner would
            // close it under us.
            Ok(fd) => return Ok(unsafe { File::from_raw_fd(fd) }),
            // To be stopped and continued ends a read that has a time limit (signal(7)).
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => bail!("nothing came for {TIMEOUT:?}"),
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                return Err(e).context("a message without a descriptor, or none left to open here");
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => bail!("the other side hung up"),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Asks the kernel what `file` is (`/proc/pid/fd`, proc(5)).
fn is_eventfd(file: &File) -> Result<bool> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let target = fs::read_link(&link).with_context(|| format!("failed to read `{link}`"))?;
    Ok(target == Path::new("anon_inode:[eventfd]"))
}

/// Forbids that the memory ever shrinks, which would be a SIGBUS for whoever has mapped it, or
/// grows, which would let a peer fill it for as long as we hold it.
fn seal(memory: &Memfd) -> Result<()> {
    let wanted = SealsHashSet::from([FileSeal::SealShrink, FileSeal::SealGrow]);
    let seals = memory.seals().context("failed to read the memfd's seals")?;
    // Whoever made it may have forbidden further seals, and be right.
    if !seals.is_superset(&wanted) {
        memory
            .add_seals(&wanted)
            .context("failed to seal the memfd")?;
    }
    Ok(())
}

/// How long a ring's memory is: whole pages, and std does not tell how long a page is.
fn ring_len() -> Result<u64> {
    let ring = Receiver::<Item>::new(CAPACITY).context("failed to make a ring to compare with")?;
    Ok(ring.memfd().as_file().metadata()?.len())
}

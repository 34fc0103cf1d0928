//! The hand-over: a ring is made, and its three descriptors cross the socket.
//!
//! A descriptor is a number that means something in one process only. It takes the kernel to hand
//! one over: whoever receives the message (`SCM_RIGHTS`, unix(7)) gets a descriptor of its own for
//! the same open file, as with dup(2).

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd, SealsHashSet};
use shmem_ipc::sharedring::{Receiver, Sender};

use super::ring::root_cause;
use super::{CAPACITY, Item};

/// How long the next descriptor may take. A live peer takes microseconds, a stopped one forever.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The receiving half of a ring, and clones of its empty and its full signal for
/// [`Peer::watch`](super::peer::Peer::watch).
pub type Ring = (Receiver<Item>, [File; 2]);

/// Makes a ring: a new memfd, sealed and mapped, and two new eventfds.
///
/// Each producer needs one of its own: both sides count for themselves, from 0, where in the ring
/// they are, so a second producer would start to write where the consumer does not read.
///
/// # Errors
///
/// If the system has no descriptor or no memory left.
pub fn make() -> Result<Ring> {
    let receiver = Receiver::new(CAPACITY).map_err(root_cause)?;
    seal(receiver.memfd())?;
    let signals = clones(receiver.empty_signal(), receiver.full_signal())?;
    Ok((receiver, signals))
}

/// Gives the sending half of the ring to whoever is at the other end of `stream`.
///
/// # Errors
///
/// If nobody is there any more, or if this user's programs have sent too many descriptors that
/// nobody has received yet (`ETOOMANYREFS`, unix(7)).
pub fn give(stream: &UnixStream, receiver: &Receiver<Item>) -> io::Result<()> {
    stream.send_fd(receiver.memfd().as_raw_fd())?;
    stream.send_fd(receiver.empty_signal().as_raw_fd())?;
    stream.send_fd(receiver.full_signal().as_raw_fd())
}

/// Takes what [`give`] gives, and maps the memory. Returns clones of the signals, too, as [`make`].
///
/// # Errors
///
/// If a descriptor does not come within five seconds, or if the three are not an empty ring of
/// [`CAPACITY`] items. Not found out: a ring that was used and emptied, and another type of the
/// same size.
pub fn take(stream: &UnixStream) -> Result<(Sender<Item>, [File; 2])> {
    let limit = |limit| stream.set_read_timeout(limit).context("no time limit");
    limit(Some(TIMEOUT))?;
    let received = receive_three(stream);
    limit(None)?;
    let [memory, empty_signal, full_signal] = received?;

    // A ring of our own, to compare with. It is gone when this function returns.
    let (own, [eventfd, _]) = make().context("failed to make a ring to compare with")?;
    for signal in [&empty_signal, &full_signal] {
        ensure!(kind(signal)? == kind(&eventfd)?, "a signal is no eventfd");
    }
    let signals = clones(&empty_signal, &full_signal)?;

    // Whoever touches mapped memory past the end of its file dies of SIGBUS (mmap(2)). So: first
    // seal it, then measure it, then map it. Measured first, it could shrink before it is sealed.
    let memory = Memfd::try_from_file(memory).map_err(|_| anyhow!("the memory is no memfd"))?;
    seal(&memory)?;
    let length = |memory: &Memfd| memory.as_file().metadata().map(|data| data.len());
    let (len, needed) = (length(&memory)?, length(own.memfd())?);
    ensure!(len == needed, "the memfd has {len} bytes, a ring {needed}");
    let (memory, mut count) = (memory.into_file(), [0; 8]);
    memory.read_exact_at(&mut count, 0).context("no count")?;
    ensure!(count == [0; 8], "the ring is in use already");
    let ring = Sender::open(CAPACITY, memory, empty_signal, full_signal);
    let sender = ring.map_err(root_cause).context("failed to map the ring")?;
    Ok((sender, signals))
}

/// Forbids that the memory ever shrinks, which would be a SIGBUS for whoever has mapped it, or
/// grows, which would let a peer fill it for as long as we hold it.
fn seal(memory: &Memfd) -> Result<()> {
    let wanted = SealsHashSet::from([FileSeal::SealShrink, FileSeal::SealGrow]);
    let seals = memory.seals().context("failed to read the memfd's seals")?;
    // Who made it may have forbidden further seals, and be right.
    if !seals.is_superset(&wanted) {
        let sealed = memory.add_seals(&wanted);
        sealed.context("failed to seal the memfd")?;
    }
    Ok(())
}

fn clones(empty_signal: &File, full_signal: &File) -> Result<[File; 2]> {
    let clone = |signal: &File| signal.try_clone().context("failed to clone a signal");
    Ok([clone(empty_signal)?, clone(full_signal)?])
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

/// What the kernel calls the kind of an open file (`/proc/pid/fd`, proc(5)).
fn kind(file: &File) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::read_link(&link).with_context(|| format!("failed to read `{link}`"))
}

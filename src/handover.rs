//! The hand-over: a ring's three descriptors cross the socket.
//!
//! A descriptor is a number that means something in one process only. The kernel hands one over:
//! it opens the same object for whoever receives the message (`SCM_RIGHTS`, unix(7)).

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd};
use shmem_ipc::sharedring::{Receiver, Sender};

use crate::{CAPACITY, Item};

/// How long the next descriptor may take. A live peer takes microseconds; one that is stopped, or
/// another program, may take forever.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Gives the sending half of `r` to whoever is at the other end of `stream`.
///
/// # Errors
///
/// If nobody is there any more.
pub fn give(stream: &UnixStream, r: &Receiver<Item>) -> io::Result<()> {
    stream.send_fd(r.memfd().as_raw_fd())?;
    stream.send_fd(r.empty_signal().as_raw_fd())?;
    stream.send_fd(r.full_signal().as_raw_fd())
}

/// Takes what [`give`] gives, and maps the memory. Returns clones of the empty and the full signal
/// as well, for [`Peer::watch`](crate::peer::Peer::watch).
///
/// # Errors
///
/// If a descriptor does not come within five seconds, or if the three are not an empty ring of
/// [`CAPACITY`] items. (A ring that was used and emptied can't be told from a new one.)
pub fn take(stream: &UnixStream) -> Result<(Sender<Item>, [File; 2])> {
    let limit = |limit| stream.set_read_timeout(limit).context("no time limit");
    limit(Some(TIMEOUT))?;
    let memory = receive(stream).context("no memfd")?;
    let empty_signal = receive(stream).context("no empty signal")?;
    let full_signal = receive(stream).context("no full signal")?;
    limit(None)?;

    // An unused ring of our own, to compare with. It is gone when this function returns.
    let made = Sender::<Item>::new(CAPACITY).map_err(cause);
    let mut own = made.context("failed to make a ring to compare with")?;

    let eventfd = kind(own.full_signal())?;
    for signal in [&empty_signal, &full_signal] {
        ensure!(kind(signal)? == eventfd, "a signal is no eventfd");
    }
    let clone = |signal: &File| signal.try_clone().context("failed to clone a signal");
    let signals = [clone(&empty_signal)?, clone(&full_signal)?];

    // Whoever touches mapped memory past the end of its file dies of SIGBUS (mmap(2)). So: forbid
    // that the file ever shrinks, then measure it, and only then map it.
    let memory = Memfd::try_from_file(memory).map_err(|_| anyhow!("the memory is no memfd"))?;
    let seals = memory.seals().context("failed to read the memfd's seals")?;
    if !seals.contains(&FileSeal::SealShrink) {
        let sealed = memory.add_seal(FileSeal::SealShrink);
        sealed.context("failed to seal the memfd")?;
    }
    let (len, needed) = (length(&memory)?, length(own.memfd())?);
    ensure!(len == needed, "the memfd has {len} bytes, a ring {needed}");
    let mapped = Sender::open(CAPACITY, memory.into_file(), empty_signal, full_signal);
    let mut r = mapped.map_err(cause).context("failed to map the ring")?;

    // Each side counts for itself where in the ring it is, from 0: in a used ring, we would go on
    // in the wrong place.
    let (room, all) = (
        r.sender_mut().write_count()?,
        own.sender_mut().write_count()?,
    );
    ensure!(room == all, "the ring is in use already");
    Ok((r, signals))
}

/// Receives one descriptor.
fn receive(stream: &UnixStream) -> Result<File> {
    loop {
        match stream.recv_fd() {
            // SAFETY: a `File` must be the only owner of an open descriptor. The kernel has opened
            // this one for this message, and nobody else has seen its number. A second owner would
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

/// What the kernel calls the kind of an open file (proc_pid_fd(5)).
fn kind(file: &File) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::read_link(&link).with_context(|| format!("failed to read `{link}`"))
}

fn length(memory: &Memfd) -> Result<u64> {
    let metadata = memory.as_file().metadata();
    Ok(metadata.context("failed to measure the memfd")?.len())
}

/// What is behind an error of shmem-ipc. Its own text says the same in other words.
pub fn cause(error: shmem_ipc::Error) -> Error {
    anyhow!("{}", Error::from(error).root_cause())
}

//! The hand-over: a ring's three descriptors cross the socket.
//!
//! A descriptor is a number that means something in one process only. It takes the kernel to hand
//! one over: whoever receives the message (`SCM_RIGHTS`, unix(7)) gets a descriptor of its own for
//! the same open file, as with dup(2). [`passfd`] sends and receives one such message.
//!
//! Whoever touches mapped memory behind the end of its file dies of SIGBUS (mmap(2)). Here the file is
//! sealed, then measured, so it stays as long as what is mapped. (Under strict overcommit, memory that
//! the system can't find when it is first touched is a SIGBUS, too.)

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd, SealsHashSet};
use shmem_ipc::ringbuf::channel_bufsize;
use shmem_ipc::sharedring::{Receiver, Sender};

use super::{CAPACITY, Item};

const _: () = assert!(
    align_of::<Item>() <= 64,
    "items begin at byte 64: align `Item` to no more"
);

/// How long each of the three descriptors may take.
const TIMEOUT: Duration = Duration::from_secs(5);

const NO_DESCRIPTOR: &str = "a message without a descriptor (is there a proxy in between?) or with \
    more than that (SO_PASSCRED), or no descriptor left to open here";

/// Gives the sending half of the ring to whoever is at the other end of `stream`: its memfd, its
/// empty signal, its full signal. The socket blocks from now on, without a time limit.
///
/// Each sender needs a ring of its own: a second one would begin at item 0, where the receiver does
/// not read any more.
///
/// # Errors
///
/// If nobody is there any more. (Rust programs ignore SIGPIPE. In one that does not, such as a C program
/// that calls this, that signal is then the end: passfd sends without `MSG_NOSIGNAL`.) If the memfd can't
/// be sealed. And while programs of this user have too many descriptors under way that nobody has
/// received (`ETOOMANYREFS`, unix(7)): then nothing was sent, and you can try again. (Once the first of
/// the three is sent, this waits until there are fewer.)
pub fn give(stream: &UnixStream, receiver: &Receiver<Item>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(None)?;
    seal(receiver.memfd())?; // Before anybody else has it.
    let (e, f) = (receiver.empty_signal(), receiver.full_signal());
    stream.send_fd(receiver.memfd().as_raw_fd())?;
    for signal in [e, f] {
        while let Err(e) = stream.send_fd(signal.as_raw_fd()) {
            // What was sent can't be sent again, so from here on, give waits for what is short.
            ensure!(matches!(e.raw_os_error(), Some(12 | 105 | 109)), e); // ENOMEM, ENOBUFS, as above
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// Takes what [`give`] gives, and maps the memory. The socket blocks from now on, without a limit.
///
/// passfd has room for two descriptors in a message and returns one. What a giver adds stays open here.
///
/// # Errors
///
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
    let len = memory.as_file().metadata()?.len();
    let least = channel_bufsize::<Item>(CAPACITY) as u64;
    ensure!(len >= least, "the memfd has {len} bytes, a ring {least}");
    let mut sender = Sender::open(CAPACITY, memory.into_file(), empty_signal, full_signal)
        .context("failed to map the ring")?;
    // shmem-ipc maps whole pages. If that is the file, and if it is empty, all its items have room.
    let items = (len - 64) / size_of::<Item>() as u64;
    let room = sender.sender_mut().write_count()?;
    ensure!(
        room as u64 == items,
        "the ring is in use, or the memfd too long: {len} bytes, {items} items, room for {room}"
    );
    Ok(sender)
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
            Err(e) if e.kind() == ErrorKind::InvalidData => Err(e).context(NO_DESCRIPTOR)?,
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(e).context("the peer hung up")?,
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
    if seals.is_superset(&wanted) {
        return Ok(()); // Whoever made it may have forbidden further seals, and be right.
    }
    let sealed = memory.add_seals(&wanted);
    sealed.context("failed to seal the memfd")
}

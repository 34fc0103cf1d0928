//! Sleeping and waking: the two eventfds that go with a ring.
//!
//! An eventfd is a counter in the kernel, held like an open file. `write` adds to the counter,
//! `read` takes all of it and sets it to zero; a read of zero sleeps until somebody writes
//! (eventfd(2)). The ring writes to the *empty signal* when items arrive in an empty ring, and to
//! the *full signal* when room appears in a full one. While it is neither, there is no system call.
//!
//! Both processes hold the same two counters, so each must expect anything of the other: wake-ups
//! without a cause, a counter that is full, or the flag `O_NONBLOCK`, which belongs to the shared
//! open file and not to one process's descriptor.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Until another call of [`wake`] for a thread that has not shown that it heard the last one.
pub const WAKE_PAUSE: Duration = Duration::from_millis(100);

/// Sleeps until somebody writes to `signal`, or has done so since the last call.
///
/// A return is a hint and no promise: look at the ring, and come back if there is nothing.
///
/// # Errors
///
/// If `signal` can't be read, for example because it is no eventfd.
pub fn wait(mut signal: &File) -> io::Result<()> {
    match signal.read_exact(&mut [0; 8]) {
        // The peer wants its reads not to sleep. This one must: without sleep, the caller's loop
        // is a busy loop. The peer can set the flag again; that takes it as much time as us.
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            set_nonblocking(signal.try_clone()?, false).map(drop)
        }
        read => read,
    }
}

/// Wakes whoever is asleep on `signal` because of a peer that is gone. Never sleeps itself.
///
/// Usually that is a thread in [`wait`], which a write frees. But a write to a counter at its
/// maximum sleeps as well, and a peer can have left the counter there: then a read frees the
/// thread that is trying to signal.
///
/// One call may not be enough: other processes may hold the eventfd, and read what this writes.
/// So call again, with the file that it returns, until the sleeper has shown that it is awake.
///
/// # Errors
///
/// If `signal` is no eventfd.
pub fn wake(signal: File) -> io::Result<File> {
    let mut signal = set_nonblocking(signal, true)?;
    match signal.write(&1u64.to_ne_bytes()) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            // An error here tells that somebody else has just read it, which frees a writer, too.
            let _ = signal.read(&mut [0; 8]);
        }
        written => drop(written?),
    }
    Ok(signal)
}

/// Whether `file` is an eventfd: nothing else sleeps and wakes as the ring needs it.
///
/// # Errors
///
/// If `/proc` can't be read, which names the kind of each open file (proc_pid_fd(5)).
pub fn is_eventfd(file: &File) -> io::Result<bool> {
    let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(name.as_os_str() == "anon_inode:[eventfd]")
}

/// Sets or clears `O_NONBLOCK`, for every process that holds this eventfd.
fn set_nonblocking(signal: File, nonblocking: bool) -> io::Result<File> {
    // std has this call for sockets only, but it is the same for any descriptor: FIONBIO, ioctl(2).
    let socket = UnixStream::from(OwnedFd::from(signal));
    socket.set_nonblocking(nonblocking)?;
    Ok(File::from(OwnedFd::from(socket)))
}

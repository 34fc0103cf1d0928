//! The place where the server listens, and what may be there.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long another program may keep the folder locked. A server needs less than a millisecond, but
/// anybody who can read the folder can lock it for good.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// Listens at `path`, for this user's programs alone. The socket file of a server that is gone is
/// replaced.
///
/// # Errors
///
/// If a live server listens at `path`, if anything else is there, or if the system refuses the
/// path (one of more than 107 bytes, for example: unix(7)). What is there stays as it is.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => replace_dead(path)?,
        bound => bound?,
    };
    restrict(path, &listener).context("failed to restrict it to its owner")?;
    Ok(listener)
}

/// Listens at a `path` that exists, if it is the socket of a server that is gone.
fn replace_dead(path: &Path) -> Result<UnixListener> {
    // A killed server leaves its socket file behind. To clear it away takes a lock: of two servers
    // that find it dead together, the slower one would remove what is by then the faster one's.
    // The lock ends with `folder`.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = folder.display();
    let folder = File::open(folder).with_context(|| format!("failed to open `{name}`"))?;
    let start = Instant::now();
    while let Err(e) = folder.try_lock() {
        match e {
            TryLockError::WouldBlock if start.elapsed() < LOCK_LIMIT => {
                thread::sleep(Duration::from_millis(20));
            }
            TryLockError::WouldBlock => bail!("another program has locked the folder `{name}`"),
            TryLockError::Error(e) => bail!("failed to lock the folder `{name}`: {e}"),
        }
    }

    let metadata = fs::symlink_metadata(path).context("failed to see what is there")?;
    ensure!(
        metadata.file_type().is_socket(),
        "a file that is no socket is there"
    );

    // A datagram socket that is connected to a server's fails, and if there is a server, for being
    // of the wrong type. That leaves no trace, where a live server would give a real connection a
    // ring; and a server that does not listen yet, which would refuse one, is not taken for dead.
    let probe = UnixDatagram::unbound().context("failed to make a socket")?;
    match probe.connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            return Err(e).context("failed to find out whether a server listens there");
        }
        _ => bail!("another server listens there"),
    }
    fs::remove_file(path).context("failed to remove a dead server's socket")?;
    Ok(UnixListener::bind(path)?)
}

/// Keeps everybody but the owner from connecting, which takes permission to write (unix(7)).
fn restrict(path: &Path, listener: &UnixListener) -> io::Result<()> {
    // A new socket's mode comes from the umask. The most common one, 022, denies others to write.
    let was_open_to_others = fs::metadata(path)?.permissions().mode() & 0o022 != 0;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    if was_open_to_others {
        // Others may have connected before the mode was set: whoever has is sent away, also who was
        // let in just then and takes a moment, of microseconds, to arrive.
        thread::sleep(Duration::from_millis(10));
        listener.set_nonblocking(true)?;
        let end = listener.incoming().find_map(Result::err);
        if let Some(e) = end.filter(|e| e.kind() != ErrorKind::WouldBlock) {
            return Err(e);
        }
        listener.set_nonblocking(false)?;
    }
    Ok(())
}

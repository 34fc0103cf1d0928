//! Where the server listens and the client connects, and what may be in that place.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// How long others may keep the folder locked. A server needs less than a millisecond for it.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// Listens at `path`, for this user's programs alone. The socket file of a server that is gone is
/// replaced. (In a folder that two machines or two mounts share, by NFS, FUSE or 9p, a live server
/// on the other one looks gone, too.)
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

/// Connects to the server at `path`, if it belongs to this user or to root. (To add another user here
/// is to promise of that user's programs, too, what `unsafe` asks of this user's.)
///
/// # Errors
///
/// If no server is there (the error names `start`, the command that starts one), if something else
/// is, if it is another user's, or if the system refuses the path.
pub fn connect(path: &Path, start: &str) -> Result<UnixStream> {
    let at = path.display();
    let connected = UnixStream::connect(path).map_err(|e| {
        let is_socket = fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
        let said = match e.kind() {
            ErrorKind::ConnectionRefused if !is_socket => return anyhow!("`{at}` is no socket"),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                format!("no server at `{at}`, start it: `{start}`")
            }
            _ => format!("failed to connect to `{at}`"),
        };
        anyhow::Error::from(e).context(said)
    })?;
    // A socket without a path belongs to whoever made it: to this program's user.
    let ours = File::from(OwnedFd::from(connected.try_clone()?));
    let user = ours.metadata()?.uid();
    // A link's owner says nothing about the socket that it leads to, and the other way round.
    for found in [fs::symlink_metadata(path), fs::metadata(path)] {
        let owner = found.with_context(|| format!("whose is `{at}`?"))?.uid();
        let trusted = [user, 0]; // To trust another user's server, add that user.
        let said = "this client trusts its own user's servers, and root's";
        ensure!(
            trusted.contains(&owner),
            "`{at}` is user {owner}'s, not user {user}'s: {said}"
        );
    }
    Ok(connected)
}

/// Listens at a `path` that exists, if it is the socket of a server that is gone.
fn replace_dead(path: &Path) -> Result<UnixListener> {
    // Of two servers that find a dead socket at once, the slower one would remove the faster one's.
    let _until_the_end = lock_folder(path)?;
    let found = fs::symlink_metadata(path).context("failed to see what is there")?;
    let is_socket = found.file_type().is_socket();
    ensure!(is_socket, "a file that is no socket is there");
    ensure!(is_dead(path)?, "another server listens there");
    fs::remove_file(path).context("failed to remove a dead server's socket")?;
    Ok(UnixListener::bind(path)?)
}

/// Locks the folder that `path` is in, for as long as the result exists.
fn lock_folder(path: &Path) -> Result<File> {
    let parent = path.parent().unwrap_or(path);
    let here = parent.as_os_str().is_empty();
    let folder = if here { Path::new(".") } else { parent };
    let name = folder.display();
    let folder = File::open(folder).with_context(|| format!("failed to open `{name}`"))?;
    let start = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_LIMIT => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                bail!("another program has locked the folder `{name}`")
            }
            Err(TryLockError::Error(e)) => bail!("failed to lock the folder `{name}`: {e}"),
        }
    }
}

/// Whether no program has the socket at `path` open any more.
fn is_dead(path: &Path) -> Result<bool> {
    // A *datagram* socket can't connect to a server's. The error is "refused" if the server is gone,
    // "wrong type" if it is there, also while it does not listen yet. It does not notice.
    let probe = UnixDatagram::unbound().context("failed to make a socket")?;
    match probe.connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Err(e).context("failed to find out whether a server listens there")
        }
        _ => Ok(false),
    }
}

/// Keeps everybody but the owner from connecting, which takes permission to write (unix(7)).
fn restrict(path: &Path, listener: &UnixListener) -> io::Result<()> {
    // A new socket's mode comes from the umask. The most common one, 022, denies others to write.
    let was_open_to_others = fs::metadata(path)?.permissions().mode() & 0o022 != 0;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    if was_open_to_others {
        // Others may have connected before the mode was set, and are sent away. So is whoever was let
        // in just then and takes a moment to arrive: microseconds, unless it is held up in between.
        thread::sleep(Duration::from_millis(10));
        listener.set_nonblocking(true)?;
        let end = listener.incoming().find_map(Result::err);
        listener.set_nonblocking(false)?;
        let failed = end.filter(|e| e.kind() != ErrorKind::WouldBlock);
        return failed.map_or(Ok(()), Err);
    }
    Ok(())
}

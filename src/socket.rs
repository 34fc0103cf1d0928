//! The place where clients find the server.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Listens at `path`, for this user's programs alone.
///
/// The socket file of a server that is gone is replaced.
///
/// # Errors
///
/// If a live server listens at `path`, if anything else is there, or if the system refuses the
/// path (one of more than 107 bytes, for example: unix(7)). What is there stays as it is.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => replace_dead(path),
        bound => bound.map_err(Into::into),
    }
    .with_context(|| format!("failed to listen on `{}`", path.display()))?;

    restrict(path, &listener)
        .with_context(|| format!("failed to restrict `{}` to its owner", path.display()))?;
    Ok(listener)
}

/// Listens at a `path` that exists, if it is the socket of a server that is gone.
fn replace_dead(path: &Path) -> Result<UnixListener> {
    // A server leaves its socket file behind when it is killed, so the next one has to clear it
    // away. One server at a time: otherwise two that start together both find the file dead, and
    // the slower one removes what is by then the faster one's. The lock ends with `folder`.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = File::open(folder).context("failed to open its folder")?;
    folder.lock().context("failed to lock its folder")?;

    let file_type = fs::symlink_metadata(path)?.file_type();
    ensure!(file_type.is_socket(), "a file that is no socket is there");

    // A datagram socket never gets through to a server's, but the attempt tells whether there is
    // a server, and without a trace: to a real connection the live server would give a ring.
    match UnixDatagram::unbound()?.connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            return Err(e).context("somebody else's socket is there");
        }
        _ => bail!("another server listens there: stop it, or choose another path with --socket"),
    }
    fs::remove_file(path).context("failed to remove a dead server's socket")?;
    Ok(UnixListener::bind(path)?)
}

/// Keeps everybody but the owner from connecting, which takes permission to write (unix(7)).
fn restrict(path: &Path, listener: &UnixListener) -> io::Result<()> {
    // A new socket's mode comes from the umask. The usual one leaves others no permission to write.
    let was_open_to_others = fs::metadata(path)?.permissions().mode() & 0o022 != 0;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    if was_open_to_others {
        // Others may have connected before the mode was set: everybody who has is sent away.
        listener.set_nonblocking(true)?;
        while listener.accept().is_ok() {}
        listener.set_nonblocking(false)?;
    }
    Ok(())
}

/// Connects to the server that listens at `path`.
///
/// # Errors
///
/// If there is none, or if the system refuses the path or the permission.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let at = path.display();
    UnixStream::connect(path).map_err(|e| {
        let said = match e.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                format!("no server at `{at}`, start one with `cargo run --release --bin server`")
            }
            _ => format!("failed to connect to `{at}`"),
        };
        anyhow::Error::from(e).context(said)
    })
}

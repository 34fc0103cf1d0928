//! What may be at the socket's path, and who may connect.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::proc::assert_asleep;
use crate::programs::{
    CLIENT, Ended, Folder, PATIENCE, Program, SERVER, as_another_user, client, command,
    dead_socket, run, server, server_after, soon, until,
};
use crate::stand_ins::ends;

/// Runs a server that must not start.
fn refused(socket: &Path) -> Ended {
    let server = Program::start(command(SERVER, socket, &[]));
    let ended = soon("the server's end", || server.wait());
    ended.assert_error(1, &["failed to listen on", socket.to_str().unwrap()]);
    ended
}

/// Asserts that there is a server at `socket` that serves.
fn assert_serves(socket: &Path) {
    client(socket, &["--batches", "1"]).wait().assert_done();
}

#[test]
fn no_server() {
    let folder = Folder::new();
    let path = folder.socket();
    let at = path.to_str().unwrap();
    let refused = |said: &str| {
        let ended = soon("the client's end", || client(&path, &[]).wait());
        ended.assert_error(1, &[at, said]);
    };
    // Nothing there, then a socket without a server.
    let advice = format!("start it: `cargo run --release --bin server -- --socket {at}`");
    refused(&advice);
    dead_socket(&path);
    refused(&advice);
    // Where a server would refuse to start, that is no advice.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "a text").unwrap();
    refused("is no socket");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("is no socket");
}

#[test]
fn a_dead_servers_socket_is_replaced() {
    let folder = Folder::new();
    dead_socket(&folder.socket());
    let _server = server(&folder.socket());
    assert_serves(&folder.socket());
}

#[test]
fn a_live_server_is_not_disturbed() {
    let folder = Folder::new();
    let path = folder.socket();
    let mut first = server(&path);
    refused(&path).assert_said(&["another server", "--socket"]);
    // Stopped is not dead.
    first.stop();
    refused(&path).assert_said(&["another server"]);
    first.go_on();
    assert_serves(&path);
    // Nor has it noticed: this client is its first.
    assert_eq!(first.err(), "Client 1 connected");
    assert_eq!(first.err(), "Client 1 left after 100000 items");
}

#[test]
fn of_servers_that_start_together_one_wins() {
    for dead in [false, true] {
        let folder = Folder::new();
        let path = folder.socket();
        if dead {
            dead_socket(&path);
        }
        let start = |_| Program::start(command(SERVER, &path, &[]));
        let mut servers: Vec<_> = (0..8).map(start).collect();
        let first_lines: Vec<_> = servers.iter_mut().map(|server| server.err()).collect();
        let won = first_lines.iter().filter(|l| l.starts_with("Listening"));
        assert_eq!(won.count(), 1, "{first_lines:#?}");
        assert_serves(&path);
    }
}

/// A server that has to replace a dead socket waits for the folder's lock, but not for long.
#[test]
fn a_locked_folder() {
    let folder = Folder::new();
    let path = folder.socket();
    dead_socket(&path);
    let lock = File::open(folder.path()).unwrap();
    lock.lock().unwrap();
    let named = format!("has locked the folder `{}`", folder.path().display());
    refused(&path).assert_said(&[&named]);
    assert!(path.exists());

    let mut server = Program::start(command(SERVER, &path, &[]));
    thread::sleep(Duration::from_millis(300));
    lock.unlock().unwrap();
    server.until_err("Listening on ");
    assert_serves(&path);
}

/// Whoever has the lock next finds the dead socket or a live one, and nothing in between.
#[test]
fn the_lock_lasts_until_the_new_socket_is_there() {
    for _ in 0..20 {
        let folder = Folder::new();
        let path = folder.socket();
        dead_socket(&path);
        // Linked, so that its inode's number is not that of the next file.
        fs::hard_link(&path, folder.join("dead")).unwrap();
        let dead = fs::metadata(&path).unwrap().ino();
        let lock = File::open(folder.path()).unwrap();
        let mut server = Program::start(command(SERVER, &path, &[]));
        let start = Instant::now();
        // On a busy machine, it may give up, as it finds us with the lock each time.
        while !server.unread_err().concat().contains("has locked") {
            assert!(start.elapsed() < PATIENCE, "waited in vain for the server");
            if lock.try_lock().is_err() {
                continue;
            }
            let found = fs::metadata(&path).unwrap().ino();
            if found != dead {
                UnixStream::connect(&path).unwrap();
                break;
            }
            lock.unlock().unwrap();
        }
    }
}

#[test]
fn anything_else_is_left_alone() {
    let folder = Folder::new();
    let path = folder.socket();

    fs::write(&path, "a text").unwrap();
    refused(&path).assert_said(&["no socket"]);
    assert_eq!(fs::read(&path).unwrap(), b"a text");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refused(&path).assert_said(&["no socket"]);
    fs::remove_dir(&path).unwrap();

    // A link is no socket, even if it leads to one.
    let target = folder.join("dead");
    dead_socket(&target);
    symlink(&target, &path).unwrap();
    refused(&path).assert_said(&["no socket"]);
    assert!(path.is_symlink() && target.exists());
    fs::remove_file(&path).unwrap();

    // Nor is somebody's datagram socket ours to replace.
    let _live = UnixDatagram::bind(&path).unwrap();
    refused(&path).assert_said(&["another server"]);
    assert!(path.exists());
}

/// A user who may not connect finds out nothing, and removes nothing.
#[test]
fn somebody_elses_socket() {
    let folder = Folder::new();
    let path = folder.socket();
    let mut first = server(&path);
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        // Nobody else is at hand, but a user can lock itself out, as root can't.
        fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    }
    for (program, said) in [
        (CLIENT, "failed to connect to"),
        (SERVER, "failed to find out whether a server listens"),
    ] {
        let command = match is_root {
            true => as_another_user(0, program, &folder, ":"),
            false => Some(command(program, &path, &[])),
        };
        let Some(command) = command else { return };
        Program::start(command).wait().assert_error(1, &[said]);
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_serves(&path);
    assert_eq!(first.err(), "Client 1 connected");
}

/// Anybody can be the first to listen in a folder like `/tmp`, and let everybody connect. That server is
/// not trusted, and whoever trusts its link to another one is not either.
#[test]
fn a_server_of_another_user() {
    let folder = Folder::new();
    let path = folder.socket();
    let Some(command) = as_another_user(0, SERVER, &folder, ":") else {
        return;
    };
    let mut other = Program::start(command);
    other.until_err("Listening on ");
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let ours = fs::metadata("/proc/self").unwrap().uid();
    let said = format!("`{}` is user 60000's, not user {ours}'s", path.display());
    client(&path, &[]).wait().assert_error(1, &[&said]);
    // Through a link of ours.
    let link = folder.join("link");
    symlink(&path, &link).unwrap();
    client(&link, &[])
        .wait()
        .assert_error(1, &["is user 60000's"]);
    // A link of the other's, to a server of ours.
    let own = folder.join("own");
    let _own = server(&own);
    fs::remove_file(&link).unwrap();
    symlink(&own, &link).unwrap();
    client(&link, &["--batches", "0"]).wait().assert_done();
    lchown(&link, Some(60_000), None).unwrap();
    client(&link, &[])
        .wait()
        .assert_error(1, &["is user 60000's"]);
}

/// Whatever the umask grants or denies. It also decides whether early clients are sent away, after
/// which the server must be as ready, and as quiet, as without.
#[test]
fn the_owner_alone_can_connect() {
    let mut servers = ["000", "022", "077", "777"].map(|umask| {
        let folder = Folder::new();
        let mask = format!("umask {umask}");
        let server = Program::start(server_after(&mask, &folder.socket()));
        (server, folder)
    });
    for (server, folder) in &mut servers {
        server.until_err("Listening on ");
        let mode = fs::metadata(folder.socket()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert_asleep(&servers.each_ref().map(|(server, _)| server));
    for (server, folder) in &mut servers {
        assert_serves(&folder.socket());
        assert_eq!(server.err(), "Client 1 connected");
    }
}

/// Starts a server, connects at the first moment, and says whether there is a ring to be had.
fn early_client_is_served(umask: &str) -> bool {
    let folder = Folder::new();
    let path = folder.socket();
    let mask = format!("umask {umask}");
    let mut server = Program::start(server_after(&mask, &path));
    let start = Instant::now();
    let stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(e) => assert!(start.elapsed() < PATIENCE, "{e}"),
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let served = !ends(&stream);
    // However early a client is, its line is not the first.
    assert_eq!(server.err(), format!("Listening on {}", path.display()));
    served
}

/// Until the socket has its mode, the umask decides who can connect. If that may be others,
/// whoever has come by then is sent away, and else nobody is.
#[test]
fn early_clients() {
    for _ in 0..20 {
        assert!(early_client_is_served("022"), "sent away without cause");
    }
    for umask in ["002", "020"] {
        until("one to be sent away", || !early_client_is_served(umask));
    }
}

#[test]
fn paths_that_the_system_takes() {
    let folder = Folder::new();
    let longest = "x".repeat(107 - folder.join("").as_os_str().len());
    for name in [OsStr::from_bytes(b"\xff \xfe"), OsStr::new(&longest)] {
        let path = folder.join(name);
        let _server = server(&path);
        assert_serves(&path);
    }
}

#[test]
fn paths_that_the_system_refuses() {
    let folder = Folder::new();
    let too_long = folder.join("x".repeat(108));
    let no_folder = folder.join("x/s");
    for (path, said) in [
        (&too_long, "failed to connect to"),
        (&no_folder, "no server at"),
    ] {
        refused(path);
        let args = [OsStr::new("--socket"), path.as_os_str()];
        run(CLIENT, &args).assert_error(1, &[said, path.to_str().unwrap()]);
    }
}

/// Without a folder in front of it, the path is one in the working directory, whatever it looks
/// like.
#[test]
fn a_relative_path() {
    for name in ["s", "-h", "--help"] {
        let folder = Folder::new();
        dead_socket(&folder.join(name));
        let mut command = command(SERVER, Path::new(name), &[]);
        command.current_dir(folder.path());
        let mut server = Program::start(command);
        assert_eq!(server.err(), format!("Listening on {name}"));
        assert_serves(&folder.join(name));
    }
}

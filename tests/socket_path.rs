//! What may be at the socket's path, and who may connect.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;

use common::{CLIENT, Folder, Program, SERVER, assert_asleep, client, run, server, start};

#[test]
fn no_server() {
    let folder = Folder::new();
    let path = folder.socket();
    let named = path.to_str().unwrap();
    let advice = "cargo run --release --bin server";
    // Nothing there, then a socket without a server, then no socket.
    client(&path, &[]).wait().assert_error(1, &[named, advice]);
    drop(UnixListener::bind(&path).unwrap());
    client(&path, &[]).wait().assert_error(1, &[named, advice]);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "a text").unwrap();
    client(&path, &[]).wait().assert_error(1, &[named, advice]);
}

#[test]
fn a_dead_servers_socket_is_replaced() {
    let folder = Folder::new();
    server(&folder.socket()).kill();
    assert!(folder.socket().exists());
    let mut server = server(&folder.socket());
    assert_eq!(
        client(&folder.socket(), &["--batches", "1"]).wait().code,
        Some(0)
    );
    assert_eq!(server.out(), "Sum: 0.9999999999980838");
}

#[test]
fn a_live_server_is_not_disturbed() {
    let folder = Folder::new();
    let path = folder.socket();
    let mut first = server(&path);
    let second = start(SERVER, &path, &[]).wait();
    second.assert_error(1, &[path.to_str().unwrap(), "another server", "--socket"]);
    // Stopped is not dead.
    first.signal("STOP");
    start(SERVER, &path, &[])
        .wait()
        .assert_error(1, &["another server"]);
    first.signal("CONT");
    assert_eq!(client(&path, &["--batches", "1"]).wait().code, Some(0));
    // Nor has it noticed: this client is its first.
    assert_eq!(first.err(), "Client 1 connected");
}

#[test]
fn of_servers_that_start_together_one_wins() {
    for dead_socket in [false, true] {
        let folder = Folder::new();
        let path = folder.socket();
        if dead_socket {
            drop(UnixListener::bind(&path).unwrap());
        }
        let mut servers: Vec<_> = (0..8).map(|_| start(SERVER, &path, &[])).collect();
        let first_lines: Vec<_> = servers.iter_mut().map(|server| server.err()).collect();
        let won = |line: &&String| line.starts_with("Listening on ");
        assert_eq!(
            first_lines.iter().filter(won).count(),
            1,
            "{first_lines:#?}"
        );
        assert_eq!(client(&path, &["--batches", "1"]).wait().code, Some(0));
    }
}

/// While one server replaces a dead socket, the next one waits, and then finds a live one.
#[test]
fn a_dead_socket_is_replaced_once() {
    let folder = Folder::new();
    let path = folder.socket();
    drop(UnixListener::bind(&path).unwrap());
    let lock = File::open(folder.join("")).unwrap();
    lock.lock().unwrap();
    let second = start(SERVER, &path, &[]);
    assert_asleep(&second);
    fs::remove_file(&path).unwrap();
    let _first = UnixListener::bind(&path).unwrap();
    drop(lock);
    second.wait().assert_error(1, &["another server"]);
}

#[test]
fn anything_else_is_left_alone() {
    let folder = Folder::new();
    let path = folder.socket();
    let refused = |words: &[&str]| {
        let named = path.to_str().unwrap();
        start(SERVER, &path, &[])
            .wait()
            .assert_error(1, &[&[named], words].concat());
    };

    fs::write(&path, "a text").unwrap();
    refused(&["no socket"]);
    assert_eq!(fs::read(&path).unwrap(), b"a text");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refused(&["no socket"]);
    fs::remove_dir(&path).unwrap();

    // A link is no socket, even if it leads to one.
    let target = folder.join("dead");
    drop(UnixListener::bind(&target).unwrap());
    symlink(&target, &path).unwrap();
    refused(&["no socket"]);
    assert!(path.is_symlink() && target.exists());
    fs::remove_file(&path).unwrap();

    // Nor is somebody's datagram socket ours to replace.
    let _live = UnixDatagram::bind(&path).unwrap();
    refused(&["another server"]);
    assert!(path.exists());
}

#[test]
fn the_owner_alone_can_connect() {
    // Whatever the umask grants or denies.
    for umask in ["000", "022", "777"] {
        let folder = Folder::new();
        let mut shell = Command::new("sh");
        let script = format!("umask {umask}; exec \"$@\"");
        shell
            .args(["-c", &script, "sh", SERVER, "--socket"])
            .arg(folder.socket());
        let mut server = Program::start(shell);
        server.until_err("Listening on ");
        let mode = fs::metadata(folder.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "with umask {umask}");
        assert_eq!(
            client(&folder.socket(), &["--batches", "1"]).wait().code,
            Some(0)
        );
    }
}

#[test]
fn paths_that_the_system_takes() {
    let folder = Folder::new();
    let longest = "x".repeat(107 - folder.join("").as_os_str().len());
    for name in [
        OsStr::from_bytes(b"\xff \xfe"),
        OsStr::new("-h"),
        OsStr::new(&longest),
    ] {
        let path = folder.join(name);
        let mut server = server(&path);
        assert_eq!(client(&path, &["--batches", "1"]).wait().code, Some(0));
        assert_eq!(server.out(), "Sum: 0.9999999999980838");
    }
}

#[test]
fn paths_that_the_system_refuses() {
    let folder = Folder::new();
    let too_long = folder.join("x".repeat(108));
    let no_folder = folder.join("no/folder");
    for (path, said) in [
        (&too_long, "failed to connect to"),
        (&no_folder, "no server at"),
    ] {
        let args = [OsStr::new("--socket"), path.as_os_str()];
        run(SERVER, &args).assert_error(1, &["failed to listen on", path.to_str().unwrap()]);
        run(CLIENT, &args).assert_error(1, &[said, path.to_str().unwrap()]);
    }
}

/// Without a folder in front of it, the path is one in the working directory.
#[test]
fn a_relative_path() {
    let folder = Folder::new();
    drop(UnixListener::bind(folder.socket()).unwrap());
    let mut command = Command::new(SERVER);
    command.args(["--socket", "s"]).current_dir(folder.join(""));
    let mut server = Program::start(command);
    assert_eq!(server.err(), "Listening on s");
    assert_eq!(
        client(&folder.socket(), &["--batches", "1"]).wait().code,
        Some(0)
    );
}

//! Command lines, and a terminal that goes away.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::proc::sleeps_of;
use crate::programs::{
    CLIENT, Folder, PATIENCE, Program, SERVER, client, command, run, server, until, within_patience,
};
use crate::stand_ins::uninterrupted;

#[test]
fn help() {
    for (program, options) in [
        (SERVER, &["--socket <PATH>", "--help"][..]),
        (
            CLIENT,
            &[
                "--socket <PATH>",
                "--batches <N>",
                "--interval <SECONDS>",
                "--flood <ITEMS>",
            ],
        ),
    ] {
        let help = run(program, &["--help"]).assert_done();
        let text = help.join("\n");
        assert!(text.contains(&format!("[default: {}]", shmem_test::SOCKET)));
        for option in options {
            assert!(text.contains(option), "{option} is not in {text}");
        }
        assert_eq!(run(program, &["-h"]).assert_done(), help);
        // Options before it don't matter, and nothing is opened for it.
        let late = run(program, &["--socket", "/no/folder/s", "--help"]);
        assert_eq!(late.assert_done(), help);
    }
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_done() {
    let folder = Folder::new();
    let file = folder.join("file");
    fs::write(&file, "a text").unwrap();
    let file = file.to_str().unwrap();

    let wrong = |program, args: &[&str], said: &str| {
        let ended = run(program, args);
        ended.assert_error(2, &[said]);
        let usage = run(program, &["--help"]).out[0].clone();
        assert!(usage.starts_with("Usage: "));
        assert_eq!((ended.err.len(), &ended.err[1]), (2, &usage));
    };
    for program in [SERVER, CLIENT] {
        for (args, said) in [
            (&["--socket"][..], "`--socket` needs a value"),
            (&["--socket", ""], "`--socket` needs a value"),
            (&["--socket", file, "--no"], "unknown argument `--no`"),
            (&["--socket", file, "more"], "unknown argument `more`"),
            (
                &["--socket", file, "--socket", file],
                "`--socket` is given twice",
            ),
            (&[""], "unknown argument ``"),
        ] {
            wrong(program, args, said);
        }
    }
    wrong(SERVER, &["--batches", "1"], "unknown argument `--batches`");
    for (option, expected, values) in [
        (
            "--batches",
            "a whole number",
            &["-1", "1.5", "many", "18446744073709551616"][..],
        ),
        ("--flood", "a whole number", &["-1", "1e9"]),
        (
            "--interval",
            "a number of seconds",
            &["-1", "soon", "nan", "inf", "1e400", "1,5"],
        ),
    ] {
        for value in values {
            let said = format!("`{option}` takes {expected}, not `{value}`");
            wrong(CLIENT, &[option, value], &said);
        }
    }
    for other in ["--batches", "--interval"] {
        let said = format!("`--flood` excludes `{other}`");
        wrong(CLIENT, &["--flood", "1", other, "1"], &said);
        wrong(CLIENT, &[other, "1", "--flood", "1"], &said);
    }
    assert_eq!(fs::read(file).unwrap(), b"a text");
}

#[test]
fn arguments_need_not_be_utf8() {
    for option in ["--batches", "--interval", "--flood"] {
        let ended = run(CLIENT, &[OsStr::new(option), OsStr::from_bytes(b"1\xff")]);
        ended.assert_error(2, &[option]);
    }
    run(SERVER, &[OsStr::from_bytes(b"\xff")]).assert_error(2, &["unknown argument"]);
}

#[test]
fn decimals_and_zero_are_intervals() {
    let folder = Folder::new();
    let _server = server(&folder.socket());
    for interval in ["0", "0.0", ".01", "1e-3", "-0"] {
        let args = ["--batches", "2", "--interval", interval];
        let sent = client(&folder.socket(), &args).wait().assert_done();
        assert_eq!(sent.len(), 2);
    }
}

#[test]
fn a_closed_stdout_ends_the_client() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let command = command(CLIENT, &folder.socket(), &["--interval", "0.01"]);
    let (head, stdout) = io::pipe().unwrap();
    let client = Program::start_with(command, stdout.into(), Stdio::piped());
    read_one_line(head);
    let ended = client.wait();
    ended.assert_error(1, &["failed to print to stdout: Broken pipe"]);
    server.until_err("Client 1 broke off");
}

#[test]
fn a_closed_stdout_ends_the_server() {
    let folder = Folder::new();
    let command = command(SERVER, &folder.socket(), &[]);
    let (head, stdout) = io::pipe().unwrap();
    let mut server = Program::start_with(command, stdout.into(), Stdio::piped());
    server.until_err("Listening on ");
    let client = client(&folder.socket(), &["--interval", "0.01"]);
    read_one_line(head);
    let ended = client.wait();
    assert_eq!(ended.code, Some(1));
    ended.assert_said(&["is gone"]);
    let ended = server.wait();
    ended.assert_error(1, &["error: failed to print to stdout: Broken pipe"]);
}

/// Does what `head -1` does: reads a line and leaves.
fn read_one_line(head: PipeReader) {
    within_patience("a line", || {
        BufReader::new(head).lines().next().unwrap().unwrap()
    });
}

/// A pipe whose two ends this test holds, with no room left.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    set_nonblocking(&writer, true);
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    (reader, writer)
}

/// Sets or clears `O_NONBLOCK`, which both ends' holders share.
fn set_nonblocking(writer: &PipeWriter, nonblocking: bool) {
    let socket = UnixStream::from(OwnedFd::from(writer.try_clone().unwrap()));
    socket.set_nonblocking(nonblocking).unwrap();
}

/// Three clients come, send and leave, whatever has become of the server's lines.
fn assert_serves_three(socket: &Path) {
    for _ in 0..3 {
        client(socket, &["--flood", "1000"]).wait().assert_done();
    }
}

/// Full is not closed: a disk, a pipe that does not block, a pipe that does (as a terminal does after
/// Ctrl-S). The server serves on, and the last sum comes when there is room.
#[test]
fn a_full_stdout_does_not_stop_the_server() {
    let folder = Folder::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let command = command(SERVER, &folder.socket(), &[]);
    let mut server = Program::start_with(command, full.into(), Stdio::piped());
    server.until_err("Listening on ");
    assert_serves_three(&folder.socket());
    server.until_err("Client 3 left");
    drop(server);

    for nonblocking in [true, false] {
        for with_stderr in [true, false] {
            let (reader, writer) = full_pipe();
            set_nonblocking(&writer, nonblocking);
            let stderr = match with_stderr {
                true => writer.try_clone().unwrap().into(),
                false => Stdio::null(),
            };
            let command = crate::programs::command(SERVER, &folder.socket(), &[]);
            let server = Program::start_with(command, writer.into(), stderr);
            until("the server", || {
                UnixStream::connect(folder.socket()).is_ok()
            });
            assert_serves_three(&folder.socket());
            if nonblocking {
                // It tries again, in vain.
                let before = sleeps_of(&server, "sums");
                until("three times", || sleeps_of(&server, "sums") >= before + 3);
            }
            within_patience("the last sum", move || {
                let wanted = "Sum: 3000";
                let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
                // The first one is behind all that filled the pipe.
                assert!(lines.any(|line| line.trim_start_matches('x') == wanted));
            });
            drop(server);
        }
    }
}

/// Nobody drains stderr, but stdout is read.
#[test]
fn a_full_stderr_holds_up_nothing() {
    let folder = Folder::new();
    let (_reader, writer) = full_pipe();
    set_nonblocking(&writer, false);
    let command = command(SERVER, &folder.socket(), &[]);
    let mut server = Program::start_with(command, Stdio::piped(), writer.into());
    until("the server", || {
        UnixStream::connect(folder.socket()).is_ok()
    });
    assert_serves_three(&folder.socket());
    server.until_out("Sum: 3000");
}

/// A client does its work without its lines, too.
#[test]
fn a_full_stdout_does_not_stop_the_client() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    for args in [
        &["--batches", "2", "--interval", "0.01"][..],
        &["--flood", "1000"],
    ] {
        let command = command(CLIENT, &folder.socket(), args);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let client = Program::start_with(command, full.into(), Stdio::piped());
        client.wait().assert_done();
    }
    server.until_err("Client 2 left after 1000 items");
}

#[test]
fn nowhere_to_print_is_no_panic() {
    for program in [SERVER, CLIENT] {
        let mut help = Command::new(program);
        help.arg("--help");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ended = Program::start_with(help, full.into(), Stdio::piped()).wait();
        ended.assert_error(1, &["failed to print to stdout"]);
        // Without a stdout at all: then std opens /dev/null in its place.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" >&-", "sh", program, "--help"]);
        Program::start(shell).wait().assert_done();
    }
}

#[test]
fn a_closed_stderr_does_not_stop_the_server() {
    let folder = Folder::new();
    let command = command(SERVER, &folder.socket(), &[]);
    let (head, stderr) = io::pipe().unwrap();
    let mut server = Program::start_with(command, Stdio::piped(), stderr.into());
    read_one_line(head);
    for _ in 0..3 {
        let flood = client(&folder.socket(), &["--flood", "1"]);
        flood.wait().assert_done();
    }
    server.until_out("Sum: 3");
}

/// So that the lines of two programs on one terminal don't mix: each is one write. A datagram
/// socket keeps the writes apart.
#[test]
fn each_line_on_stderr_is_one_write() {
    let folder = Folder::new();
    for (program, args, beginnings) in [
        (SERVER, &[][..], &["Listening on "][..]),
        (CLIENT, &["--no"], &["error: ", "Usage: "]),
    ] {
        let (terminal, stderr) = UnixDatagram::pair().unwrap();
        terminal.set_read_timeout(Some(PATIENCE)).unwrap();
        let command = command(program, &folder.socket(), args);
        let stderr = OwnedFd::from(stderr).into();
        let _program = Program::start_with(command, Stdio::null(), stderr);
        for beginning in beginnings {
            let mut buffer = [0; 1000];
            let len = uninterrupted(|| terminal.recv(&mut buffer));
            let written = str::from_utf8(&buffer[..len]).unwrap();
            assert!(written.starts_with(beginning), "{written:?}");
            assert!(written.ends_with('\n'), "{written:?}");
        }
    }
}

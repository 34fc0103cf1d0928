//! Command lines, and a terminal that goes away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use common::{CLIENT, Folder, Program, SERVER, client, run, server};

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
        let long = run(program, &["--help"]);
        assert_eq!((long.code, long.err.len()), (Some(0), 0));
        let text = long.out.join("\n");
        assert!(text.contains(&format!("[default: {}]", shmem_test::SOCKET)));
        for option in options {
            assert!(text.contains(option), "{option} is not in {text}");
        }
        assert_eq!(run(program, &["-h"]).out, long.out);
        // Options before it don't matter, and nothing is opened for it.
        assert_eq!(
            run(program, &["--socket", "/no/folder/s", "--help"]).out,
            long.out
        );
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
        wrong(program, &["--socket"], "`--socket` needs a value");
        wrong(program, &["--socket", ""], "`--socket` needs a value");
        wrong(
            program,
            &["--socket", file, "--nonsense"],
            "unknown argument `--nonsense`",
        );
        wrong(
            program,
            &["--socket", file, "more"],
            "unknown argument `more`",
        );
        wrong(
            program,
            &["--socket", file, "--socket", file],
            "`--socket` is given twice",
        );
        wrong(program, &[""], "unknown argument ``");
    }
    wrong(SERVER, &["--batches", "1"], "unknown argument `--batches`");
    for value in ["-1", "1.5", "many", "18446744073709551616"] {
        for option in ["--batches", "--flood"] {
            wrong(
                CLIENT,
                &[option, value],
                &format!("`{option}` takes a whole number, not `{value}`"),
            );
        }
    }
    for value in ["-1", "soon", "nan", "inf", "1e400", "1,5"] {
        let said = format!("`--interval` takes a number of seconds, not `{value}`");
        wrong(CLIENT, &["--interval", value], &said);
    }
    wrong(
        CLIENT,
        &["--flood", "1", "--batches", "1"],
        "`--flood` excludes `--batches`",
    );
    wrong(
        CLIENT,
        &["--interval", "1", "--flood", "1"],
        "`--flood` excludes `--interval`",
    );
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
        let ended = client(&folder.socket(), &args).wait();
        assert_eq!(
            (ended.code, ended.out.len()),
            (Some(0), 2),
            "{:#?}",
            ended.err
        );
    }
}

#[test]
fn a_closed_stdout_ends_the_client() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut command = Command::new(CLIENT);
    command
        .arg("--socket")
        .arg(folder.socket())
        .args(["--interval", "0.01"]);
    let (head, stdout) = io::pipe().unwrap();
    let client = Program::start_with(command, stdout.into(), Stdio::piped());
    read_one_line(head);
    let ended = client.wait();
    ended.assert_error(1, &["error: failed to print to stdout: Broken pipe"]);
    server.until_err("Client 1 left");
}

#[test]
fn a_closed_stdout_ends_the_server() {
    let folder = Folder::new();
    let mut command = Command::new(SERVER);
    command.arg("--socket").arg(folder.socket());
    let (head, stdout) = io::pipe().unwrap();
    let mut server = Program::start_with(command, stdout.into(), Stdio::piped());
    server.until_err("Listening on ");
    let client = client(&folder.socket(), &["--interval", "0.01"]);
    read_one_line(head);
    let ended = client.wait();
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.concat().contains("is gone"), "{:#?}", ended.err);
    server
        .wait()
        .assert_error(1, &["error: failed to print to stdout: Broken pipe"]);
}

/// Does what `head -1` does: reads a line and leaves.
fn read_one_line(head: PipeReader) {
    BufReader::new(head).lines().next().unwrap().unwrap();
}

#[test]
fn nowhere_to_print_is_no_panic() {
    for program in [SERVER, CLIENT] {
        let help = |program| {
            let mut command = Command::new(program);
            command.arg("--help");
            command
        };
        let full = File::create("/dev/full").unwrap();
        let ended = Program::start_with(help(program), full.into(), Stdio::piped()).wait();
        ended.assert_error(1, &["failed to print to stdout"]);
        // Without a stdout at all: then std opens /dev/null in its place.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" >&-", "sh", program, "--help"]);
        assert_eq!(Program::start(shell).wait().code, Some(0));
    }
}

#[test]
fn a_closed_stderr_does_not_stop_the_server() {
    let folder = Folder::new();
    let mut command = Command::new(SERVER);
    command.arg("--socket").arg(folder.socket());
    let (head, stderr) = io::pipe().unwrap();
    let mut server = Program::start_with(command, Stdio::piped(), stderr.into());
    read_one_line(head);
    for _ in 0..3 {
        assert_eq!(
            client(&folder.socket(), &["--batches", "1"]).wait().code,
            Some(0)
        );
    }
    assert_eq!(server.out(), "Sum: 0.9999999999980838");
}

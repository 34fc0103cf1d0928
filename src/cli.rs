//! Options, lines and exit statuses: nothing about shared memory, and nothing to copy.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::Duration;

use anyhow::{Context, Error, Result};

use crate::SOCKET;

const SERVER_HELP: &str = "\
Usage: server [--socket <PATH>]

Gives each client a ring in shared memory and prints the sum of all items they send.

Options:
  --socket <PATH>  where to listen [default: /tmp/shmem-test.sock]
  -h, --help       print this help";

const CLIENT_HELP: &str = "\
Usage: client [--socket <PATH>] [--batches <N>] [--interval <SECONDS>] [--flood <ITEMS>]

Sends batches of numbers to the server through a ring in shared memory.

Options:
  --socket <PATH>       where the server listens [default: /tmp/shmem-test.sock]
  --batches <N>         stop after N batches [default: run until stopped]
  --interval <SECONDS>  pause between batches, decimals allowed [default: 1]
  --flood <ITEMS>       instead of batches: send that many items of 1.0 as fast as
                        the ring takes them, then print the rate
  -h, --help            print this help";

/// What the client is asked to do.
#[derive(Debug)]
pub enum Work {
    /// To send that many batches, with a pause between two of them.
    Batches(u64, Duration),
    /// To send that many items of 1.0, as fast as the ring takes them.
    Flood(u64),
}

/// The server's path to listen at. Ends the program if the command line is wrong (status 2) or asks for
/// help (status 0).
pub fn server_options() -> PathBuf {
    let [socket] = parse(SERVER_HELP, ["--socket"]);
    socket.map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// The client's path to connect to, and its work. Ends the program likewise.
pub fn client_options() -> (PathBuf, Work) {
    let names = ["--socket", "--batches", "--interval", "--flood"];
    let [socket, batches, interval, flood] = parse(CLIENT_HELP, names);
    let number = |text: &str| text.parse().ok();
    let seconds = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
    let batches = value(batches, "`--batches` takes a whole number", number);
    let interval = value(interval, "`--interval` takes a number of seconds", seconds);
    let flood = value(flood, "`--flood` takes a whole number", number);

    let pause = interval.unwrap_or(Duration::from_secs(1));
    let work = match (flood, batches, interval) {
        (Some(items), None, None) => Work::Flood(items),
        (Some(_), Some(_), _) => refuse(CLIENT_HELP, "`--flood` excludes `--batches`"),
        (Some(_), ..) => refuse(CLIENT_HELP, "`--flood` excludes `--interval`"),
        (None, ..) => Work::Batches(batches.unwrap_or(u64::MAX), pause),
    };
    (socket.map_or_else(|| SOCKET.into(), PathBuf::from), work)
}

/// Reads the options `names`, each with a value, into an array in the order of `names`.
fn parse<const N: usize>(help: &str, names: [&str; N]) -> [Option<OsString>; N] {
    let mut values = [const { None }; N];
    // `args_os`, because `args` panics on what is not UTF-8, and paths need not be.
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        if arg == "-h" || arg == "--help" {
            exit(writeln!(io::stdout(), "{help}").context("failed to print to stdout"));
        }
        let Some(i) = names.iter().position(|name| arg == *name) else {
            refuse(help, format!("unknown argument `{}`", arg.display()));
        };
        let Some(value) = args.next().filter(|value| !value.is_empty()) else {
            refuse(help, format!("`{}` needs a value", names[i]));
        };
        if values[i].replace(value).is_some() {
            refuse(help, format!("`{}` is given twice", names[i]));
        }
    }
    values
}

/// Turns the text of an option of the client into a value.
fn value<T>(text: Option<OsString>, rule: &str, read: fn(&str) -> Option<T>) -> Option<T> {
    let text = text?;
    let value = text.to_str().and_then(read);
    value.or_else(|| refuse(CLIENT_HELP, format!("{rule}, not `{}`", text.display())))
}

/// Ends the program because of a wrong command line.
fn refuse(help: &str, wrong: impl Display) -> ! {
    write_note(format!("error: {wrong}"));
    write_note(help.lines().take(1).collect());
    process::exit(2)
}

/// Ends the program: with status 0, or with 1 and a line on stderr that says what failed.
pub fn exit(result: Result<()>) -> ! {
    let Err(e) = result else { process::exit(0) };
    write_note(format!("error: {}", reason(&e)));
    process::exit(1)
}

/// An error and its causes, in one line, without shmem-ipc's text, which repeats that of its cause.
pub fn reason(error: &Error) -> String {
    let causes = error.chain().filter(|e| !e.is::<shmem_ipc::Error>());
    causes.map(|e| e.to_string()).collect::<Vec<_>>().join(": ")
}

/// Prints one line on stdout, or loses it if that is full (a disk, a pipe that does not block). Fails if
/// nobody reads any more (`client | head -1`), where `println!` panics.
pub fn print(line: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(e) if !nobody_reads(&e) => Ok(()),
        printed => printed.context("failed to print to stdout"),
    }
}

/// Prints the sum whenever it has changed and this thread is unparked. If stdout is full, waits for room,
/// and prints the sum as it is then. Fails if nobody reads any more.
pub fn print_changes(sum: &Mutex<f64>) -> Result<()> {
    let (mut last_line, mut full) = (String::from("Sum: 0"), false);
    loop {
        if !full {
            thread::park(); // Not at all if the `unpark` came during the pause.
        }
        let total = *sum.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!("Sum: {total}");
        // First what there was no room for: the buffer of `Stdout` has kept it.
        let mut printed = io::stdout().flush();
        // Lines are compared, not sums, because NaN differs from everything, itself included.
        if printed.is_ok() && line != last_line {
            printed = writeln!(io::stdout(), "{line}");
            last_line = line;
        }
        full = printed.is_err();
        if printed.as_ref().is_err_and(nobody_reads) {
            return printed.context("failed to print to stdout");
        }
        // At most 20 lines a second. Whoever stops the program in this pause misses the last one.
        thread::sleep(Duration::from_millis(if full { 500 } else { 50 }));
    }
}

/// Whether each later write will fail, too: a pipe without a reader, a terminal that is gone (write(2)).
fn nobody_reads(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(5 | 32)) // EIO, EPIPE
}

/// Up to 1000 lines on the way to stderr, which has a thread of its own.
static NOTES: LazyLock<SyncSender<String>> = LazyLock::new(|| {
    let (notes, waiting) = mpsc::sync_channel(1000);
    let print = move || waiting.into_iter().for_each(write_note);
    let _ = Builder::new().name("notes".into()).spawn(print);
    notes
});

/// Prints one line on stderr, by and by: nobody waits for a terminal that was stopped with Ctrl-S, or
/// for a pipe that nobody drains.
pub fn note(line: impl Display) {
    if let Err(TrySendError::Disconnected(line)) = NOTES.try_send(line.to_string()) {
        write_note(line); // The system had no thread left.
    }
}

fn write_note(line: String) {
    // One write, so that the lines of two processes don't mix. If it fails, nobody is listening.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

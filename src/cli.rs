//! Options, lines and exit statuses: the one room that has nothing to do with shared memory.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::SOCKET;

/// What `server --help` prints; the first line is the usage line.
pub const SERVER_HELP: &str = "\
Usage: server [--socket <PATH>]

Gives each client a ring in shared memory and prints the sum of all items they send.

Options:
  --socket <PATH>  where to listen [default: /tmp/shmem-test.sock]
  -h, --help       print this help";

/// What `client --help` prints; the first line is the usage line.
pub const CLIENT_HELP: &str = "\
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
pub enum Work {
    /// Send batches, `interval` apart, until `count` of them are sent.
    Batches {
        /// Number of batches.
        count: u64,
        /// Pause between two batches.
        interval: Duration,
    },
    /// Send this many items of 1.0 as fast as the ring takes them.
    Flood(u64),
}

/// Reads the server's command line: the path to listen at.
///
/// # Errors
///
/// A command line that is wrong, or that asks for help: pass either on to [`exit`].
pub fn server_options() -> Result<PathBuf> {
    let [socket] = parse(["--socket"])?;
    Ok(socket.map_or_else(|| SOCKET.into(), PathBuf::from))
}

/// Reads the client's command line: the path to connect to, and the work.
///
/// # Errors
///
/// As [`server_options`].
pub fn client_options() -> Result<(PathBuf, Work)> {
    let names = ["--socket", "--batches", "--interval", "--flood"];
    let [socket, batches, interval, flood] = parse(names)?;
    let whole = |text: &str| text.parse().ok();
    let seconds = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
    let batches = value("--batches", batches, "a whole number", whole)?;
    let interval = value("--interval", interval, "a number of seconds", seconds)?;
    let flood = value("--flood", flood, "a whole number", whole)?;

    let work = match (flood, batches, interval) {
        (Some(items), None, None) => Work::Flood(items),
        (Some(_), Some(_), _) => return Err(wrong("`--flood` excludes `--batches`")),
        (Some(_), _, Some(_)) => return Err(wrong("`--flood` excludes `--interval`")),
        (None, batches, interval) => Work::Batches {
            count: batches.unwrap_or(u64::MAX),
            interval: interval.unwrap_or(Duration::from_secs(1)),
        },
    };
    Ok((socket.map_or_else(|| SOCKET.into(), PathBuf::from), work))
}

/// Reads the options `names`, each with a value, into an array in the order of `names`.
fn parse<const N: usize>(names: [&str; N]) -> Result<[Option<OsString>; N]> {
    let mut values = [const { None }; N];
    // `args_os`, because `args` panics on what is not UTF-8, and paths need not be.
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        if arg == "-h" || arg == "--help" {
            return Err(Stop::Help.into());
        }
        let Some(i) = names.iter().position(|name| arg == *name) else {
            return Err(wrong(format!("unknown argument `{}`", arg.display())));
        };
        let Some(value) = args.next().filter(|value| !value.is_empty()) else {
            return Err(wrong(format!("`{}` needs a value", names[i])));
        };
        if values[i].replace(value).is_some() {
            return Err(wrong(format!("`{}` is given twice", names[i])));
        }
    }
    Ok(values)
}

/// Turns the text of option `name` into a value.
fn value<T>(
    name: &str,
    text: Option<OsString>,
    expected: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>> {
    let Some(text) = text else { return Ok(None) };
    match text.to_str().and_then(read) {
        Some(value) => Ok(Some(value)),
        None => {
            let text = text.display();
            Err(wrong(format!("`{name}` takes {expected}, not `{text}`")))
        }
    }
}

/// Why a command line ends a program before it begins.
#[derive(Debug)]
enum Stop {
    Help,
    Wrong(String),
}

impl Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Stop::Help => f.write_str("help is asked for"),
            Stop::Wrong(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Stop {}

fn wrong(what: impl Into<String>) -> anyhow::Error {
    Stop::Wrong(what.into()).into()
}

/// Turns a program's result into its exit status: 0 done, 1 failed, 2 wrong command line.
///
/// Says on stderr what failed; answers `--help` with `help` on stdout.
pub fn exit(help: &str, result: Result<()>) -> ExitCode {
    let result = match result {
        Err(e) if matches!(e.downcast_ref(), Some(Stop::Help)) => print(help),
        result => result,
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    note(format!("error: {error:#}"));
    if error.is::<Stop>() {
        note(help.lines().next().unwrap_or_default());
        return ExitCode::from(2);
    }
    ExitCode::FAILURE
}

/// Prints one line on stdout.
///
/// # Errors
///
/// If stdout is closed (`client | head -1`), where `println!` would panic.
pub fn print(line: impl Display) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("failed to print to stdout")
}

/// Prints one line on stderr.
pub fn note(line: impl Display) {
    // One write, so that the lines of two processes don't mix. If it fails, stderr is closed, and
    // there is nowhere left to say so.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

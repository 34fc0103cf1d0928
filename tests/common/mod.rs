//! The two real programs as child processes, and what `/proc` tells about them.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use passfd::FdPassingExt;
use shmem_ipc::sharedring::Sender;

/// For whatever must happen: long enough for any machine, short enough to see a hang fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder of this test's own, gone with everything in it when the test is over.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short, because a socket's path ends at 107 bytes.
        let path = std::env::temp_dir().join(format!("shmem-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Where the tests of this folder have their server.
    pub fn socket(&self) -> PathBuf {
        self.join("s")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The lines that a program has printed so far, and those to come.
struct Lines {
    coming: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let (sender, coming) = mpsc::channel();
        thread::spawn(move || {
            let Some(stream) = stream else { return };
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Lines {
            coming,
            seen: Vec::new(),
        }
    }

    fn next(&mut self) -> Option<String> {
        let line = self.coming.recv_timeout(PATIENCE).ok()?;
        self.seen.push(line.clone());
        Some(line)
    }
}

/// A running program; dropped, it is killed and waited for.
pub struct Program {
    command: String,
    child: Child,
    out: Lines,
    err: Lines,
}

/// What a program that has ended leaves.
pub struct Ended {
    pub code: Option<i32>,
    pub out: Vec<String>,
    pub err: Vec<String>,
}

impl Program {
    pub fn start(command: Command) -> Self {
        Program::start_with(command, Stdio::piped(), Stdio::piped())
    }

    /// As `start`, with a stdout or stderr of the test's own.
    pub fn start_with(mut command: Command, out: Stdio, err: Stdio) -> Self {
        // With it, anyhow adds a backtrace to its messages.
        command.env_remove("RUST_BACKTRACE");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        let (out, err) = (
            Lines::of(child.stdout.take()),
            Lines::of(child.stderr.take()),
        );
        Program {
            command: format!("{command:?}"),
            child,
            out,
            err,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line on stdout.
    pub fn out(&mut self) -> String {
        self.out
            .next()
            .unwrap_or_else(|| self.fail("a line on stdout"))
    }

    /// The next line on stderr.
    pub fn err(&mut self) -> String {
        self.err
            .next()
            .unwrap_or_else(|| self.fail("a line on stderr"))
    }

    /// Reads stdout up to this line, which may be the one that was read last.
    pub fn until_out(&mut self, wanted: &str) {
        while self.out.seen.last().is_none_or(|last| last != wanted) {
            self.out.next().unwrap_or_else(|| self.fail(wanted));
        }
    }

    /// Reads stderr up to a line that begins so.
    pub fn until_err(&mut self, wanted: &str) -> String {
        loop {
            let line = self.err.next().unwrap_or_else(|| self.fail(wanted));
            if line.starts_with(wanted) {
                return line;
            }
        }
    }

    /// What it has printed on stderr and nobody has read yet.
    pub fn unread_err(&mut self) -> Vec<String> {
        self.err.coming.try_iter().collect()
    }

    /// What it has printed on stdout and nobody has read yet.
    pub fn unread_out(&mut self) -> Vec<String> {
        self.out.coming.try_iter().collect()
    }

    /// Sends a signal, by the name that kill(1) knows it by.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.pid());
        assert!(
            Command::new("sh")
                .arg("-c")
                .arg(&kill)
                .status()
                .unwrap()
                .success()
        );
        // Delivery of a stop takes a moment; "T" in the third field is "stopped" (proc_pid_stat(5)).
        until("the stop", || {
            (name == "STOP") == (stat(self.pid())[0] == "T")
        });
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it, and returns what it had printed on stdout and nobody had read.
    pub fn kill_and_read(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.out.next()).collect()
    }

    pub fn wait(mut self) -> Ended {
        let start = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                self.fail::<()>("its end");
            }
            thread::sleep(Duration::from_millis(2));
        };
        while self.out.next().is_some() {}
        while self.err.next().is_some() {}
        let (out, err) = (self.out.seen.split_off(0), self.err.seen.split_off(0));
        assert!(
            !err.concat().contains("panicked"),
            "{}: {err:#?}",
            self.command
        );
        Ended {
            code: status.code(),
            out,
            err,
        }
    }

    fn fail<T>(&mut self, missing: &str) -> T {
        let status = self.child.try_wait();
        panic!(
            "waited in vain for {missing}\n  of {}\n  status {status:?}\n  stdout {:#?}\n  stderr {:#?}",
            self.command, self.out.seen, self.err.seen
        );
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Ended with `code`, without a word on stdout, and with `words` on stderr.
    pub fn assert_error(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{:#?}", self.err);
        assert!(self.out.is_empty(), "{:#?}", self.out);
        for word in words {
            assert!(
                self.err.concat().contains(word),
                "{word} is not in {:#?}",
                self.err
            );
        }
    }
}

pub const SERVER: &str = env!("CARGO_BIN_EXE_server");
pub const CLIENT: &str = env!("CARGO_BIN_EXE_client");

/// Starts a program with a socket and further arguments.
pub fn start(program: &str, socket: &Path, args: &[&str]) -> Program {
    let mut command = Command::new(program);
    command.arg("--socket").arg(socket).args(args);
    Program::start(command)
}

/// Starts a server, and returns once clients can connect.
pub fn server(socket: &Path) -> Program {
    let mut server = start(SERVER, socket, &[]);
    assert_eq!(server.err(), format!("Listening on {}", socket.display()));
    server
}

pub fn client(socket: &Path, args: &[&str]) -> Program {
    start(CLIENT, socket, args)
}

/// Runs a program to its end with arguments alone.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Ended {
    let mut command = Command::new(program);
    command.args(args);
    Program::start(command).wait()
}

/// Looks until it is so.
pub fn until(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The fields of `/proc/<pid>/stat` from the third on.
fn stat(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').map(String::from).collect()
}

/// User and system time so far, in clock ticks (usually of 10 ms).
fn ticks(pid: u32) -> u64 {
    stat(pid)[11..13]
        .iter()
        .map(|t| t.parse::<u64>().unwrap())
        .sum()
}

/// How often its threads have gone to sleep or made way for others.
fn switches(pid: u32) -> u64 {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // A thread that ends between the two looks counts as none.
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        sum += lines
            .map(|l| l.split_whitespace().last().unwrap().parse::<u64>().unwrap())
            .sum::<u64>();
    }
    sum
}

/// Asserts that it comes to a whole second without CPU time.
///
/// Not the first second that comes: what went before may still be going on.
pub fn assert_no_cpu(program: &Program) {
    let pid = program.pid();
    come_to_rest(program, Duration::from_secs(1), || ticks(pid));
}

/// Asserts that it comes to a time in which none of its threads runs at all, not even to look
/// around a few times a second.
pub fn assert_asleep(program: &Program) {
    let pid = program.pid();
    come_to_rest(program, Duration::from_millis(300), || {
        (ticks(pid), switches(pid))
    });
}

fn come_to_rest<T: PartialEq>(program: &Program, rest: Duration, activity: impl Fn() -> T) {
    for _ in 0..20 {
        let before = activity();
        thread::sleep(rest);
        if before == activity() {
            return;
        }
    }
    panic!("{} does not come to rest", program.command);
}

/// What a process holds.
#[derive(Debug, PartialEq)]
pub struct Held {
    pub threads: usize,
    pub descriptors: usize,
    pub mapped_rings: usize,
}

pub fn held(program: &Program) -> Held {
    let proc = PathBuf::from(format!("/proc/{}", program.pid()));
    let count = |name| fs::read_dir(proc.join(name)).unwrap().count();
    let maps = fs::read_to_string(proc.join("maps")).unwrap();
    Held {
        threads: count("task"),
        descriptors: count("fd"),
        mapped_rings: maps.lines().filter(|line| line.contains("memfd:")).count(),
    }
}

/// Waits until the server holds what it held before.
pub fn until_given_back(server: &Program, before: &Held) {
    let start = Instant::now();
    while held(server) != *before {
        assert!(
            start.elapsed() < PATIENCE,
            "{:?} instead of {before:?}",
            held(server)
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// A client that follows the wire, or does not: every part of it is within a test's reach.
pub struct Peer {
    pub stream: UnixStream,
    pub memfd: File,
    pub empty_signal: File,
    pub full_signal: File,
    pub ring: Sender<f64>,
}

impl Peer {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let [memfd, empty_signal, full_signal] = [(); 3].map(|()| recv_file(&stream));
        let clone = |file: &File| file.try_clone().unwrap();
        let (m, e, f) = (clone(&memfd), clone(&empty_signal), clone(&full_signal));
        let ring = Sender::open(shmem_test::CAPACITY, m, e, f).unwrap();
        Peer {
            stream,
            memfd,
            empty_signal,
            full_signal,
            ring,
        }
    }

    /// Publishes items for which there must be room, and signals.
    pub fn publish(&mut self, items: &[f64]) {
        let mut left = items.iter();
        self.ring
            .sender_mut()
            .send_foreach(items.len(), || *left.next().unwrap());
        self.signal(1);
    }

    /// Adds to the empty signal's counter.
    pub fn signal(&self, count: u64) {
        (&self.empty_signal)
            .write_all(&count.to_ne_bytes())
            .unwrap();
    }

    /// Overwrites the ring's counter.
    pub fn set_counter(&self, count: u64) {
        self.memfd.write_at(&count.to_ne_bytes(), 0).unwrap();
    }

    /// Says goodbye; returns all that the server has to say until it closes.
    pub fn goodbye(mut self) -> Vec<u8> {
        self.stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = vec![];
        self.stream.read_to_end(&mut answer).unwrap();
        answer
    }
}

/// Receives one descriptor.
pub fn recv_file(stream: &UnixStream) -> File {
    let fd = stream.recv_fd().unwrap();
    // SAFETY: the kernel has opened it for this message, so nobody else owns it.
    unsafe { File::from_raw_fd(fd) }
}

/// The lines of the original, as the README shows them: the server's sixteen and the client's.
pub fn readme_lines(beginning: &str) -> Vec<String> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    readme
        .lines()
        .filter(|l| l.starts_with(beginning))
        .map(String::from)
        .collect()
}

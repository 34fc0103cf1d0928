//! The two real programs as child processes, what `/proc` tells about them, and stand-ins for both.
//!
//! Whatever a test holds open, a child of another test holds as well between its fork and its exec.
//! So nothing here takes for granted that a socket is closed as soon as the test has closed it.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use passfd::FdPassingExt;
use shmem_ipc::sharedring::{self, Sender};
use shmem_test::CAPACITY;

/// For whatever must happen: long enough for any machine, short enough to see a hang fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// For what must happen within a second or two. The rest is a margin for machines that are busy.
const SOON: Duration = Duration::from_secs(5);

/// Asserts that `action` does not take long.
pub fn soon<T>(what: &str, action: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = action();
    let took = start.elapsed();
    assert!(took < SOON, "{what} took {took:?}");
    done
}

/// Gives a time limit to an action that has none.
pub fn within_patience<T: Send + 'static>(
    what: &str,
    action: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(action()));
    let result = result.recv_timeout(PATIENCE);
    result.unwrap_or_else(|e| panic!("waited in vain for {what}: {e}"))
}

/// Looks until it is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A folder of this test's own, gone with everything in it when the test is over.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A socket's path ends at 107 bytes, so the names are short, and so is what is before them.
        let mut parent = env::temp_dir();
        if parent.as_os_str().len() > 90 {
            parent = "/tmp".into();
        }
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{}-{n}", process::id()));
            match fs::create_dir(&path) {
                // Another process of that number was killed and left it.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.unwrap();
                    return Folder(path);
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
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

    fn next(&mut self) -> Result<String, RecvTimeoutError> {
        let line = self.coming.recv_timeout(PATIENCE)?;
        self.seen.push(line.clone());
        Ok(line)
    }

    /// What has been printed and not been read yet.
    fn unread(&mut self) -> Vec<String> {
        let unread: Vec<_> = self.coming.try_iter().collect();
        self.seen.extend_from_slice(&unread);
        unread
    }

    /// What comes until the stream is closed.
    fn rest(&mut self) -> Result<Vec<String>, RecvTimeoutError> {
        let read = self.seen.len();
        loop {
            match self.next() {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(self.seen[read..].to_vec()),
                Err(e) => return Err(e),
            }
        }
    }
}

/// A running program. Dropped, it is killed and waited for, and must not have panicked.
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
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let mut child = command.spawn().unwrap();
        Program {
            command: format!("{command:?}"),
            out: Lines::of(child.stdout.take()),
            err: Lines::of(child.stderr.take()),
            child,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line on stdout.
    pub fn out(&mut self) -> String {
        let line = self.out.next();
        line.unwrap_or_else(|_| self.fail("a line on stdout"))
    }

    /// The next line on stderr.
    pub fn err(&mut self) -> String {
        let line = self.err.next();
        line.unwrap_or_else(|_| self.fail("a line on stderr"))
    }

    /// Reads stdout up to this line, which may be the one that was read last.
    pub fn until_out(&mut self, wanted: &str) {
        while self.out.seen.last().is_none_or(|last| last != wanted) {
            if self.out.next().is_err() {
                self.fail(wanted)
            }
        }
    }

    /// Reads stderr up to a line that begins so.
    pub fn until_err(&mut self, wanted: &str) -> String {
        loop {
            let line = self.err.next();
            let line = line.unwrap_or_else(|_| self.fail(wanted));
            if line.starts_with(wanted) {
                return line;
            }
        }
    }

    /// What it has printed on stdout and nobody has read yet.
    pub fn unread_out(&mut self) -> Vec<String> {
        self.out.unread()
    }

    /// What it has printed on stderr and nobody has read yet.
    pub fn unread_err(&mut self) -> Vec<String> {
        self.err.unread()
    }

    /// All that it has printed on stderr so far.
    pub fn all_err(&mut self) -> &[String] {
        self.err.unread();
        &self.err.seen
    }

    pub fn stop(&self) {
        self.signal("STOP");
        // Delivery takes a moment.
        until("the stop", || {
            threads(self.pid()).iter().all(|t| t.state == "T")
        });
    }

    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        // The shell's own kill is on every machine; the program of that name is not.
        let kill = format!("kill -{name} {}", self.pid());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success(), "{kill}");
    }

    /// Kills it, and returns what it had printed on stdout and nobody had read.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let rest = self.out.rest();
        rest.unwrap_or_else(|_| self.fail("the end of its stdout"))
    }

    pub fn wait(mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => self.fail("its end"),
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        if self.out.rest().is_err() || self.err.rest().is_err() {
            self.fail("the end of what it prints")
        }
        Ended {
            code: status.code(),
            out: self.out.seen.clone(),
            err: self.err.seen.clone(),
        }
    }

    fn fail(&mut self, missing: &str) -> ! {
        let status = self.child.try_wait();
        self.out.unread();
        self.err.unread();
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
        let _ = self.err.rest();
        // A second panic would hide the first one.
        if !thread::panicking() {
            let said = self.err.seen.join("\n");
            assert!(!said.contains("panicked"), "{}:\n{said}", self.command);
        }
    }
}

impl Ended {
    /// Done and confirmed, without a word on stderr. Returns what it printed on stdout.
    pub fn assert_done(self) -> Vec<String> {
        assert_eq!((self.code, self.err), (Some(0), vec![]));
        self.out
    }

    /// Ended with `code`, without a word on stdout, and with `words` on stderr.
    pub fn assert_error(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{:#?}", self.err);
        assert!(self.out.is_empty(), "{:#?}", self.out);
        self.assert_said(words);
    }

    /// With `words` on stderr.
    pub fn assert_said(&self, words: &[&str]) {
        let said = self.err.concat();
        for word in words {
            assert!(said.contains(word), "{word} is not in {:#?}", self.err);
        }
    }
}

pub const SERVER: &str = env!("CARGO_BIN_EXE_server");
pub const CLIENT: &str = env!("CARGO_BIN_EXE_client");

/// A program with a socket and further arguments.
pub fn command(program: &str, socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("--socket").arg(socket).args(args);
    command
}

/// A server at `socket`, started by a shell that has run `script` before.
pub fn server_after(script: &str, socket: &Path) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("{script}; exec \"$@\"");
    shell.args(["-c", &script, "sh", SERVER, "--socket"]);
    shell.arg(socket);
    shell
}

/// Starts a server, and returns once clients can connect.
pub fn server(socket: &Path) -> Program {
    let mut server = Program::start(command(SERVER, socket, &[]));
    assert_eq!(server.err(), format!("Listening on {}", socket.display()));
    server
}

/// Leaves the socket of a server that was killed. (One that the test itself had would not be dead
/// as soon as it is closed.)
pub fn dead_socket(path: &Path) {
    server(path).kill();
    assert!(path.exists());
}

pub fn client(socket: &Path, args: &[&str]) -> Program {
    Program::start(command(CLIENT, socket, args))
}

/// Runs a program to its end with arguments alone.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Ended {
    let mut command = Command::new(program);
    command.args(args);
    Program::start(command).wait()
}

/// Runs the client against a server that the test plays: it gets the connection.
pub fn client_of<T>(args: &[&str], play: impl FnOnce(UnixStream, &Program) -> T) -> Ended {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client = client(&folder.socket(), args);
    let (stream, _) = within_patience("a client", move || listener.accept().unwrap());
    limit(&stream);
    let _until_the_end = play(stream, &client);
    client.wait()
}

/// Sends three descriptors.
pub fn hand_over(stream: &UnixStream, descriptors: [&dyn AsRawFd; 3]) {
    for descriptor in descriptors {
        stream.send_fd(descriptor.as_raw_fd()).unwrap();
    }
}

/// Hands over a ring as an honest server does.
pub fn hand_over_ring(stream: &UnixStream, r: &sharedring::Receiver<f64>) {
    hand_over(stream, [r.memfd(), r.empty_signal(), r.full_signal()]);
}

/// Waits for the client's goodbye.
pub fn await_goodbye(stream: &UnixStream) {
    assert!(ends(stream), "a client has nothing to say");
}

/// Answers a goodbye.
pub fn answer(mut stream: &UnixStream, number: usize) {
    stream.write_all(&(number as u64).to_ne_bytes()).unwrap();
}

/// Waits for a byte or the end, and says whether it was the end.
pub fn ends(mut stream: &UnixStream) -> bool {
    uninterrupted(|| stream.read(&mut [0])) == 0
}

/// Tries again: a read with a time limit may be interrupted (signal(7)), and is on busy machines.
pub fn uninterrupted<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match attempt() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done.unwrap(),
        }
    }
}

fn limit(stream: &UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// Connects to a server and does nothing else.
pub fn connect(socket: &Path) -> UnixStream {
    let socket = socket.to_path_buf();
    let stream = within_patience("a connection", move || UnixStream::connect(socket).unwrap());
    limit(&stream);
    stream
}

/// A client that follows the wire, or does not: every part of it is within a test's reach.
pub struct Peer {
    pub stream: UnixStream,
    pub ring: Sender<f64>,
}

impl Peer {
    pub fn connect(socket: &Path) -> Self {
        Peer::take(connect(socket))
    }

    /// Takes the ring.
    pub fn take(stream: UnixStream) -> Self {
        let [memfd, empty_signal, full_signal] = [(); 3].map(|()| recv_file(&stream));
        let ring = Sender::open(CAPACITY, memfd, empty_signal, full_signal).unwrap();
        Peer { stream, ring }
    }

    /// Publishes items for which there must be room, and signals.
    pub fn publish(&mut self, items: &[f64]) {
        let mut left = items.iter();
        self.ring
            .sender_mut()
            .send_foreach(items.len(), || *left.next().unwrap());
        assert_eq!(left.len(), 0, "no room");
        self.signal(1);
    }

    /// Adds to the empty signal's counter.
    pub fn signal(&self, count: u64) {
        let mut signal = self.ring.empty_signal();
        signal.write_all(&count.to_ne_bytes()).unwrap();
    }

    /// The ring's counter: items in it.
    pub fn counter(&self) -> u64 {
        let mut count = [0; 8];
        self.ring.memfd().as_file().read_at(&mut count, 0).unwrap();
        u64::from_ne_bytes(count)
    }

    pub fn set_counter(&self, count: u64) {
        let memory = self.ring.memfd().as_file();
        memory.write_at(&count.to_ne_bytes(), 0).unwrap();
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
fn recv_file(stream: &UnixStream) -> File {
    let fd = uninterrupted(|| stream.recv_fd());
    // SAFETY: the kernel has opened it for this message, so nobody else owns it.
    unsafe { File::from_raw_fd(fd) }
}

/// Items that a ring holds here: it ends with a whole page, and pages differ.
pub fn ring_items() -> usize {
    let mut ring = Sender::<f64>::new(CAPACITY).unwrap();
    ring.sender_mut().write_count().unwrap()
}

/// One thread of a program.
struct Thread {
    state: String,
    /// How often it has gone to sleep.
    sleeps: u64,
    /// How often it has made way for others.
    yields: u64,
}

impl Thread {
    /// `None` if it has ended.
    fn look(task: &Path) -> Option<Self> {
        let status = fs::read_to_string(task.join("status")).ok()?;
        let field = |name| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap().split_whitespace().next().unwrap()
        };
        Some(Thread {
            state: field("State:").to_string(),
            sleeps: field("voluntary_ctxt_switches:").parse().unwrap(),
            yields: field("nonvoluntary_ctxt_switches:").parse().unwrap(),
        })
    }
}

fn threads(pid: u32) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(|task| Thread::look(&task.unwrap().path()))
        .collect()
}

/// How often the program's main thread has gone to sleep.
pub fn sleeps_of_main(program: &Program) -> u64 {
    let pid = program.pid();
    let task = PathBuf::from(format!("/proc/{pid}/task/{pid}"));
    Thread::look(&task).unwrap().sleeps
}

/// User and system time so far, in clock ticks (usually of 10 ms).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The fields from the third on (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let times = fields.split(' ').skip(11).take(2);
    times.map(|time| time.parse::<u64>().unwrap()).sum()
}

/// What a program has done so far.
#[derive(Debug)]
struct Activity {
    /// One that is ready to run and has no core does nothing, but is not asleep.
    asleep: bool,
    ticks: u64,
    switches: u64,
}

impl Activity {
    fn of(program: &Program) -> Self {
        let threads = threads(program.pid());
        Activity {
            asleep: threads.iter().all(|thread| thread.state == "S"),
            ticks: ticks(program.pid()),
            switches: threads.iter().map(|t| t.sleeps + t.yields).sum(),
        }
    }
}

/// Asserts that the programs come to a time in which none of their threads runs at all, not even
/// to look around once a second.
pub fn assert_asleep(programs: &[&Program]) {
    come_to_rest(programs, Duration::from_millis(1200), 0);
}

/// Waits until the program waits.
pub fn until_asleep(program: &Program) {
    come_to_rest(&[program], Duration::from_millis(100), 0);
}

/// Asserts that the programs come to `rest` for that long: they use no CPU time and wake up `wakes`
/// times at most. Not the first time that comes: what went before may still be going on.
pub fn come_to_rest(programs: &[&Program], rest: Duration, wakes: u64) {
    let activities = || -> Vec<_> { programs.iter().map(|p| Activity::of(p)).collect() };
    let start = Instant::now();
    let (mut before, mut since) = (activities(), Instant::now());
    while since.elapsed() < rest {
        thread::sleep(Duration::from_millis(20));
        let now = activities();
        let rests = |(before, now): (&Activity, &Activity)| {
            let woken = before.switches..=before.switches + wakes;
            let idle = before.ticks == now.ticks && woken.contains(&now.switches);
            before.asleep && now.asleep && idle
        };
        if !before.iter().zip(&now).all(rests) {
            let commands: Vec<_> = programs.iter().map(|program| &program.command).collect();
            assert!(
                start.elapsed() < PATIENCE,
                "not at rest for {rest:?}: {commands:#?}\n{before:#?}\n{now:#?}"
            );
            (before, since) = (now, Instant::now());
        }
    }
}

/// What a process holds.
#[derive(Debug, PartialEq)]
pub struct Held {
    threads: usize,
    descriptors: usize,
    mapped_rings: usize,
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
        let now = held(server);
        assert!(start.elapsed() < PATIENCE, "{now:?} instead of {before:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Asserts that the server holds no more than `before` any more, and serves the next client as if
/// nothing had happened.
pub fn assert_unharmed(server: &Program, socket: &Path, before: &Held) {
    until_given_back(server, before);
    client(socket, &["--flood", "1000000"]).wait().assert_done();
    until_given_back(server, before);
}

/// The lines of the original that begin so, as the README's first block with such lines shows them.
pub fn readme_lines(beginning: &str) -> Vec<String> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let blocks = readme.split("\n```").skip(1).step_by(2);
    let lines = blocks.map(|block| -> Vec<_> {
        let lines = block.lines().filter(|line| line.starts_with(beginning));
        lines.map(String::from).collect()
    });
    lines
        .into_iter()
        .find(|l| !l.is_empty())
        .unwrap_or_default()
}

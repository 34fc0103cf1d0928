//! The two real programs as child processes, each with what it prints and a time limit for it.
//!
//! Whatever a test holds open, a child of another test holds as well between its fork and its exec.
//! So nothing here takes for granted that a socket is closed as soon as the test has closed it.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::proc;

/// For whatever must happen: long enough for any machine, short enough to see a hang fail.
pub const PATIENCE: Duration = Duration::from_secs(20);

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

    /// How it was started.
    pub fn command(&self) -> &str {
        &self.command
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
        until("the stop", || proc::is_stopped(self.pid()));
    }

    pub fn go_on(&self) {
        self.signal("CONT");
    }

    /// What Ctrl-C sends.
    pub fn interrupt(&self) {
        self.signal("INT");
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

/// Starts a server that can open only `free` descriptors more than it begins with.
pub fn server_with(free: u32, socket: &Path) -> Program {
    // The limit is one on their numbers, some of which the test may have inherited.
    let limit = format!(
        "n=0; free={free}
         while [ $free -gt 0 ]; do [ -h /proc/self/fd/$n ] || free=$((free - 1)); n=$((n + 1)); done
         # Its own three are in use already.
         ulimit -n $n"
    );
    let mut server = Program::start(server_after(&limit, socket));
    server.until_err("Listening on ");
    server
}

/// A program that the n-th other user runs: 60000 and so on, if this one may become that.
pub fn by_user(n: u32, program: &str) -> Command {
    let user = 60_000 + n;
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={user}")]);
    command.args(["--clear-groups", program]);
    command
}

/// One of our programs with a socket, run by the n-th other user, after a shell has run `script`: `None`
/// where only one user is at hand, or where the other one can't come to the folder.
pub fn as_another_user(n: u32, program: &str, folder: &Folder, script: &str) -> Option<Command> {
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    // Others may not get to where the programs are. `cp`, because the system refuses to run a file
    // that a process has open for writing, as all children of this one would for a moment.
    let copy = folder.join(Path::new(program).file_name().unwrap());
    let copied = Command::new("cp").arg(program).arg(&copy).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    let comes = by_user(n, "test").arg("-x").arg(&copy).output();
    if !comes.is_ok_and(|comes| comes.status.success()) {
        eprintln!("skipped: there is no other user who could come here");
        return None;
    }
    let mut shell = by_user(n, "sh");
    shell.args(["-c", &format!("{script}; exec \"$@\""), "sh"]);
    shell.arg(copy).arg("--socket").arg(folder.socket());
    Some(shell)
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

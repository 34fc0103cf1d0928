//! `cargo bench`: what the ring carries, beside a Unix socket and beside no transport at all.
//!
//! The same work three times, in turns: items of 1.0, added up one after the other.
//!
//! - *no transport*: one process adds up a buffer of the ring's size again and again. Nothing that
//!   adds in order can be faster, so this is the limit.
//! - *ring*: the two real binaries, `client --flood` into `server`.
//! - *Unix socket*: this program twice, with `write` on one side and `read` on the other.

use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write, stderr, stdin};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio, id};
use std::time::{Duration, Instant};
use std::{env, iter, thread};

use anyhow::{Context, Result, bail, ensure};
use shmem_test::CAPACITY;

/// Enough rounds for a median, enough items for seconds.
const ROUNDS: usize = 7;
const ITEMS: u64 = 1_500_000_000;

/// What `write` and `read` take at a time: the best of these is what the socket is shown with.
const SOCKET_BUFFERS: [usize; 6] = [16, 32, 64, 128, 256, 1024];

/// Clock ticks a second in `/proc/<pid>/stat`: 100 on every Linux that a program can see.
const TICKS: f64 = 100.0;

fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["no-transport", items] => no_transport(items.parse()?),
        ["read", path, buffer, items] => read_socket(path, buffer.parse()?, items.parse()?),
        ["write", path, buffer, items] => write_socket(path, buffer.parse()?, items.parse()?),
        _ => compare(),
    }
}

/// What one run took.
struct Run {
    seconds: f64,
    /// User and system time of all its processes.
    cpu: f64,
    /// Peak resident memory of each process, in MB, the consumer's first.
    memory: Vec<f64>,
}

fn compare() -> Result<()> {
    let folder = env::temp_dir().join(format!("shmem-bench-{}", id()));
    fs::create_dir(&folder)?;
    let table = compare_in(&folder);
    fs::remove_dir_all(&folder)?;
    print!("{}", table?);
    Ok(())
}

fn compare_in(folder: &Path) -> Result<String> {
    let mut best = (f64::INFINITY, 0);
    for kib in SOCKET_BUFFERS {
        progress(&format!("Unix socket with {kib} KiB at a time"));
        let run = run_socket(folder, kib, ITEMS / 10)?;
        best = if run.seconds < best.0 {
            (run.seconds, kib)
        } else {
            best
        };
    }
    let kib = best.1;

    let (mut limit, mut ring, mut socket) = (vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {ROUNDS}: no transport"));
        limit.push(run_no_transport()?);
        progress(&format!("round {round} of {ROUNDS}: ring"));
        ring.push(run_ring(folder)?);
        progress(&format!("round {round} of {ROUNDS}: Unix socket"));
        socket.push(run_socket(folder, kib, ITEMS)?);
    }
    progress("");

    let limit_seconds = median(&limit, |run| run.seconds);
    let gigabytes = ITEMS as f64 * size_of::<f64>() as f64 / 1e9;
    let socket_name = format!("Unix socket, {kib} KiB");
    let mut table = format!(
        "{ITEMS} items of 8 bytes, medians of {ROUNDS} rounds\n\n\
         | transport | G items/s | GB/s | of the limit | CPU s/GB | peak MB |\n\
         |---|---|---|---|---|---|\n"
    );
    for (name, runs) in [
        ("none: the limit", &limit),
        ("shared-memory ring", &ring),
        (&socket_name, &socket),
    ] {
        let seconds = median(runs, |run| run.seconds);
        let memory: Vec<_> = (0..runs[0].memory.len())
            .map(|i| format!("{:.1}", median(runs, |run| run.memory[i])))
            .collect();
        table += &format!(
            "| {name} | {:.3} | {:.2} | {:.3} | {:.3} | {} |\n",
            ITEMS as f64 / 1e9 / seconds,
            gigabytes / seconds,
            limit_seconds / seconds,
            median(runs, |run| run.cpu) / gigabytes,
            memory.join(" + "),
        );
    }
    table += &format!(
        "\nThe limit is the addition: each waits for the one before it, {:.2} ns an item.\n",
        limit_seconds * 1e9 / ITEMS as f64
    );
    Ok(table)
}

fn median(runs: &[Run], figure: impl Fn(&Run) -> f64) -> f64 {
    let mut figures: Vec<_> = runs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Shows a line in the place of the last one, where somebody looks on.
fn progress(line: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{line}");
    }
}

fn run_no_transport() -> Result<Run> {
    let mut summer = Process::start(&["no-transport", &ITEMS.to_string()])?;
    let seconds = summer.line()?.parse()?;
    let (cpu, memory) = summer.end()?;
    Ok(Run {
        seconds,
        cpu,
        memory: vec![memory],
    })
}

fn run_socket(folder: &Path, kib: usize, items: u64) -> Result<Run> {
    let path = folder.join("socket");
    let path = path
        .to_str()
        .context("the folder for temporary files is not UTF-8")?;
    let (buffer, items) = (&(kib * 1024).to_string(), &items.to_string());
    let mut reader = Process::start(&["read", path, buffer, items])?;
    reader.line()?;
    let mut writer = Process::start(&["write", path, buffer, items])?;
    let seconds = writer.line()?.parse()?;
    let (reader, writer) = (reader.end()?, writer.end()?);
    Ok(Run {
        seconds,
        cpu: reader.0 + writer.0,
        memory: vec![reader.1, writer.1],
    })
}

fn run_ring(folder: &Path) -> Result<Run> {
    let path = folder.join("ring");
    let mut server = Command::new(env!("CARGO_BIN_EXE_server"))
        .arg("--socket")
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let run = run_client(&path, &mut server);
    server.kill()?;
    server.wait()?;
    run
}

fn run_client(path: &Path, server: &mut Child) -> Result<Run> {
    let sums = server.stdout.take().context("stdout")?;
    let notes = server.stderr.take().context("stderr")?;
    BufReader::new(notes).read_line(&mut String::new())?;
    let children = |pid: &str| -> Result<f64> { Ok(ticks(pid, 13)? + ticks(pid, 14)?) };

    let before = children("self")?;
    let mut client = Command::new(env!("CARGO_BIN_EXE_client"))
        .arg("--socket")
        .arg(path)
        .args(["--flood", &ITEMS.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    // Its memory can't be asked for once it has ended, so this asks again and again.
    let mut client_memory = 0.0;
    while client.try_wait()?.is_none() {
        client_memory = peak_memory(client.id()).unwrap_or(client_memory);
        thread::sleep(Duration::from_millis(20));
    }
    let cpu = children("self")? - before
        + ticks(&server.id().to_string(), 11)?
        + ticks(&server.id().to_string(), 12)?;

    let mut line = String::new();
    client
        .stdout
        .take()
        .context("stdout")?
        .read_to_string(&mut line)?;
    let seconds = line
        .split(' ')
        .nth(4)
        .with_context(|| format!("client printed: {line}"))?;
    let total = format!("Sum: {ITEMS}");
    for sum in BufReader::new(sums).lines() {
        if sum? == total {
            let memory = vec![peak_memory(server.id())?, client_memory];
            return Ok(Run {
                seconds: seconds.parse()?,
                cpu,
                memory,
            });
        }
    }
    bail!("the server ended before it printed `{total}`")
}

/// Adds up `items` one after the other.
fn sum_in_order(items: impl Iterator<Item = f64>) -> f64 {
    items.fold(0.0, |sum, item| sum + item)
}

fn no_transport(items: u64) -> Result<()> {
    let ring = vec![1.0; CAPACITY];
    let start = Instant::now();
    let (mut sum, mut left) = (0.0, items);
    while left > 0 {
        let num = left.min(CAPACITY as u64);
        sum += sum_in_order(black_box(&ring)[..num as usize].iter().copied());
        left -= num;
    }
    done(start, sum, items)
}

fn read_socket(path: &str, buffer: usize, items: u64) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    println!("listening");
    let (mut stream, _) = listener.accept()?;
    fs::remove_file(path)?;
    let mut bytes = vec![0; buffer];
    let (mut sum, mut left) = (0.0, items as usize * size_of::<f64>());
    while left > 0 {
        let part = &mut bytes[..left.min(buffer)];
        stream.read_exact(part)?;
        left -= part.len();
        let (items, _) = part.as_chunks();
        sum += sum_in_order(items.iter().map(|item| f64::from_ne_bytes(*item)));
    }
    stream.write_all(&sum.to_ne_bytes())?;
    stay();
    Ok(())
}

fn write_socket(path: &str, buffer: usize, items: u64) -> Result<()> {
    let mut stream = UnixStream::connect(path)?;
    let bytes: Vec<u8> = iter::repeat_n(1f64.to_ne_bytes(), buffer / 8)
        .flatten()
        .collect();
    let start = Instant::now();
    let mut left = items as usize * size_of::<f64>();
    while left > 0 {
        let part = &bytes[..left.min(buffer)];
        stream.write_all(part)?;
        left -= part.len();
    }
    stream.shutdown(Shutdown::Write)?;
    let mut sum = [0; 8];
    stream.read_exact(&mut sum)?;
    done(start, f64::from_ne_bytes(sum), items)
}

/// Prints how long it took, if the sum is right.
fn done(start: Instant, sum: f64, items: u64) -> Result<()> {
    let seconds = start.elapsed().as_secs_f64();
    ensure!(sum == items as f64, "the sum is {sum} instead of {items}");
    println!("{seconds}");
    stay();
    Ok(())
}

/// Waits until the figures of this process have been read.
fn stay() {
    let _ = stdin().read(&mut [0]);
}

/// A process that stays until its figures have been read.
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program in another role.
    fn start(role: &[&str]) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Process { child, stdout })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().into())
    }

    /// Its CPU time in seconds and its peak memory in MB; then it may end.
    fn end(mut self) -> Result<(f64, f64)> {
        let pid = self.child.id().to_string();
        let cpu = ticks(&pid, 11)? + ticks(&pid, 12)?;
        let memory = peak_memory(self.child.id())?;
        drop(self.child.stdin.take());
        ensure!(self.child.wait()?.success(), "a process failed");
        Ok((cpu, memory))
    }
}

/// A time in `/proc/<pid>/stat`, by its place after the process's name, in seconds.
fn ticks(pid: &str, place: usize) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    let ticks: f64 = fields
        .split(' ')
        .nth(place)
        .context("no time in stat")?
        .parse()?;
    Ok(ticks / TICKS)
}

/// The most memory that has been resident at a time, in MB.
fn peak_memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .context("no VmHWM")?;
    let kb: f64 = line
        .split_whitespace()
        .nth(1)
        .context("no figure in VmHWM")?
        .parse()?;
    Ok(kb * 1024.0 / 1e6)
}

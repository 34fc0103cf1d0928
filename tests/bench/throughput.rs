//! `cargo bench`: the ring beside a Unix socket and beside no transport at all, in three tables.
//!
//! 1. Items added *in order*, by the two real programs, `client --flood` and `server`. There the
//!    addition is the limit, whatever the transport.
//! 2. Items added *in any order*, eight sums side by side, so that the reader is as fast as memory.
//! 3. *One item*, there and back, halved: how long until the other side has it.
//!
//! The same work for each, in turns, in processes of its own. The Unix socket is used as well as
//! std allows: `write_all` on one side, `read` of whatever is there on the other.

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write, stderr, stdin};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio, id};
use std::time::{Duration, Instant};
use std::{env, hint, thread};

use anyhow::{Context, Result, bail, ensure};
use shmem_ipc::sharedring::{Receiver, Sender};
use shmem_test::peer::Peer;
use shmem_test::{CAPACITY, handover};

const HELP: &str = "\
Compares the ring with a Unix socket and with no transport: 12 GB added in order by the real
server, the same added in any order, and one item there and back. It takes no options and about
a minute and a half, shows its progress on a terminal, and prints three tables.";

/// Enough rounds for a median, enough items for a second.
const ROUNDS: usize = 7;
const ITEMS: usize = 1_500_000_000;
const BYTES: usize = ITEMS * size_of::<f64>();

/// What `read` has room for: more than a Unix socket holds, so that it takes all that is there.
const BUFFER: usize = 1024 * 1024;

/// KiB that `write_all` is given at a time: the best of these is what the socket gets.
const WRITES: [&str; 4] = ["32", "128", "512", "1024"];

/// Items that are written, or read in any order, at a time: 512 KiB stay in a core's cache.
const PIECE: usize = 64 * 1024;

/// Clock ticks a second in `/proc/<pid>/stat`: 100 on every Linux that a program can see.
const TICKS: f64 = 100.0;

fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["none", order] => no_transport(order),
        ["socket-read", path, order] => socket_read(listen(path)?, order),
        ["socket-write", path, kib, items] => {
            socket_write(UnixStream::connect(path)?, kib.parse()?, items.parse()?)
        }
        ["ring-read", path] => ring_read(listen(path)?),
        ["ring-write", path] => ring_write(UnixStream::connect(path)?),
        ["answer", path, how, times] => answer(listen(path)?, how, times.parse()?),
        ["call", path, how, times] => call(UnixStream::connect(path)?, how, times.parse()?),
        // Cargo adds an option of its own.
        ["-h" | "--help", ..] => {
            println!("{HELP}");
            Ok(())
        }
        _ => compare(),
    }
}

fn compare() -> Result<()> {
    let folder = env::temp_dir().join(format!("shmem-bench-{}", id()));
    fs::create_dir(&folder)?;
    let tables = compare_in(&folder);
    fs::remove_dir_all(&folder)?;
    progress("");
    print!("{}", tables?);
    Ok(())
}

fn compare_in(folder: &Path) -> Result<String> {
    let path = folder.join("s");
    let at = path
        .to_str()
        .context("the folder for temporary files is not UTF-8")?;
    let socket = |kib: &str, order, items: usize| {
        let writer = ["socket-write", at, kib, &items.to_string()];
        run(&writer, Some(&["socket-read", at, order]))
    };

    let mut tried = WRITES.map(|kib| (kib, vec![]));
    for _ in 0..5 {
        for (kib, runs) in &mut tried {
            progress(&format!("Unix socket with {kib} KiB at a time"));
            runs.push(socket(kib, "in-order", ITEMS / 10)?);
        }
    }
    let seconds = |runs: &[Run]| median(runs, |run| run.figures[0]);
    tried.sort_by(|(_, a), (_, b)| seconds(a).total_cmp(&seconds(b)));
    let kib = tried[0].0;

    let best = format!("Unix socket, {kib} KiB writes");
    let server = folder.join("server");
    let calls = |how: &str, times: &str| {
        let reader = ["answer", at, how, times];
        run(&["call", at, how, times], Some(&reader))
    };
    let contests: [(&str, &dyn Fn() -> Result<Run>); 9] = [
        ("no transport", &|| run(&["none", "in-order"], None)),
        ("ring", &|| run_programs(&server)),
        (&best, &|| socket(kib, "in-order", ITEMS)),
        ("no transport", &|| run(&["none", "any-order"], None)),
        ("ring", &|| {
            run(&["ring-write", at], Some(&["ring-read", at]))
        }),
        (&best, &|| socket(kib, "any-order", ITEMS)),
        ("ring, reader asleep", &|| calls("asleep", "10000")),
        ("Unix socket, reader asleep", &|| calls("socket", "10000")),
        ("ring, reader spinning", &|| calls("spinning", "1000000")),
    ];
    let mut rows = contests.map(|(name, _)| (name, vec![]));
    for round in 1..=ROUNDS {
        for ((name, runs), (_, contest)) in rows.iter_mut().zip(contests) {
            progress(&format!("round {round} of {ROUNDS}: {name}"));
            runs.push(contest()?);
        }
    }

    let mut text = format!("{ITEMS} items of 8 bytes, medians (and range) of {ROUNDS} rounds\n");
    for (order, rows) in [("in order", &rows[..3]), ("in any order", &rows[3..6])] {
        let titles = ["GB/s", "share of no transport", "CPU s/GB", "peak MB"];
        text += &format!("\n{}", line(&format!("added {order}"), titles));
        let limit = seconds(&rows[0].1);
        for (name, runs) in rows {
            let rate = BYTES as f64 / 1e9 / seconds(runs);
            let share = spread(runs, |run| limit / run.figures[0], 3);
            let cpu = median(runs, |run| run.cpu) / (BYTES as f64 / 1e9);
            let memory = (0..runs[0].memory.len()).map(|i| median(runs, |run| run.memory[i]));
            let memory: Vec<_> = memory.map(|mb| format!("{mb:.1}")).collect();
            let (rate, cpu) = (format!("{rate:.2}"), format!("{cpu:.3}"));
            text += &line(name, [&rate, &share, &cpu, &memory.join(" + ")]);
        }
    }
    let titles = ["cores", "median, us", "", "99th percentile, us"];
    text += &format!("\n{}", line("one item, one way", titles));
    for (name, runs) in &rows[6..] {
        let [half, late] = [1, 2].map(|i| spread(runs, |run| run.figures[i], 2));
        let cores = median(runs, |run| run.cpu / run.figures[0]);
        text += &line(name, [&format!("{cores:.1}"), &half, "", &late]);
    }
    // What one process does alone varies by less than this on an idle machine.
    for (limit, most) in [(&rows[0].1, 1.05), (&rows[3].1, 1.1)] {
        let rounds = sorted(limit, |run| run.figures[0]);
        if rounds[ROUNDS - 1] > most * rounds[ROUNDS / 2] {
            text += "\nwarning: this machine was not idle, see the range of `no transport`\n";
            break;
        }
    }
    Ok(text)
}

/// What one run took.
struct Run {
    /// What it printed: its seconds, and whatever comes behind them.
    figures: Vec<f64>,
    /// User and system time of all its processes.
    cpu: f64,
    /// Peak resident memory of each process, in MB, the reader's first.
    memory: Vec<f64>,
}

fn sorted(runs: &[Run], figure: impl Fn(&Run) -> f64) -> Vec<f64> {
    let mut figures: Vec<_> = runs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(runs: &[Run], figure: impl Fn(&Run) -> f64) -> f64 {
    sorted(runs, figure)[runs.len() / 2]
}

fn spread(runs: &[Run], figure: impl Fn(&Run) -> f64, decimals: usize) -> String {
    let figures = sorted(runs, figure);
    let (middle, last) = (figures[runs.len() / 2], figures[runs.len() - 1]);
    format!(
        "{middle:.decimals$} ({:.decimals$} to {last:.decimals$})",
        figures[0]
    )
}

/// A line of a table.
fn line(name: &str, [a, b, c, d]: [&str; 4]) -> String {
    format!("{name:<30}{a:>6}   {b:<23}{c:>9}   {d}\n")
}

/// Shows a line in the place of the last one, where somebody looks on.
fn progress(line: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{line}");
    }
}

/// Runs this program in the role of a writer, and before that in the role of its reader.
fn run(writer: &[&str], reader: Option<&[&str]>) -> Result<Run> {
    let mut reader = reader.map(Process::start).transpose()?;
    if let Some(reader) = &mut reader {
        ensure!(
            reader.line()? == "listening\n",
            "the reader does not listen"
        );
    }
    let writer = Process::start(writer)?;
    let (figures, cpu, memory) = writer.end()?;
    let mut all = Run {
        figures,
        cpu,
        memory: vec![memory],
    };
    if let Some(reader) = reader {
        let (_, cpu, memory) = reader.end()?;
        all.cpu += cpu;
        all.memory.insert(0, memory);
    }
    Ok(all)
}

/// Runs the two real programs.
fn run_programs(path: &Path) -> Result<Run> {
    let mut server = Command::new(env!("CARGO_BIN_EXE_server"))
        .arg("--socket")
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let run = run_client(path, &mut server);
    server.kill()?;
    server.wait()?;
    run
}

fn run_client(path: &Path, server: &mut Child) -> Result<Run> {
    let sums = server.stdout.take().context("stdout")?;
    let notes = server.stderr.take().context("stderr")?;
    BufReader::new(notes).read_line(&mut String::new())?;
    let children = || -> Result<f64> { Ok(ticks("self", 13)? + ticks("self", 14)?) };

    let before = children()?;
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
    let pid = server.id().to_string();
    let cpu = children()? - before + ticks(&pid, 11)? + ticks(&pid, 12)?;

    let line = io::read_to_string(client.stdout.take().context("stdout")?)?;
    let seconds = line.split(' ').nth(4);
    let seconds = seconds.with_context(|| format!("the client printed: {line}"))?;
    let total = format!("Sum: {ITEMS}");
    for sum in BufReader::new(sums).lines() {
        if sum? == total {
            let memory = vec![peak_memory(server.id())?, client_memory];
            return Ok(Run {
                figures: vec![seconds.parse()?],
                cpu,
                memory,
            });
        }
    }
    bail!("the server ended before it printed `{total}`")
}

/// Adds items, each of which has a `value`: one after the other, or in any order, which is eight
/// sums side by side.
fn add<T: Copy>(sums: &mut [f64; 8], items: &[T], value: impl Fn(T) -> f64, order: &str) {
    let (chunks, rest) = match order {
        "any-order" => items.as_chunks::<8>(),
        _ => (&[][..], items),
    };
    for chunk in chunks {
        for (sum, item) in sums.iter_mut().zip(chunk) {
            *sum += value(*item);
        }
    }
    for item in rest {
        sums[0] += value(*item);
    }
}

/// Items of 1.0 add up to their number, in any order.
fn check(sums: [f64; 8], items: usize) -> Result<()> {
    let sum: f64 = sums.iter().sum();
    ensure!(sum == items as f64, "the sum is {sum} instead of {items}");
    Ok(())
}

/// Prints figures, and waits until they and those of this process in `/proc` have been read.
fn stay(figures: &[f64]) -> Result<()> {
    println!(
        "{}",
        figures
            .iter()
            .map(f64::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    );
    // The end of stdin is what it waits for.
    let _ = stdin().read(&mut [0]);
    Ok(())
}

/// Writes and adds in one process, in a buffer of the ring's size. In order, what is written
/// once is added again and again, because the limit is the addition alone.
fn no_transport(order: &str) -> Result<()> {
    let mut ring = vec![1.0; CAPACITY];
    let start = Instant::now();
    let (mut sums, mut left) = ([0.0; 8], ITEMS);
    while left > 0 {
        for piece in ring.chunks_mut(PIECE) {
            let num = left.min(piece.len());
            if order == "any-order" {
                piece[..num].fill(hint::black_box(1.0));
            }
            add(
                &mut sums,
                hint::black_box(&piece[..num]),
                |item| item,
                order,
            );
            left -= num;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    check(sums, ITEMS)?;
    stay(&[seconds])
}

/// Listens at `path`, says so, and returns the first connection.
fn listen(path: &str) -> Result<UnixStream> {
    let listener = UnixListener::bind(path)?;
    println!("listening");
    let (stream, _) = listener.accept()?;
    fs::remove_file(path)?;
    Ok(stream)
}

fn socket_read(mut stream: UnixStream, order: &str) -> Result<()> {
    let mut bytes = vec![0; BUFFER];
    let (mut sums, mut filled, mut added) = ([0.0; 8], 0, 0);
    loop {
        match stream.read(&mut bytes[filled..])? {
            0 => break,
            num => filled += num,
        }
        let (items, rest) = bytes[..filled].as_chunks();
        add(&mut sums, items, f64::from_ne_bytes, order);
        added += items.len();
        // A read may end within an item.
        let rest = rest.len();
        bytes.copy_within(filled - rest..filled, 0);
        filled = rest;
    }
    check(sums, added)?;
    stream.write_all(&added.to_ne_bytes())?;
    stay(&[])
}

fn socket_write(mut stream: UnixStream, kib: usize, items: usize) -> Result<()> {
    let bytes = 1f64.to_ne_bytes().repeat(kib * 128);
    let start = Instant::now();
    let mut left = items * size_of::<f64>();
    while left > 0 {
        let part = &bytes[..left.min(bytes.len())];
        stream.write_all(part)?;
        left -= part.len();
    }
    stream.shutdown(Shutdown::Write)?;
    let mut added = [0; 8];
    stream.read_exact(&mut added)?;
    ensure!(added == items.to_ne_bytes(), "items are missing");
    stay(&[start.elapsed().as_secs_f64()])
}

/// Makes a ring and hands it over; returns the receiving half and the other program.
fn give(stream: UnixStream) -> Result<(Receiver<f64>, Peer)> {
    let r = Receiver::new(CAPACITY)?;
    let signals = [r.empty_signal().try_clone()?, r.full_signal().try_clone()?];
    handover::give(&stream, &r)?;
    Ok((r, Peer::watch(stream, signals)?))
}

/// Takes up to `most` items of what is readable, if there is anything.
fn receive(r: &mut Receiver<f64>, most: usize, take: impl FnOnce(&[f64])) -> Result<usize> {
    let mut num = 0;
    // SAFETY: nobody may touch what is readable meanwhile. The sender is this program in another
    // process, which writes in `send` alone, and there to what is free.
    let received = unsafe {
        r.receive_trusted(|p| {
            num = p.len().min(most);
            take(&p[..num]);
            num
        })
    };
    received?;
    Ok(num)
}

/// Publishes up to `most` items of 1.0, as many as there is room for in one piece.
fn send(r: &mut Sender<f64>, most: usize) -> Result<usize> {
    let mut num = 0;
    // SAFETY: as in `receive`: the receiver reads what is published, and nothing else.
    let sent = unsafe {
        r.send_trusted(|p| {
            num = p.len().min(most);
            p[..num].fill(hint::black_box(1.0));
            num
        })
    };
    sent?;
    Ok(num)
}

fn ring_read(stream: UnixStream) -> Result<()> {
    let (mut r, writer) = give(stream)?;
    let (mut sums, mut items) = ([0.0; 8], 0);
    loop {
        let there = writer.wait(r.empty_signal())?;
        loop {
            match receive(&mut r, PIECE, |p| {
                add(&mut sums, p, |item| item, "any-order")
            })? {
                0 => break,
                num => items += num,
            }
        }
        if !there {
            break;
        }
    }
    check(sums, items)?;
    ensure!(writer.answer(items as u64), "the writer is gone");
    stay(&[])
}

fn ring_write(stream: UnixStream) -> Result<()> {
    let (mut r, signals) = handover::take(&stream)?;
    let reader = Peer::watch(stream, signals)?;
    let start = Instant::now();
    let mut left = ITEMS;
    while left > 0 {
        match send(&mut r, left)? {
            0 => ensure!(reader.wait(r.full_signal())?, "the reader is gone"),
            num => left -= num,
        }
    }
    ensure!(reader.goodbye() == Some(ITEMS as u64), "items are missing");
    stay(&[start.elapsed().as_secs_f64()])
}

/// Two rings, one for each direction, and the socket that they came through.
struct Line {
    to: Sender<f64>,
    from: Receiver<f64>,
    stream: UnixStream,
}

impl Line {
    fn new(stream: UnixStream, mine_first: bool) -> Result<Self> {
        let from = Receiver::new(CAPACITY)?;
        if mine_first {
            handover::give(&stream, &from)?;
        }
        let (to, _) = handover::take(&stream)?;
        if !mine_first {
            handover::give(&stream, &from)?;
        }
        Ok(Self { to, from, stream })
    }

    fn send(&mut self, how: &str) -> Result<()> {
        match how {
            "socket" => self.stream.write_all(&1f64.to_ne_bytes())?,
            _ => ensure!(send(&mut self.to, 1)? == 1, "no room"),
        }
        Ok(())
    }

    fn receive(&mut self, how: &str) -> Result<()> {
        match how {
            "socket" => self.stream.read_exact(&mut [0; 8])?,
            _ => {
                while receive(&mut self.from, 1, |_| ())? == 0 {
                    match how {
                        "asleep" => self.from.empty_signal().read_exact(&mut [0; 8])?,
                        _ => hint::spin_loop(),
                    }
                }
            }
        }
        Ok(())
    }
}

/// Sends back each item, until the other side has gone.
fn answer(stream: UnixStream, how: &str, times: usize) -> Result<()> {
    let mut line = Line::new(stream, true)?;
    for _ in 0..times {
        line.receive(how)?;
        line.send(how)?;
    }
    stay(&[])
}

/// Sends items and waits for each to come back.
fn call(stream: UnixStream, how: &str, times: usize) -> Result<()> {
    let mut line = Line::new(stream, false)?;
    let mut micros = Vec::with_capacity(times);
    let start = Instant::now();
    for _ in 0..times {
        let start = Instant::now();
        line.send(how)?;
        line.receive(how)?;
        micros.push(start.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    let seconds = start.elapsed().as_secs_f64();
    micros.sort_by(f64::total_cmp);
    stay(&[seconds, micros[times / 2], micros[times * 99 / 100]])
}

/// A process that stays until its figures have been read.
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program in another role; a reader's first line says that it listens.
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
        Ok(line)
    }

    /// Its figures, CPU time in seconds, and peak memory in MB; then it may end.
    fn end(mut self) -> Result<(Vec<f64>, f64, f64)> {
        let line = self.line()?;
        let figures: Result<_, _> = line.split_whitespace().map(str::parse).collect();
        let pid = self.child.id().to_string();
        let cpu = ticks(&pid, 11)? + ticks(&pid, 12)?;
        let memory = peak_memory(self.child.id())?;
        drop(self.child.stdin.take());
        ensure!(self.child.wait()?.success(), "a process failed");
        Ok((figures?, cpu, memory))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only where it has ended, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A time in `/proc/<pid>/stat`, by its place after the process's name, in seconds.
fn ticks(pid: &str, place: usize) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    let ticks = fields.split(' ').nth(place).context("no time in stat")?;
    Ok(ticks.parse::<f64>()? / TICKS)
}

/// The most memory that has been resident at a time, in MB.
fn peak_memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines();
    let line = lines
        .find(|line| line.starts_with("VmHWM"))
        .context("no VmHWM")?;
    let kb = line
        .split_whitespace()
        .nth(1)
        .context("no figure in VmHWM")?;
    Ok(kb.parse::<f64>()? * 1024.0 / 1e6)
}

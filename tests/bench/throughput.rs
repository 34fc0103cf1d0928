//! `cargo bench`: the ring beside a Unix socket and beside no transport, by rate and by size of
//! message, in about a minute. Each figure is from two processes of this program, a writer and a
//! reader (one where there is no transport). The rows of a table take turns.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::iter;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{self, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, hint, thread};

use anyhow::{Context, Result, ensure};
use shmem_ipc::sharedring::Receiver;
use shmem_test::peer::Peer;
use shmem_test::ring::{BackOff, HALF, PART, TrustedReceiver, TrustedSender};
use shmem_test::{CAPACITY, Item, handover};

const HELP: &str = "\
Compares the ring with a Unix socket and with no transport: by rate, by size of message, and at a
steady pace. It takes no options and about a minute, shows its progress on a terminal, and prints
three tables. The machine should have nothing else to do.";

/// For a median, and for some tenths of a second.
const ROUNDS: usize = 7;
const BYTES: usize = 4_000_000_000;
const GIGABYTES: f64 = BYTES as f64 / 1e9;

/// Sizes of messages, and how many of each go there and back.
const MESSAGES: [(&str, usize, usize); 5] = [
    ("8 bytes", 8, 15_000),
    ("2 KiB", 2 << 10, 15_000),
    ("16 KiB", 16 << 10, 8000),
    ("64 KiB", 64 << 10, 8000),
    ("1 MiB", 1 << 20, 800),
];

/// So long is a silence after which everybody sleeps, and so many of them there are.
const SILENCE: (Duration, usize) = (Duration::from_millis(2), 250);

/// A message of this size in each interval, so many in all.
const PACE: (usize, Duration, usize) = (2048, Duration::from_micros(50), 40_000);

/// What a socket carries, again and again.
const NUMBER: [u8; 8] = 1f64.to_ne_bytes();

/// A socket's `write_all` gets this much at a time: from 64 KiB to 1 MiB, all are about as good.
const WRITE: usize = 128 << 10;

/// A socket's `read` has room for this much: more than a Unix socket holds, so that it takes all.
const READ: usize = 1 << 20;

fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["none", ..] => no_transport(),
        ["nobody", ..] => print("ready\n0"),
        ["call", at, _, how, size, back, times, silence] => {
            let (line, silence) = (connect(at, how)?, Duration::from_millis(silence.parse()?));
            call(line, size.parse()?, back.parse()?, times.parse()?, silence)
        }
        ["answer", at, _, how, size, back, times, _] => {
            let line = accept(at, how)?;
            answer(line, size.parse()?, back.parse()?, times.parse()?)
        }
        ["pace", at, since, how, _] => pace(connect(at, how)?, since.parse()?),
        ["note", at, since, how, _] => note(accept(at, how)?, since.parse()?),
        // Cargo adds an option of its own.
        ["-h" | "--help", ..] => print(HELP),
        _ => {
            // A socket's path has at most 107 bytes.
            let parent = Some(env::temp_dir()).filter(|path| path.as_os_str().len() < 80);
            let name = format!("shmem-bench-{}", process::id());
            let folder = parent.unwrap_or_else(|| "/tmp".into()).join(name);
            fs::create_dir(&folder)?;
            let compared = compare(&folder.join("s").to_string_lossy());
            fs::remove_dir_all(&folder)?;
            compared
        }
    }
}

/// Prints the three tables. `at` is a path for sockets.
fn compare(at: &str) -> Result<()> {
    let places = match &*CORES {
        Some([writer, reader]) => {
            format!("The writer is on core {writer}, the reader on core {reader}.")
        }
        None => "The scheduler chooses the cores, maybe one for both: there is no `taskset` here."
            .into(),
    };
    print(&format!(
        "Medians of {ROUNDS} rounds, with the range of the first figure. CPU time is that of both processes.
{places}

1. {GIGABYTES} GB, as fast as they go: written, read, and compared with a constant. NO TRANSPORT: one
   process does the work of both, in a buffer of its own. SHARE: of the rate without a transport."
    ))?;
    let transports = [("ring", "ring"), ("Unix socket", "plain")];
    let mut jobs = vec![("no transport".to_string(), "none/nobody ".to_string())];
    let job = |how| format!("call/answer {how} {BYTES} 8 1 0");
    jobs.extend(transports.map(|(name, how)| (name.to_string(), job(how))));
    let rows = measure(at, &jobs)?;
    let limit = median(&rows[0].1, &|run| run.seconds);
    let share: Figure = &|run| limit / run.seconds;
    let rate: Figure = &|run| GIGABYTES / run.seconds;
    let cpu: Figure = &|run| run.cpu / GIGABYTES;
    table(&rows, ["share", "GB/s", "CPU, s/GB"], [share, rate, cpu])?;
    // What one process does alone varies by less, unless others run here or beside a virtual machine.
    if sorted(&rows[0].1, share)[0] < 0.9 {
        print("warning: something else was running, see the range of `no transport`")?;
    }

    print(
        "
2. Messages that go there, are read as a whole, and are answered by one of the same size: half of
   that time, in us. TURN 1: the first 4 MB, in which the kernel makes the ring's pages (the other
   columns are without these). SILENCE: 8 bytes after a pause, in which both have fallen asleep.",
    )?;
    let transports = [("ring", "ring"), ("Unix socket", "socket")];
    let mut jobs = vec![];
    for (size, bytes, times) in MESSAGES {
        let job = |how| format!("call/answer {how} {bytes} {bytes} {times} 0");
        jobs.extend(transports.map(|(name, how)| (format!("{size}, {name}"), job(how))));
    }
    let (silence, times) = (SILENCE.0.as_millis(), SILENCE.1);
    let job = |how| format!("call/answer {how} 8 8 {times} {silence}");
    jobs.extend(transports.map(|(name, how)| (format!("silence, {name}"), job(how))));
    let rows = measure(at, &jobs)?;
    let half: Figure = &|run| percentile(run, 500) / 2.0;
    let late: Figure = &|run| percentile(run, 990) / 2.0;
    let turn: Figure = &|run| run.turn[run.turn.len() / 2] / 2.0;
    let cpu: Figure = &|run| run.cpu * 1e6 / (run.turn.len() + run.times.len()) as f64 / 2.0;
    let titles = ["median", "99th", "turn 1", "CPU, us"];
    table(&rows, titles, [half, late, turn, cpu])?;
    let rows = &rows[..2 * MESSAGES.len()];
    let (time, cpu) = (ratios(rows, half), ratios(rows, cpu));
    print(&format!(
        "The ring takes {time} of the socket's time, {cpu} of its CPU time (silence aside)."
    ))?;

    let (size, interval, times) = PACE;
    let rate = size as f64 / 1e6 / interval.as_secs_f64();
    print(&format!(
        "
3. {times} times {size} bytes, every {interval:?}, {rate:.0} MB/s: from before the writing to after the
   reading, in us, without the first 4 MB. CORES: the reader's CPU time and the writer's time in
   writing, in each second. (Before the next message is due, the writer looks at the clock.)"
    ))?;
    let jobs = transports.map(|(name, how)| (name.to_string(), format!("pace/note {how} {size}")));
    let time: Figure = &|run| percentile(run, 500);
    let late: Figure = &|run| percentile(run, 990);
    let later: Figure = &|run| percentile(run, 999);
    let cores: Figure = &|run| run.cpu / run.seconds;
    let titles = ["median", "99th", "99.9th", "cores"];
    table(&measure(at, &jobs)?, titles, [time, late, later, cores])
}

/// What a run took: CPU time and time in seconds, and the times of its messages in us, sorted: those
/// of the ring's first turn, and the others.
struct Run {
    cpu: f64,
    seconds: f64,
    turn: Vec<f64>,
    times: Vec<f64>,
}

/// A row's name, and its runs.
type Row = (String, Vec<Run>);

type Figure<'a> = &'a dyn Fn(&Run) -> f64;

/// The time that so many of 1000 messages keep within.
fn percentile(run: &Run, place: usize) -> f64 {
    run.times[run.times.len() * place / 1000]
}

fn sorted(runs: &[Run], figure: Figure) -> Vec<f64> {
    let mut figures: Vec<_> = runs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(runs: &[Run], figure: Figure) -> f64 {
    sorted(runs, figure)[runs.len() / 2]
}

/// Prints the medians of the columns, and the range of the first one.
fn table<const N: usize>(rows: &[Row], titles: [&str; N], figures: [Figure; N]) -> Result<()> {
    let row = |name: &str, range: &str, cells: [String; N]| {
        let rest = cells[1..].concat();
        print(&format!("{name:20}{}  {range:20}{rest}", cells[0]))
    };
    print("")?;
    row("", "", titles.map(|title| format!("{title:>10}")))?;
    for (name, runs) in rows {
        let all = sorted(runs, figures[0]);
        let range = format!("({:.3} to {:.3})", all[0], all[all.len() - 1]);
        let medians = figures.map(|figure| format!("{:>10.3}", median(runs, figure)));
        row(name, &range, medians)?;
    }
    Ok(())
}

/// The smallest and the largest ratio of the ring's figure to the socket's.
fn ratios(rows: &[Row], figure: Figure) -> String {
    let ratio = |pair: &[Row]| median(&pair[0].1, figure) / median(&pair[1].1, figure);
    let mut ratios: Vec<_> = rows.chunks_exact(2).map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    format!("{:.2} to {:.2}", ratios[0], ratios[ratios.len() - 1])
}

/// The first and the last of the cores that this process may use, for the writer and the reader. Where
/// both share one, small messages are quicker and large ones slower.
static CORES: LazyLock<Option<[String; 2]>> = LazyLock::new(|| {
    Command::new("taskset").arg("-V").output().ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = list.trim().split([',', '-']).map(str::to_string);
    let first = cores.next()?;
    Some([first.clone(), cores.next_back().unwrap_or(first)])
});

fn print(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Runs the jobs in turns.
fn measure(at: &str, jobs: &[(String, String)]) -> Result<Vec<Row>> {
    let rows = jobs.iter().map(|(name, _)| (name.clone(), vec![]));
    let mut rows: Vec<Row> = rows.collect();
    for round in 1..=ROUNDS {
        for ((name, job), (_, runs)) in jobs.iter().zip(&mut rows) {
            if io::stderr().is_terminal() {
                eprint!("\x1b[Kround {round} of {ROUNDS}: {name}\r");
            }
            runs.push(run(at, job).with_context(|| format!("failed to run `{job}`"))?);
        }
    }
    Ok(rows)
}

/// Runs a job: the roles of writer and reader, and what both are told.
fn run(at: &str, job: &str) -> Result<Run> {
    let (roles, told) = job.split_once(' ').context("no job")?;
    let (writer, reader) = roles.split_once('/').context("no roles")?;
    let since = nanoseconds(0)?.to_string(); // A moment that both can count from.
    let command = |role, core| -> Result<Command> {
        let program = env::current_exe()?;
        let mut command = Command::new(&program);
        if let Some(cores) = &*CORES {
            command = Command::new("taskset");
            command.arg("-c").arg(&cores[core]).arg(program);
        }
        command.args([role, at, &since]).args(told.split(' '));
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(command)
    };

    let mut child = command(reader, 1)?.spawn()?;
    let mut read = BufReader::new(child.stdout.take().context("no stdout")?);
    read.read_line(&mut String::new())?; // It is ready, or has failed.
    let written = command(writer, 0)?.output()?;
    if !written.status.success() {
        child.kill()?;
    }
    let read = figures(&io::read_to_string(read)?)?;
    let succeeded = child.wait()?.success() && written.status.success();
    ensure!(succeeded, "a process has failed");

    // The writer has printed how long it took, its CPU time, and of each message how long it took
    // or when it was written; the reader its CPU time, and of each message when it was read, or not.
    let written = figures(str::from_utf8(&written.stdout)?)?;
    let ends = read[1..].iter().chain(iter::repeat(&0.0));
    let times = written[2..]
        .iter()
        .zip(ends)
        .map(|(start, end)| end - start);
    let mut turn: Vec<_> = times.map(|time| time.abs() / 1e3).collect();
    let size = told.split(' ').nth(1).map_or(Ok(BYTES), str::parse)?;
    let first = (CAPACITY * size_of::<Item>()).div_ceil(size);
    let mut times = turn.split_off(first.min(turn.len() / 2));
    turn.sort_by(f64::total_cmp);
    times.sort_by(f64::total_cmp);
    Ok(Run {
        cpu: written[1] + read[0],
        seconds: written[0],
        turn,
        times,
    })
}

fn figures(text: &str) -> Result<Vec<f64>> {
    let figures: Result<_, _> = text.split_whitespace().map(str::parse).collect();
    Ok(figures?)
}

fn report(figures: &[f64], times: &[f64]) -> Result<()> {
    let figures = figures.iter().chain(times).map(f64::to_string);
    print(&figures.collect::<Vec<_>>().join(" "))
}

/// CPU time of the main thread, which does all the work, in seconds.
fn cpu() -> Result<f64> {
    let schedstat = fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = schedstat.split(' ').next().context("no time")?;
    Ok(nanoseconds.parse::<f64>()? / 1e9)
}

/// Nanoseconds since a moment that another process has told. `Instant` gives no number to tell, so
/// this is the wall clock. If somebody sets it, the message under way is wrong.
fn nanoseconds(since: u128) -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() - since)
}

/// Writes and reads in one process, piece by piece, in a buffer of the ring's size.
fn no_transport() -> Result<()> {
    let item = Item::default();
    let mut buffer = vec![item; CAPACITY];
    let mut left = BYTES / size_of::<Item>();
    let start = Instant::now();
    while left > 0 {
        for piece in buffer.chunks_mut(HALF) {
            let num = left.min(piece.len());
            piece[..num].fill(hint::black_box(item));
            hint::black_box(others(hint::black_box(&piece[..num]), &item));
            left -= num;
        }
    }
    report(&[start.elapsed().as_secs_f64(), cpu()?], &[])
}

/// Reads all items, and returns how many are not as wanted.
fn others<T: PartialEq>(items: &[T], wanted: &T) -> usize {
    items.iter().filter(|item| *item != wanted).count()
}

/// Sends messages, and waits for the answer to each.
fn call(mut line: Line, size: usize, back: usize, times: usize, silence: Duration) -> Result<()> {
    let mut both_ways = Vec::with_capacity(times);
    let start = Instant::now();
    for _ in 0..times {
        thread::sleep(silence);
        let start = Instant::now();
        line.send(size)?;
        line.receive(back)?;
        both_ways.push(start.elapsed().as_nanos() as f64);
    }
    report(&[start.elapsed().as_secs_f64(), cpu()?], &both_ways)
}

fn answer(mut line: Line, size: usize, back: usize, times: usize) -> Result<()> {
    for _ in 0..times {
        line.receive(size)?;
        line.send(back)?;
    }
    report(&[cpu()?], &[])
}

/// Sends messages at a steady pace.
fn pace(mut line: Line, since: u128) -> Result<()> {
    let (size, interval, times) = PACE;
    let (mut writing, mut moments) = (Duration::ZERO, vec![]);
    let start = Instant::now();
    for k in 0..times as u32 {
        while start.elapsed() < interval * k {
            hint::spin_loop();
        }
        moments.push(nanoseconds(since)? as f64);
        let start = Instant::now();
        line.send(size)?;
        writing += start.elapsed();
    }
    line.receive(8)?;
    let times = [start.elapsed(), writing].map(|time| time.as_secs_f64());
    report(&times, &moments)
}

fn note(mut line: Line, since: u128) -> Result<()> {
    let (size, _, times) = PACE;
    let mut moments = vec![];
    for _ in 0..times {
        line.receive(size)?;
        moments.push(nanoseconds(since)? as f64);
    }
    line.send(8)?;
    report(&[cpu()?], &moments)
}

fn connect(at: &str, how: &str) -> Result<Line> {
    Line::new(UnixStream::connect(at)?, how, false)
}

/// Listens, says so, and takes the first connection.
fn accept(at: &str, how: &str) -> Result<Line> {
    let listener = UnixListener::bind(at)?;
    print("ready")?;
    let (stream, _) = listener.accept()?;
    fs::remove_file(at)?;
    Line::new(stream, how, true)
}

/// Bytes in both directions, over either transport.
struct Line {
    transport: Transport,
    /// Bytes that were read already, and belong to what is received next.
    ahead: usize,
}

enum Transport {
    /// With what was read, how much of it is the beginning of a number, and whether one looks again.
    Socket(UnixStream, Vec<u8>, usize, Option<BackOff>),
    /// A ring for each direction.
    Rings(TrustedSender, TrustedReceiver, Peer),
}

impl Line {
    /// Takes up a connection; one of both sides is the `first` to hand over a ring.
    fn new(stream: UnixStream, how: &str, first: bool) -> Result<Self> {
        let transport = if how == "ring" {
            let receiver = Receiver::new(CAPACITY)?;
            if first {
                handover::give(&stream, &receiver)?;
            }
            let sender = handover::take(&stream)?;
            if !first {
                handover::give(&stream, &receiver)?;
            }
            let (e, f) = (receiver.empty_signal(), receiver.full_signal());
            let signals = [e, f, sender.empty_signal(), sender.full_signal()];
            let peer = Peer::watch(stream, &signals)?;
            // SAFETY: the other process is this program as well. It has the other half, and no more.
            let sender = unsafe { TrustedSender::new(sender) };
            // SAFETY: as above.
            let receiver = unsafe { TrustedReceiver::new(receiver) };
            Transport::Rings(sender, receiver, peer)
        } else {
            let looks = (how == "socket").then(BackOff::default);
            stream.set_nonblocking(looks.is_some())?;
            Transport::Socket(stream, NUMBER.repeat(READ / 8), 0, looks)
        };
        let ahead = 0;
        Ok(Line { transport, ahead })
    }

    fn send(&mut self, bytes: usize) -> Result<()> {
        let mut sent = 0;
        while sent < bytes {
            sent += match &mut self.transport {
                Transport::Socket(stream, numbers, ..) => {
                    let part = &numbers[sent % 8..][..(bytes - sent).min(WRITE)];
                    match stream.write(part) {
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {
                            asleep(stream, |mut stream| stream.write(part))?
                        }
                        written => written?,
                    }
                }
                Transport::Rings(sender, _, peer) => {
                    let items = (bytes - sent) / size_of::<Item>();
                    let num = sender.send(|free| {
                        let num = free.len().min(items).min(PART);
                        free[..num].fill(hint::black_box(Item::default()));
                        num
                    })?;
                    if num.is_none() {
                        let connected = peer.wait(sender.full_signal());
                        ensure!(connected, "the other process is gone");
                    }
                    num.unwrap_or(0) * size_of::<Item>()
                }
            };
        }
        Ok(())
    }

    fn receive(&mut self, bytes: usize) -> Result<()> {
        let (mut connected, mut wrong) = (true, 0);
        while self.ahead < bytes {
            self.ahead += match &mut self.transport {
                Transport::Socket(stream, buffer, begun, looks) => {
                    let num = read(stream, &mut buffer[*begun..], looks)?;
                    ensure!(num > 0, "the other process is gone");
                    let end = *begun + num;
                    let (numbers, rest) = buffer[..end].as_chunks();
                    wrong += others(numbers, &NUMBER);
                    *begun = rest.len();
                    buffer.copy_within(end - *begun..end, 0);
                    num
                }
                Transport::Rings(_, receiver, peer) => {
                    let num = receiver.receive(|piece| wrong += others(piece, &Item::default()))?;
                    if num == 0 {
                        ensure!(connected, "the other process is gone");
                        connected = peer.wait(receiver.empty_signal());
                    }
                    num * size_of::<Item>()
                }
            };
        }
        ensure!(wrong == 0, "{wrong} items are wrong");
        self.ahead -= bytes;
        Ok(())
    }
}

/// Reads from a socket as the ring's receiver does: looks again for a moment, then sleeps.
fn read(mut stream: &UnixStream, buffer: &mut [u8], looks: &mut Option<BackOff>) -> Result<usize> {
    let Some(looks) = looks else {
        return Ok(stream.read(buffer)?);
    };
    let mut num = None;
    looks.look(|| match stream.read(buffer) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
        read => {
            num = Some(read?);
            Ok(true)
        }
    })?;
    match num {
        Some(num) => Ok(num),
        None => Ok(asleep(stream, |mut stream| stream.read(buffer))?),
    }
}

/// Lets a socket block for one call.
fn asleep<T>(
    stream: &UnixStream,
    call: impl FnOnce(&UnixStream) -> io::Result<T>,
) -> io::Result<T> {
    stream.set_nonblocking(false)?;
    let done = call(stream)?;
    stream.set_nonblocking(true).map(|()| done)
}

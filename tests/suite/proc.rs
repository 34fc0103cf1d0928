//! What `/proc` tells about a program: whether it sleeps, and what it holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::programs::{PATIENCE, Program, client, until};

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

/// Whether each of its threads is stopped.
pub fn is_stopped(pid: u32) -> bool {
    threads(pid).iter().all(|thread| thread.state == "T")
}

/// Whether the program was started by one that ignores SIGINT, as `nohup` and a shell's `&` do.
pub fn ignores_interrupts(program: &Program) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The signals' numbers count from 1, and SIGINT's is 2.
    u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap() & 2 != 0
}

/// How often the program's thread of that name has gone to sleep.
pub fn sleeps_of(program: &Program, name: &str) -> u64 {
    let mut found = None;
    // A thread gives itself its name, when it has a core.
    until("the thread's name", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap();
        let mut tasks = tasks.map(|task| task.unwrap().path());
        let is_name = |comm: String| comm.trim() == name;
        let has_name = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(is_name);
        found = tasks.find(has_name);
        found.is_some()
    });
    Thread::look(&found.unwrap()).unwrap().sleeps
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
            let commands: Vec<_> = programs.iter().map(|program| program.command()).collect();
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

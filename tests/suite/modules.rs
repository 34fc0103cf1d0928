//! `handover`, `peer` and `socket` as people copy them, in one process: whatever state a socket comes
//! in, it serves, and a peer is gone when it is gone.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use passfd::FdPassingExt;
use shmem_ipc::sharedring::Receiver;
use shmem_test::peer::Peer;
use shmem_test::{CAPACITY, Item, handover, socket};

use crate::programs::{Folder, until, within_patience};
use crate::stand_ins::{hand_over_ring, ring_items};

/// Longer than the time limits below, so that whoever gives up at one of them is seen.
const SILENCE: Duration = Duration::from_millis(300);

/// What a program may have set before it gives the socket away.
type State = (&'static str, fn(&UnixStream));

const STATES: [State; 3] = [
    ("non-blocking", |stream| {
        stream.set_nonblocking(true).unwrap();
    }),
    ("a read limit", |stream| {
        stream.set_read_timeout(Some(SILENCE / 3)).unwrap();
    }),
    ("a write limit", |stream| {
        stream.set_write_timeout(Some(SILENCE / 3)).unwrap();
    }),
];

fn new_ring() -> Receiver<Item> {
    Receiver::new(CAPACITY).unwrap()
}

#[test]
fn take_waits_whatever_the_state() {
    for (state, set) in STATES {
        let (ours, theirs) = UnixStream::pair().unwrap();
        set(&theirs);
        let start = Instant::now();
        let giving = thread::spawn(move || {
            let r = new_ring();
            for file in [r.memfd().as_file(), r.empty_signal(), r.full_signal()] {
                thread::sleep(SILENCE);
                ours.send_fd(file.as_raw_fd()).unwrap();
            }
        });
        let mut sender = handover::take(&theirs).unwrap_or_else(|e| panic!("{state}: {e:#}"));
        assert!(start.elapsed() >= 3 * SILENCE, "{state}");
        assert_eq!(sender.sender_mut().write_count().unwrap(), ring_items());
        giving.join().unwrap();
    }
}

/// The socket is full, so `give` has to wait.
#[test]
fn give_waits_whatever_the_state() {
    for (state, set) in STATES {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 4096]).is_ok() {}
        ours.set_nonblocking(false).unwrap();
        set(&ours);
        let reading = thread::spawn(move || {
            thread::sleep(SILENCE);
            std::io::copy(&mut &theirs, &mut std::io::sink()).unwrap();
        });
        let start = Instant::now();
        handover::give(&ours, &new_ring()).unwrap_or_else(|e| panic!("{state}: {e:#}"));
        assert!(start.elapsed() >= SILENCE / 2, "{state}");
        drop(ours);
        reading.join().unwrap();
    }
}

#[test]
fn a_silent_peer_is_there_whatever_the_state() {
    for (state, set) in STATES {
        for at_first in [true, false] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            // Whoever has a clone can also change it later.
            let clone = ours.try_clone().unwrap();
            if at_first {
                set(&ours);
            }
            let ring = new_ring();
            let peer = Peer::watch(ours, &[ring.empty_signal(), ring.full_signal()]).unwrap();
            if !at_first {
                set(&clone);
                // The reading thread notices at its next read.
                (&theirs).write_all(&[7]).unwrap();
            }
            assert!(peer.pause(SILENCE), "{state}");
            // The watching thread sleeps: it has undone what would keep it awake.
            assert!(!is_nonblocking(&clone), "{state}");
            assert_eq!(clone.read_timeout().unwrap(), None, "{state}");
            // So does one who is woken.
            ring.empty_signal().write_all(&1u64.to_ne_bytes()).unwrap();
            assert!(peer.wait(ring.empty_signal()), "{state}");
            drop(theirs);
            assert!(!peer.wait(ring.empty_signal()), "{state}");
            assert!(!peer.pause(10 * SILENCE), "{state}");
        }
    }
}

#[test]
fn goodbye_and_confirm_whatever_the_state() {
    for (state, set) in STATES {
        let (ours, theirs) = UnixStream::pair().unwrap();
        set(&ours);
        set(&theirs);
        let ring = new_ring();
        let signals = [ring.empty_signal(), ring.full_signal()];
        let theirs = Peer::watch(theirs, &signals).unwrap();
        let ours = Peer::watch(ours, &signals).unwrap();
        let goodbye = thread::spawn(move || ours.goodbye());
        within_patience("the goodbye", move || {
            while theirs.pause(SILENCE) {}
            assert!(theirs.confirm(1234));
        });
        assert_eq!(goodbye.join().unwrap(), Some(1234), "{state}");
    }
}

/// A number may come in parts, and more may come behind it.
#[test]
fn the_first_eight_bytes_are_the_number() {
    for parts in [[3, 5, 0], [8, 5000, 1], [1, 6, 20], [7, 0, 0]] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = Peer::watch(ours, &[]).unwrap();
        let bytes = 0x0102_0304_0506_0708_u64.to_ne_bytes();
        let mut all = [bytes.to_vec(), vec![9; 5000]].concat().into_iter();
        for part in parts {
            let part: Vec<_> = all.by_ref().take(part).collect();
            theirs.write_all(&part).unwrap();
            thread::sleep(Duration::from_millis(2)); // So that they are read one by one.
        }
        drop(theirs);
        let complete = parts.iter().sum::<usize>() >= 8;
        let number = within_patience("the end", || peer.goodbye());
        assert_eq!(
            number,
            complete.then_some(0x0102_0304_0506_0708),
            "{parts:?}"
        );
    }
}

/// Also while somebody else still has the socket, as those do who keep an `Arc` to try again.
#[test]
fn a_dropped_peer_hangs_up_whoever_holds_the_socket() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (ours, ring) = (Arc::new(ours), new_ring());
    hand_over_ring(&ours, &ring);
    let signals = [ring.empty_signal(), ring.full_signal()];
    let peer = Peer::watch(Arc::clone(&ours), &signals).unwrap();
    let sender = handover::take(&theirs).unwrap();
    let other = Peer::watch(theirs, &[sender.empty_signal(), sender.full_signal()]).unwrap();
    assert!(other.pause(Duration::ZERO));
    drop(peer);
    // Our own reading half has ended as well, or the watching thread would sleep on.
    let watched = Arc::clone(&ours);
    within_patience("our end", move || {
        assert_eq!((&*watched).read(&mut [0]).unwrap(), 0);
    });
    within_patience(
        "the hang-up",
        move || {
            while other.wait(sender.full_signal()) {}
        },
    );
}

/// Whether a read fails instead of sleeping (`O_NONBLOCK`).
fn is_nonblocking(file: &impl AsRawFd) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    u32::from_str_radix(flags.unwrap().trim(), 8).unwrap() & 0o4000 != 0
}

/// Who hangs up leaves the signals as they are: the other program may sleep on them, with no module to
/// help. Only what a peer leaves behind is made non-blocking.
#[test]
fn the_signals_belong_to_the_other_program_too() {
    let ring = new_ring();
    let signals = [ring.empty_signal(), ring.full_signal()];
    // Many times, because our thread may be slower than we are.
    let start = Instant::now();
    while start.elapsed() < SILENCE {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        drop(Peer::watch(ours, &signals).unwrap());
        thread::yield_now();
        assert!(!signals.iter().any(|signal| is_nonblocking(*signal)));
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let _peer = Peer::watch(ours, &signals).unwrap();
    drop(theirs);
    until("both", || {
        signals.iter().all(|signal| is_nonblocking(*signal))
    });
}

/// A thread that sleeps in `wait` can be woken by its own program.
#[test]
fn a_write_to_a_clone_wakes_who_waits() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let ring = new_ring();
    let peer = Peer::watch(ours, &[ring.empty_signal(), ring.full_signal()]).unwrap();
    let mut clone = ring.empty_signal().try_clone().unwrap();
    let waking = thread::spawn(move || {
        thread::sleep(SILENCE);
        clone.write_all(&1u64.to_ne_bytes()).unwrap();
    });
    within_patience("the wake-up", move || {
        assert!(peer.wait(ring.empty_signal()))
    });
    waking.join().unwrap();
}

/// An error tells how to start the server, in the words of whoever calls.
#[test]
fn connect_names_the_command() {
    let folder = Folder::new();
    let error = socket::connect(&folder.socket(), "make server").unwrap_err();
    assert!(format!("{error:#}").contains("start it: `make server`"));
    let _listener = socket::listen(&folder.socket()).unwrap();
    socket::connect(&folder.socket(), "").unwrap();
}

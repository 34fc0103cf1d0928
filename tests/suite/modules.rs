//! `handover`, `peer` and `socket` as people copy them, in one process: whatever state a socket comes
//! in, it serves, and a peer is gone when it is gone.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use passfd::FdPassingExt;
use shmem_ipc::sharedring::Receiver;
use shmem_test::peer::Peer;
use shmem_test::{CAPACITY, Item, handover, socket};

use crate::programs::{Folder, within_patience};
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
    let peer = Peer::watch(
        Arc::clone(&ours),
        &[ring.empty_signal(), ring.full_signal()],
    )
    .unwrap();
    let sender = handover::take(&theirs).unwrap();
    let other = Peer::watch(theirs, &[sender.empty_signal(), sender.full_signal()]).unwrap();
    assert!(other.pause(Duration::ZERO));
    drop(peer);
    // Both sides have the same signals here, so the thread of the first one wakes the second as well.
    within_patience(
        "the hang-up",
        move || {
            while other.wait(sender.full_signal()) {}
        },
    );
    drop(ours);
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

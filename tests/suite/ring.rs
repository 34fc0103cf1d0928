//! Both directions of the ring, in one process and without a clock: which pieces are lent, and when
//! room is given back. The module is used as people copy it, beside an `Item` of their own.

#![allow(
    clippy::duplicate_mod,
    reason = "the same module for two types of item"
)]

use std::fs::File;
use std::iter;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use shmem_ipc::sharedring::{Receiver, Sender};

#[path = "../../src"]
mod numbers {
    pub type Item = u64;
    #[allow(dead_code, reason = "the peers' part is not used here")]
    #[path = "ring.rs"]
    pub mod ring;
}

#[path = "../../src"]
mod frames {
    pub type Item = [u64; 100_000];
    #[allow(dead_code, reason = "the peers' part is not used here")]
    #[path = "ring.rs"]
    pub mod ring;
}

use numbers::ring::{PIECE, TrustedReceiver, TrustedSender};

/// Both ends of a ring of three pieces and a rest, and what its numbers say.
struct Ring {
    sender: TrustedSender,
    receiver: TrustedReceiver,
    /// Items that the ring holds.
    size: usize,
    /// The ring's memory, which begins with the count.
    memory: File,
    /// The next number to send.
    next: u64,
}

impl Ring {
    fn new() -> Self {
        let capacity = 3 * PIECE + 1000;
        let receiver = Receiver::<u64>::new(capacity).unwrap();
        let memory = receiver.memfd().as_file().try_clone().unwrap();
        let [e, f] = [receiver.empty_signal(), receiver.full_signal()].map(|s| s.try_clone());
        let memfd = memory.try_clone().unwrap();
        let mut sender = Sender::open(capacity, memfd, e.unwrap(), f.unwrap()).unwrap();
        let size = sender.sender_mut().write_count().unwrap();
        assert!((3 * PIECE + 1..4 * PIECE).contains(&size));
        // SAFETY: both halves are this value's own, and it uses nothing else of the memory but the
        // count.
        let sender = unsafe { TrustedSender::new(sender) };
        // SAFETY: as above.
        let receiver = unsafe { TrustedReceiver::new(receiver) };
        Ring {
            sender,
            receiver,
            size,
            memory,
            next: 0,
        }
    }

    /// Publishes up to `most` numbers.
    fn send(&mut self, most: usize) -> Option<usize> {
        send(&mut self.sender, &mut self.next, most)
    }

    /// Takes what there is in one go: the numbers of all pieces.
    fn receive(&mut self) -> Vec<Vec<u64>> {
        let mut pieces = vec![];
        let num = self.receiver.receive(|piece| pieces.push(piece.to_vec()));
        assert_eq!(num.unwrap(), pieces.concat().len());
        pieces
    }

    fn count(&self) -> u64 {
        let mut count = [0; 8];
        self.memory.read_exact_at(&mut count, 0).unwrap();
        u64::from_ne_bytes(count)
    }
}

/// Sets the count of items in a ring, as a hostile peer can.
fn set_count(memory: &File, count: u64) {
    memory.write_all_at(&count.to_ne_bytes(), 0).unwrap();
}

fn send(sender: &mut TrustedSender, next: &mut u64, most: usize) -> Option<usize> {
    let sent = sender.send(|free| {
        let num = free.len().min(most);
        free[..num].fill_with(|| {
            *next += 1;
            *next - 1
        });
        num
    });
    sent.unwrap()
}

/// What the sender could write at this moment, in one piece.
fn room(sender: &mut TrustedSender) -> usize {
    let mut room = 0;
    let sent = sender.send(|free| {
        room = free.len();
        0
    });
    assert_eq!(sent.unwrap(), (room > 0).then_some(0));
    room
}

#[test]
fn room_is_given_back_one_piece_late_and_all_of_it_in_the_end() {
    assert_eq!(PIECE * size_of::<u64>(), 640 * 1024);
    let mut ring = Ring::new();
    let rest = ring.size - 3 * PIECE;
    assert_eq!(ring.send(usize::MAX), Some(ring.size));
    let (mut pieces, mut rooms) = (vec![], vec![]);
    let num = ring.receiver.receive(|piece| {
        pieces.push(piece.to_vec());
        rooms.push(room(&mut ring.sender));
    });
    assert_eq!(num.unwrap(), ring.size);
    let lens: Vec<_> = pieces.iter().map(Vec::len).collect();
    assert_eq!(lens, [PIECE, PIECE, PIECE, rest]);
    assert_eq!(rooms, [0, 0, PIECE, 2 * PIECE]);
    assert!(pieces.concat().into_iter().eq(0..ring.next));
    assert_eq!(room(&mut ring.sender), ring.size);
}

/// What is no more than a piece is lent at once.
#[test]
fn pieces_end_where_the_items_end() {
    for (items, lens) in [
        (1, vec![1]),
        (PIECE - 1, vec![PIECE - 1]),
        (PIECE, vec![PIECE]),
        (PIECE + 1, vec![PIECE, 1]),
        (2 * PIECE, vec![PIECE, PIECE]),
    ] {
        let mut ring = Ring::new();
        assert_eq!(ring.send(items), Some(items));
        let pieces = ring.receive();
        assert!(pieces.iter().map(Vec::len).eq(lens));
        assert_eq!(ring.count(), 0);
    }
}

#[test]
fn the_end_of_the_ring_takes_a_second_call() {
    let mut ring = Ring::new();
    let first = ring.size - 10;
    assert_eq!(ring.send(first), Some(first));
    assert_eq!(ring.receive().concat().len(), first);
    // All of it is free, but not in one piece.
    assert_eq!(ring.send(30), Some(10));
    assert_eq!(ring.send(20), Some(20));
    let at_the_end = ring.receive();
    let at_the_beginning = ring.receive();
    let expected = (first as u64..).take(30);
    assert_eq!((at_the_end[0].len(), at_the_beginning[0].len()), (10, 20));
    assert!(
        [at_the_end, at_the_beginning]
            .concat()
            .concat()
            .into_iter()
            .eq(expected)
    );
    assert!(ring.receive().is_empty());
}

/// It refills whatever room it gets, so that the ring is never empty.
#[test]
fn a_sender_that_never_stops_is_left_after_one_turn() {
    let mut ring = Ring::new();
    ring.send(PIECE + 7).unwrap();
    let mut taken = vec![];
    for turn in 0..3 {
        let num = ring.receiver.receive(|piece| {
            taken.extend_from_slice(piece);
            send(&mut ring.sender, &mut ring.next, usize::MAX);
        });
        assert_eq!(num.unwrap(), ring.size, "in turn {turn}");
    }
    assert!(taken.into_iter().eq(0..3 * ring.size as u64));
}

#[test]
fn an_item_that_is_larger_than_a_piece() {
    let receiver = Receiver::<frames::Item>::new(8).unwrap();
    let memory = receiver.memfd().as_file().try_clone().unwrap();
    set_count(&memory, 8);
    // SAFETY: nobody else has the ring.
    let mut receiver = unsafe { frames::ring::TrustedReceiver::new(receiver) };
    let mut lens = vec![];
    let num = receiver.receive(|piece| lens.push(piece.len()));
    assert_eq!((num.unwrap(), lens), (8, vec![1; 8]));
}

#[test]
fn a_full_ring_lends_no_room_and_an_empty_one_no_items() {
    let mut ring = Ring::new();
    let num = ring
        .receiver
        .receive(|_| panic!("there is nothing to read"));
    assert_eq!(num.unwrap(), 0);
    assert_eq!(ring.send(usize::MAX), Some(ring.size));
    let num = ring.sender.send(|_| panic!("there is no room"));
    assert_eq!(num.unwrap(), None);
}

#[test]
fn more_than_was_lent_is_not_sent() {
    let mut ring = Ring::new();
    let error = ring.sender.send(|free| free.len() + 1).unwrap_err();
    assert!(
        format!("{error:#}").contains("wrote more items"),
        "{error:#}"
    );
    assert_eq!((ring.count(), ring.send(1)), (0, Some(1)));
    assert_eq!(ring.receive(), [[0]]);
}

#[test]
fn a_count_out_of_range_is_an_error_on_either_side() {
    let mut ring = Ring::new();
    for count in [ring.size as u64 + 1, u64::MAX] {
        set_count(&ring.memory, count);
        for error in [
            ring.sender
                .send(|_| panic!("there is no ring"))
                .unwrap_err(),
            ring.receiver
                .receive(|_| panic!("there is no ring"))
                .unwrap_err(),
        ] {
            assert!(format!("{error:#}").contains("Buffer corrupt"), "{error:#}");
        }
    }
}

/// While the receiver is at work, which has a piece that it has not given back. What it lends and
/// what it says that it has lent are the same, and it comes to an end.
#[test]
fn a_count_that_falls_meanwhile() {
    let (piece, size) = (PIECE as u64, Ring::new().size as u64);
    for (count, lent) in [
        (0, Some(PIECE)),
        (1, None),
        (piece - 1, None),
        (piece, Some(PIECE)),
        (piece + 1, Some(PIECE + 1)),
        (size + 1, None),
    ] {
        let mut ring = Ring::new();
        ring.send(usize::MAX);
        let mut lies = iter::once(count);
        let mut total = 0;
        let num = ring.receiver.receive(|piece| {
            total += piece.len();
            if let Some(count) = lies.next() {
                set_count(&ring.memory, count);
            }
        });
        assert_eq!(num.as_ref().ok(), lent.as_ref(), "{num:?} after {count}");
        assert_eq!(total, lent.unwrap_or(PIECE), "after {count}");
    }
}

#[test]
fn a_panic_leaves_what_was_not_given_back() {
    let mut ring = Ring::new();
    ring.send(usize::MAX);
    let mut pieces = 0;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        ring.receiver.receive(|_| {
            pieces += 1;
            assert!(pieces < 3);
        })
    }));
    assert!(panicked.is_err());
    assert!(
        ring.receive()
            .concat()
            .into_iter()
            .eq(PIECE as u64..ring.next)
    );
}

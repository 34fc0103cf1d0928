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
use std::thread;
use std::time::{Duration, Instant};

use shmem_ipc::sharedring::{Receiver, Sender};

use crate::programs::until;

#[path = "../../src"]
mod numbers {
    pub type Item = u64;
    pub const CAPACITY: usize = 100_000;
    #[allow(dead_code, reason = "the peers' part is not used here")]
    #[path = "ring.rs"]
    pub mod ring;
}

#[path = "../../src"]
mod rows {
    pub type Item = [u8; 3840];
    pub const CAPACITY: usize = 1000;
    #[allow(dead_code, reason = "the peers' part is not used here")]
    #[path = "ring.rs"]
    pub mod ring;
}

#[path = "../../src"]
mod frames {
    pub type Item = [u64; 100_000];
    pub const CAPACITY: usize = 3;
    #[allow(dead_code, reason = "the peers' part is not used here")]
    #[path = "ring.rs"]
    pub mod ring;
}

use numbers::CAPACITY;
use numbers::ring::{BackOff, HALF, TrustedReceiver, TrustedSender};

/// Items of 8 bytes that are lent at a time: 2 KiB.
const PIECE: usize = 256;

/// Both ends of a ring, and what its numbers say.
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
        let receiver = Receiver::<u64>::new(CAPACITY).unwrap();
        let memory = receiver.memfd().as_file().try_clone().unwrap();
        let [e, f] = [receiver.empty_signal(), receiver.full_signal()].map(|s| s.try_clone());
        let memfd = memory.try_clone().unwrap();
        let mut sender = Sender::open(CAPACITY, memfd, e.unwrap(), f.unwrap()).unwrap();
        let size = sender.sender_mut().write_count().unwrap();
        assert!(HALF < size && size <= 2 * HALF);
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

/// Also the room at the ring's beginning, for which a send takes a second call.
#[test]
fn all_room_is_counted() {
    let mut ring = Ring::new();
    ring.send(ring.size - 2);
    ring.receive();
    ring.send(1);
    assert_eq!(room(&mut ring.sender), 1);
    assert_eq!(ring.sender.write_count().unwrap(), ring.size - 1);
}

/// The first half while the second one is read, that one in the end. So a full ring wakes its sender
/// twice, and not a third time for a rest.
#[test]
fn room_is_given_back_by_halves() {
    let mut ring = Ring::new();
    assert_eq!(ring.send(usize::MAX), Some(ring.size));
    let (mut taken, mut rooms) = (vec![], vec![]);
    let num = ring.receiver.receive(|piece| {
        rooms.push((taken.len(), room(&mut ring.sender)));
        taken.extend_from_slice(piece);
    });
    assert_eq!(num.unwrap(), ring.size);
    for (before, room) in rooms {
        assert_eq!(room, if before < HALF { 0 } else { HALF }, "after {before}");
    }
    assert!(taken.into_iter().eq(0..ring.next));
    assert_eq!(room(&mut ring.sender), ring.size);
}

/// 2 KiB at a time, in order, and what is no more than that at once.
#[test]
fn pieces_end_where_the_items_end() {
    for (items, lens) in [
        (1, vec![1]),
        (PIECE - 1, vec![PIECE - 1]),
        (PIECE, vec![PIECE]),
        (PIECE + 1, vec![PIECE, 1]),
        (5 * PIECE, vec![PIECE; 5]),
    ] {
        let mut ring = Ring::new();
        assert_eq!(ring.send(items), Some(items));
        let pieces = ring.receive();
        assert!(pieces.iter().map(Vec::len).eq(lens));
        assert!(pieces.concat().into_iter().eq(0..items as u64));
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
    ring.send(HALF + 7).unwrap();
    let mut taken = vec![];
    for turn in 0..3 {
        let num = ring.receiver.receive(|piece| {
            taken.extend_from_slice(piece);
            send(&mut ring.sender, &mut ring.next, usize::MAX);
        });
        assert!(num.unwrap() <= ring.size, "in turn {turn}");
    }
    assert!(taken.len() > ring.size);
    assert!(taken.iter().copied().eq(0..taken.len() as u64));
}

/// The second kind is also larger than what is fetched ahead, and a ring of it has no whole half.
#[test]
fn items_that_are_larger_than_a_piece() {
    let receiver = Receiver::<rows::Item>::new(rows::CAPACITY).unwrap();
    let memory = receiver.memfd().as_file().try_clone().unwrap();
    let begin = |item: u64| 64 + item * size_of::<rows::Item>() as u64;
    for item in 0..1000 {
        memory
            .write_all_at(&[item as u8; 3840], begin(item))
            .unwrap();
    }
    set_count(&memory, 1000);
    // SAFETY: nobody else has the ring.
    let mut receiver = unsafe { rows::ring::TrustedReceiver::new(receiver) };
    let (mut items, mut wrong) = (0, 0);
    let num = receiver.receive(|piece| {
        wrong += usize::from(piece != [[items as u8; 3840]]);
        items += 1;
    });
    assert_eq!((num.unwrap(), items, wrong), (1000, 1000, 0));

    let receiver = Receiver::<frames::Item>::new(frames::CAPACITY).unwrap();
    let memory = receiver.memfd().as_file().try_clone().unwrap();
    set_count(&memory, 3);
    // SAFETY: nobody else has the ring.
    let mut receiver = unsafe { frames::ring::TrustedReceiver::new(receiver) };
    let mut lens = vec![];
    let num = receiver.receive(|piece| lens.push(piece.len()));
    assert_eq!((num.unwrap(), lens), (3, vec![1; 3]));
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

/// While the receiver is at work, which has half of a ring that it has not given back. What it lends
/// and what it says that it has lent are the same, and it comes to an end.
#[test]
fn a_count_that_falls_meanwhile() {
    let (half, size) = (HALF as u64, Ring::new().size);
    for (count, lent) in [
        (0, None),
        (1, None),
        (half - 1, None),
        (half, Some(HALF)),
        (half + 1, Some(HALF + 1)),
        (size as u64 + 1, Some(size)),
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
        assert_eq!(total, lent.unwrap_or(HALF), "after {count}");
    }
}

#[test]
fn a_panic_leaves_what_was_not_given_back() {
    for (good, left) in [(3, 0), (HALF / PIECE + 3, HALF as u64)] {
        let mut ring = Ring::new();
        ring.send(usize::MAX);
        let mut pieces = 0;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            ring.receiver.receive(|_| {
                pieces += 1;
                assert!(pieces <= good);
            })
        }));
        assert!(panicked.is_err());
        assert!(ring.receive().concat().into_iter().eq(left..ring.next));
    }
}

/// Whether empty is looked at again: if so, `look` is called more than once.
fn looks_again(back_off: &mut BackOff) -> bool {
    let mut times = 0;
    let looked = back_off.look(|| {
        times += 1;
        Ok(false)
    });
    looked.unwrap();
    times > 1
}

/// A time in vain costs the next ones: one, three, seven, up to 63. It comes to an end each time.
#[test]
fn looking_again_in_vain_becomes_rare() {
    let mut back_off = BackOff::default();
    let again: Vec<_> = (1..=400).filter(|_| looks_again(&mut back_off)).collect();
    assert_eq!(again, [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384]);
    // Once it was not in vain, it begins anew. What is there at first says nothing.
    for _ in 401..448 {
        assert!(!looks_again(&mut back_off));
        back_off.look(|| Ok(true)).unwrap();
    }
    let mut times = 0;
    let second = back_off.look(|| {
        times += 1;
        Ok(times == 2)
    });
    second.unwrap();
    assert_eq!(times, 2);
    assert!(
        looks_again(&mut back_off) && looks_again(&mut back_off) && !looks_again(&mut back_off)
    );
}

#[test]
fn an_error_of_a_look_is_returned() {
    for good in 0..2 {
        let mut left = good;
        let looked = BackOff::default().look(|| {
            anyhow::ensure!(left > 0, "no ring");
            left -= 1;
            Ok(false)
        });
        assert_eq!(looked.unwrap_err().to_string(), "no ring", "after {good}");
    }
}

/// What comes soon is received in the call that finds the ring empty. A sender that has no core to run
/// on does not send soon, so this tries until both have one.
#[test]
fn receive_looks_again() {
    const ITEMS: usize = 10_000;
    if thread::available_parallelism().unwrap().get() == 1 {
        eprintln!("skipped: there is one core");
        return;
    }
    until("a sender that is quick", || {
        let mut ring = Ring::new();
        let (memory, mut sender) = (ring.memory, ring.sender);
        let sending = thread::spawn(move || {
            for _ in 0..ITEMS {
                send(&mut sender, &mut ring.next, 1).unwrap();
                let mut count = [1; 8];
                while count != [0; 8] {
                    memory.read_exact_at(&mut count, 0).unwrap();
                }
            }
        });
        let (mut items, mut in_vain) = (0, 0);
        while items < ITEMS {
            match ring.receiver.receive(|_| {}).unwrap() {
                0 => in_vain += 1,
                num => items += num,
            }
        }
        sending.join().unwrap();
        in_vain < ITEMS / 2
    });
}

/// It is over much sooner than the shortest sleep that a program would ask for: of each, the quickest
/// of many, side by side.
#[test]
fn looking_again_ends_soon() {
    let quickest = |action: fn()| {
        let took = (0..50).map(|_| {
            let start = Instant::now();
            action();
            start.elapsed()
        });
        took.min().unwrap()
    };
    let look = quickest(|| assert!(looks_again(&mut BackOff::default())));
    let sleep = quickest(|| thread::sleep(Duration::from_millis(1)));
    assert!(look < sleep, "{look:?} beside {sleep:?}");
}

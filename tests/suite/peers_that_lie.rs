//! Peers that break the wire's rules. A faulty client costs its own connection and nothing else; a
//! faulty server costs the client an exit status and never a SIGBUS.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd, MemfdOptions};
use shmem_ipc::sharedring::Receiver;
use shmem_test::{CAPACITY, handover};

use crate::proc::{assert_asleep, assert_unharmed, come_to_rest, held, until_asleep};
use crate::programs::{Ended, Folder, server, server_with, until, within_patience};
use crate::stand_ins::{
    StandIn, answer, await_goodbye, client_of, ends, hand_over, hand_over_ring, ring_items,
};

/// The most that an eventfd's counter holds.
const MAXIMUM: u64 = u64::MAX - 1;

#[test]
fn a_corrupt_count() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut bystander = StandIn::connect(&folder.socket());
    let too_many = ring_items() as u64 + 1;
    for (n, count) in (2..).zip([u64::MAX, 1 << 63, too_many, i64::MAX as u64]) {
        let mut liar = StandIn::connect(&folder.socket());
        liar.send(&[1.0; 100]);
        server.until_out(&format!("Sum: {}", (n - 1) * 100));
        liar.set_count(count);
        liar.signal(1);
        let line = server.until_err(&format!("Client {n} dropped: "));
        assert!(line.contains("corrupt"), "{line}");
        // Its socket is closed, and there is no answer.
        assert!(ends(&liar.stream));
    }
    bystander.send(&[1.0]);
    server.until_out("Sum: 401");
    assert_eq!(bystander.goodbye(), 1u64.to_ne_bytes());
    assert_unharmed(&server, &folder.socket(), &before);
}

/// The ring subtracts what it has read from a count that has become smaller meanwhile.
#[test]
fn a_count_that_changes_while_the_server_reads() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    for n in 1..=3 {
        let liar = StandIn::connect(&folder.socket());
        server.until_err(&format!("Client {n} connected"));
        let mut said = None;
        until("the server to be caught", || {
            // Announced, and taken back while the server may be reading it.
            for _ in 0..1000 {
                liar.set_count(ring_items() as u64);
                liar.signal(1);
                liar.set_count(0);
            }
            said = server.unread_err().pop();
            said.is_some()
        });
        let line = said.unwrap();
        assert!(line.starts_with(&format!("Client {n} dropped: ")), "{line}");
    }
    assert_unharmed(&server, &folder.socket(), &before);
}

#[test]
fn a_count_that_was_corrupt_when_the_client_left() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let liar = StandIn::connect(&folder.socket());
    liar.set_count(u64::MAX);
    // Without a wake-up: the hang-up is one.
    assert_eq!(liar.goodbye(), []);
    server.until_err("Client 1 dropped: failed to receive: Buffer corrupt");
    assert_unharmed(&server, &folder.socket(), &before);
}

#[test]
fn wake_ups_with_nothing_to_read() {
    let folder = Folder::new();
    let server = server(&folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    for _ in 0..10_000 {
        peer.signal(1);
    }
    let mut signal = peer.ring.empty_signal().try_clone().unwrap();
    within_patience("the server to read its signal", move || {
        signal.write_all(&MAXIMUM.to_ne_bytes()).unwrap();
    });
    assert_asleep(&[&server]);
    peer.send(&[1.0; 7]);
    assert_eq!(peer.goodbye(), 7u64.to_ne_bytes());
}

/// Makes an eventfd not block: the flag is in the open file, which both sides share.
fn set_nonblocking(signal: &File) {
    let socket = UnixStream::from(OwnedFd::from(signal.try_clone().unwrap()));
    socket.set_nonblocking(true).unwrap();
}

#[test]
fn signals_that_do_not_block() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    peer.send(&[1.0]);
    server.until_out("Sum: 1");
    set_nonblocking(peer.ring.empty_signal());
    set_nonblocking(peer.ring.full_signal());
    peer.signal(1);
    assert_asleep(&[&server]);
    peer.send(&[1.0]);
    server.until_out("Sum: 2");
    assert_eq!(peer.goodbye(), 2u64.to_ne_bytes());
}

/// It takes the server a descriptor to make them block again. Until there is one, it looks around
/// now and then.
#[test]
fn signals_that_do_not_block_and_no_descriptor_left() {
    let folder = Folder::new();
    // One for the listener, six for a client.
    let mut server = server_with(7, &folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    peer.send(&[1.0]);
    server.until_out("Sum: 1");
    set_nonblocking(peer.ring.empty_signal());
    peer.signal(1);
    // It tries to accept ten times a second as well.
    come_to_rest(&[&server], Duration::from_secs(1), 30);
    peer.send(&[1.0]);
    server.until_out("Sum: 2");
    assert_eq!(peer.goodbye(), 2u64.to_ne_bytes());
    server.until_err("Client 1 left after 2 items");
}

/// A write to an eventfd at its maximum sleeps, so a client can put to sleep whoever signals to it.
/// Its own thread: yes. For longer than it lives: no.
#[test]
fn signals_at_their_maximum() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut liar = StandIn::connect(&folder.socket());
    let mut full_signal = liar.ring.full_signal();
    full_signal.write_all(&MAXIMUM.to_ne_bytes()).unwrap();
    // A full ring: the first room that the server gives back makes it signal.
    let items = ring_items();
    liar.send(&vec![1.0; items]);
    assert_asleep(&[&server]);
    liar.signal(MAXIMUM - 1);
    drop(liar);
    server.until_err(&format!("Client 1 broke off after {items} items"));
    server.until_out(&format!("Sum: {items}"));
    assert_unharmed(&server, &folder.socket(), &before);
}

/// Other processes may hold a client's signals, and read what is meant for the server's own thread:
/// the first wake-ups of a client that is gone.
#[test]
fn wake_ups_that_others_read() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let liars: Vec<_> = (0..5).map(|_| StandIn::connect(&folder.socket())).collect();
    for liar in &liars {
        for _ in 0..8 {
            let mut signal = liar.ring.empty_signal().try_clone().unwrap();
            thread::spawn(move || signal.read(&mut [0; 8]));
        }
    }
    until_asleep(&server);
    for liar in liars {
        liar.stream.shutdown(Shutdown::Both).unwrap();
    }
    for _ in 0..5 {
        server.until_err("Client ");
    }
    assert_unharmed(&server, &folder.socket(), &before);
}

#[test]
fn values_that_are_not_finite() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    for (value, sum) in [(f64::INFINITY, "Sum: inf"), (f64::NEG_INFINITY, "Sum: NaN")] {
        peer.send(&[value]);
        assert_eq!(server.out(), sum);
    }
    for value in [f64::NAN, -f64::NAN, 1.0] {
        peer.send(&[value; 3]);
        until_asleep(&server);
    }
    assert_asleep(&[&server]);
    assert_eq!(peer.goodbye(), 11u64.to_ne_bytes());
    server.until_err("Client 1 left after 11 items");
    // NaN it stays, so there is nothing more to print.
    assert_eq!(server.unread_out(), [""; 0]);
}

#[test]
fn bytes_on_the_socket() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    peer.stream.write_all(&[7; 1_000_000]).unwrap();
    peer.send(&[1.0; 3]);
    server.until_out("Sum: 3");
    peer.stream.write_all(&[7; 9]).unwrap();
    assert_eq!(peer.goodbye(), 3u64.to_ne_bytes());
}

/// Sums in order, from 0.0, what one look shows: 0.1 three times is not 0.3.
#[test]
fn the_order_of_addition() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    peer.send(&[0.1; 3]);
    assert_eq!(server.out(), "Sum: 0.30000000000000004");
    // Over many pieces, still one sum that starts from 0.0.
    let items: Vec<_> = (1..=100_000).map(|i| 1.0 / f64::from(i)).collect();
    peer.send(&items);
    let sum = 0.30000000000000004 + items.iter().fold(0.0, |sum, item| sum + item);
    assert_eq!(server.out(), format!("Sum: {sum}"));
}

/// A look ends where the ring ends. Here the second look's sum is 2, which the first one's sum,
/// 1e16, can take; 1 and 1 it can't, one after the other.
#[test]
fn one_look_ends_where_the_ring_ends() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    peer.send(&vec![0.0; ring_items() - 1]);
    until("an empty ring", || peer.count() == 0);
    peer.send(&[1e16, 1.0, 1.0]);
    server.until_out("Sum: 10000000000000002");
}

/// Room comes back while half of a full ring is still to be summed, so that the client can write
/// meanwhile. To give back the first room of a full ring, the server signals, and sleeps if it
/// can't: so there is time to look.
#[test]
fn room_is_given_back_by_halves() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = StandIn::connect(&folder.socket());
    let mut full_signal = peer.ring.full_signal();
    full_signal.write_all(&MAXIMUM.to_ne_bytes()).unwrap();
    let items = ring_items() as u64;
    peer.send(&vec![1.0; ring_items()]);
    until("the first room", || peer.count() < items);
    until_asleep(&server);
    let left = peer.count();
    assert!(left.abs_diff(items / 2) < 1000, "{left} of {items}");

    let mut full_signal = peer.ring.full_signal();
    full_signal.read_exact(&mut [0; 8]).unwrap();
    // All of it in the end: the client signals only when it writes to an empty ring.
    until("an empty ring", || peer.count() == 0);
    server.until_out(&format!("Sum: {items}"));
}

/// Runs the client against a server that hands over `memory` with honest signals.
fn client_with_memory(memory: &impl AsRawFd) -> Ended {
    client_of(&["--batches", "1"], |stream, _| {
        let r = Receiver::<f64>::new(CAPACITY).unwrap();
        hand_over(&stream, [memory, r.empty_signal(), r.full_signal()]);
        stream
    })
}

/// A memfd that can be sealed, of `len` bytes.
fn memfd(len: u64) -> Memfd {
    let memfd = MemfdOptions::new().allow_sealing(true).create("lie");
    let memfd = memfd.unwrap();
    memfd.as_file().set_len(len).unwrap();
    memfd
}

/// The length of a ring's memory here.
fn ring_len() -> u64 {
    let r = Receiver::<f64>::new(CAPACITY).unwrap();
    r.memfd().as_file().metadata().unwrap().len()
}

#[test]
fn memory_that_is_no_ring_of_the_right_size() {
    let folder = Folder::new();
    let right = ring_len();
    for len in [0, 1, 4096, right - 4096, right + 4096, 2 * right, 1 << 40] {
        let said = format!(" {len} bytes, ");
        client_with_memory(&memfd(len)).assert_error(1, &[&said]);
    }

    let path = folder.join("file");
    fs::write(&path, vec![0; right as usize]).unwrap();
    let read_only = File::open(&path).unwrap();
    let writable = File::options().write(true).open(&path).unwrap();
    let zero = File::open("/dev/zero").unwrap();
    for file in [read_only, writable, zero] {
        client_with_memory(&file).assert_error(1, &["the memory is no memfd"]);
    }
    let socket = UnixStream::pair().unwrap().0;
    client_with_memory(&socket).assert_error(1, &["the memory is no memfd"]);

    let unsealable = MemfdOptions::new().allow_sealing(false).create("lie");
    let unsealable = unsealable.unwrap();
    unsealable.as_file().set_len(right).unwrap();
    client_with_memory(&unsealable).assert_error(1, &["failed to seal the memfd"]);

    let read_only = memfd(right);
    read_only.add_seal(FileSeal::SealWrite).unwrap();
    client_with_memory(&read_only).assert_error(1, &["failed to map the ring"]);

    // Used, full, or corrupt.
    let items = ring_items() as u64;
    for (count, said) in [
        (1, "the ring is in use"),
        (items, "the ring is in use"),
        (items + 1, "Buffer corrupt"),
        (u64::MAX, "Buffer corrupt"),
    ] {
        let used = memfd(right);
        used.as_file().write_at(&count.to_ne_bytes(), 0).unwrap();
        client_with_memory(&used).assert_error(1, &[said]);
    }
}

/// If it were measured and then sealed, it could shrink in between, and the client die of it.
#[test]
fn memory_that_shrinks_and_grows() {
    let right = ring_len();
    for _ in 0..30 {
        let memory = memfd(right);
        let file = memory.as_file().try_clone().unwrap();
        thread::spawn(move || {
            let memory = Memfd::try_from_file(file).unwrap();
            let sealed = || memory.seals().unwrap().contains(&FileSeal::SealShrink);
            // Until it is sealed, and then as it is.
            while memory.as_file().set_len(4096).is_ok() && !sealed() {
                let _ = memory.as_file().set_len(right);
            }
        });
        let ended = client_of(&["--batches", "1"], |stream, _| {
            let r = Receiver::<f64>::new(CAPACITY).unwrap();
            hand_over(&stream, [&memory, r.empty_signal(), r.full_signal()]);
            // It refuses the memory, or comes to its goodbye.
            await_goodbye(&stream);
        });
        assert_eq!(ended.code, Some(1), "{:#?}", ended.err);
    }
}

/// Neither by a client that has the server's ring, nor by a server whose ring a client has.
#[test]
fn nobody_resizes_the_memory() {
    let folder = Folder::new();
    let _server = server(&folder.socket());
    let peer = StandIn::connect(&folder.socket());
    assert_keeps_its_size(peer.ring.memfd());
    assert_eq!(peer.goodbye(), 0u64.to_ne_bytes());

    let ended = client_of(&["--batches", "1"], |stream, _| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        hand_over_ring(&stream, &r);
        await_goodbye(&stream);
        assert_keeps_its_size(r.memfd());
        confirm(&stream, &mut r);
    });
    ended.assert_done();
}

fn assert_keeps_its_size(memory: &Memfd) {
    for len in [4096, ring_len() + 4096, 100 * ring_len()] {
        memory.as_file().set_len(len).unwrap_err();
    }
    let past_the_end = memory.as_file().write_at(&[1], ring_len());
    past_the_end.unwrap_err();
    assert_eq!(memory.as_file().metadata().unwrap().len(), ring_len());
}

#[test]
fn a_ring_that_is_already_sealed_for_good() {
    let ended = client_of(&["--batches", "1"], |stream, _| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        r.memfd().add_seal(FileSeal::SealGrow).unwrap();
        r.memfd().add_seal(FileSeal::SealSeal).unwrap();
        hand_over_ring(&stream, &r);
        confirm(&stream, &mut r);
    });
    ended.assert_done();
}

/// Waits for the client's goodbye and answers as an honest server does.
fn confirm(stream: &UnixStream, r: &mut Receiver<f64>) {
    await_goodbye(stream);
    answer(stream, r.receiver_mut().read_count().unwrap());
}

#[test]
fn a_hand_over_that_does_not_come() {
    // Nothing.
    let start = Instant::now();
    let silent = client_of(&[], |stream, _| stream);
    silent.assert_error(1, &["no memfd", "nothing came for 5s"]);
    let took = start.elapsed();
    assert!((5.0..10.0).contains(&took.as_secs_f64()), "{took:?}");
    // One of three.
    let one = client_of(&[], |stream, _| {
        stream.send_fd(memfd(0).as_raw_fd()).unwrap();
    });
    one.assert_error(1, &["no empty signal", "hung up"]);
    // The end.
    client_of(&[], |stream, _| drop(stream)).assert_error(1, &["no memfd", "hung up"]);
    // Bytes without a descriptor.
    let bytes = client_of(&[], |mut stream, _| {
        stream.write_all(&[0; 12]).unwrap();
        stream
    });
    bytes.assert_error(1, &["no memfd", "without a descriptor"]);
}

/// The limit on the hand-over is the hand-over's own.
#[test]
fn a_failed_hand_over_leaves_no_time_limit() {
    let (stream, other_end) = UnixStream::pair().unwrap();
    drop(other_end);
    assert!(handover::take(&stream).is_err());
    assert_eq!(stream.read_timeout().unwrap(), None);
}

#[test]
fn a_client_that_is_stopped_while_it_waits_for_the_ring() {
    let ended = client_of(&["--batches", "1"], |stream, client| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        until_asleep(client);
        client.stop();
        client.go_on();
        until_asleep(client);
        hand_over_ring(&stream, &r);
        confirm(&stream, &mut r);
    });
    ended.assert_done();
}

#[test]
fn signals_that_are_no_eventfds() {
    let open = |path| File::options().read(true).write(true).open(path).unwrap();
    let (null, zero) = (open("/dev/null"), open("/dev/zero"));
    let (socket, _other_end) = UnixStream::pair().unwrap();
    let signals: [&dyn AsRawFd; 3] = [&null, &zero, &socket];
    for signal in signals {
        let r = Receiver::<f64>::new(CAPACITY).unwrap();
        let honest: &dyn AsRawFd = r.full_signal();
        for (e, f) in [(signal, honest), (honest, signal)] {
            let ended = client_of(&["--flood", "1000000"], |stream, _| {
                hand_over(&stream, [r.memfd(), e, f]);
                stream
            });
            ended.assert_error(1, &["no eventfd"]);
        }
    }
}

/// An honest server may have made its signals so that they don't block.
#[test]
fn a_server_with_signals_that_do_not_block() {
    let items = ring_items() + 1;
    let ended = client_of(&["--flood", &items.to_string()], |stream, client| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        hand_over_ring(&stream, &r);
        until_asleep(client);
        set_nonblocking(r.full_signal());
        r.full_signal().write_all(&1u64.to_ne_bytes()).unwrap();
        assert_asleep(&[client]);
        // A full ring at once, the rest once the client has said goodbye.
        r.receive_raw(|_, n| n).unwrap();
        await_goodbye(&stream);
        assert_eq!(r.receiver_mut().read_count().unwrap(), 1);
        answer(&stream, items);
    });
    ended.assert_done();
}

/// It ends no pause and no wait. It is looked at after the goodbye, and counts then.
#[test]
fn an_answer_before_the_goodbye() {
    // The third batch is cut where the ring ends.
    let items = 300_000 + 300_000.min(ring_items() - 300_000);
    for (answered, code) in [(items, 0), (7, 1)] {
        let args = ["--batches", "3", "--interval", "0.3"];
        let ended = client_of(&args, |stream, _| {
            let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
            let start = Instant::now();
            hand_over_ring(&stream, &r);
            answer(&stream, answered);
            for _ in 0..3 {
                r.block_until_readable().unwrap();
                r.receive_raw(|_, n| n).unwrap();
            }
            await_goodbye(&stream);
            assert!(start.elapsed() >= 2 * Duration::from_millis(300));
        });
        assert_eq!(ended.code, Some(code), "{:#?}", ended.err);
    }
    let items = ring_items() + 1;
    let ended = client_of(&["--flood", &items.to_string()], |stream, client| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        hand_over_ring(&stream, &r);
        until_asleep(client);
        answer(&stream, items);
        assert_asleep(&[client]);
        r.receive_raw(|_, n| n).unwrap();
        await_goodbye(&stream);
    });
    ended.assert_done();
}

#[test]
fn a_count_that_the_server_corrupts() {
    let items = 2 * ring_items();
    let ended = client_of(&["--flood", &items.to_string()], |stream, client| {
        let r = Receiver::<f64>::new(CAPACITY).unwrap();
        hand_over_ring(&stream, &r);
        until_asleep(client);
        let memory = r.memfd().as_file();
        memory.write_at(&u64::MAX.to_ne_bytes(), 0).unwrap();
        r.full_signal().write_all(&1u64.to_ne_bytes()).unwrap();
        stream
    });
    ended.assert_error(1, &["failed to send"]);
}

#[test]
fn a_server_that_confirms_the_wrong_number() {
    for (answer, said) in [
        (&9u64.to_ne_bytes()[..], "summed 9 items of 100000"),
        (&[1, 2, 3], "gone before it confirmed"),
        (&[], "gone before it confirmed"),
    ] {
        let ended = client_of(&["--batches", "1"], |mut stream, _| {
            hand_over_ring(&stream, &Receiver::new(CAPACITY).unwrap());
            await_goodbye(&stream);
            stream.write_all(answer).unwrap();
        });
        assert_eq!((ended.code, ended.out.len()), (Some(1), 1));
        ended.assert_said(&[said]);
    }
}

//! Peers that break the wire's rules. A faulty client costs its own connection and nothing else; a
//! faulty server costs the client an exit status and never a SIGBUS.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};

use common::{
    Ended, Folder, PATIENCE, Peer, Program, assert_asleep, client, held, server, until_given_back,
};
use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd, MemfdOptions};
use shmem_ipc::sharedring::Receiver;
use shmem_test::CAPACITY;

/// Asserts that the server is at rest, holds no more than `before`, and serves an honest client.
fn assert_unharmed(server: &mut Program, folder: &Folder, before: &common::Held) {
    until_given_back(server, before);
    assert_asleep(server);
    let honest = client(&folder.socket(), &["--batches", "1"]).wait();
    assert_eq!((honest.code, honest.err), (Some(0), vec![]));
}

#[test]
fn a_corrupt_counter() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut bystander = Peer::connect(&folder.socket());
    for (n, counter) in (2..).zip([u64::MAX, 1 << 63, 500_217, i64::MAX as u64]) {
        let mut liar = Peer::connect(&folder.socket());
        liar.publish(&[1.0; 100]);
        server.until_out(&format!("Sum: {}", (n - 1) * 100));
        liar.set_counter(counter);
        liar.signal(1);
        let line = server.until_err(&format!("Client {n} dropped: "));
        assert!(line.contains("corrupt"), "{line}");
        // Its socket is closed, and there is no answer.
        assert_eq!(liar.stream.read(&mut [0]).unwrap(), 0);
    }
    bystander.publish(&[1.0]);
    server.until_out("Sum: 401");
    assert_eq!(bystander.goodbye(), 1u64.to_ne_bytes());
    assert_unharmed(&mut server, &folder, &before);
}

/// The ring subtracts what it has read from a counter that has become smaller meanwhile.
#[test]
fn a_counter_that_changes_while_the_server_reads() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    for n in 1..=3 {
        let liar = Peer::connect(&folder.socket());
        server.until_err(&format!("Client {n} connected"));
        let mut said = None;
        for _ in 0..1_000_000 {
            // Announced, and taken back while the server may be reading it.
            liar.set_counter(500_216);
            liar.signal(1);
            liar.set_counter(0);
            said = server.unread_err().pop();
            if said.is_some() {
                break;
            }
        }
        let line = said.unwrap_or_else(|| server.err());
        assert!(line.starts_with(&format!("Client {n} dropped: ")), "{line}");
    }
    assert_unharmed(&mut server, &folder, &before);
}

#[test]
fn a_counter_that_was_corrupt_when_the_client_left() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let liar = Peer::connect(&folder.socket());
    liar.set_counter(u64::MAX);
    // Without a wake-up: the hang-up is one.
    assert_eq!(liar.goodbye(), []);
    server.until_err("Client 1 dropped: its ring is corrupt");
    assert_unharmed(&mut server, &folder, &before);
}

#[test]
fn wake_ups_with_nothing_to_read() {
    let folder = Folder::new();
    let server = server(&folder.socket());
    let mut peer = Peer::connect(&folder.socket());
    for count in (0..10_000).chain([u64::MAX - 1]) {
        peer.signal(count);
    }
    assert_asleep(&server);
    peer.publish(&[1.0; 7]);
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
    let mut peer = Peer::connect(&folder.socket());
    peer.publish(&[1.0]);
    server.until_out("Sum: 1");
    set_nonblocking(&peer.empty_signal);
    set_nonblocking(&peer.full_signal);
    peer.signal(1);
    assert_asleep(&server);
    peer.publish(&[1.0]);
    server.until_out("Sum: 2");
    assert_eq!(peer.goodbye(), 2u64.to_ne_bytes());
}

/// A write to an eventfd at its maximum sleeps, so a client can put to sleep whoever signals to it.
/// Its own thread: yes. For longer than it lives: no.
#[test]
fn signals_at_their_maximum() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut liar = Peer::connect(&folder.socket());
    (&liar.full_signal)
        .write_all(&(u64::MAX - 1).to_ne_bytes())
        .unwrap();
    // A full ring: the first piece that the server takes makes it signal.
    liar.publish(&vec![1.0; 500_216]);
    assert_asleep(&server);
    (&liar.empty_signal)
        .write_all(&(u64::MAX - 2).to_ne_bytes())
        .unwrap();
    drop(liar);
    server.until_err("Client 1 left after 500216 items");
    server.until_out("Sum: 500216");
    assert_unharmed(&mut server, &folder, &before);
}

/// Other processes may hold a client's signals, and read what is meant for the server's own thread.
#[test]
fn wake_ups_that_others_read() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let liar = Peer::connect(&folder.socket());
    for _ in 0..8 {
        let mut signal = liar.empty_signal.try_clone().unwrap();
        std::thread::spawn(move || signal.read(&mut [0; 8]));
    }
    assert_asleep(&server);
    liar.stream.shutdown(Shutdown::Both).unwrap();
    server.until_err("Client 1 left after 0 items");
}

#[test]
fn values_that_are_not_finite() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = Peer::connect(&folder.socket());
    for (value, sum) in [(f64::INFINITY, "Sum: inf"), (f64::NEG_INFINITY, "Sum: NaN")] {
        peer.publish(&[value]);
        assert_eq!(server.out(), sum);
    }
    for value in [f64::NAN, -f64::NAN, 1.0] {
        peer.publish(&[value; 3]);
        assert_asleep(&server);
    }
    assert_eq!(peer.goodbye(), 11u64.to_ne_bytes());
    server.until_err("Client 1 left after 11 items");
    // NaN it stays, so there is nothing more to print.
    assert_eq!(server.unread_out(), [""; 0]);
}

#[test]
fn bytes_on_the_socket() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = Peer::connect(&folder.socket());
    peer.stream.write_all(&[7; 1_000_000]).unwrap();
    peer.publish(&[1.0; 3]);
    server.until_out("Sum: 3");
    peer.stream.write_all(&[7; 9]).unwrap();
    assert_eq!(peer.goodbye(), 3u64.to_ne_bytes());
}

/// Sums in order, from 0.0, what one look shows: 0.1 three times is not 0.3.
#[test]
fn the_order_of_addition() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = Peer::connect(&folder.socket());
    peer.publish(&[0.1; 3]);
    assert_eq!(server.out(), "Sum: 0.30000000000000004");
    // Over several pieces, still one sum that starts from 0.0.
    let items: Vec<_> = (1..=100_000).map(|i| 1.0 / f64::from(i)).collect();
    peer.publish(&items);
    let sum = 0.30000000000000004 + items.iter().fold(0.0, |sum, item| sum + item);
    assert_eq!(server.out(), format!("Sum: {sum}"));
}

/// Runs the client against a server that the test plays: it gets the connection.
fn client_of<T>(args: &[&str], play: impl FnOnce(UnixStream, &Program) -> T) -> Ended {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client = client(&folder.socket(), args);
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _until_the_end = play(stream, &client);
    client.wait()
}

/// Runs the client against a server that hands over `memfd` with honest signals.
fn client_with_memory(memfd: &impl AsRawFd) -> Ended {
    client_of(&["--batches", "1"], |stream, _| {
        let r = Receiver::<f64>::new(CAPACITY).unwrap();
        stream.send_fd(memfd.as_raw_fd()).unwrap();
        stream.send_fd(r.empty_signal().as_raw_fd()).unwrap();
        stream.send_fd(r.full_signal().as_raw_fd()).unwrap();
        stream
    })
}

/// A memfd that can be sealed, of `len` bytes.
fn memfd(len: u64) -> Memfd {
    let memfd = MemfdOptions::new()
        .allow_sealing(true)
        .create("lie")
        .unwrap();
    memfd.as_file().set_len(len).unwrap();
    memfd
}

#[test]
fn memory_that_is_no_ring_of_the_right_size() {
    let folder = Folder::new();
    const LEN: u64 = 4_001_792;
    for len in [0, 1, 4096, LEN - 4096, LEN + 4096, 2 * LEN, 1 << 40] {
        client_with_memory(&memfd(len)).assert_error(1, &["memfd", &len.to_string()]);
    }

    let file = folder.join("file");
    fs::write(&file, vec![0; LEN as usize]).unwrap();
    for file in [
        File::open(&file).unwrap(),
        File::options().write(true).open(&file).unwrap(),
    ] {
        client_with_memory(&file).assert_error(1, &["memfd"]);
    }
    client_with_memory(&File::open("/dev/zero").unwrap()).assert_error(1, &["memfd"]);
    client_with_memory(&UnixStream::pair().unwrap().0).assert_error(1, &["memfd"]);

    let unsealable = MemfdOptions::new()
        .allow_sealing(false)
        .create("lie")
        .unwrap();
    unsealable.as_file().set_len(LEN).unwrap();
    client_with_memory(&unsealable).assert_error(1, &["can't be sealed"]);

    let read_only = memfd(LEN);
    read_only.add_seal(FileSeal::SealWrite).unwrap();
    client_with_memory(&read_only).assert_error(1, &["failed to map the ring"]);

    // Used, or corrupt.
    for counter in [1u64, 500_216, 500_217, u64::MAX] {
        let used = memfd(LEN);
        used.as_file().write_at(&counter.to_ne_bytes(), 0).unwrap();
        client_with_memory(&used).assert_error(1, &["ring"]);
    }
}

#[test]
fn a_ring_that_is_already_sealed_for_good() {
    let ended = client_of(&["--batches", "1"], |stream, _| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        r.memfd().add_seal(FileSeal::SealGrow).unwrap();
        r.memfd().add_seal(FileSeal::SealSeal).unwrap();
        hand_over(&stream, &r);
        confirm(stream, &mut r);
    });
    assert_eq!((ended.code, ended.err), (Some(0), vec![]));
}

fn hand_over(stream: &UnixStream, r: &Receiver<f64>) {
    stream.send_fd(r.memfd().as_raw_fd()).unwrap();
    stream.send_fd(r.empty_signal().as_raw_fd()).unwrap();
    stream.send_fd(r.full_signal().as_raw_fd()).unwrap();
}

/// Waits for the client's goodbye and answers as an honest server does.
fn confirm(mut stream: UnixStream, r: &mut Receiver<f64>) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let items = r.receiver_mut().read_count().unwrap() as u64;
    stream.write_all(&items.to_ne_bytes()).unwrap();
}

#[test]
fn a_hand_over_that_does_not_come() {
    // Nothing.
    let silent = client_of(&[], |stream, _| stream);
    silent.assert_error(1, &["no memfd", "nothing came for 5s"]);
    // One of three.
    let one = client_of(&[], |stream, _| {
        stream.send_fd(memfd(0).as_raw_fd()).unwrap();
    });
    one.assert_error(1, &["no empty signal"]);
    // The end.
    client_of(&[], |stream, _| drop(stream)).assert_error(1, &["no memfd"]);
    // Bytes without a descriptor.
    let bytes = client_of(&[], |mut stream, _| {
        stream.write_all(&[0; 12]).unwrap();
        stream
    });
    bytes.assert_error(1, &["no memfd", "without a descriptor"]);
}

#[test]
fn a_client_that_is_stopped_while_it_waits_for_the_ring() {
    let ended = client_of(&["--batches", "1"], |stream, client| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        assert_asleep(client);
        client.signal("STOP");
        client.signal("CONT");
        assert_asleep(client);
        hand_over(&stream, &r);
        confirm(stream, &mut r);
    });
    assert_eq!((ended.code, ended.err), (Some(0), vec![]));
}

#[test]
fn signals_that_are_no_eventfds() {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let zero = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .unwrap();
    let (socket, _other_end) = UnixStream::pair().unwrap();
    let signals: [&dyn AsRawFd; 3] = [&null, &zero, &socket];
    for signal in signals {
        let r = Receiver::<f64>::new(CAPACITY).unwrap();
        let honest: &dyn AsRawFd = r.full_signal();
        for (e, f) in [(signal, honest), (honest, signal)] {
            let ended = client_of(&["--flood", "1000000"], |stream, _| {
                for descriptor in [r.memfd(), e, f] {
                    stream.send_fd(descriptor.as_raw_fd()).unwrap();
                }
                stream
            });
            ended.assert_error(1, &["no eventfd"]);
        }
    }
}

/// An honest server may have made its signals so that they don't block.
#[test]
fn a_server_with_signals_that_do_not_block() {
    let ended = client_of(&["--flood", "1000000"], |mut stream, client| {
        let mut r = Receiver::<f64>::new(CAPACITY).unwrap();
        hand_over(&stream, &r);
        assert_asleep(client);
        set_nonblocking(r.full_signal());
        r.full_signal().write_all(&1u64.to_ne_bytes()).unwrap();
        assert_asleep(client);
        // A full ring at once, the rest once the client has said goodbye.
        let mut items = 0;
        r.receive_raw(|_, n| {
            items = n;
            n
        })
        .unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        items += r.receiver_mut().read_count().unwrap();
        stream.write_all(&items.to_ne_bytes()).unwrap();
    });
    assert_eq!((ended.code, ended.err), (Some(0), vec![]));
}

#[test]
fn a_counter_that_the_server_corrupts() {
    let ended = client_of(&["--flood", "1000000"], |stream, client| {
        let r = Receiver::<f64>::new(CAPACITY).unwrap();
        hand_over(&stream, &r);
        assert_asleep(client);
        r.memfd()
            .as_file()
            .write_at(&u64::MAX.to_ne_bytes(), 0)
            .unwrap();
        r.full_signal().write_all(&1u64.to_ne_bytes()).unwrap();
        stream
    });
    ended.assert_error(1, &["failed to publish in the ring"]);
}

#[test]
fn a_server_that_confirms_the_wrong_number() {
    for (answer, said) in [
        (&9u64.to_ne_bytes()[..], "summed 9 items of 100000"),
        (&[1, 2, 3], "gone before it confirmed"),
        (&[], "gone before it confirmed"),
    ] {
        let ended = client_of(&["--batches", "1"], |mut stream, _| {
            hand_over(&stream, &Receiver::<f64>::new(CAPACITY).unwrap());
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            stream.write_all(answer).unwrap();
        });
        assert_eq!((ended.code, ended.out.len()), (Some(1), 1));
        assert!(ended.err.concat().contains(said), "{:#?}", ended.err);
    }
}

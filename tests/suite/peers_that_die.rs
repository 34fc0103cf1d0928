//! Peers that are killed, stopped, or many.

use std::path::Path;

use crate::proc::{
    assert_asleep, assert_unharmed, held, ignores_interrupts, until_asleep, until_given_back,
};
use crate::programs::{Folder, Program, client, server, soon};
use crate::stand_ins::{StandIn, connect};

/// So long that only a hang-up ends it: no test waits for it.
const FOREVER: &[&str] = &["--interval", "1000"];
const NO_PAUSE: &[&str] = &["--interval", "0"];
/// More items than any test has time for.
const ENDLESS: &[&str] = &["--flood", "1000000000000000"];

/// The number in `Client 1 broke off after 123 items`.
fn items_left(line: &str) -> u64 {
    line.split(' ').nth(5).unwrap().parse().unwrap()
}

/// The sum of the numbers in `Sending 123 items of ...`.
fn items_sent(lines: &[String]) -> u64 {
    let number = |line: &String| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    lines.iter().map(number).sum()
}

/// Waits for the line that says that a client was killed, and returns the number of its items.
fn broken_off(server: &mut Program, n: u64) -> u64 {
    let beginning = format!("Client {n} broke off after ");
    items_left(&soon("the report", || server.until_err(&beginning)))
}

#[test]
fn client_killed_while_it_sleeps() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut client = client(&folder.socket(), FOREVER);
    client.out();
    server.out();
    client.kill();
    assert_eq!(broken_off(&mut server, 1), 100_000);
    assert_unharmed(&server, &folder.socket(), &before);
}

/// With Ctrl-C, as in the README.
#[test]
fn either_interrupted() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut interrupted = client(&folder.socket(), FOREVER);
    if ignores_interrupts(&interrupted) {
        eprintln!("skipped: whoever runs the tests ignores SIGINT, and so do they");
        return;
    }
    interrupted.out();
    server.out();
    interrupted.interrupt();
    assert_eq!(broken_off(&mut server, 1), 100_000);
    assert_unharmed(&server, &folder.socket(), &before);

    let mut left_alone = client(&folder.socket(), FOREVER);
    left_alone.out();
    server.interrupt();
    assert_gone(left_alone, &folder.socket());
}

#[test]
fn client_killed_in_mid_stream() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut total = 0;
    for n in 1..=10 {
        let client = client(&folder.socket(), ENDLESS);
        // By then, some of it has arrived.
        server.out();
        client.kill();
        total += broken_off(&mut server, n);
        server.until_out(&format!("Sum: {total}"));
    }
    assert_unharmed(&server, &folder.socket(), &before);
}

/// The server is stopped, so the client fills the ring and waits. All that it sent by then it
/// has printed, and all of that has to be in the total although nobody was there to see it die.
#[test]
fn client_killed_while_it_waits_on_a_full_ring() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut client = client(&folder.socket(), NO_PAUSE);
    let first = client.out();
    server.stop();
    assert_asleep(&[&client]);
    let more = client.kill();
    server.go_on();
    let sent = items_sent(&[first]) + items_sent(&more);
    assert_eq!(broken_off(&mut server, 1), sent);
    assert_unharmed(&server, &folder.socket(), &before);
}

/// What it finds out when it leaves depends on what was on its way to it.
#[test]
fn client_gone_before_it_said_anything() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    // With the descriptors unread, the server sees a connection reset; without, the end.
    let unread = connect(&folder.socket());
    server.until_err("Client 1 connected");
    until_asleep(&server);
    drop(unread);
    assert_eq!(broken_off(&mut server, 1), 0);
    drop(StandIn::connect(&folder.socket()));
    assert_eq!(broken_off(&mut server, 2), 0);
    assert_unharmed(&server, &folder.socket(), &before);
}

#[test]
fn server_killed() {
    for (args, ring_is_full) in [
        (FOREVER, false),
        (NO_PAUSE, false),
        (ENDLESS, false),
        (NO_PAUSE, true),
        (ENDLESS, true),
    ] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let client = client(&folder.socket(), args);
        server.out();
        if ring_is_full {
            server.stop();
            until_asleep(&client);
        }
        server.kill();
        assert_gone(client, &folder.socket());
    }
}

fn assert_gone(client: Program, socket: &Path) {
    let ended = soon("the client's end", || client.wait());
    assert_eq!((ended.code, ended.err.len()), (Some(1), 1));
    let said = format!(
        "failed to stream to the server at `{}`: it is gone",
        socket.display()
    );
    ended.assert_said(&[&said]);
}

/// The client has said goodbye, and waits for the answer of a server that is stopped.
#[test]
fn one_of_them_killed_before_the_answer() {
    for client_dies in [true, false] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let mut client = client(&folder.socket(), &["--batches", "2", "--interval", "1"]);
        let first = client.out();
        server.out();
        server.stop();
        let second = client.out();
        until_asleep(&client);
        if client_dies {
            client.kill();
            server.go_on();
            let sent = items_sent(&[first, second]);
            assert_eq!(broken_off(&mut server, 1), sent);
        } else {
            server.kill();
            assert_gone(client, &folder.socket());
        }
    }
}

/// While one of them is stopped, the other one waits: the server for items, the client, which has
/// filled the ring, for room. Then all of it arrives.
#[test]
fn one_of_them_stopped_and_continued() {
    for server_stops in [true, false] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let args = ["--batches", "60", "--interval", "0.02"];
        let mut client = client(&folder.socket(), &args);
        client.out();
        let (stopped, other) = match server_stops {
            true => (&server, &client),
            false => (&client, &server),
        };
        stopped.stop();
        assert_asleep(&[other]);
        stopped.go_on();
        let sent = items_sent(&client.wait().assert_done());
        server.until_err(&format!("Client 1 left after {sent} items"));
    }
}

#[test]
fn clients_by_the_hundred() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    // One after the other: some don't even take the ring, some just leave, some say goodbye.
    for n in 0..200 {
        let stream = connect(&folder.socket());
        if n % 3 > 0 {
            let mut peer = StandIn::take(stream);
            peer.send(&[1.0; 10]);
            if n % 3 > 1 {
                assert_eq!(peer.goodbye(), 10u64.to_ne_bytes());
            }
        }
    }
    // And at once, as many as go with the fewest descriptors that a shell may allow, 256.
    let mut peers: Vec<_> = (0..25)
        .map(|_| StandIn::connect(&folder.socket()))
        .collect();
    for peer in &mut peers {
        peer.send(&[1.0; 10]);
    }
    drop(peers);
    until_given_back(&server, &before);
    server.until_out(&format!("Sum: {}", (133 + 25) * 10));
    assert_asleep(&[&server]);
}

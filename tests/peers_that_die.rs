//! Peers that are killed, stopped, or many.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use common::{
    Folder, Peer, Program, SERVER, assert_asleep, assert_no_cpu, client, held, server, until,
    until_given_back,
};

/// So long that only a hang-up ends it: no test waits for it.
const FOREVER: &[&str] = &["--interval", "1000"];
const NO_PAUSE: &[&str] = &["--interval", "0"];
/// More items than any test has time for.
const ENDLESS: &[&str] = &["--flood", "1000000000000000"];

/// The number in `Client 1 left after 123 items`.
fn items_left(line: &str) -> f64 {
    line.split(' ').nth(4).unwrap().parse().unwrap()
}

/// The number of items in `Sending 123 items of ...`.
fn items_sent(lines: &[String]) -> f64 {
    lines
        .iter()
        .map(|line| line.split(' ').nth(1).unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Asserts that the server serves the next client as if nothing had happened.
fn assert_serves(server: &mut Program, socket: &Path) {
    let next = client(socket, &["--flood", "1000000"]).wait();
    assert_eq!((next.code, next.err), (Some(0), vec![]));
    server.until_err("Client ");
}

#[test]
fn client_killed_while_it_sleeps() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut client = client(&folder.socket(), FOREVER);
    client.out();
    assert_eq!(server.out(), "Sum: 0.9999999999980838");
    client.kill();
    server.until_err("Client 1 left after 100000 items");
    until_given_back(&server, &before);
    assert_serves(&mut server, &folder.socket());
}

#[test]
fn client_killed_in_mid_stream() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    let mut total = 0.0;
    for n in 1..=10 {
        let client = client(&folder.socket(), ENDLESS);
        // By then, some of it has arrived.
        server.out();
        client.kill();
        total += items_left(&server.until_err(&format!("Client {n} left after ")));
        server.until_out(&format!("Sum: {total}"));
    }
    until_given_back(&server, &before);
}

/// The server is stopped, so the client fills the ring and waits. All that it published by then it
/// has printed, and all of that has to be in the total although nobody was there to see it die.
#[test]
fn client_killed_while_it_waits_on_a_full_ring() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut client = client(&folder.socket(), NO_PAUSE);
    client.out();
    server.signal("STOP");
    assert_asleep(&client);
    let printed = client.kill_and_read();
    server.signal("CONT");
    let left = server.until_err("Client 1 left after ");
    // The first line is read already: 100000 items.
    assert_eq!(items_left(&left), 100_000.0 + items_sent(&printed));
    assert_serves(&mut server, &folder.socket());
}

#[test]
fn client_gone_before_it_said_anything() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    // With the descriptors unread, the server sees a connection reset; without, the end.
    drop(UnixStream::connect(folder.socket()).unwrap());
    server.until_err("Client 1 ");
    drop(Peer::connect(&folder.socket()));
    server.until_err("Client 2 left after 0 items");
    until_given_back(&server, &before);
    assert_serves(&mut server, &folder.socket());
}

#[test]
fn server_killed_while_the_client_sleeps() {
    let folder = Folder::new();
    let server = server(&folder.socket());
    let mut client = client(&folder.socket(), FOREVER);
    client.out();
    server.kill();
    assert_gone(client, &folder.socket());
}

#[test]
fn server_killed_while_the_client_writes() {
    for args in [NO_PAUSE, ENDLESS] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let client = client(&folder.socket(), args);
        server.out();
        server.kill();
        assert_gone(client, &folder.socket());
    }
}

#[test]
fn server_killed_while_the_client_waits_on_a_full_ring() {
    for args in [NO_PAUSE, ENDLESS] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let client = client(&folder.socket(), args);
        server.out();
        server.signal("STOP");
        assert_asleep(&client);
        server.kill();
        assert_gone(client, &folder.socket());
    }
}

#[test]
fn server_killed_before_it_confirmed() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut client = client(&folder.socket(), &["--batches", "2", "--interval", "0.3"]);
    client.out();
    server.out();
    server.signal("STOP");
    client.out();
    // That was all, and now it waits for the answer.
    assert_asleep(&client);
    server.kill();
    assert_gone(client, &folder.socket());
}

fn assert_gone(client: Program, socket: &Path) {
    let ended = client.wait();
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.err.len(), 1, "{:#?}", ended.err);
    let said = format!("error: the server at `{}` is gone", socket.display());
    assert!(ended.err[0].starts_with(&said), "{:#?}", ended.err);
}

#[test]
fn server_stopped_and_continued() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let client = client(&folder.socket(), &["--flood", "30000000"]);
    server.err();
    server.signal("STOP");
    assert_asleep(&client);
    server.signal("CONT");
    assert_eq!(client.wait().code, Some(0));
    server.until_out("Sum: 30000000");
}

#[test]
fn client_stopped_and_continued() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let client = client(&folder.socket(), &["--flood", "100000000"]);
    server.out();
    client.signal("STOP");
    assert_asleep(&server);
    client.signal("CONT");
    assert_eq!(client.wait().code, Some(0));
    server.until_out("Sum: 100000000");
}

#[test]
fn clients_by_the_hundred() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let before = held(&server);
    // One after the other: some say goodbye, some just leave, some don't even take the ring.
    for n in 0..200 {
        let stream = UnixStream::connect(folder.socket()).unwrap();
        if n % 3 > 0 {
            drop(stream);
            let mut peer = Peer::connect(&folder.socket());
            peer.publish(&[1.0; 10]);
            if n % 3 > 1 {
                assert_eq!(peer.goodbye(), 10u64.to_ne_bytes());
            }
        }
    }
    // And as many at once as the usual limit of 1024 descriptors allows.
    let mut peers: Vec<_> = (0..150).map(|_| Peer::connect(&folder.socket())).collect();
    for peer in &mut peers {
        peer.publish(&[1.0; 10]);
    }
    drop(peers);
    until_given_back(&server, &before);
    server.until_out(&format!("Sum: {}", (133 + 150) * 10));
    assert_asleep(&server);
}

#[test]
fn out_of_descriptors() {
    let folder = Folder::new();
    let mut limited = Command::new("sh");
    // Enough for itself and three clients.
    limited.args(["-c", "ulimit -n 24; exec \"$@\"", "sh", SERVER, "--socket"]);
    limited.arg(folder.socket());
    let mut server = Program::start(limited);
    server.until_err("Listening on ");
    let before = held(&server);
    let peers: Vec<_> = (0..3).map(|_| Peer::connect(&folder.socket())).collect();
    let waiting: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(folder.socket()).unwrap())
        .collect();
    server.until_err("failed to ");
    assert_no_cpu(&server);
    // That took a second or more, in which it has tried again and again, and has not said so.
    let said = server.unread_err();
    assert!(said.len() <= 2, "{said:#?}");

    drop((peers, waiting));
    until_given_back(&server, &before);
    assert_serves(&mut server, &folder.socket());
    until("the last client's end", || held(&server) == before);
}

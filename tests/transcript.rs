//! What a run prints, and that it is complete.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Folder, Peer, assert_asleep, client, readme_lines, server};

/// The figures stand for one batch a second, because the client sends what there is room for and
/// the server adds up what there is to read: they need a server that is done with one batch when
/// the next one comes. Any pace that leaves it the time gives the same figures, so this tries
/// faster ones first. The last one is the documented pace, and must do.
#[test]
fn sixteen_lines() {
    let sums = readme_lines("Sum: ");
    let sendings = readme_lines("Sending ");
    assert_eq!((sums.len(), sendings.len()), (16, 16));
    for interval in ["0.06", "0.2", "1"] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let args = ["--batches", "16", "--interval", interval];
        let client = client(&folder.socket(), &args).wait();
        assert_eq!((client.code, client.err), (Some(0), vec![]));
        // Up to the first difference: if two batches became one line, there is no sixteenth.
        let printed: Vec<_> = sums
            .iter()
            .map_while(|s| Some(server.out()).filter(|o| o == s))
            .collect();
        if printed == sums && client.out == sendings {
            server.until_err("Client 1 left after 6502808 items");
            return;
        }
        if interval == "1" {
            assert_eq!(client.out, sendings);
            assert_eq!(printed, sums);
        }
    }
}

/// Without options, a second passes between two batches.
#[test]
fn one_batch_a_second() {
    let folder = Folder::new();
    let _server = server(&folder.socket());
    let start = Instant::now();
    let mut client = client(&folder.socket(), &[]);
    client.out();
    client.out();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_flood_is_exact() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut total = 0;
    // One item, a full ring and one more, a prime number of items, many rounds of the ring.
    for (n, items) in (1..).zip([1, 500_217, 1_299_709, 30_000_000]) {
        let client = client(&folder.socket(), &["--flood", &items.to_string()]).wait();
        assert_eq!((client.code, client.err), (Some(0), vec![]));
        let [line] = &client.out[..] else {
            panic!("{:#?}", client.out)
        };
        let [seconds, rate] = line
            .strip_prefix(&format!("Sent {items} items in "))
            .and_then(|rest| rest.strip_suffix(" GB/s"))
            .map(|figures| {
                figures
                    .split(" s: ")
                    .map(|f| f.split_once('.').unwrap().1.len())
            })
            .unwrap()
            .collect::<Vec<_>>()[..]
        else {
            panic!("{line}")
        };
        assert_eq!((seconds, rate), (3, 2), "decimals in {line}");
        total += items;
        server.until_out(&format!("Sum: {total}"));
        server.until_err(&format!("Client {n} left after {items} items"));
    }
}

#[test]
fn no_items_are_confirmed_too() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    for option in ["--flood", "--batches"] {
        let client = client(&folder.socket(), &[option, "0"]).wait();
        assert_eq!((client.code, client.err), (Some(0), vec![]));
    }
    server.until_err("Client 2 left after 0 items");
}

#[test]
fn several_clients_at_once_add_up_exactly() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let items = 5_000_000;
    let flood = ["--flood", &items.to_string()];
    let clients: Vec<_> = (0..8).map(|_| client(&folder.socket(), &flood)).collect();
    for client in clients {
        let ended = client.wait();
        assert_eq!((ended.code, ended.err), (Some(0), vec![]));
    }
    server.until_out(&format!("Sum: {}", 8 * items));
}

/// A client that is still there and pauses does not hold up another one.
#[test]
fn each_client_has_its_own_ring() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut first = client(&folder.socket(), &["--interval", "1000"]);
    assert_eq!(first.out(), "Sending 100000 items of 0.00001, in total 1");
    assert_eq!(server.out(), "Sum: 0.9999999999980838");
    let second = client(&folder.socket(), &["--batches", "1"]).wait();
    assert_eq!((second.code, second.out.len()), (Some(0), 1));
    assert_eq!(server.out(), "Sum: 1.9999999999961675");
    server.until_err("Client 2 left after 100000 items");
}

#[test]
fn twenty_lines_a_second_and_always_the_last_total() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut peer = Peer::connect(&folder.socket());
    let start = Instant::now();
    let mut total = 0;
    while start.elapsed() < Duration::from_secs(1) {
        peer.publish(&[1.0]);
        total += 1;
    }
    let mut lines = 1;
    while server.out() != format!("Sum: {total}") {
        lines += 1;
    }
    let most = 1.0 + 20.0 * start.elapsed().as_secs_f64();
    assert!(
        f64::from(lines) <= most,
        "{lines} lines instead of {most} at most"
    );
}

/// The limit on the hand-over ends with the hand-over.
#[test]
fn a_long_silence_is_no_hang_up() {
    let folder = Folder::new();
    let _server = server(&folder.socket());
    let args = ["--batches", "2", "--interval", "6"];
    let client = client(&folder.socket(), &args).wait();
    assert_eq!((client.code, client.err), (Some(0), vec![]));
}

#[test]
fn nobody_sends_nobody_runs() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    assert_asleep(&server);
    let mut client = client(&folder.socket(), &["--interval", "1000"]);
    client.out();
    server.out();
    assert_asleep(&server);
    assert_asleep(&client);
}

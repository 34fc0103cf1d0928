//! What a run prints, and that it is complete.

use std::thread;
use std::time::{Duration, Instant};

use shmem_ipc::sharedring::Receiver;
use shmem_test::CAPACITY;

use crate::proc::{assert_asleep, sleeps_of};
use crate::programs::{Folder, client, server};
use crate::readme;
use crate::stand_ins::{StandIn, answer, await_goodbye, client_of, hand_over_ring, ring_items};

/// The figures stand for one batch a second, because the client sends what there is room for and
/// the server adds up what there is to read: they need a server that is done with one batch when
/// the next one comes. Any pace that leaves it the time gives the same figures, so this tries
/// faster ones first. The last one is the documented pace, and must do.
#[test]
fn sixteen_lines() {
    let items = ring_items();
    assert_eq!(items, 500_216, "the README's figures need pages of 4 KiB");
    let sums = readme::sixteen_lines("Sum: ");
    let sendings = readme::sixteen_lines("Sending ");
    assert_eq!((sums.len(), sendings.len()), (16, 16));
    for interval in ["0.06", "0.2", "1"] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let args = ["--batches", "16", "--interval", interval];
        let sent = client(&folder.socket(), &args).wait().assert_done();
        // Up to the first difference: if two batches became one line, there is no sixteenth.
        let printed: Vec<_> = sums
            .iter()
            .map_while(|s| Some(server.out()).filter(|o| o == s))
            .collect();
        if printed == sums && sent == sendings {
            server.until_err("Client 1 left after 6502808 items");
            return;
        }
        if interval == "1" {
            assert_eq!(sent, sendings);
            assert_eq!(printed, sums);
        }
    }
}

/// Without options, a second passes between two batches, and not two.
#[test]
fn one_batch_a_second() {
    let folder = Folder::new();
    let _server = server(&folder.socket());
    let start = Instant::now();
    let mut client = client(&folder.socket(), &[]);
    let mut times = vec![];
    for seconds in 0..10 {
        client.out();
        times.push(start.elapsed());
        assert!(start.elapsed() >= Duration::from_secs(seconds), "{times:?}");
        // The machine may be busy at times, but not each time.
        let gaps = times.windows(2).map(|two| two[1] - two[0]);
        if gaps.min() < Some(Duration::from_millis(1900)) && times.len() > 1 {
            return;
        }
    }
    panic!("{times:?}");
}

/// The seconds and the rate in `Sent ... items in 0.123 s: 4.56 GB/s`.
fn figures(lines: &[String], items: usize) -> [f64; 2] {
    let [line] = lines else { panic!("{lines:#?}") };
    let figures = line
        .strip_prefix(&format!("Sent {items} items in "))
        .and_then(|rest| rest.strip_suffix(" GB/s"))
        .and_then(|rest| rest.split_once(" s: "))
        .unwrap_or_else(|| panic!("{line}"));
    let figure = |text: &str, decimals| {
        assert_eq!(text.split_once('.').unwrap().1.len(), decimals, "{line}");
        text.parse().unwrap()
    };
    [figure(figures.0, 3), figure(figures.1, 2)]
}

#[test]
fn a_flood_is_exact() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let mut total = 0;
    // One item, a full ring and one more, a prime number of items, many rounds of the ring.
    for (n, items) in (1..).zip([1, ring_items() + 1, 1_299_709, 30_000_000]) {
        let client = client(&folder.socket(), &["--flood", &items.to_string()]);
        let [seconds, rate] = figures(&client.wait().assert_done(), items);
        // Both are rounded.
        let gigabytes = items as f64 * 8.0 / 1e9;
        let least = gigabytes / (seconds + 0.0006) - 0.006;
        let most = gigabytes / (seconds - 0.0006).max(0.0) + 0.006;
        assert!((least..=most).contains(&rate), "{rate} GB/s in {seconds} s");
        total += items;
        server.until_out(&format!("Sum: {total}"));
        server.until_err(&format!("Client {n} left after {items} items"));
    }
}

/// The flood's clock runs from the first item to the confirmation.
#[test]
fn the_clock_of_a_flood() {
    let pause = Duration::from_millis(300);
    let mut start = Instant::now();
    let ended = client_of(&["--flood", "1000"], |stream, _| {
        // Connected, but without a ring: this does not count.
        thread::sleep(pause);
        start = Instant::now();
        hand_over_ring(&stream, &Receiver::new(CAPACITY).unwrap());
        await_goodbye(&stream);
        // The last item is in the ring, but not confirmed: this does.
        thread::sleep(pause);
        answer(&stream, 1000);
    });
    let outside = start.elapsed().as_secs_f64();
    let [seconds, _] = figures(&ended.assert_done(), 1000);
    let plausible = pause.as_secs_f64() - 0.001..=outside + 0.001;
    assert!(
        plausible.contains(&seconds),
        "{seconds} s, not {plausible:?}"
    );
}

#[test]
fn no_items_are_confirmed_too() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    for (n, option) in (1..).zip(["--flood", "--batches"]) {
        client(&folder.socket(), &[option, "0"])
            .wait()
            .assert_done();
        server.until_err(&format!("Client {n} left after 0 items"));
    }
}

/// In large pieces, then in many small ones, so that an addition that overwrites another one would
/// have its chance.
#[test]
fn several_clients_at_once_add_up_exactly() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    let flood = ["--flood", "5000000"];
    let clients: Vec<_> = (0..8).map(|_| client(&folder.socket(), &flood)).collect();
    for client in clients {
        client.wait().assert_done();
    }
    server.until_out("Sum: 40000000");

    let peers: Vec<_> = (0..8).map(|_| StandIn::connect(&folder.socket())).collect();
    let threads = peers.into_iter().map(|mut peer| {
        thread::spawn(move || {
            for _ in 0..200_000 {
                peer.send(&[1.0]);
            }
            assert_eq!(peer.goodbye(), 200_000u64.to_ne_bytes());
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
    server.until_out("Sum: 41600000");
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
    assert_eq!(second.assert_done().len(), 1);
    assert_eq!(server.out(), "Sum: 1.9999999999961675");
    server.until_err("Client 2 left after 100000 items");
}

/// However often the total changes, and also if it does not: NaN stays NaN.
#[test]
fn twenty_lines_a_second_and_always_the_last_total() {
    for item in [1.0, f64::NAN] {
        let folder = Folder::new();
        let mut server = server(&folder.socket());
        let mut peer = StandIn::connect(&folder.socket());
        let (start, before) = (Instant::now(), sleeps_of(&server, "sums"));
        let mut total = 0.0;
        while start.elapsed() < Duration::from_secs(1) {
            peer.send(&[item]);
            total += item;
        }
        let sleeps = sleeps_of(&server, "sums") - before;
        // Two for each line, and some that wait for the total to be free.
        let most = 60.0 * start.elapsed().as_secs_f64();
        assert!((sleeps as f64) < most, "{sleeps} sleeps for {item}");

        let mut lines = 1;
        while server.out() != format!("Sum: {total}") {
            lines += 1;
        }
        let most = 1.0 + 20.0 * start.elapsed().as_secs_f64();
        assert!(f64::from(lines) <= most, "{lines} lines, {most} at most");
    }
}

/// The limit on the hand-over ends with the hand-over.
#[test]
fn a_long_silence_is_no_hang_up() {
    let folder = Folder::new();
    let _server = server(&folder.socket());
    let args = ["--batches", "2", "--interval", "6"];
    client(&folder.socket(), &args).wait().assert_done();
}

#[test]
fn nobody_sends_nobody_runs() {
    let folder = Folder::new();
    let mut server = server(&folder.socket());
    assert_asleep(&[&server]);
    let mut client = client(&folder.socket(), &["--interval", "1000"]);
    client.out();
    server.out();
    assert_asleep(&[&server, &client]);
}

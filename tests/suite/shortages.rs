//! What is short for a while: descriptors, threads, descriptors under way. Whoever has a ring is served,
//! whoever waits for one gets it when there is enough, and what no waiting heals is not waited for.

use std::process::Command;
use std::time::Duration;

use crate::proc::{assert_asleep, assert_unharmed, come_to_rest, held, until_given_back};
use crate::programs::{
    Folder, Program, SERVER, as_another_user, by_user, client, server_after, server_with, soon,
};
use crate::stand_ins::{StandIn, connect};

/// What no waiting heals drops the client at once. Here the memfd would be larger than the files that
/// the server may have; the signal that comes with the error has to be ignored, or it kills.
#[test]
fn a_ring_that_can_not_be_made() {
    let folder = Folder::new();
    let limit = "trap '' XFSZ; ulimit -f 100";
    let mut server = Program::start(server_after(limit, &folder.socket()));
    server.until_err("Listening on ");
    let before = held(&server);
    for n in 1..=2 {
        let ended = soon("the client's end", || client(&folder.socket(), &[]).wait());
        ended.assert_error(1, &["hung up"]);
        let said = "failed to make a ring's memfd and eventfds: File too large (os error 27)";
        let line = server.until_err(&format!("Client {n} dropped: "));
        assert_eq!(line, format!("Client {n} dropped: {said}"));
    }
    until_given_back(&server, &before);
    assert_asleep(&[&server]);
    assert_eq!(server.all_err().len(), 5);
}

/// Whoever comes while the descriptors are in use waits, and is served when they are free again.
#[test]
fn out_of_descriptors() {
    // The listener takes one, and each of three clients six. So what fails for the fourth is to
    // accept it, or the last of its six.
    for free in [19, 24] {
        let folder = Folder::new();
        let mut server = server_with(free, &folder.socket());
        let before = held(&server);
        let peers: Vec<_> = (0..3).map(|_| StandIn::connect(&folder.socket())).collect();
        let waiting: Vec<_> = (0..10).map(|_| connect(&folder.socket())).collect();
        let said = server.until_err("short of something, trying again: ");
        assert!(said.contains("(os error 24)"), "{said}");
        // It tries ten times a second.
        come_to_rest(&[&server], Duration::from_secs(1), 30);

        drop(peers);
        for stream in waiting {
            let mut peer = StandIn::take(stream);
            peer.send(&[1.0]);
            assert_eq!(peer.goodbye(), 1u64.to_ne_bytes());
        }
        server.until_out("Sum: 10");
        assert_unharmed(&server, &folder.socket(), &before);

        // Each wait is said once: one client's to be accepted, and one's for its ring.
        let said = server.all_err().iter().filter(|l| l.starts_with("short"));
        assert!(said.count() <= 2 * 15, "{:#?}", server.all_err());
    }
}

/// Threads are counted by user, and not for root. With three, a server can't serve yet; each client takes
/// two. Raised later, the limit lets everybody in.
#[test]
fn out_of_threads() {
    if Command::new("prlimit").arg("-V").output().is_err() {
        eprintln!("skipped: there is no `prlimit` here");
        return;
    }
    for threads in [3, 4, 5, 6] {
        let folder = Folder::new();
        let limit = format!("prlimit --pid $$ --nproc={threads}:100");
        let Some(command) = as_another_user(1, SERVER, &folder, &limit) else {
            return;
        };
        let mut server = Program::start(command);
        server.until_err("Listening on ");
        let streams: Vec<_> = (0..3).map(|_| connect(&folder.socket())).collect();
        server.until_err("short of something, trying again: ");

        let mut streams = streams.into_iter();
        let served = (threads - 3) / 2;
        let mut sum = 0;
        for stream in streams.by_ref().take(served) {
            let mut peer = StandIn::take(stream);
            peer.send(&[1.0]);
            sum += 1;
            server.until_out(&format!("Sum: {sum}"));
            assert_eq!(peer.goodbye(), 1u64.to_ne_bytes());
        }
        let pid = server.pid().to_string();
        let mut raise = by_user(1, "prlimit");
        let raised = raise.args(["--pid", &pid, "--nproc=100"]).status();
        assert!(raised.unwrap().success());
        for stream in streams {
            let mut peer = StandIn::take(stream);
            peer.send(&[1.0]);
            assert_eq!(peer.goodbye(), 1u64.to_ne_bytes());
        }
        server.until_out("Sum: 3");
    }
}

/// Descriptors that nobody has received are counted by user, too, and compared with the limit of whoever
/// sends one more. One server has many under way; the other one, with a low limit, waits and says so.
#[test]
fn too_many_descriptors_under_way() {
    let (one, other) = (Folder::new(), Folder::new());
    let Some(many) = as_another_user(2, SERVER, &one, "ulimit -n 1000") else {
        return;
    };
    let mut many = Program::start(many);
    many.until_err("Listening on ");
    let takes_none: Vec<_> = (0..30).map(|_| connect(&one.socket())).collect();
    many.until_err("Client 30 connected");

    let few = as_another_user(2, SERVER, &other, "ulimit -n 60").unwrap();
    let mut few = Program::start(few);
    few.until_err("Listening on ");
    let waiting = connect(&other.socket());
    let said = few.until_err("short of something, trying again: ");
    assert!(said.contains("Too many references"), "{said}");
    come_to_rest(&[&few], Duration::from_secs(1), 30);
    drop(takes_none);
    let mut peer = StandIn::take(waiting);
    peer.send(&[1.0]);
    assert_eq!(peer.goodbye(), 1u64.to_ne_bytes());
    few.until_err("Client 1 left after 1 items");
}

//! Stand-ins for either program, which follow the wire, or do not: every part of it is within a
//! test's reach.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use passfd::FdPassingExt;
use shmem_ipc::sharedring::{self, Sender};
use shmem_test::CAPACITY;

use crate::programs::{Ended, Folder, PATIENCE, Program, client, within_patience};

/// Runs the client against a server that the test plays: it gets the connection.
pub fn client_of<T>(args: &[&str], play: impl FnOnce(UnixStream, &Program) -> T) -> Ended {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let client = client(&folder.socket(), args);
    let (stream, _) = within_patience("a client", move || listener.accept().unwrap());
    limit(&stream);
    let _until_the_end = play(stream, &client);
    client.wait()
}

/// Sends three descriptors.
pub fn hand_over(stream: &UnixStream, descriptors: [&dyn AsRawFd; 3]) {
    for descriptor in descriptors {
        stream.send_fd(descriptor.as_raw_fd()).unwrap();
    }
}

/// Hands over a ring as an honest server does.
pub fn hand_over_ring(stream: &UnixStream, r: &sharedring::Receiver<f64>) {
    hand_over(stream, [r.memfd(), r.empty_signal(), r.full_signal()]);
}

/// Waits for the client's goodbye.
pub fn await_goodbye(stream: &UnixStream) {
    assert!(ends(stream), "a client has nothing to say");
}

/// Answers a goodbye.
pub fn answer(mut stream: &UnixStream, number: usize) {
    stream.write_all(&(number as u64).to_ne_bytes()).unwrap();
}

/// Waits for a byte or the end, and says whether it was the end.
pub fn ends(mut stream: &UnixStream) -> bool {
    uninterrupted(|| stream.read(&mut [0])) == 0
}

/// Tries again: a read with a time limit may be interrupted (signal(7)), and is on busy machines.
pub fn uninterrupted<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match attempt() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done.unwrap(),
        }
    }
}

fn limit(stream: &UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// Connects to a server and does nothing else.
pub fn connect(socket: &Path) -> UnixStream {
    let socket = socket.to_path_buf();
    let stream = within_patience("a connection", move || UnixStream::connect(socket).unwrap());
    limit(&stream);
    stream
}

/// A client that follows the wire, or does not: every part of it is within a test's reach.
pub struct StandIn {
    pub stream: UnixStream,
    pub ring: Sender<f64>,
}

impl StandIn {
    pub fn connect(socket: &Path) -> Self {
        StandIn::take(connect(socket))
    }

    /// Takes the ring.
    pub fn take(stream: UnixStream) -> Self {
        let [memfd, empty_signal, full_signal] = [(); 3].map(|()| recv_file(&stream));
        let ring = Sender::open(CAPACITY, memfd, empty_signal, full_signal).unwrap();
        StandIn { stream, ring }
    }

    /// Sends items for which there must be room, and signals.
    pub fn send(&mut self, items: &[f64]) {
        let mut left = items.iter();
        self.ring
            .sender_mut()
            .send_foreach(items.len(), || *left.next().unwrap());
        assert_eq!(left.len(), 0, "no room");
        self.signal(1);
    }

    /// Adds to the empty signal's counter.
    pub fn signal(&self, count: u64) {
        let mut signal = self.ring.empty_signal();
        signal.write_all(&count.to_ne_bytes()).unwrap();
    }

    /// The ring's count: items in it.
    pub fn count(&self) -> u64 {
        let mut count = [0; 8];
        self.ring.memfd().as_file().read_at(&mut count, 0).unwrap();
        u64::from_ne_bytes(count)
    }

    pub fn set_count(&self, count: u64) {
        let memory = self.ring.memfd().as_file();
        memory.write_at(&count.to_ne_bytes(), 0).unwrap();
    }

    /// Says goodbye; returns all that the server has to say until it closes.
    pub fn goodbye(mut self) -> Vec<u8> {
        self.stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = vec![];
        self.stream.read_to_end(&mut answer).unwrap();
        answer
    }
}

/// Receives one descriptor.
fn recv_file(stream: &UnixStream) -> File {
    let fd = uninterrupted(|| stream.recv_fd());
    // SAFETY: the kernel has opened it for this message, so nobody else owns it.
    unsafe { File::from_raw_fd(fd) }
}

/// Items that a ring holds here: it ends with a whole page, and pages differ.
pub fn ring_items() -> usize {
    let mut ring = Sender::<f64>::new(CAPACITY).unwrap();
    ring.sender_mut().write_count().unwrap()
}

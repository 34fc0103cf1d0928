use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};

use first::peer::Peer;
use passfd::FdPassingExt;
use shmem_ipc::sharedring::Receiver;

fn main() -> anyhow::Result<()> {
    // A datagram socket can't connect to a server's socket. "Refused": nobody has it open.
    let probe = UnixDatagram::unbound()?.connect("first.sock");
    if probe.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
        std::fs::remove_file("first.sock")?;
    }
    let listener = UnixListener::bind("first.sock")?;
    let (stream, _) = listener.accept()?;

    let mut ring = Receiver::<f64>::new(500_000)?;
    stream.send_fd(ring.memfd().as_raw_fd())?;
    stream.send_fd(ring.empty_signal().as_raw_fd())?;
    stream.send_fd(ring.full_signal().as_raw_fd())?;

    let client = Peer::watch(stream, &[ring.empty_signal(), ring.full_signal()])?;

    let (mut total, mut items) = (0.0, 0);
    loop {
        let connected = client.wait(ring.empty_signal());
        let mut read = |piece: &[f64]| {
            total += piece.iter().sum::<f64>();
            println!("Sum: {total}");
            items += piece.len() as u64;
            piece.len()
        };
        // SAFETY: there is one client, and it leaves alone what it has sent.
        while unsafe { ring.receive_trusted(&mut read)? }.remaining > 0 {}
        if !connected {
            let left = client.confirm(items);
            let how = if left { "left" } else { "broke off" };
            println!("The client {how} after {items} items");
            return Ok(());
        }
    }
}

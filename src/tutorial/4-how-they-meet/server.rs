use std::os::unix::net::UnixStream;

use first::{CAPACITY, Item, handover, peer::Peer, socket};
use shmem_ipc::sharedring::Receiver;

fn main() -> anyhow::Result<()> {
    let listener = socket::listen("first.sock".as_ref())?;
    loop {
        let (stream, _) = listener.accept()?;
        serve(stream).unwrap_or_else(|e| println!("A client is lost: {e:#}"));
    }
}

fn serve(stream: UnixStream) -> anyhow::Result<()> {
    let mut ring = Receiver::<Item>::new(CAPACITY)?;
    handover::give(&stream, &ring)?;
    let client = Peer::watch(stream, &[ring.empty_signal(), ring.full_signal()])?;

    let (mut total, mut items) = (0.0, 0);
    loop {
        let connected = client.wait(ring.empty_signal());
        let mut read = |piece: &[Item]| {
            total += piece.iter().sum::<Item>();
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

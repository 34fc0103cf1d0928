use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::ensure;
use first::{CAPACITY, Item, framing, handover, peer::Peer, socket};
use shmem_ipc::sharedring::Receiver;

fn main() -> anyhow::Result<()> {
    let listener = socket::listen("first.sock".as_ref())?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(|| serve(stream).unwrap_or_else(|e| println!("A client is lost: {e:#}")));
    }
}

fn serve(stream: UnixStream) -> anyhow::Result<()> {
    let mut ring = Receiver::<Item>::new(CAPACITY)?;
    handover::give(&stream, &ring)?;
    let client = Peer::watch(stream, &[ring.empty_signal(), ring.full_signal()])?;
    let (mut rest, mut texts, mut bytes) = (vec![], 0, 0);
    loop {
        let connected = client.wait(ring.empty_signal());
        let mut more = true;
        while more {
            let status = ring.receive_raw(|first, len| {
                let len = len.min(1 << 16); // So that `rest` stays short.
                // SAFETY: the ring lends `len` bytes from `first` on.
                rest.extend((0..len).map(|i| unsafe { first.add(i).read_volatile() }));
                len
            })?;
            more = status.remaining > 0;
            // From here on, nobody else can change what we look at.
            framing::take_whole(&mut rest, |text| {
                texts += 1;
                bytes += text.len();
            })?;
        }
        if !connected {
            ensure!(
                rest.is_empty(),
                "the client is gone in the middle of a text"
            );
            let left = client.confirm(texts);
            let how = if left { "left" } else { "broke off" };
            println!("The client {how} after {texts} texts, {bytes} bytes");
            return Ok(());
        }
    }
}

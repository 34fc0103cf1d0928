use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::ensure;
use first::{CAPACITY, Item, framing, handover, peer::Peer, ring::TrustedReceiver, socket};
use shmem_ipc::sharedring::Receiver;

fn main() -> anyhow::Result<()> {
    let listener = socket::listen("first.sock".as_ref())?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(|| serve(stream).unwrap_or_else(|e| println!("A client is lost: {e:#}")));
    }
}

fn serve(stream: UnixStream) -> anyhow::Result<()> {
    let receiver = Receiver::<Item>::new(CAPACITY)?;
    handover::give(&stream, &receiver)?;
    let client = Peer::watch(stream, &[receiver.empty_signal(), receiver.full_signal()])?;
    // SAFETY: this ring has one client, and the client leaves alone what it has sent.
    let mut ring = unsafe { TrustedReceiver::new(receiver) };
    let (mut rest, mut texts, mut bytes) = (vec![], 0, 0);
    loop {
        let connected = client.wait(ring.empty_signal());
        framing::receive(&mut ring, &mut rest, |text| {
            texts += 1;
            bytes += text.len();
        })?;
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

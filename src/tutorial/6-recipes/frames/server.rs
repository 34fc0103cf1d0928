use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::ensure;
use first::{CAPACITY, Item, ROWS, handover, peer::Peer, ring::TrustedReceiver, socket};
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
    let (mut rows, mut brightness) = (0, 0);
    loop {
        let connected = client.wait(ring.empty_signal());
        let mut read = |piece: &[Item]| {
            for row in piece {
                brightness += row.iter().map(|&colour| u64::from(colour)).sum::<u64>();
                rows += 1;
                if rows % ROWS == 0 {
                    let mean = brightness / (ROWS * size_of::<Item>()) as u64;
                    println!("Frame {}: brightness {mean}", rows / ROWS);
                    brightness = 0;
                }
            }
        };
        while ring.receive(&mut read)? > 0 {}
        if !connected {
            ensure!(
                rows % ROWS == 0,
                "the client is gone in the middle of a frame"
            );
            let frames = (rows / ROWS) as u64;
            let left = client.confirm(frames);
            let how = if left { "left" } else { "broke off" };
            println!("The client {how} after {frames} frames");
            return Ok(());
        }
    }
}

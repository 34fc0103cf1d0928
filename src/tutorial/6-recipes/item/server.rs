use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;

use first::{CAPACITY, Item, handover, peer::Peer, ring::TrustedReceiver, socket};
use shmem_ipc::sharedring::Receiver;

static TOTAL: Mutex<f64> = Mutex::new(0.0);

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
    let mut items = 0;
    loop {
        let connected = client.wait(ring.empty_signal()); // First ask ...
        loop {
            let mut sum = 0.0;
            let num = ring.receive(|piece| piece.iter().for_each(|item| sum += item.value))?;
            if num == 0 {
                break; // ... then look, until the ring is empty.
            }
            items += num as u64;
            let mut total = TOTAL.lock().unwrap();
            *total += sum;
            println!("Sum: {total}");
        }
        if !connected {
            let left = client.confirm(items);
            let how = if left { "left" } else { "broke off" };
            println!("The client {how} after {items} items");
            return Ok(());
        }
    }
}

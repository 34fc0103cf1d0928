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
        let mut read = |first: *const Item, len: usize| {
            for i in 0..len {
                // SAFETY: the ring lends `len` items from `first` on.
                let item = unsafe { first.add(i).read_volatile() }; // Copy it first ...
                if item.is_finite() {
                    total += item; // ... then check the copy, and use the copy.
                }
            }
            println!("Sum: {total}");
            items += len as u64;
            len
        };
        while ring.receive_raw(&mut read)?.remaining > 0 {}
        if !connected {
            let left = client.confirm(items);
            let how = if left { "left" } else { "broke off" };
            println!("The client {how} after {items} items");
            return Ok(());
        }
    }
}

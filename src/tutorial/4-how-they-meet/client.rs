use std::time::Duration;

use anyhow::ensure;
use first::{Item, handover, peer::Peer, socket};

fn main() -> anyhow::Result<()> {
    let batches = std::env::args().nth(1).map_or(Ok(16), |n| n.parse())?;
    let stream = socket::connect("first.sock".as_ref(), "target/release/server")?;
    let mut ring = handover::take(&stream)?;
    let server = Peer::watch(stream, &[ring.empty_signal(), ring.full_signal()])?;

    let mut sent = 0;
    for k in 1..=batches {
        let mut left = k * 100_000;
        let item = 1.0 / left as f64;
        while left > 0 {
            while ring.sender_mut().write_count()? == 0 {
                ensure!(server.wait(ring.full_signal()), "the server is gone");
            }
            let write = |free: &mut [Item]| {
                let num = left.min(free.len());
                free[..num].fill(item);
                println!("Sending {num} items of {item}");
                left -= num;
                sent += num as u64;
                num
            };
            // SAFETY: there is one server, and it reads only what we have sent.
            unsafe { ring.send_trusted(write)? };
        }
        if k < batches {
            ensure!(server.pause(Duration::from_secs(1)), "the server is gone");
        }
    }
    ensure!(server.goodbye() == Some(sent), "not all is confirmed");
    Ok(())
}

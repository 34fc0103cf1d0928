use std::time::Duration;

use anyhow::ensure;
use first::{Item, handover, peer::Peer, ring::TrustedSender, socket};

fn main() -> anyhow::Result<()> {
    let batches = std::env::args().nth(1).map_or(Ok(16), |n| n.parse())?;
    let stream = socket::connect("first.sock".as_ref(), "target/release/server")?;
    let sender = handover::take(&stream)?;
    let server = Peer::watch(stream, &[sender.empty_signal(), sender.full_signal()])?;
    // SAFETY: this ring has one server, and the server reads only what we have sent.
    let mut ring = unsafe { TrustedSender::new(sender) };

    let mut sent = 0;
    for k in 1..=batches {
        let mut left = k * 100_000;
        let item = 1.0 / left as f64;
        while left > 0 {
            let write = |free: &mut [Item]| {
                let num = left.min(free.len());
                free[..num].fill(Item {
                    time: k as u64,
                    value: item,
                });
                println!("Sending {num} items of {item}");
                num
            };
            match ring.send(write)? {
                Some(num) => {
                    left -= num;
                    sent += num as u64;
                }
                None => ensure!(server.wait(ring.full_signal()), "the server is gone"),
            }
        }
        if k < batches {
            ensure!(server.pause(Duration::from_secs(1)), "the server is gone");
        }
    }
    ensure!(server.goodbye() == Some(sent), "not all is confirmed");
    Ok(())
}

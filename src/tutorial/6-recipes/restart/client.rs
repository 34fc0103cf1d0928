use std::io;
use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;
use first::{Item, handover, peer::Peer, ring::TrustedSender, socket};

fn main() -> anyhow::Result<()> {
    let batches = std::env::args().nth(1).map_or(Ok(16), |n| n.parse())?;
    while let Err(e) = stream_all(batches) {
        if !heals(&e) {
            return Err(e);
        }
        println!("Trying again: {e:#}");
        sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Whether another try can succeed: there is no server yet, or it is gone, maybe while it gave the ring.
fn heals(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    let cause = error.root_cause().downcast_ref::<io::Error>();
    let kind = cause.map(io::Error::kind);
    let no_server = matches!(kind, Some(NotFound | ConnectionRefused));
    let hung_up = matches!(kind, Some(UnexpectedEof | ConnectionReset));
    no_server || hung_up || error.is::<Gone>()
}

#[derive(Debug)]
struct Gone;

impl std::error::Error for Gone {}

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("the server is gone")
    }
}

fn stream_all(batches: usize) -> anyhow::Result<()> {
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
                free[..num].fill(item);
                println!("Sending {num} items of {item}");
                num
            };
            match ring.send(write)? {
                Some(num) => {
                    left -= num;
                    sent += num as u64;
                }
                None => ensure!(server.wait(ring.full_signal()), Gone),
            }
        }
        if k < batches {
            ensure!(server.pause(Duration::from_secs(1)), Gone);
        }
    }
    let arrived = server.goodbye().ok_or(Gone)?;
    ensure!(arrived == sent, "{arrived} of {sent} items have arrived");
    Ok(())
}

use anyhow::ensure;
use first::{Item, ROWS, handover, peer::Peer, ring::PART, ring::TrustedSender, socket};

fn main() -> anyhow::Result<()> {
    let frames = std::env::args().nth(1).map_or(Ok(3), |n| n.parse())?;
    let stream = socket::connect("first.sock".as_ref(), "target/release/server")?;
    let sender = handover::take(&stream)?;
    let server = Peer::watch(stream, &[sender.empty_signal(), sender.full_signal()])?;
    // SAFETY: this ring has one server, and the server reads only what we have sent.
    let mut ring = unsafe { TrustedSender::new(sender) };
    for frame in 0..frames {
        let mut row = 0;
        while row < ROWS {
            let sent = ring.send(|free: &mut [Item]| {
                let num = free.len().min(ROWS - row).min(PART);
                for place in &mut free[..num] {
                    draw(frame, row, place);
                    row += 1;
                }
                num
            })?;
            ensure!(
                sent.is_some() || server.wait(ring.full_signal()),
                "the server is gone"
            );
        }
    }
    ensure!(server.goodbye() == Some(frames), "not all is confirmed");
    Ok(())
}

/// Draws a row right where the server will read it.
fn draw(frame: u64, row: usize, place: &mut Item) {
    place.fill((frame * 10 + row as u64 / 8) as u8);
}

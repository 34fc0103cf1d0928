use anyhow::ensure;
use first::{framing, handover, peer::Peer, ring::TrustedSender, socket};

fn main() -> anyhow::Result<()> {
    let stream = socket::connect("first.sock".as_ref(), "target/release/server")?;
    let sender = handover::take(&stream)?;
    let server = Peer::watch(stream, &[sender.empty_signal(), sender.full_signal()])?;
    // SAFETY: this ring has one server, and the server reads only what we have sent.
    let mut ring = unsafe { TrustedSender::new(sender) };
    let mut texts = 0;
    for line in std::io::stdin().lines() {
        framing::send(&mut ring, line?.as_bytes(), |ring| {
            ensure!(server.wait(ring.full_signal()), "the server is gone");
            Ok(())
        })?;
        texts += 1;
    }
    ensure!(server.goodbye() == Some(texts), "not all is confirmed");
    println!("{texts} texts have arrived");
    Ok(())
}

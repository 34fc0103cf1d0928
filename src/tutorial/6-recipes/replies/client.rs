use std::cell::Cell;

use anyhow::ensure;
use first::{replies::Line, socket};

fn main() -> anyhow::Result<()> {
    let stream = socket::connect("first.sock".as_ref(), "target/release/server")?;
    let mut line = Line::new(stream)?;
    let (mut asked, replies) = (0, Cell::new(0));
    let mut read = |reply: &[u8]| {
        replies.set(replies.get() + 1);
        if reply.len() < 20 {
            println!("{}", String::from_utf8_lossy(reply));
        }
    };
    for text in std::io::stdin().lines() {
        line.send(text?.as_bytes(), &mut read)?;
        asked += 1;
    }
    while replies.get() < asked {
        ensure!(line.receive(&mut read)?, "the server is gone");
    }
    // Not before the last reply: a server that has heard a goodbye may be gone.
    ensure!(line.peer.goodbye() == Some(asked), "not all is confirmed");
    println!("{asked} replies");
    Ok(())
}

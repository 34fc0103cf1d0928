use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::thread;

use first::{replies::Line, socket};

fn main() -> anyhow::Result<()> {
    let listener = socket::listen("first.sock".as_ref())?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(|| serve(stream).unwrap_or_else(|e| println!("A client is lost: {e:#}")));
    }
}

fn serve(stream: UnixStream) -> anyhow::Result<()> {
    let mut line = Line::new(stream)?;
    let (mut waiting, mut answered) = (VecDeque::new(), 0);
    loop {
        let connected = line.receive(|text| waiting.push_back(text.to_vec()))?;
        while let Some(text) = waiting.pop_front() {
            let reply = text.to_ascii_uppercase();
            line.send(&reply, |text| waiting.push_back(text.to_vec()))?;
            answered += 1;
        }
        if !connected {
            println!("The client left: {}", line.peer.confirm(answered));
            return Ok(());
        }
    }
}

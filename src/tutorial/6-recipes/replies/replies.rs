use std::os::unix::net::UnixStream;

use crate::ring::{TrustedReceiver, TrustedSender};
use crate::{CAPACITY, framing, handover, peer::Peer};
use anyhow::{Result, ensure};
use shmem_ipc::sharedring::Receiver;

/// Texts in both directions, through a ring each.
pub struct Line {
    to: TrustedSender,
    from: TrustedReceiver,
    rest: Vec<u8>,
    pub peer: Peer,
}

impl Line {
    /// Both programs call this: each makes a ring, gives it, and takes the other one's.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let ours = Receiver::new(CAPACITY)?;
        handover::give(&stream, &ours)?;
        let theirs = handover::take(&stream)?;
        let (e, f) = (ours.empty_signal(), ours.full_signal());
        let signals = [e, f, theirs.empty_signal(), theirs.full_signal()];
        let peer = Peer::watch(stream, &signals)?;
        // SAFETY: both rings are new, and the other program leaves alone what it has sent, and what
        // it has not received yet.
        let (to, from) = unsafe { (TrustedSender::new(theirs), TrustedReceiver::new(ours)) };
        let rest = vec![];
        Ok(Self {
            to,
            from,
            rest,
            peer,
        })
    }

    /// Sends a text. Before it sleeps on a full ring, it empties the other one: `read` gets what came.
    pub fn send(&mut self, text: &[u8], mut read: impl FnMut(&[u8])) -> Result<()> {
        framing::send(&mut self.to, text, |to| {
            framing::receive(&mut self.from, &mut self.rest, &mut read)?;
            let connected = self.peer.wait(to.full_signal());
            ensure!(connected, "the other program is gone");
            Ok(())
        })
    }

    /// Reads what has come. Sleeps only if nothing has. `false`: this was the last of it.
    pub fn receive(&mut self, mut read: impl FnMut(&[u8])) -> Result<bool> {
        let mut connected = true;
        loop {
            let num = (self.from).receive(|piece| self.rest.extend_from_slice(piece))?;
            framing::take_whole(&mut self.rest, &mut read)?;
            match (num > 0, connected) {
                (true, true) => return Ok(true),
                (true, false) => {} // There may be more.
                (false, true) => connected = self.peer.wait(self.from.empty_signal()),
                (false, false) => return Ok(false),
            }
        }
    }
}

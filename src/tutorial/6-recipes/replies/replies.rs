use std::os::unix::net::UnixStream;

use crate::ring::{PART, TrustedReceiver, TrustedSender};
use crate::{CAPACITY, framing, framing::LONGEST, handover, peer::Peer};
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
        ensure!(text.len() <= LONGEST, "a text of {} bytes", text.len());
        for mut bytes in [&(text.len() as u32).to_ne_bytes(), text] {
            while !bytes.is_empty() {
                let sent = self.to.send(|free| {
                    let num = bytes.len().min(free.len()).min(PART);
                    free[..num].copy_from_slice(&bytes[..num]);
                    num
                })?;
                bytes = &bytes[sent.unwrap_or(0)..];
                if sent.is_none() {
                    framing::receive(&mut self.from, &mut self.rest, &mut read)?;
                    let connected = self.peer.wait(self.to.full_signal());
                    ensure!(connected, "the other program is gone");
                }
            }
        }
        Ok(())
    }

    /// Sleeps until something has come, and reads it. `false`: this was the last of it.
    pub fn receive(&mut self, read: impl FnMut(&[u8])) -> Result<bool> {
        let connected = self.peer.wait(self.from.empty_signal());
        framing::receive(&mut self.from, &mut self.rest, read)?;
        Ok(connected)
    }
}

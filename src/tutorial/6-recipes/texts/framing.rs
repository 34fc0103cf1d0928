use crate::ring::{PART, TrustedReceiver, TrustedSender};
use anyhow::{Result, ensure};

/// The longest text. A length that is larger comes from a mistake.
const LONGEST: usize = 1 << 20;

/// Sends a text with its length in front, in parts. Calls `sleep` while the ring is full.
pub fn send(
    ring: &mut TrustedSender,
    text: &[u8],
    mut sleep: impl FnMut(&TrustedSender) -> Result<()>,
) -> Result<()> {
    ensure!(text.len() <= LONGEST, "a text of {} bytes", text.len());
    // In one piece: to send the length alone would ring the bell twice for a short text.
    let message = [&(text.len() as u32).to_ne_bytes(), text].concat();
    let mut bytes = &message[..];
    while !bytes.is_empty() {
        let sent = ring.send(|free| {
            let num = bytes.len().min(free.len()).min(PART);
            free[..num].copy_from_slice(&bytes[..num]);
            num
        })?;
        match sent {
            Some(num) => bytes = &bytes[num..],
            None => sleep(ring)?,
        }
    }
    Ok(())
}

/// Empties the ring into `rest`, and calls `read` for each text that is whole.
pub fn receive(
    ring: &mut TrustedReceiver,
    rest: &mut Vec<u8>,
    mut read: impl FnMut(&[u8]),
) -> Result<()> {
    while ring.receive(|piece| rest.extend_from_slice(piece))? > 0 {
        take_whole(rest, &mut read)?;
    }
    Ok(())
}

/// Takes the texts that are whole out of `rest`.
pub fn take_whole(rest: &mut Vec<u8>, mut read: impl FnMut(&[u8])) -> Result<()> {
    let mut begin = 0;
    while let Some((len, behind)) = rest[begin..].split_first_chunk() {
        let len = u32::from_ne_bytes(*len) as usize;
        ensure!(len <= LONGEST, "a text of {len} bytes");
        let Some(text) = behind.get(..len) else { break };
        read(text);
        begin += 4 + len;
    }
    rest.drain(..begin);
    Ok(())
}

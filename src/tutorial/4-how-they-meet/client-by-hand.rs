use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use first::peer::Peer;
use passfd::FdPassingExt;
use shmem_ipc::mem::mfd::{FileSeal, Memfd};
use shmem_ipc::ringbuf::channel_bufsize;
use shmem_ipc::sharedring::Sender;

fn main() -> anyhow::Result<()> {
    let batches = std::env::args().nth(1).map_or(Ok(16), |n| n.parse())?;
    let stream = UnixStream::connect("first.sock")?;
    let receive = || -> anyhow::Result<File> {
        let fd = stream.recv_fd()?;
        // SAFETY: the kernel has just opened this descriptor for us, and nobody else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    };
    let (memory, empty, full) = (receive()?, receive()?, receive()?);
    let memory = Memfd::try_from_file(memory).map_err(|_| anyhow!("this is no memfd"))?;
    memory.add_seal(FileSeal::SealShrink)?; // Seal it first ...
    let len = memory.as_file().metadata()?.len(); // ... then measure it ...
    let least = channel_bufsize::<f64>(500_000) as u64;
    ensure!(len >= least, "the memfd has {len} bytes, a ring {least}");
    let mut ring = Sender::<f64>::open(500_000, memory.into_file(), empty, full)?; // ... then map it.
    let server = Peer::watch(stream, &[ring.empty_signal(), ring.full_signal()])?;

    let mut sent = 0;
    for k in 1..=batches {
        let mut left = k * 100_000;
        let item = 1.0 / left as f64;
        while left > 0 {
            while ring.sender_mut().write_count()? == 0 {
                ensure!(server.wait(ring.full_signal()), "the server is gone");
            }
            let write = |free: &mut [f64]| {
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

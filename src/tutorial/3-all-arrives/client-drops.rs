use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use passfd::FdPassingExt;
use shmem_ipc::sharedring::Sender;

fn take() -> anyhow::Result<Sender<f64>> {
    let stream = UnixStream::connect("first.sock")?;
    let receive = || -> anyhow::Result<File> {
        let fd = stream.recv_fd()?;
        // SAFETY: the kernel has just opened this descriptor for us, and nobody else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    };
    Ok(Sender::open(500_000, receive()?, receive()?, receive()?)?)
}

fn main() -> anyhow::Result<()> {
    let batches = std::env::args().nth(1).map_or(Ok(16), |n| n.parse())?;
    let mut ring = take()?;

    for k in 1..=batches {
        sleep(Duration::from_secs(1));
        let left = k * 100_000;
        let item = 1.0 / left as f64;
        ring.block_until_writable()?;
        let write = |free: &mut [f64]| {
            let num = left.min(free.len());
            free[..num].fill(item);
            println!("Sending {num} items of {item}");
            num
        };
        // SAFETY: there is one server, and it reads only what we have sent.
        unsafe { ring.send_trusted(write)? };
    }
    Ok(())
}

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use passfd::FdPassingExt;
use shmem_ipc::sharedring::Receiver;

fn main() -> anyhow::Result<()> {
    let listener = UnixListener::bind("first.sock")?;
    let (stream, _) = listener.accept()?;

    let mut ring = Receiver::<f64>::new(500_000)?;
    stream.send_fd(ring.memfd().as_raw_fd())?;
    stream.send_fd(ring.empty_signal().as_raw_fd())?;
    stream.send_fd(ring.full_signal().as_raw_fd())?;

    let mut total = 0.0;
    loop {
        ring.block_until_readable()?;
        let read = |piece: &[f64]| {
            total += piece.iter().sum::<f64>();
            println!("Sum: {total}");
            piece.len()
        };
        // SAFETY: there is one client, and it leaves alone what it has sent.
        unsafe { ring.receive_trusted(read)? };
    }
}

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use passfd::FdPassingExt;
use shmem_ipc::sharedring::Receiver;

static GONE: AtomicBool = AtomicBool::new(false);

fn main() -> anyhow::Result<()> {
    let listener = UnixListener::bind("first.sock")?;
    let (stream, _) = listener.accept()?;

    let mut ring = Receiver::<f64>::new(500_000)?;
    stream.send_fd(ring.memfd().as_raw_fd())?;
    stream.send_fd(ring.empty_signal().as_raw_fd())?;
    stream.send_fd(ring.full_signal().as_raw_fd())?;

    let mut bell = ring.empty_signal().try_clone()?;
    thread::spawn(move || {
        let _ = (&stream).read(&mut [0]); // Sleeps until the client's end is closed.
        GONE.store(true, Ordering::Release); // First the news, ...
        bell.write_all(&1u64.to_ne_bytes()) // ... then the bell.
    });

    let mut total = 0.0;
    loop {
        ring.empty_signal().read_exact(&mut [0; 8])?; // Sleeps until the bell sounds.
        let mut read = |piece: &[f64]| {
            total += piece.iter().sum::<f64>();
            println!("Sum: {total}");
            piece.len()
        };
        // SAFETY: there is one client, and it leaves alone what it has sent.
        while unsafe { ring.receive_trusted(&mut read)? }.remaining > 0 {}
        thread::sleep(std::time::Duration::from_millis(1500));
        let gone = GONE.load(Ordering::Acquire);
        if gone {
            println!("The client is gone");
            return Ok(());
        }
    }
}

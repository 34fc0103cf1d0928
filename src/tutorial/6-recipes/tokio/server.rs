use std::sync::Mutex;

use first::{CAPACITY, Item, handover, ring::TrustedReceiver, socket};
use shmem_ipc::sharedring::Receiver;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

static TOTAL: Mutex<f64> = Mutex::new(0.0);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = socket::listen("first.sock".as_ref())?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async {
            let served = serve(stream).await;
            served.unwrap_or_else(|e| println!("A client is lost: {e:#}"));
        });
    }
}

async fn serve(stream: UnixStream) -> anyhow::Result<()> {
    let receiver = Receiver::<Item>::new(CAPACITY)?;
    let stream = stream.into_std()?;
    handover::give(&stream, &receiver)?; // Three short messages, which a new socket has room for.
    stream.set_nonblocking(true)?; // `give` has made it block.
    let mut stream = UnixStream::from_std(stream)?;
    // The bell is not read at all: epoll reports each write to it, and we look at the ring each time.
    let bell = receiver.empty_signal().try_clone()?;
    // SAFETY: this clone stays open, and the same open file, for as long as `bell` has it.
    let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE)? };
    // SAFETY: this ring has one client, and the client leaves alone what it has sent.
    let mut ring = unsafe { TrustedReceiver::new(receiver) };
    let mut items = 0;
    loop {
        let connected = tokio::select! {
            rung = bell.readable() => { rung?.clear_ready(); true }
            () = hung_up(&mut stream) => false, // The end of the client, or its goodbye.
        };
        loop {
            let mut sum = 0.0;
            let num = ring.receive(|piece| piece.iter().for_each(|item| sum += item))?;
            if num == 0 {
                break;
            }
            items += num as u64;
            add(sum);
            tokio::task::yield_now().await; // In a flood, other tasks want their turn.
        }
        if !connected {
            let left = stream.write_all(&items.to_ne_bytes()).await.is_ok();
            let how = if left { "left" } else { "broke off" };
            println!("The client {how} after {items} items");
            return Ok(());
        }
    }
}

/// Waits for the end of the stream. What a client writes to it means nothing.
async fn hung_up(stream: &mut UnixStream) {
    while let Ok(1..) = stream.read(&mut [0; 64]).await {}
}

fn add(sum: f64) {
    let mut total = TOTAL.lock().unwrap();
    *total += sum;
    println!("Sum: {total}");
}

//! What the two programs agree on.
//!
//! A `client` writes items into a ring that both processes have mapped, and a `server` reads them
//! from the same memory and adds them up. `README.md` tells the whole story from the start.
//!
//! # The wire
//!
//! 1. The client connects to the server's Unix socket. The server makes a ring for it and sends
//!    three descriptors, each in a message of its own ([`passfd`]): the ring's *memfd*, its *empty
//!    signal* and its *full signal*. The ring holds [`CAPACITY`] items of type [`Item`], rounded
//!    up to whole pages.
//! 2. The client is the ring's only producer, the server its only consumer. From here on the
//!    socket is silent. Whoever sees it close knows that the other side is gone, however it ended.
//! 3. Goodbye: the client shuts down its writing half of the socket. The server takes what is
//!    left in the ring, answers with the number of items that it summed for this client (a `u64`
//!    in the machine's byte order), and closes.
//!
//! # The modules
//!
//! - [`server`](../server/index.html) and [`client`](../client/index.html): the two programs,
//!   `main` first, in the order in which things happen.
//! - [`handover`]: how the ring gets from one process to the other.
//! - [`peer`]: the other program: sleep until it has something for us, learn that it is gone.
//! - [`socket`]: where the server listens, and what may be in that place.
//! - [`cli`]: options, lines and exit statuses. Nothing about shared memory.

pub mod cli;
pub mod handover;
pub mod peer;
pub mod socket;

/// What the ring carries.
///
/// Any type that is `Copy` and for which every bit pattern is a value, without padding: integers,
/// floats, arrays of them (`FromBytes` and `AsBytes` of zerocopy 0.3, which shmem-ipc asks for).
pub type Item = f64;

/// Items that the ring is asked to hold. Both sides must ask for the same number.
///
/// The ring keeps 64 bytes for its counter, and shmem-ipc rounds the whole up to pages: with
/// pages of 4096 bytes, 977 of them hold 500216 items of 8 bytes
/// ([`channel_bufsize`](shmem_ipc::ringbuf::channel_bufsize)).
pub const CAPACITY: usize = 500_000;

/// Where the server listens unless told otherwise.
pub const SOCKET: &str = "/tmp/shmem-test.sock";

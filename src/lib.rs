//! What the two programs agree on.
//!
//! A [`client`](../client/index.html) sends items through a ring that both programs have mapped, a
//! [`server`](../server/index.html) receives them and adds them up. `README.md` leads to the tutorial,
//! `src/tutorial`. Each of the modules [`socket`], [`handover`], [`ring`] and [`peer`] cures something
//! that goes wrong without it, and can be copied into another project.
//!
//! # The wire, to the byte
//!
//! 1. The client connects to the server's Unix socket. The server makes a ring and sends three
//!    descriptors: *memfd*, *empty signal*, *full signal*. Each is a message of its own
//!    (`SCM_RIGHTS`) with 4 bytes of zero beside it, because on a stream socket, a descriptor
//!    travels only with data (unix(7)). Read no more than those 4 bytes at a time.
//! 2. The memfd begins with the count of the items in the ring, a `usize` in the machine's byte
//!    order, which both sides change by atomic additions. The items begin at byte 64, one after
//!    the other, as many as fit into the whole pages that hold 64 bytes and [`CAPACITY`] items.
//!    Both sides begin with the first item and go round. Whoever raises the count from 0 adds 1 to
//!    the empty signal, whoever lowers it from full adds 1 to the full signal: a write of 8 bytes,
//!    in the machine's byte order. The client is the only sender, the server the only receiver.
//! 3. The socket is silent meanwhile. Whoever sees it close knows that the other side is gone.
//! 4. Goodbye: the client shuts down its writing half of the socket. The server takes what is left
//!    in the ring, confirms the number of items that it summed for this client, 8 bytes in the
//!    machine's byte order, and closes.

/// What the ring carries.
///
/// Any type that is `Copy` and for which every bit pattern is a value, without padding: integers,
/// floats, arrays of them (`FromBytes` and `AsBytes` of zerocopy 0.3, which shmem-ipc asks for). It may
/// be aligned to 64 bytes at most, and must not be of size 0.
pub type Item = f64;

/// Items that the ring is asked to hold: some 4 MB of them. Both sides must ask for the same.
///
/// The ring holds what fits into whole pages: 500216 items of 8 bytes in the 977 pages of 4096 bytes
/// that it takes ([`channel_bufsize`](shmem_ipc::ringbuf::channel_bufsize)). Whoever makes a ring under
/// a `ulimit -f` below that is killed by SIGXFSZ.
pub const CAPACITY: usize = 500_000;

/// Where the server listens unless told otherwise.
pub const SOCKET: &str = "/tmp/shmem-test.sock";

pub mod cli;
#[doc = include_str!("../tests/examples.md")]
pub mod examples {}
pub mod handover;
pub mod peer;
pub mod ring;
pub mod socket;

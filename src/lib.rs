//! Two processes exchange large amounts of data through shared memory.
//!
//! A `client` writes `f64` items into a ring that both processes have mapped, and a `server`
//! reads them from the same pages and sums them. The kernel is needed to set the ring up and to
//! let one side sleep while it has nothing to do; the items themselves never pass through it.
//!
//! ```text
//!       client                 both hold these               server
//!   ┌──────────────┐          ┌──────────────┐          ┌──────────────┐
//!   │   writes   ══╪══items══►│ memfd (ring) │══items══►╪══   sums     │──► Sum: …
//!   │              │          ├──────────────┤          │              │
//!   │   wakes    ──┼─────────►│ empty signal │─────────►┼──  sleeps    │
//!   │              │          ├──────────────┤          │              │
//!   │  sleeps    ◄─┼──────────│ full signal  │◄─────────┼──   wakes    │
//!   │              │          └──────────────┘          │              │
//!   │              │                                    │              │
//!   │              │◄── 1. these three, as descriptors ─│              │
//!   │ Unix socket  │─── 2. end of file: done, or dead ─►│ Unix socket  │
//!   │              │◄── 3. number of items summed ──────│              │
//!   └──────────────┘                                    └──────────────┘
//! ```
//!
//! # The wire
//!
//! 1. The client connects. The server creates a ring for it and sends three descriptors, each in
//!    a message of its own ([`passfd`]): the ring's *memfd*, its *empty signal* and its *full
//!    signal*. The ring holds [`CAPACITY`] `f64` items, rounded up to whole pages.
//! 2. The client is the ring's only producer, the server its only consumer. From here on the
//!    socket is silent. Whoever sees it close knows that the other side is gone, however it ended.
//! 3. Goodbye: the client shuts down its writing half of the socket. The server takes what is
//!    left in the ring, answers with the number of items that it summed for this client (a `u64`
//!    in the machine's byte order), and closes.
//!
//! # The rooms
//!
//! - [`client`](../client/index.html) and [`server`](../server/index.html): the two programs,
//!   `main` first, in the order in which things happen.
//! - [`signal`]: how a thread sleeps on an eventfd, and how it is woken when its peer is gone.
//! - [`socket`]: where the server listens and the client connects, and what may be in that place.
//! - [`cli`]: options, lines and exit statuses. Nothing about shared memory.
//!
//! The `README.md` tells the story from the start, and says when to use something else.

pub mod cli;
pub mod signal;
pub mod socket;

/// Items that the ring is asked to hold. Both sides must ask for the same number.
///
/// The ring keeps 64 bytes for its counter, and shmem-ipc rounds the whole up to pages: with
/// pages of 4096 bytes, 977 of them hold 500216 items
/// ([`channel_bufsize`](shmem_ipc::ringbuf::channel_bufsize)).
pub const CAPACITY: usize = 500_000;

/// Where the server listens unless told otherwise.
pub const SOCKET: &str = "/tmp/shmem-test.sock";

/// Items that either side handles before it tells the other, in a stream of many: 256 KiB.
///
/// Small enough that both sides work at once and that a piece stays in a core's cache, large
/// enough that the telling (an atomic addition, at times a wake-up) costs little beside it.
pub const PIECE: usize = 32 * 1024;

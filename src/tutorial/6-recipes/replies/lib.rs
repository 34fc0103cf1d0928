pub mod framing;
pub mod handover;
pub mod peer;
pub mod replies;
pub mod ring;
pub mod socket;

/// What the rings carry: bytes.
pub type Item = u8;

/// How many of them each ring is asked to hold.
pub const CAPACITY: usize = 4_000_000;

pub mod framing;
pub mod handover;
pub mod peer;
pub mod ring;
pub mod socket;

/// What the ring carries: bytes.
pub type Item = u8;

/// How many of them the ring is asked to hold.
pub const CAPACITY: usize = 4_000_000;

pub mod handover;
pub mod peer;
pub mod socket;

/// What the ring carries.
pub type Item = f64;

/// How many items the ring is asked to hold: some 4 MB.
pub const CAPACITY: usize = 500_000;

pub mod handover;
pub mod peer;
pub mod ring;
pub mod socket;

/// What the ring carries: a row of 1280 pixels in three colours.
pub type Item = [u8; 3840];

/// How many rows the ring is asked to hold: some 4 MB.
pub const CAPACITY: usize = 1000;

/// How many rows a frame has.
pub const ROWS: usize = 720;

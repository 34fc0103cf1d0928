pub mod handover;
pub mod peer;
pub mod ring;
pub mod socket;

/// What the ring carries.
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::AsBytes)]
#[repr(C)]
pub struct Item {
    pub time: u64,
    pub value: f64,
}

/// How many items the ring is asked to hold: some 4 MB.
pub const CAPACITY: usize = 250_000;

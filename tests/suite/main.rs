//! One file for each promise, and some that help: the programs, stand-ins for either of them, what
//! `/proc` tells, and the README.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod modules;
mod options;
mod page;
mod peers_that_die;
mod peers_that_lie;
mod proc;
mod programs;
mod readme;
mod ring;
mod shortages;
mod socket_path;
mod stand_ins;
mod transcript;

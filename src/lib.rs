#![doc = include_str!("../docs/ARCHITECTURE.md")]

pub mod admission;
pub mod duration;
pub mod hooks;
pub mod names;
pub mod plan;

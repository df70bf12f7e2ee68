#![doc = include_str!("../docs/ARCHITECTURE.md")]

pub mod actions;
pub mod admission;
pub mod api;
pub mod blueprint;
pub mod cli;
pub mod control;
pub mod digest;
pub mod duration;
pub mod hooks;
pub mod infra;
pub mod names;
pub mod plan;
pub mod result;
pub mod waiter;
pub mod webhook;

//! What the tests are written with.

mod actions;
mod audit;
mod cluster;
mod hooks;
mod injector;
mod installation;
mod kill;
mod load;
mod outcome;
mod pod;
mod restore;
mod scenario;
mod third_party;
mod velero_log;
mod wait;

pub(crate) use actions::*;
pub(crate) use audit::*;
pub(crate) use cluster::*;
pub(crate) use hooks::*;
pub(crate) use injector::*;
pub(crate) use installation::*;
pub(crate) use kill::*;
pub(crate) use load::*;
pub(crate) use outcome::*;
pub(crate) use pod::*;
pub(crate) use restore::*;
pub(crate) use scenario::*;
pub(crate) use third_party::*;
pub(crate) use velero_log::*;
pub(crate) use wait::*;

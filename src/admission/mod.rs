//! What admission does to an object. Pure: the same functions serve the webhook and `reveille preview`.

pub mod containers;
pub mod late;
mod object;
pub mod patch;
pub mod pod;
pub mod restore;
pub mod review;
pub mod weight;

use std::{fmt, str::FromStr};

pub use pod::{PodContext, PodDecision, decide_pod};
pub use restore::{RestoreDecision, decide_restore};

/// Who runs the post hooks of restores beside a running Velero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Reveille runs all of them, Velero none.
    #[default]
    Takeover,
    /// Velero runs what it knows; Reveille what only it knows.
    Alongside,
    /// Reveille does nothing.
    Off,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "takeover" => Ok(Self::Takeover),
            "alongside" => Ok(Self::Alongside),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is none of takeover, alongside, off")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Takeover => "takeover",
            Self::Alongside => "alongside",
            Self::Off => "off",
        })
    }
}

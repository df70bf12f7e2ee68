//! What is wrong with a Blueprint, found before anything has run.

use std::fmt;

use serde::Serialize;

use super::{call::Function, model::Blueprint};
use crate::hooks::Severity;

/// Something wrong with a Blueprint. An error means that the action is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The action; empty if the Blueprint as a whole is meant.
    pub action: String,
    /// The phase by name, or its number (`#2`) if it has none; empty if the action as a whole is meant.
    pub phase: String,
    /// The argument or field, with its path (`command[2]`); empty if the phase as a whole is meant.
    pub argument: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, name) in [
            ("action", &self.action),
            ("phase", &self.phase),
            ("argument", &self.argument),
        ] {
            if !name.is_empty() {
                write!(f, "{word} {name}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

/// Everything that can be known without a cluster: an action that does not exist, unknown or unsupported functions, missing,
/// unknown or malformed arguments, templates that can't be parsed or call an unknown function.
pub fn check(blueprint: &Blueprint, action: &str) -> Vec<Finding> {
    let Some(found) = blueprint.actions.get(action) else {
        let names: Vec<&str> = blueprint.actions.keys().map(String::as_str).collect();
        let message = format!("the Blueprint has no such action; it has {}", names.join(", "));
        return vec![Finding {
            severity: Severity::Error,
            action: action.to_owned(),
            phase: String::new(),
            argument: String::new(),
            message,
        }];
    };
    let unknown = found.all_phases().filter_map(|phase| {
        let error = Function::parse(&phase.func).err()?;
        Some(Finding {
            severity: Severity::Error,
            action: action.to_owned(),
            phase: phase.name.clone(),
            argument: String::new(),
            message: error.to_string(),
        })
    });
    unknown.collect()
}

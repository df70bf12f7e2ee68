//! `Wait` and `WaitV2`: conditions on an object of the cluster.

use serde_json::Value;
use thiserror::Error;

use super::model::ObjectReference;
use crate::duration::GoDuration;

/// Which language a condition is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `Wait`: `{ $.path }` is replaced by what the JSONPath finds, then the text is a template without data.
    JsonPath,
    /// `WaitV2`: a template whose data is the object.
    Template,
}

/// One condition on one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which language.
    pub dialect: Dialect,
    /// True if this renders to `true`, white space aside. Never rendered with the action's params.
    pub text: String,
    /// The object, still as templates: they are rendered ([`super::render::reference`]) for each round.
    pub reference: ObjectReference,
}

/// What `Wait` and `WaitV2` wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// How long, from the phase's start.
    pub timeout: GoDuration,
    /// One of these is enough.
    pub any_of: Vec<Condition>,
    /// All of these; looked at when none of `any_of` is true.
    pub all_of: Vec<Condition>,
}

/// Why a condition has no value for now. Kanister tries again in all cases.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ConditionError {
    /// No later state of the object can heal it: bad syntax, an unknown function.
    pub permanent: bool,
    /// What is wrong.
    pub message: String,
}

impl Wait {
    /// The value of one round, from the values of its conditions in order. As in Kanister an error ends the round, and a later
    /// condition is not looked at.
    pub fn round<E>(
        any_of: impl IntoIterator<Item = Result<bool, E>>,
        all_of: impl IntoIterator<Item = Result<bool, E>>,
    ) -> Result<bool, E> {
        for value in any_of {
            if value? {
                return Ok(true);
            }
        }
        let mut any = false;
        for value in all_of {
            if !value? {
                return Ok(false);
            }
            any = true;
        }
        Ok(any)
    }
}

/// Is the condition true for this object?
pub fn evaluate(condition: &Condition, object: &Value) -> Result<bool, ConditionError> {
    let _ = (condition, object);
    Err(ConditionError {
        permanent: false,
        message: "not built yet".to_owned(),
    })
}

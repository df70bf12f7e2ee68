//! `Wait` and `WaitV2`: poll objects until conditions hold.

use kube::{Api, api::DynamicObject};

use super::{Pauses, Running, is_over};
use crate::{
    actions::{end::Outcome, recorder::TurnError, subject::resource},
    blueprint::{
        render,
        wait::{Condition, Wait, evaluate},
    },
    infra::{clock, kube::reason},
};

/// Why a round has no answer.
struct Trouble {
    /// Waiting can't heal it.
    permanent: bool,
    message: String,
}

/// Waits. The time counts from the phase's start, so it goes on over a restart.
pub async fn run(wait: &Wait, running: &Running<'_>) -> Result<Outcome, TurnError> {
    let mut pauses = Pauses::new();
    loop {
        let last = match round(wait, running).await {
            Ok(true) => return Ok(Outcome::Succeeded(crate::api::action::Fields::new())),
            Ok(false) => "a condition was not true".to_owned(),
            Err(trouble) if trouble.permanent => return Ok(Outcome::Failed(trouble.message)),
            Err(trouble) => trouble.message,
        };
        if is_over(running.started_at, wait.timeout, clock::now()) {
            return Ok(Outcome::Failed(format!(
                "the conditions did not hold within {}; at last {last}",
                wait.timeout
            )));
        }
        pauses.pause().await;
    }
}

/// One round, as Kanister does it: an error ends it.
async fn round(wait: &Wait, running: &Running<'_>) -> Result<bool, Trouble> {
    for condition in &wait.any_of {
        if holds(condition, running).await? {
            return Ok(true);
        }
    }
    for condition in &wait.all_of {
        if !holds(condition, running).await? {
            return Ok(false);
        }
    }
    Ok(!wait.all_of.is_empty())
}

async fn holds(condition: &Condition, running: &Running<'_>) -> Result<bool, Trouble> {
    let reference = render::reference(&condition.reference, running.params).map_err(|error| Trouble {
        permanent: true,
        message: format!("objectReference: {error}"),
    })?;
    let resource = resource(&reference.group, &reference.api_version, &reference.resource);
    let api: Api<DynamicObject> = if reference.namespace.is_empty() {
        Api::all_with(running.client().clone(), &resource)
    } else {
        Api::namespaced_with(running.client().clone(), &reference.namespace, &resource)
    };
    let object = api.get(&reference.name).await.map_err(|error| Trouble {
        permanent: matches!(&error, kube::Error::Api(status) if status.code == 403),
        message: reason(&error),
    })?;
    let object = serde_json::to_value(&object).unwrap_or_default();
    evaluate(condition, &object).map_err(|error| Trouble {
        permanent: error.permanent,
        message: error.message,
    })
}

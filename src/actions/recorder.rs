//! The one writer of an action's status: each write is checked against the version that was read.

use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};

use super::action::{Action, ActionKind};
use crate::{
    api::action::{ActionStatus, PhaseStatus},
    infra::kube::is_conflict,
    names::FIELD_MANAGER,
};

/// An action as it was last read or written.
pub struct Recorder {
    api: Api<DynamicObject>,
    object: DynamicObject,
    action: Action,
}

/// Why a step could not be recorded or done; it is tried again from what the API server then says.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The API server or the way to it.
    #[error("{}", crate::infra::kube::reason(.0))]
    Kube(#[from] kube::Error),
    /// Another process has written the status meanwhile.
    #[error("another process has written the action's status")]
    Overtaken,
    /// The action is gone.
    #[error("the action is gone")]
    Gone,
    /// The status is larger than the API server takes.
    #[error("the action's status is {0} bytes long, which is more than can be kept")]
    TooLarge(usize),
    /// It can't be read or written.
    #[error("{0}")]
    Unreadable(String),
}

/// The most that an action may take, in bytes; etcd takes 1.5 MiB with all that belongs to an object.
const SIZE_LIMIT: usize = 1 << 20;

impl Recorder {
    /// Reads an action; `Gone` if it does not exist.
    pub async fn read(client: &Client, kind: ActionKind, namespace: &str, name: &str) -> Result<Self, TurnError> {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource());
        let object = api.get_opt(name).await?.ok_or(TurnError::Gone)?;
        let action = Action::read(kind, &object).map_err(TurnError::Unreadable)?;
        Ok(Self { api, object, action })
    }

    /// The action.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// Its status.
    pub fn status(&self) -> &ActionStatus {
        &self.action.status
    }

    /// Writes a status; `TooLarge` if it can't be kept.
    pub async fn write(&mut self, status: ActionStatus) -> Result<(), TurnError> {
        let parameters = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        loop {
            let mut object = self.object.clone();
            let value = serde_json::to_value(&status).map_err(|error| TurnError::Unreadable(error.to_string()))?;
            if let Some(fields) = object.data.as_object_mut() {
                fields.insert("status".to_owned(), value);
            }
            let size = serde_json::to_vec(&object).map_or(0, |text| text.len());
            if size > SIZE_LIMIT {
                return Err(TurnError::TooLarge(size));
            }
            match self.api.replace_status(&self.action.name, &parameters, &object).await {
                Ok(written) => {
                    // As the API server has it: times lose what their format does not hold.
                    self.action = Action::read(self.action.kind, &written).map_err(TurnError::Unreadable)?;
                    self.object = written;
                    return Ok(());
                }
                Err(error) if is_conflict(&error) => self.catch_up().await?,
                Err(error) if crate::infra::kube::is_not_found(&error) => return Err(TurnError::Gone),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads the action again after somebody else has changed it: annotations may have changed, the status must not.
    async fn catch_up(&mut self) -> Result<(), TurnError> {
        let object = self.api.get_opt(&self.action.name).await?.ok_or(TurnError::Gone)?;
        let fresh = Action::read(self.action.kind, &object).map_err(TurnError::Unreadable)?;
        if fresh.uid != self.action.uid {
            return Err(TurnError::Gone);
        }
        if fresh.status != self.action.status {
            return Err(TurnError::Overtaken);
        }
        self.object = object;
        self.action = fresh;
        Ok(())
    }

    /// A phase, as it is recorded.
    pub fn phase(&self, hook: usize, phase: usize) -> Option<&PhaseStatus> {
        self.action.status.hooks.get(hook)?.phases.get(phase)
    }

    /// Writes a change of a phase: what must be known before the next thing is done.
    pub async fn edit_phase(
        &mut self,
        hook: usize,
        phase: usize,
        change: impl FnOnce(&mut PhaseStatus),
    ) -> Result<(), TurnError> {
        let mut status = self.action.status.clone();
        if let Some(phase) = status.hooks.get_mut(hook).and_then(|hook| hook.phases.get_mut(phase)) {
            change(phase);
        }
        if status == self.action.status {
            return Ok(());
        }
        self.write(status).await
    }
}

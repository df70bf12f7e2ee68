//! One try of a hook: its Blueprint's action and the params of its templates, kept as long as the try lasts in this process.
//! After a restart they are read anew; what phases have put out comes from the action's status.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;

use super::{action::Action, recorder::TurnError, subject};
use crate::{
    api::action::{ActionStatus, HookName, HookReference, Invocation, PhaseStatus},
    blueprint::{
        self, Blueprint, Params, Phase, PhaseParams, SubjectKind,
        call::FunctionCall,
        check,
        render::{self, ObjectKind},
    },
    digest,
    hooks::Severity,
    infra::kube::{is_not_found, reason},
};

/// A try under way.
pub struct Try {
    /// The hook's index.
    pub hook: usize,
    /// The try's number.
    pub number: u32,
    /// What is run.
    pub action: blueprint::Action,
    /// What its templates read.
    pub params: Params,
}

impl Try {
    /// Prepares a try of a hook. `Ok(Err)`: it can't be begun, and why.
    pub async fn prepare(
        client: &Client,
        action: &Action,
        hook: usize,
        time: Timestamp,
    ) -> Result<Result<Self, String>, TurnError> {
        let Some(invocation) = action.status.hooks.get(hook) else {
            return Ok(Err("its record is gone".to_owned()));
        };
        let Some((_, reference)) = action.hooks().into_iter().find(|(name, _)| *name == invocation.hook) else {
            return Ok(Err("its spec is gone".to_owned()));
        };
        let found = match fetch(client, &action.namespace, reference).await? {
            Ok((_, digest)) if digest != invocation.digest => {
                return Ok(Err(format!(
                    "action {} of Blueprint {} was changed after it had been checked",
                    invocation.action_name, invocation.blueprint
                )));
            }
            Ok((found, _)) => found,
            Err(why) => return Ok(Err(why)),
        };
        let subject = match subject::read(client, &invocation.namespace, reference.subject.as_ref()).await? {
            Ok(subject) => subject,
            Err(why) => return Ok(Err(why)),
        };
        let mut params = Params::new(time, subject);
        params.artifacts_in = artifacts_for(&action.status, invocation);
        // As in Kanister: what a phase reads is settled before the first one runs.
        for phase in found.all_phases() {
            if let Err(error) = render::objects(phase, &params) {
                return Ok(Err(format!("objects of phase {}: {error}", phase.name)));
            }
        }
        let number = invocation.attempt;
        Ok(Ok(Self {
            hook,
            number,
            action: found,
            params,
        }))
    }

    /// The phases as they stand at the beginning.
    pub fn phases(&self) -> Vec<PhaseStatus> {
        let status = |phase: &Phase, deferred: bool| PhaseStatus {
            name: phase.name.clone(),
            func: phase.func.clone(),
            deferred,
            ..PhaseStatus::default()
        };
        let main = self.action.phases.iter().map(|phase| status(phase, false));
        main.chain(self.action.defer_phase.iter().map(|phase| status(phase, true)))
            .collect()
    }

    /// What a phase calls, with its arguments rendered. To be asked once its templates see all before it ([`Self::reach`]).
    pub fn call(&self, index: usize) -> Result<FunctionCall, String> {
        let phase = self.action.all_phases().nth(index);
        let phase = phase.ok_or("its Blueprint has no such phase")?;
        FunctionCall::prepare(phase, &self.params).map_err(|error| error.to_string())
    }

    /// Lets the templates see all phases up to this one: their Secrets and ConfigMaps, and what they have put out.
    pub async fn reach(
        &mut self,
        client: &Client,
        status: &[PhaseStatus],
        index: usize,
    ) -> Result<Result<(), String>, TurnError> {
        let reached: Vec<Phase> = self.action.all_phases().take(index + 1).cloned().collect();
        for (number, (phase, state)) in reached.iter().zip(status).enumerate() {
            let deferred = number >= self.action.phases.len();
            let known = if deferred {
                self.params.defer_phase.take()
            } else {
                self.params.phases.remove(&phase.name)
            };
            let mut params = match known {
                Some(params) => params,
                None => match self.objects(client, phase).await? {
                    Ok(params) => params,
                    Err(why) => return Ok(Err(why)),
                },
            };
            params.output = state.output.clone().into_iter().collect();
            if deferred {
                self.params.defer_phase = Some(params);
            } else {
                self.params.phases.insert(phase.name.clone(), params);
            }
        }
        Ok(Ok(()))
    }

    async fn objects(&self, client: &Client, phase: &Phase) -> Result<Result<PhaseParams, String>, TurnError> {
        let mut params = PhaseParams::default();
        let objects = match render::objects(phase, &self.params) {
            Ok(objects) => objects,
            Err(error) => return Ok(Err(format!("objects: {error}"))),
        };
        for (key, object) in objects {
            let told = |error: kube::Error| match error {
                kube::Error::Api(status) if status.code < 500 && status.code != 429 => {
                    Ok(format!("objects.{key}: {}", status.message))
                }
                other => Err(TurnError::from(other)),
            };
            match object.kind {
                ObjectKind::Secret => {
                    let api: Api<Secret> = Api::namespaced(client.clone(), &object.namespace);
                    match api.get(&object.name).await {
                        Ok(secret) => drop(params.secrets.insert(key, secret)),
                        Err(error) => return Ok(Err(told(error)?)),
                    }
                }
                ObjectKind::ConfigMap => {
                    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &object.namespace);
                    match api.get(&object.name).await {
                        Ok(map) => drop(params.config_maps.insert(key, map)),
                        Err(error) => return Ok(Err(told(error)?)),
                    }
                }
            }
        }
        Ok(Ok(params))
    }
}

/// What the preHook of the same namespace has handed on.
fn artifacts_for(status: &ActionStatus, invocation: &Invocation) -> blueprint::model::Artifacts {
    let from = match invocation.hook {
        HookName::PreHook | HookName::ExportPreHook => return blueprint::model::Artifacts::new(),
        HookName::OnSuccess | HookName::OnFailure => HookName::PreHook,
        HookName::ExportOnSuccess | HookName::ExportOnFailure => HookName::ExportPreHook,
    };
    let before = status
        .hooks
        .iter()
        .find(|hook| hook.hook == from && hook.namespace == invocation.namespace);
    before.map(|hook| hook.artifacts.clone()).unwrap_or_default()
}

/// Checks the action of a hook: its digest, or what is wrong with it.
pub async fn checked(
    client: &Client,
    namespace: &str,
    hook: &HookReference,
) -> Result<Result<String, String>, TurnError> {
    Ok(fetch(client, namespace, hook).await?.map(|(_, digest)| digest))
}

/// Reads the Blueprint of a hook and checks its action; gives that and its digest.
async fn fetch(
    client: &Client,
    namespace: &str,
    hook: &HookReference,
) -> Result<Result<(blueprint::Action, String), String>, TurnError> {
    let (name, action) = (hook.blueprint.as_str(), hook.action_name.as_str());
    let subject = hook
        .subject
        .as_ref()
        .map_or(SubjectKind::Namespace, |subject| SubjectKind::parse(&subject.type_));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("cr.kanister.io", "v1alpha1", "Blueprint"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let object = match api.get(name).await {
        Ok(object) => object,
        Err(error) if is_not_found(&error) => {
            // Of an object that is missing the API server says its name; of a resource that is missing it does not.
            return Ok(Err(if reason(&error).contains(name) {
                format!("Blueprint {name} does not exist in namespace {namespace}")
            } else {
                format!(
                    "Blueprint {name}: the cluster has no Blueprints; their CRD (blueprints.cr.kanister.io) is installed by the \
                     chart value actions.installBlueprintCRD"
                )
            }));
        }
        Err(error) => return Err(error.into()),
    };
    let value = serde_json::to_value(&object).map_err(|error| TurnError::Unreadable(error.to_string()))?;
    let read = match Blueprint::read(&value) {
        Ok(read) => read,
        Err(error) => return Ok(Err(format!("Blueprint {name} can't be read: {error}"))),
    };
    let findings = check::check(&read, action, Some(&subject));
    let errors: Vec<String> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(ToString::to_string)
        .collect();
    if !errors.is_empty() {
        return Ok(Err(format!("Blueprint {name}: {}", errors.join("; "))));
    }
    let raw = value
        .get("actions")
        .and_then(|actions| actions.get(action))
        .unwrap_or(&Value::Null);
    let digest = digest::hex(&raw.to_string(), 8);
    Ok(match read.actions.get(action) {
        Some(found) => Ok((found.clone(), digest)),
        None => Err(format!("Blueprint {name} has no action {action}")),
    })
}

//! `KubeOps`: create, patch and delete objects.

use kube::{
    Api,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
        Preconditions,
    },
    discovery::{Scope, pinned_kind},
};
use serde_json::{Value, json};

use super::{Pauses, Running, expectation, refusal};
use crate::{
    actions::{end::Outcome, recorder::TurnError, subject::resource},
    api::action::Fields,
    blueprint::{ObjectReference, call::KubeOps},
    infra::kube::{is_conflict, is_not_found},
    names::FIELD_MANAGER,
};

/// Label on created objects: the step that made them. So whoever takes over knows what is done already.
const STEP_LABEL: &str = "reveille.dev/action-step";

/// Does it.
pub async fn run(ops: &KubeOps, running: &mut Running<'_>) -> Result<Outcome, TurnError> {
    match ops {
        KubeOps::Create { namespace, manifests } => create(namespace, manifests, running).await,
        KubeOps::Patch { reference, patch } => {
            let api = api(running, reference);
            let parameters = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            match api.patch(&reference.name, &parameters, &Patch::Strategic(patch)).await {
                Ok(_) => Ok(Outcome::Succeeded(output(reference))),
                Err(error) => Ok(Outcome::Failed(refusal(error)?)),
            }
        }
        KubeOps::Delete { reference } => delete(reference, running).await,
    }
}

fn api(running: &Running<'_>, reference: &ObjectReference) -> Api<DynamicObject> {
    let resource = resource(&reference.group, &reference.api_version, &reference.resource);
    Api::namespaced_with(running.client().clone(), &reference.namespace, &resource)
}

/// Creates all manifests, in order. The output is the reference of the last one.
async fn create(namespace: &str, manifests: &[Value], running: &Running<'_>) -> Result<Outcome, TurnError> {
    let mut last = Fields::new();
    for (index, manifest) in manifests.iter().enumerate() {
        let step = format!("{}-{index}", running.unique_hex());
        match create_one(namespace, manifest, &step, running).await? {
            Ok(reference) => last = reference,
            Err(why) => return Ok(Outcome::Failed(format!("document {}: {why}", index + 1))),
        }
    }
    Ok(Outcome::Succeeded(last))
}

async fn create_one(
    namespace: &str,
    manifest: &Value,
    step: &str,
    running: &Running<'_>,
) -> Result<Result<Fields, String>, TurnError> {
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let (resource, scope) = match pinned_kind(running.client(), &GroupVersionKind::gvk(group, version, kind)).await {
        Ok((resource, capabilities)) => (resource, capabilities.scope),
        Err(kube::Error::Discovery(error)) => return Ok(Err(format!("the cluster does not know its kind: {error}"))),
        Err(error) => return Ok(Err(refusal(error)?)),
    };
    let own = text("/metadata/namespace");
    let namespace = if own.is_empty() { namespace } else { own };
    let api: Api<DynamicObject> = match scope {
        Scope::Namespaced => Api::namespaced_with(running.client().clone(), namespace, &resource),
        Scope::Cluster => Api::all_with(running.client().clone(), &resource),
    };
    let namespace = if scope == Scope::Namespaced { namespace } else { "" };
    // A name that the API server makes up is another one each time; any other name shows itself by a conflict.
    if running.resumed && text("/metadata/name").is_empty() {
        let selector = ListParams::default().labels(&format!("{STEP_LABEL}={step}"));
        let made = match api.list(&selector).await {
            Ok(list) => list.items,
            Err(error) => return Ok(Err(refusal(error)?)),
        };
        if let Some(made) = made.first() {
            return Ok(Ok(reference_of(&resource, made, namespace)));
        }
    }
    let mut manifest = manifest.clone();
    json_patch::merge(&mut manifest, &json!({"metadata": {"labels": {STEP_LABEL: step}}}));
    let object: DynamicObject = match serde_json::from_value(manifest) {
        Ok(object) => object,
        Err(error) => return Ok(Err(format!("it is no object: {}", expectation(&error)))),
    };
    match api.create(&PostParams::default(), &object).await {
        Ok(made) => Ok(Ok(reference_of(&resource, &made, namespace))),
        Err(error) if is_conflict(&error) => {
            // Made by us, though the answer was lost?
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let found = match api.get_opt(name).await {
                Ok(found) => found,
                Err(error) => return Ok(Err(refusal(error)?)),
            };
            let ours = |found: &DynamicObject| {
                let labels = found.metadata.labels.as_ref();
                labels
                    .and_then(|labels| labels.get(STEP_LABEL))
                    .is_some_and(|label| label == step)
            };
            match found.filter(ours) {
                Some(made) => Ok(Ok(reference_of(&resource, &made, namespace))),
                None => Ok(Err(crate::infra::kube::reason(&error))),
            }
        }
        Err(error) => Ok(Err(refusal(error)?)),
    }
}

/// Deletes an object, and waits until it is gone. Its uid is written down first: another one that has its name by then stays.
async fn delete(reference: &ObjectReference, running: &mut Running<'_>) -> Result<Outcome, TurnError> {
    let api = api(running, reference);
    let (hook, phase) = (running.place.hook, running.place.phase);
    let recorded = running
        .recorder
        .phase(hook, phase)
        .and_then(|phase| phase.deleted_uid.clone());
    let uid = if let Some(recorded) = recorded {
        recorded
    } else {
        let uid = match api.get(&reference.name).await {
            Ok(object) => object.metadata.uid.unwrap_or_default(),
            Err(error) => return Ok(Outcome::Failed(refusal(error)?)),
        };
        let record = running
            .recorder
            .edit_phase(hook, phase, |phase| phase.deleted_uid = Some(uid.clone()));
        record.await?;
        uid
    };
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(&reference.name, &parameters).await {
        Ok(_) => {}
        // It is gone, or another one has its name: what the wait finds, too.
        Err(error) if is_not_found(&error) || is_conflict(&error) => {}
        Err(error) => return Ok(Outcome::Failed(refusal(error)?)),
    }
    let mut pauses = Pauses::new();
    loop {
        let found = api.get_opt(&reference.name).await?;
        if found.is_none_or(|found| found.metadata.uid.as_ref() != Some(&uid)) {
            return Ok(Outcome::Succeeded(output(reference)));
        }
        pauses.pause().await;
    }
}

/// A reference as output: its fields as texts.
fn output(reference: &ObjectReference) -> Fields {
    let ObjectReference {
        api_version,
        group,
        resource,
        kind,
        name,
        namespace,
    } = reference;
    fields([
        ("apiVersion", api_version),
        ("group", group),
        ("resource", resource),
        ("kind", kind),
        ("name", name),
        ("namespace", namespace),
    ])
}

fn reference_of(resource: &ApiResource, object: &DynamicObject, namespace: &str) -> Fields {
    fields([
        ("apiVersion", &resource.version),
        ("group", &resource.group),
        ("resource", &resource.plural),
        ("kind", ""),
        ("name", object.metadata.name.as_deref().unwrap_or_default()),
        ("namespace", namespace),
    ])
}

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> Fields {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect()
}

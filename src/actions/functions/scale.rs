//! `ScaleWorkload`: how many replicas a workload shall have.

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::{
    Api,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Pauses, Running, refusal};
use crate::{
    actions::{end::Outcome, recorder::TurnError, subject::resource},
    api::action::Fields,
    blueprint::{SubjectKind, call::ScaleWorkload},
    infra::kube::is_not_found,
    names::FIELD_MANAGER,
};

/// Scales it. The output is the number of replicas before, read and written down before anything is changed.
pub async fn run(scale: &ScaleWorkload, running: &mut Running<'_>) -> Result<Outcome, TurnError> {
    let Some(known) = scale.kind.resource() else {
        return Ok(Outcome::Failed(format!("{:?} can't be scaled", scale.kind)));
    };
    let resource = resource(known.group, known.version, known.plural);
    let api: Api<DynamicObject> = Api::namespaced_with(running.client().clone(), &scale.namespace, &resource);
    let recorded = running
        .recorder
        .phase(running.place.hook, running.place.phase)
        .and_then(|phase| phase.original_replicas);
    let original = if let Some(recorded) = recorded {
        recorded
    } else {
        let workload = match api.get(&scale.name).await {
            Ok(workload) => workload,
            Err(error) => return Ok(Outcome::Failed(refusal(error)?)),
        };
        let replicas = workload
            .data
            .pointer("/spec/replicas")
            .and_then(Value::as_i64)
            .unwrap_or(1);
        let replicas = i32::try_from(replicas).unwrap_or(i32::MAX);
        running
            .recorder
            .edit_phase(running.place.hook, running.place.phase, |phase| {
                phase.original_replicas = Some(replicas);
            })
            .await?;
        replicas
    };
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(json!({"spec": {"replicas": scale.replicas}}));
    if let Err(error) = api.patch(&scale.name, &parameters, &patch).await {
        return Ok(Outcome::Failed(refusal(error)?));
    }
    let mut pauses = Pauses::new();
    while scale.wait_for_ready && !is_settled(&api, scale, running).await? {
        pauses.pause().await;
    }
    let mut output = Fields::new();
    output.insert("originalReplicaCount".to_owned(), json!(original));
    Ok(Outcome::Succeeded(output))
}

/// Whether the workload and its pods are as its spec says.
async fn is_settled(api: &Api<DynamicObject>, scale: &ScaleWorkload, running: &Running<'_>) -> Result<bool, TurnError> {
    let workload = match api.get(&scale.name).await {
        Ok(workload) => workload,
        Err(error) if is_not_found(&error) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let uid = workload.metadata.uid.clone().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(running.client().clone(), &scale.namespace);
    let pods = pods.list(&ListParams::default()).await?.items;
    let owners = if scale.kind == SubjectKind::Deployment {
        let sets: Api<ReplicaSet> = Api::namespaced(running.client().clone(), &scale.namespace);
        let sets = sets.list(&ListParams::default()).await?.items;
        sets.into_iter()
            .filter(|set| is_owned(&set.metadata, std::slice::from_ref(&uid)))
            .filter_map(|set| set.metadata.uid)
            .collect()
    } else {
        vec![uid]
    };
    let phases: Vec<String> = pods
        .into_iter()
        .filter(|pod| is_owned(&pod.metadata, &owners))
        .map(|pod| pod.status.and_then(|status| status.phase).unwrap_or_default())
        .collect();
    let generation = workload.metadata.generation.unwrap_or_default();
    Ok(settled(&scale.kind, &workload.data, generation, &phases))
}

/// Kanister's rules. `phases`: of the pods that belong to the workload.
fn settled(kind: &SubjectKind, workload: &Value, generation: i64, phases: &[String]) -> bool {
    let number = |pointer: &str| workload.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
    let wanted = workload.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    let running = phases.iter().filter(|phase| *phase == "Running").count();
    let running = i64::try_from(running).unwrap_or(i64::MAX);
    if *kind == SubjectKind::StatefulSet {
        // Not in Kanister: without it a look that comes too early sees the state before the change.
        let seen = number("/status/observedGeneration") >= generation;
        return seen && number("/status/readyReplicas") == wanted && running == wanted;
    }
    number("/status/observedGeneration") >= generation
        && [
            "/status/replicas",
            "/status/updatedReplicas",
            "/status/availableReplicas",
        ]
        .iter()
        .all(|field| number(field) == wanted)
        && running == number("/status/availableReplicas")
        && phases.iter().all(|phase| phase == "Running")
}

fn is_owned(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, owners: &[String]) -> bool {
    metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owners.contains(&owner.uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_has_settled_when_status_and_pods_agree() {
        let phases = |list: &[&str]| list.iter().map(|phase| (*phase).to_owned()).collect::<Vec<_>>();
        let set = json!({"spec": {"replicas": 2}, "status": {"readyReplicas": 2, "observedGeneration": 4}});
        assert!(settled(
            &SubjectKind::StatefulSet,
            &set,
            4,
            &phases(&["Running", "Running"])
        ));
        assert!(!settled(
            &SubjectKind::StatefulSet,
            &set,
            5,
            &phases(&["Running", "Running"])
        ));
        assert!(!settled(&SubjectKind::StatefulSet, &set, 4, &phases(&["Running"])));
        // Terminating pods are still Running.
        let zero = json!({"spec": {"replicas": 0}, "status": {"observedGeneration": 1}});
        assert!(!settled(&SubjectKind::StatefulSet, &zero, 1, &phases(&["Running"])));
        assert!(settled(&SubjectKind::StatefulSet, &zero, 1, &[]));
        let status = json!({"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1});
        let deployment = json!({"spec": {"replicas": 1}, "status": status});
        assert!(settled(&SubjectKind::Deployment, &deployment, 1, &phases(&["Running"])));
        assert!(!settled(
            &SubjectKind::Deployment,
            &deployment,
            1,
            &phases(&["Running", "Pending"])
        ));
        assert!(!settled(
            &SubjectKind::Deployment,
            &deployment,
            2,
            &phases(&["Running"])
        ));
    }
}

//! Velero's side of an action: is what is asked for there, make it, and how does it stand.

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    action::{ACTION_LABEL, Action, ActionKind},
    contents, plan,
    recorder::TurnError,
    step::{Export, Seen},
};
use crate::{
    api::{HookRun, action::VeleroObject},
    hooks::restored::{RestoreInfo, is_terminal, label_value},
    infra::{
        clock,
        kube::{is_conflict, is_not_found},
    },
    names::VELERO_RESTORE_LABEL,
    result::{self, Verdict},
    waiter::restores,
};

/// The label that Velero gives the Backups of a Schedule.
const SCHEDULE_LABEL: &str = "velero.io/schedule-name";

/// One of Velero's resources.
pub fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", kind))
}

fn api(client: &Client, kind: &str, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource(kind))
}

/// The namespaces concerned, and whether Velero can do what is asked for.
pub type Prospect = (Result<Vec<String>, String>, Result<(), String>);

/// Looks at what an action asks Velero for.
pub async fn prospect(client: &Client, velero: &str, action: &Action) -> Result<Prospect, TurnError> {
    let (spec, setup_matters) = match (&action.request.velero_spec, &action.request.existing) {
        (Some(spec), _) => (Value::Object(spec.clone()), true),
        (None, Some(existing)) => {
            let kind = action.kind.velero_kind();
            let object = api(client, kind, velero).get_opt(&existing.name).await?;
            let Some(object) = object.filter(|object| object.metadata.uid.as_ref() == Some(&existing.uid)) else {
                let why = format!("Velero's {kind} {} is gone", existing.name);
                return Ok((Err(why.clone()), Err(why)));
            };
            (object.data.get("spec").cloned().unwrap_or_default(), false)
        }
        (None, None) => {
            let why = "it has no spec for Velero".to_owned();
            return Ok((Err(why.clone()), Err(why)));
        }
    };
    let (namespaces, setup) = match action.kind {
        ActionKind::Restore => restore_prospect(client, velero, &spec).await?,
        ActionKind::Backup => backup_prospect(client, velero, &spec).await?,
    };
    Ok((namespaces, if setup_matters { setup } else { Ok(()) }))
}

async fn restore_prospect(client: &Client, velero: &str, spec: &Value) -> Result<Prospect, TurnError> {
    let backup = match backup_of(client, velero, spec).await? {
        Ok(backup) => backup,
        Err(why) => {
            let namespaces = plan::restore_namespaces(spec, None, None);
            return Ok((namespaces.map_err(|told| format!("{why}; {told}")), Err(why)));
        }
    };
    let backup_spec = backup.data.get("spec").cloned().unwrap_or_default();
    let location = location_of(client, velero, &text(&backup_spec, "storageLocation")).await?;
    let held = if plan::needs_contents(spec, &backup_spec) {
        let name = backup.metadata.name.as_deref().unwrap_or_default();
        Some(contents::namespaces(client, velero, name, location.as_ref().ok()).await)
    } else {
        None
    };
    let setup = location.and_then(|location| is_available(&location));
    Ok((plan::restore_namespaces(spec, Some(&backup_spec), held.as_ref()), setup))
}

async fn backup_prospect(client: &Client, velero: &str, spec: &Value) -> Result<Prospect, TurnError> {
    let live = Api::<Namespace>::all(client.clone())
        .list_metadata(&ListParams::default())
        .await?;
    let live: Vec<String> = live
        .items
        .into_iter()
        .filter_map(|namespace| namespace.metadata.name)
        .collect();
    let location = location_of(client, velero, &text(spec, "storageLocation")).await?;
    let setup = location.and_then(|location| is_available(&location));
    Ok((Ok(plan::backup_namespaces(spec, &live)), setup))
}

/// The Backup that a Restore asks for, if it is usable.
async fn backup_of(client: &Client, velero: &str, spec: &Value) -> Result<Result<DynamicObject, String>, TurnError> {
    let (name, schedule) = (text(spec, "backupName"), text(spec, "scheduleName"));
    let backups = api(client, "Backup", velero);
    let phase = |backup: &DynamicObject| {
        backup
            .data
            .get("status")
            .map(|status| text(status, "phase"))
            .unwrap_or_default()
    };
    if name.is_empty() && !schedule.is_empty() {
        let selector = format!("{SCHEDULE_LABEL}={}", label_value(&schedule));
        let all = backups.list(&ListParams::default().labels(&selector)).await?.items;
        let started = |backup: &DynamicObject| backup.data.get("status").map(|status| text(status, "startTimestamp"));
        let newest = all
            .into_iter()
            .filter(|backup| phase(backup) == "Completed")
            .max_by_key(started);
        return Ok(newest.ok_or(format!("Schedule {schedule} has no completed Backup")));
    }
    if name.is_empty() {
        return Ok(Err("neither backupName nor scheduleName is given".to_owned()));
    }
    let Some(backup) = backups.get_opt(&name).await? else {
        return Ok(Err(format!("Backup {name} does not exist in namespace {velero}")));
    };
    Ok(match phase(&backup).as_str() {
        "Completed" | "PartiallyFailed" => Ok(backup),
        "" => Err(format!("Backup {name} can't be restored: Velero has not begun it")),
        phase => Err(format!("Backup {name} can't be restored: it is {phase}")),
    })
}

/// A backup location, or why there is none. `name`: empty for the default one.
async fn location_of(client: &Client, velero: &str, name: &str) -> Result<Result<Value, String>, TurnError> {
    let locations = api(client, "BackupStorageLocation", velero)
        .list(&ListParams::default())
        .await?
        .items;
    let is_wanted = |location: &DynamicObject| {
        let own = location.metadata.name.as_deref();
        match location.data.pointer("/spec/default").and_then(Value::as_bool) {
            _ if !name.is_empty() => own == Some(name),
            Some(is_default) => is_default,
            None => own == Some("default"),
        }
    };
    Ok(match locations.into_iter().find(is_wanted) {
        Some(location) => serde_json::to_value(location).map_err(|error| error.to_string()),
        None if name.is_empty() => Err(format!("there is no default backup location in namespace {velero}")),
        None => Err(format!("there is no backup location {name} in namespace {velero}")),
    })
}

/// Whether Velero can use a location now.
fn is_available(location: &Value) -> Result<(), String> {
    let status = location.get("status").unwrap_or(&Value::Null);
    let name = location
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match text(status, "phase").as_str() {
        "Available" => Ok(()),
        "" => Err(format!("Velero has not looked at backup location {name} yet")),
        phase => Err(format!(
            "backup location {name} is {phase}: {}",
            text(status, "message")
        )),
    }
}

/// Creates the Velero object of an action; gives its uid. `Ok(Err)`: it is refused, and why.
pub async fn create(
    client: &Client,
    action: &Action,
    object: &VeleroObject,
) -> Result<Result<String, String>, TurnError> {
    let kind = action.kind.velero_kind();
    let api = api(client, kind, &object.namespace);
    let mut labels = action.request.template.labels.clone();
    labels.insert(ACTION_LABEL.to_owned(), action.uid.clone());
    let manifest = json!({
        "apiVersion": "velero.io/v1",
        "kind": kind,
        "metadata": {
            "name": object.name, "namespace": object.namespace, "labels": labels,
            "annotations": action.request.template.annotations,
        },
        "spec": action.request.velero_spec,
    });
    let manifest = serde_json::from_value(manifest).map_err(|error| TurnError::Unreadable(error.to_string()))?;
    let created = match api.create(&PostParams::default(), &manifest).await {
        Ok(created) => created,
        // Made by a process that could not write it down any more.
        Err(error) if is_conflict(&error) => match api.get_opt(&object.name).await? {
            Some(found) => found,
            None => return Err(error.into()),
        },
        Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
            return Ok(Err(format!("Velero's {kind} could not be created: {}", status.message)));
        }
        Err(error) => return Err(error.into()),
    };
    let labels = created.metadata.labels.unwrap_or_default();
    if labels.get(ACTION_LABEL) != Some(&action.uid) {
        return Ok(Err(format!("there is a {kind} {} that another has made", object.name)));
    }
    Ok(created
        .metadata
        .uid
        .ok_or_else(|| format!("Velero's {kind} has no uid")))
}

/// How the Velero object of an action stands.
pub async fn look(client: &Client, kind: ActionKind, object: &VeleroObject) -> Result<Seen, TurnError> {
    let found = api(client, kind.velero_kind(), &object.namespace)
        .get_opt(&object.name)
        .await?;
    let Some(found) = found.filter(|found| found.metadata.uid == object.uid) else {
        return Ok(Seen::Gone);
    };
    let value = serde_json::to_value(&found).map_err(|error| TurnError::Unreadable(error.to_string()))?;
    match kind {
        ActionKind::Restore => look_at_restore(client, &value).await,
        ActionKind::Backup => Ok(look_at_backup(&value)),
    }
}

async fn look_at_restore(client: &Client, value: &Value) -> Result<Seen, TurnError> {
    let Some(restore) = RestoreInfo::read(value) else {
        return Err(TurnError::Unreadable("the Restore has no name or uid".to_owned()));
    };
    let phase = restore.phase.clone();
    if !restore.finished() {
        let why = format!("Velero works on it ({})", if phase.is_empty() { "New" } else { &phase });
        return Ok(Seen::Pending { phase, why });
    }
    let runs = runs_of(client, &restore).await?;
    let planned = restores::planned_pods(client, &restore).await?;
    let unplanned = planned
        .iter()
        .filter(|pod| !runs.iter().any(|run| run.spec.pod.uid == pod.identity.uid))
        .count();
    let references: Vec<&HookRun> = runs.iter().collect();
    let verdict = result::judge(&restore, unplanned, &references, clock::now());
    let hooks_failed = match verdict {
        Verdict::Pending(why) => return Ok(Seen::Pending { phase, why }),
        // The waiter has the last word: it knows the pods that it still looks for.
        _ if restore.result_is_open() => {
            let why = "the result of the post-restore hooks is being written".to_owned();
            return Ok(Seen::Pending { phase, why });
        }
        Verdict::Failed(why) => Some(why),
        // Their records may have been cleared away since.
        Verdict::Succeeded if restore.result.as_deref() == Some("Failed") => {
            Some("see the Restore's status".to_owned())
        }
        Verdict::Succeeded => None,
    };
    Ok(Seen::Ended {
        phase,
        hooks_failed,
        export: Export::Nothing,
    })
}

async fn runs_of(client: &Client, restore: &RestoreInfo) -> Result<Vec<HookRun>, TurnError> {
    let selector = format!("{VELERO_RESTORE_LABEL}={}", label_value(&restore.name));
    let runs: Api<HookRun> = Api::all(client.clone());
    let mut runs = match runs.list(&ListParams::default().labels(&selector)).await {
        Ok(list) => list.items,
        Err(error) if is_not_found(&error) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    runs.retain(|run| run.spec.plan.restore.as_ref().is_some_and(|of| of.uid == restore.uid));
    Ok(runs)
}

fn look_at_backup(value: &Value) -> Seen {
    let status = value.get("status").unwrap_or(&Value::Null);
    let phase = text(status, "phase");
    if !is_terminal(&phase) {
        let why = format!("Velero works on it ({})", if phase.is_empty() { "New" } else { &phase });
        return Seen::Pending { phase, why };
    }
    let number = |key: &str| status.get(key).and_then(Value::as_i64).unwrap_or_default();
    let (asked, failed) = (
        number("backupItemOperationsAttempted"),
        number("backupItemOperationsFailed"),
    );
    let was_taken = matches!(phase.as_str(), "Completed" | "PartiallyFailed");
    let export = match (asked, failed) {
        (0, _) if was_taken => Export::Nothing,
        (_, 0) if was_taken => Export::Succeeded,
        (0, _) | (_, 0) => Export::Failed(format!("the Backup ended {phase}")),
        (asked, failed) => Export::Failed(format!("{failed} of {asked} operations of Velero's plugins failed")),
    };
    Seen::Ended {
        phase,
        hooks_failed: None,
        export,
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_available_location_is_good() {
        let location = |status: Value| is_available(&json!({"metadata": {"name": "far"}, "status": status}));
        assert_eq!(location(json!({"phase": "Available"})), Ok(()));
        let away = location(json!({"phase": "Unavailable", "message": "no such bucket"})).unwrap_err();
        assert_eq!(away, "backup location far is Unavailable: no such bucket");
        assert!(location(json!({})).unwrap_err().contains("has not looked at"));
    }

    #[test]
    fn a_backups_end_and_what_was_moved() {
        let ended = |status: Value| match look_at_backup(&json!({"status": status})) {
            Seen::Ended { phase, export, .. } => (phase, export),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            ended(json!({"phase": "Completed"})),
            ("Completed".to_owned(), Export::Nothing)
        );
        let operations = json!({"phase": "Completed", "backupItemOperationsAttempted": 2});
        assert_eq!(ended(operations).1, Export::Succeeded);
        let failed =
            json!({"phase": "PartiallyFailed", "backupItemOperationsAttempted": 2, "backupItemOperationsFailed": 1});
        assert!(matches!(ended(failed).1, Export::Failed(why) if why.starts_with("1 of 2")));
        assert_eq!(
            ended(json!({"phase": "Failed"})).1,
            Export::Failed("the Backup ended Failed".to_owned())
        );
        let waiting = json!({"status": {"phase": "WaitingForPluginOperations"}});
        assert!(
            matches!(look_at_backup(&waiting), Seen::Pending { phase, .. } if phase == "WaitingForPluginOperations")
        );
        assert!(matches!(look_at_backup(&json!({})), Seen::Pending { .. }));
    }
}

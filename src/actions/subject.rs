//! Reading what a hook works on.

use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::Value;

use super::recorder::TurnError;
use crate::{
    api::action::Subject as Reference,
    blueprint::{Subject, SubjectKind},
    infra::kube::is_not_found,
};

/// A resource by group, version and plural name.
pub fn resource(group: &str, version: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        },
        // Never sent: requests are made by the plural name.
        kind: String::new(),
        plural: plural.to_owned(),
    }
}

/// Reads the subject of a hook in a namespace. `Ok(Err)`: it can't be had, and why.
pub async fn read(
    client: &Client,
    namespace: &str,
    reference: Option<&Reference>,
) -> Result<Result<Subject, String>, TurnError> {
    let Some(reference) = reference else {
        return Ok(Ok(namespace_subject(client, namespace).await?));
    };
    let kind = SubjectKind::parse(&reference.type_);
    if kind == SubjectKind::Namespace {
        if reference.name != namespace {
            return Ok(Err(format!(
                "subject namespace {} is not the target namespace {namespace}",
                reference.name
            )));
        }
        return Ok(Ok(namespace_subject(client, namespace).await?));
    }
    let known = kind.resource();
    let resource = match (known, &reference.resource, &reference.api_version) {
        (Some(known), _, _) => resource(known.group, known.version, known.plural),
        (None, Some(plural), Some(version)) => {
            resource(reference.group.as_deref().unwrap_or_default(), version, plural)
        }
        // Refused when the action was checked.
        _ => return Ok(Err(format!("subject type {:?} is not known", reference.type_))),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let name = &reference.name;
    let object = match api.get(name).await {
        Ok(object) => value_of(&object)?,
        Err(error) if is_not_found(&error) => {
            return Ok(Err(format!(
                "subject {} {namespace}/{name} does not exist",
                resource.plural
            )));
        }
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Err(status.message.clone())),
        Err(error) => return Err(error.into()),
    };
    let (mut pods, mut replica_sets) = (Vec::new(), Vec::new());
    if matches!(kind, SubjectKind::StatefulSet | SubjectKind::Deployment) {
        pods = list::<Pod>(client, namespace).await?;
    }
    if kind == SubjectKind::Deployment {
        replica_sets = list::<ReplicaSet>(client, namespace).await?;
    }
    Ok(Subject::of(kind, object, &pods, &replica_sets))
}

/// A namespace that is not there yet has a name all the same.
async fn namespace_subject(client: &Client, name: &str) -> Result<Subject, TurnError> {
    let found = Api::<Namespace>::all(client.clone()).get_opt(name).await?;
    let object = found.map(|namespace| value_of(&namespace)).transpose()?;
    Ok(Subject::namespace(name, object))
}

async fn list<K>(client: &Client, namespace: &str) -> Result<Vec<Value>, TurnError>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default()).await?;
    list.items.iter().map(value_of).collect()
}

fn value_of<T: serde::Serialize>(object: &T) -> Result<Value, TurnError> {
    serde_json::to_value(object).map_err(|error| TurnError::Unreadable(error.to_string()))
}

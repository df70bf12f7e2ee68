//! Requests in the caller's name, as annotations.

use anyhow::{anyhow, bail};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PostParams},
};
use serde_json::json;

use crate::{
    api::HookRun,
    cli::output,
    control::Request,
    digest,
    hooks::restored::RestoreInfo,
    infra::{
        clock,
        kube::{is_not_found, reason},
        pod_edit::parameters,
    },
    waiter::restores,
};

/// A request in the name of whoever runs this command.
pub(super) async fn request(client: &Client, reason: &str) -> Request {
    let (by, now) = (who(client).await, clock::now());
    let id = digest::hex(&format!("{by} {} {}", now.as_nanosecond(), std::process::id()), 8);
    Request {
        id,
        by,
        at: Some(now),
        reason: reason.to_owned(),
    }
}

/// The user name, as the API server knows it. A brake is not refused because that can't be asked.
async fn who(client: &Client) -> String {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    match api.create(&PostParams::default(), &SelfSubjectReview::default()).await {
        Ok(review) => review
            .status
            .and_then(|status| status.user_info?.username)
            .unwrap_or_default(),
        Err(error) => {
            output::note(&format!("reveille: who you are is not recorded: {}", reason(&error)));
            String::new()
        }
    }
}

pub(super) async fn annotate_restore(
    client: &Client,
    info: &RestoreInfo,
    annotations: &[(&str, Option<&String>)],
) -> anyhow::Result<()> {
    write(
        client,
        &restores::resource(),
        (&info.namespace, &info.name),
        Some(&info.uid),
        annotations,
    )
    .await
}

pub(super) async fn annotate_run(client: &Client, run: &HookRun, key: &str, value: &String) -> anyhow::Result<()> {
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
    let resource = ApiResource::erase::<HookRun>(&());
    write(
        client,
        &resource,
        (&namespace, &name),
        run.uid().as_deref(),
        &[(key, Some(value))],
    )
    .await
}

/// Writes annotations onto that very object.
pub(super) async fn write(
    client: &Client,
    resource: &ApiResource,
    (namespace, name): (&str, &str),
    uid: Option<&str>,
    annotations: &[(&str, Option<&String>)],
) -> anyhow::Result<()> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let annotations: serde_json::Map<_, _> = annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    let patch = json!({"metadata": {"uid": uid, "annotations": annotations}});
    match api.patch_metadata(name, &parameters(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => bail!("{} {namespace}/{name} was deleted meanwhile", resource.kind),
        Err(error) => Err(anyhow!(
            "{} {namespace}/{name} can't be changed: {}",
            resource.kind,
            reason(&error)
        )),
    }
}

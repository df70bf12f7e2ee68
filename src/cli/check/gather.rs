//! Reads the facts. Whatever can't be read is a fact too: nothing here fails.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::{join_all, try_join_all};
use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    },
    apps::v1::Deployment,
    authentication::v1::SelfSubjectReview,
    authorization::v1::{
        ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
        SubjectAccessReviewSpec,
    },
    coordination::v1::Lease,
    core::v1::{Namespace, Pod, Secret},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, PostParams},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use super::{
    facts::{CaSecret, Facts, Installation, Known, Policy, Probe, Replica, Velero, argument, arguments},
    restores::{unmarked, unplanned},
    rights::{Layout, Right},
};
use crate::{
    admission::Mode,
    cli::unserved,
    hooks::restored::RestoreInfo,
    infra::{
        ca_store::CERTIFICATE_KEY,
        kube::{hook_runs, is_not_found, reason},
        pki::{self, Validity, service_names},
    },
    names::{INJECTION_LABEL, MODE_ANNOTATION, OWNER_ANNOTATION, POLICY_LABEL, VELERO_RESTORE_LABEL},
    waiter::restores,
};

/// The entry by which a webhook configuration is known as Reveille's.
const RESTORES_ENTRY: &str = "restores.reveille.dev";
/// How long Velero may take to say its version, and a replica to shake hands.
const PATIENCE: Duration = Duration::from_secs(10);

fn words(error: kube::Error) -> String {
    reason(&error)
}

/// Reads everything. `name`: of the installation, where webhook configurations can't be listed. `now`: this machine's clock.
pub(super) async fn facts(client: &Client, name: &str, now: Timestamp) -> Facts {
    let installations = installations(client, name).await;
    let mode = installations.as_ref().ok().and_then(|all| mode(all.first()?));
    let out_of_scope = out_of_scope(client, installations.as_deref().unwrap_or_default()).await;
    let restores_exist = restores_exist(client).await;
    let restores: Known<Vec<RestoreInfo>> = restores::list(client)
        .await
        .map(|all| all.into_iter().map(|(_, info)| info).collect())
        .map_err(words);
    let pods = restored_pods(client).await;
    let all_runs = hook_runs(client, &ListParams::default()).await;
    let unserved = match &restores {
        Ok(restores) => {
            let restores: Vec<&RestoreInfo> = restores.iter().collect();
            unserved::read(client, &restores).await.map_err(words)
        }
        Err(error) => Err(error.clone()),
    };
    let mode = mode.unwrap_or_default();
    Facts {
        now,
        kubernetes: kubernetes(client).await,
        velero: velero(client).await,
        crd: crd(client).await,
        blueprints: blueprints(client).await,
        policies: policies(client).await,
        runs: all_runs.map_err(words),
        unplanned: restores.as_ref().map_err(Clone::clone).and_then(|restores| {
            let pods = pods?;
            Ok(unplanned(restores, &pods, mode, &out_of_scope?, now))
        }),
        unmarked: restores.map(|restores| unmarked(&restores, mode)),
        unserved,
        restores_exist,
        installations,
    }
}

async fn kubernetes(client: &Client) -> Known<String> {
    let version = client.apiserver_version().await.map_err(words)?;
    // Some providers write `34+`.
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).to_owned();
    Ok(format!("{}.{}", number(&version.major), number(&version.minor)))
}

/// The mode that the webhook was started with.
fn mode(installation: &Installation) -> Option<Mode> {
    let deployment = installation.deployment.as_ref().ok()?.as_ref()?;
    argument(deployment, "webhook", "mode")?.parse().ok()
}

/// Namespaces in which nothing is to be run.
async fn out_of_scope(client: &Client, installations: &[Installation]) -> Known<Vec<String>> {
    let deployments = installations
        .iter()
        .filter_map(|installation| Some((installation, installation.deployment.as_ref().ok()?.as_ref()?)));
    let mut namespaces = Vec::new();
    for (installation, deployment) in deployments {
        let excluded = arguments(deployment, "waiter", "excluded-namespace");
        namespaces.extend(excluded.into_iter().map(str::to_owned));
        namespaces.push(installation.namespace.clone());
    }
    let disabled = ListParams::default().labels(&format!("{INJECTION_LABEL}=disabled"));
    let list = Api::<Namespace>::all(client.clone()).list_metadata(&disabled).await;
    namespaces.extend(list.map_err(words)?.items.iter().map(ResourceExt::name_any));
    Ok(namespaces)
}

async fn restores_exist(client: &Client) -> Known<bool> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &restores::resource());
    match api.list_metadata(&ListParams::default().limit(1)).await {
        Ok(_) => Ok(true),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(words(error)),
    }
}

async fn restored_pods(client: &Client) -> Known<Vec<Value>> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &unserved::resource("v1", "Pod"));
    let list = api.list(&ListParams::default().labels(VELERO_RESTORE_LABEL)).await;
    let pods = list.map_err(words)?.items;
    Ok(pods.iter().filter_map(|pod| serde_json::to_value(pod).ok()).collect())
}

/// Velero's servers, known by the labels that `velero install` and its chart put on them.
async fn velero(client: &Client) -> Known<Vec<Velero>> {
    let api: Api<Deployment> = Api::all(client.clone());
    let mut found = BTreeSet::new();
    let mut servers = Vec::new();
    for labels in ["component=velero", "app.kubernetes.io/name=velero"] {
        let list = api.list(&ListParams::default().labels(labels)).await.map_err(words)?;
        for deployment in list.items {
            let namespace = deployment.namespace().unwrap_or_default();
            if found.insert((namespace.clone(), deployment.name_any())) {
                servers.push((namespace, deployment));
            }
        }
    }
    let ask = servers.into_iter().map(|(namespace, deployment)| async move {
        let status = deployment.status.as_ref();
        let ready = status.and_then(|status| status.ready_replicas).unwrap_or_default() > 0;
        let said = if ready {
            asked_version(client, &namespace).await
        } else {
            None
        };
        Velero {
            version: said.or_else(|| image_tag(&deployment)),
            namespace,
            ready,
        }
    });
    Ok(join_all(ask).await)
}

/// The tag of the image, if it looks like a version.
fn image_tag(deployment: &Deployment) -> Option<String> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let image = pod.containers.first()?.image.as_deref()?;
    let (_, tag) = image.rsplit_once(':')?;
    (tag.starts_with('v') && tag.contains('.')).then(|| tag.to_owned())
}

/// Asks the server for its version as `velero version` does. The request is removed again; Velero would do it as well.
async fn asked_version(client: &Client, namespace: &str) -> Option<String> {
    let resource = unserved::resource("velero.io/v1", "ServerStatusRequest");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let request = json!({
        "apiVersion": "velero.io/v1", "kind": "ServerStatusRequest",
        "metadata": {"generateName": "reveille-check-"}, "spec": {},
    });
    let request = serde_json::from_value(request).ok()?;
    let name = api.create(&PostParams::default(), &request).await.ok()?.name_any();
    let answer = tokio::time::timeout(PATIENCE, async {
        loop {
            let request = api.get_opt(&name).await.ok()??;
            if let Some(version) = request.data.pointer("/status/serverVersion").and_then(Value::as_str) {
                return Some(version.to_owned());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let answer = answer.await.ok().flatten();
    // Velero removes it too, after a minute.
    let _ = api.delete(&name, &kube::api::DeleteParams::default()).await;
    answer
}

async fn crd(client: &Client) -> Known<Option<Value>> {
    let resource = unserved::resource("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let found = api.get_opt("hookruns.reveille.dev").await.map_err(words)?;
    found
        .map(|crd| serde_json::to_value(crd).map_err(|error| error.to_string()))
        .transpose()
}

/// Looked for only where an actions controller is.
async fn blueprints(client: &Client) -> Known<Option<bool>> {
    let label = "app.kubernetes.io/component=actions,app.kubernetes.io/managed-by=Helm";
    let controllers = Api::<Deployment>::all(client.clone())
        .list_metadata(&ListParams::default().labels(label))
        .await
        .map_err(words)?;
    if controllers.items.is_empty() {
        return Ok(None);
    }
    let resource = unserved::resource("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let found = api.get_metadata_opt("blueprints.cr.kanister.io").await.map_err(words)?;
    Ok(Some(found.is_some()))
}

async fn policies(client: &Client) -> Known<Vec<Policy>> {
    let ours = ListParams::default().labels(POLICY_LABEL);
    let policies = Api::<ValidatingAdmissionPolicy>::all(client.clone()).list(&ours).await;
    let policies = policies.map_err(words)?.items;
    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(client.clone());
    let bindings = bindings.list(&ListParams::default()).await.map_err(words)?.items;
    let actions = |policy: &str| {
        let specs = bindings.iter().filter_map(|binding| binding.spec.as_ref());
        let bound = specs.filter(|spec| spec.policy_name.as_deref() == Some(policy));
        let actions = bound.flat_map(|spec| spec.validation_actions.iter().flatten());
        actions.cloned().collect::<Vec<String>>()
    };
    let read = policies.iter().map(|policy| Policy {
        name: policy.name_any(),
        kind: policy.labels().get(POLICY_LABEL).cloned().unwrap_or_default(),
        actions: actions(&policy.name_any()),
    });
    Ok(read.collect())
}

async fn installations(client: &Client, name: &str) -> Known<Vec<Installation>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let all = match api.list(&ListParams::default()).await {
        Ok(list) => list.items,
        // The waiter's own account may read its own one alone.
        Err(error) => match api.get_opt(name).await {
            Ok(found) => found.into_iter().collect(),
            Err(_) => return Err(words(error)),
        },
    };
    let found = all.into_iter().filter_map(|configuration| {
        let entry = configuration
            .webhooks
            .iter()
            .flatten()
            .find(|entry| entry.name == RESTORES_ENTRY)?;
        let service = entry.client_config.service.as_ref()?;
        let (namespace, service) = (service.namespace.clone(), service.name.clone());
        Some((configuration, namespace, service))
    });
    let found: Vec<_> = found.collect();
    let mut installations = Vec::new();
    for (configuration, namespace, service) in found {
        installations.push(installation(client, configuration, namespace, service).await);
    }
    Ok(installations)
}

async fn installation(
    client: &Client,
    configuration: MutatingWebhookConfiguration,
    namespace: String,
    service: String,
) -> Installation {
    // The chart gives its objects one name.
    let name = configuration.name_any();
    let deployment = Api::<Deployment>::namespaced(client.clone(), &namespace)
        .get_opt(&name)
        .await
        .map_err(words);
    let found = deployment.as_ref().ok().and_then(Option::as_ref);
    // Whoever may not read the Deployment may be the waiter itself.
    let layout = found.map_or_else(
        || Layout::usual(&name, &namespace),
        |deployment| Layout::of(deployment, &name, &namespace),
    );
    let lease = Api::<Lease>::namespaced(client.clone(), &namespace)
        .get_opt(&layout.lease)
        .await
        .map_err(words);
    let secret = found.and_then(|deployment| argument(deployment, "webhook", "ca-secret"));
    let ca = match secret {
        Some(secret) => ca(client, &namespace, secret).await,
        None => Ok(None),
    };
    let replicas = replicas(client, &configuration, &namespace, &service, found).await;
    let account = found.and_then(|deployment| account(deployment, &namespace));
    let webhook_user = Some(layout.webhook_user());
    let webhook_rights = rights(client, &namespace, webhook_user, layout.webhook_rights()).await;
    let rights = rights(client, &namespace, account, layout.waiter_rights()).await;
    Installation {
        probe: probe(client).await,
        configuration,
        namespace,
        service,
        deployment,
        ca,
        replicas,
        lease,
        rights,
        webhook_rights,
    }
}

async fn ca(client: &Client, namespace: &str, secret: &str) -> Known<Option<CaSecret>> {
    let found = Api::<Secret>::namespaced(client.clone(), namespace)
        .get_opt(secret)
        .await
        .map_err(words)?;
    let data = found.and_then(|secret| secret.data).unwrap_or_default();
    let text = data.get(CERTIFICATE_KEY).map(|bytes| String::from_utf8_lossy(&bytes.0));
    Ok(Some(CaSecret {
        current: text.map(std::borrow::Cow::into_owned).unwrap_or_default(),
    }))
}

/// The user name of the pods' account.
fn account(deployment: &Deployment, namespace: &str) -> Option<String> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let name = pod.service_account_name.as_deref().unwrap_or("default");
    Some(format!("system:serviceaccount:{namespace}:{name}"))
}

/// Asks the API server what an account may do: as the account itself if this is it, else about it.
async fn rights(
    client: &Client,
    namespace: &str,
    account: Option<String>,
    wanted: Vec<Right>,
) -> Known<Vec<(Right, bool)>> {
    let myself: SelfSubjectReview = Api::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(words)?;
    let user = myself
        .status
        .and_then(|status| status.user_info?.username)
        .unwrap_or_default();
    let of_namespace = format!("system:serviceaccount:{namespace}:");
    let account = account.or_else(|| Some(user.clone()).filter(|user| user.starts_with(&of_namespace)));
    let account = account.ok_or("without the Deployment it is not known which account the waiter has")?;
    let (is_it, account) = (user == account, account.as_str());
    let asked = wanted.into_iter().map(|right| async move {
        let allowed = if is_it {
            may_i(client, &right).await?
        } else {
            may_it(client, account, &right).await?
        };
        Ok::<_, kube::Error>((right, allowed))
    });
    try_join_all(asked).await.map_err(words)
}

fn attributes(right: &Right) -> ResourceAttributes {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    ResourceAttributes {
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: Some(subresource.to_owned()),
        verb: Some(right.verb.to_owned()),
        namespace: right.namespace.clone(),
        name: right.name.clone(),
        ..ResourceAttributes::default()
    }
}

async fn may_i(client: &Client, right: &Right) -> Result<bool, kube::Error> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes(right)),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn may_it(client: &Client, account: &str, right: &Right) -> Result<bool, kube::Error> {
    let namespace = account.split(':').nth(2).unwrap_or_default();
    let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned);
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(account.to_owned()),
            groups: Some([&groups[..], &[format!("system:serviceaccounts:{namespace}")]].concat()),
            resource_attributes: Some(attributes(right)),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::<SubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// A dry run of a Restore that asks for Reveille: does the API server call the webhook, and believe it?
async fn probe(client: &Client) -> Known<Option<Probe>> {
    let namespace = match velero(client).await?.into_iter().next() {
        Some(velero) => velero.namespace,
        None => return Ok(None),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &restores::resource());
    let restore = json!({
        "apiVersion": "velero.io/v1", "kind": "Restore",
        "metadata": {"generateName": "reveille-check-", "annotations": {MODE_ANNOTATION: "takeover"}},
        "spec": {"backupName": "none"},
    });
    let restore = serde_json::from_value(restore).map_err(|error| error.to_string())?;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match api.create(&dry_run, &restore).await {
        Ok(answer) => Ok(Some(Probe {
            marked: answer.annotations().contains_key(OWNER_ANNOTATION),
            server_time: answer.creation_timestamp().map(|time| time.0),
        })),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(words(error)),
    }
}

/// Shakes hands with each replica through the API server's port forwarding, as the API server would: it trusts the `caBundle` alone.
async fn replicas(
    client: &Client,
    configuration: &MutatingWebhookConfiguration,
    namespace: &str,
    service: &str,
    deployment: Option<&Deployment>,
) -> Known<Vec<Replica>> {
    let labels = deployment.and_then(|deployment| deployment.spec.as_ref()?.selector.match_labels.clone());
    let labels: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if labels.is_empty() {
        return Ok(Vec::new());
    }
    let mut entries = configuration.webhooks.iter().flatten();
    let bundle = entries.find_map(|entry| entry.client_config.ca_bundle.clone());
    let bundle = bundle.map(|bundle| bundle.0).unwrap_or_default();
    let names = service_names(service, namespace);
    let name = names.first().cloned().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = pods
        .list(&ListParams::default().labels(&labels.join(",")))
        .await
        .map_err(words)?;
    let alive = list
        .items
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let shake = alive.map(|pod| {
        let (pods, name, bundle) = (&pods, &name, &bundle);
        async move {
            let handshake = tokio::time::timeout(PATIENCE, handshake(pods, &pod, name, bundle));
            let late = || Err(format!("no answer within {} s", PATIENCE.as_secs()));
            Replica {
                pod: pod.name_any(),
                certificate: handshake.await.unwrap_or_else(|_| late()),
            }
        }
    });
    Ok(join_all(shake).await)
}

async fn handshake(pods: &Api<Pod>, pod: &Pod, name: &str, bundle: &[u8]) -> Known<Validity> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let port = containers
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some("https"))
        .and_then(|port| u16::try_from(port.container_port).ok())
        .ok_or("the pod has no port https")?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(pki::certificates(bundle).map_err(|error| error.to_string())?);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut forward = pods.portforward(&pod.name_any(), &[port]).await.map_err(words)?;
    let stream = forward.take_stream(port).ok_or("the port can't be forwarded")?;
    let server = name
        .to_owned()
        .try_into()
        .map_err(|_| format!("{name} is no server name"))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(server, stream)
        .await
        .map_err(|error| error.to_string())?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.ok_or("it serves no certificate")?;
    pki::validity(leaf).map_err(|error| error.to_string())
}

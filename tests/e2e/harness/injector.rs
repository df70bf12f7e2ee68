//! Somebody else's injector: a mutating webhook that puts a native sidecar in front of a pod's init containers, as service
//! meshes do. It runs in the test's own process.

use std::{env, net::TcpListener, sync::Arc};

use axum::{Json, Router, routing::post};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{IMAGE, run};

/// The label on pods that the injectors of a test look for; its value is the injector's name.
pub(crate) const INJECTOR_LABEL: &str = "e2e.reveille.dev/injector";
/// The container that they put in front.
pub(crate) const INJECTED: &str = "injected";

/// An injector; with it goes its webhook configuration.
pub(crate) struct Injector {
    configuration: String,
}

impl Injector {
    /// Starts one. Webhooks are called in the order of their configurations' names.
    pub(crate) async fn start(client: &Client, configuration: &str) -> Self {
        let host =
            env::var("REVEILLE_CLUSTER_HOST").expect("REVEILLE_CLUSTER_HOST: `tests/cluster/cluster env` sets it");
        let listener = TcpListener::bind((host.as_str(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let pair = rcgen::generate_simple_self_signed([host.clone()]).unwrap();
        let authority = STANDARD.encode(pair.cert.pem());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![pair.cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(pair.signing_key.serialize_der().into()),
            )
            .unwrap();
        // A thread of its own: tests block theirs while they run programs.
        std::thread::spawn(move || serve(listener, TlsAcceptor::from(Arc::new(config))));
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": configuration},
            "webhooks": [{
                "name": "injector.e2e.reveille.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "failurePolicy": "Fail", "reinvocationPolicy": "Never", "timeoutSeconds": 10,
                "clientConfig": {"url": format!("https://{host}:{port}/"), "caBundle": authority},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "objectSelector": {
                    "matchLabels": {INJECTOR_LABEL: configuration},
                    "matchExpressions": [{"key": "velero.io/restore-name", "operator": "Exists"}],
                },
            }],
        });
        let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        Self {
            configuration: configuration.to_owned(),
        }
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        run(
            "kubectl",
            &[
                "delete",
                "mutatingwebhookconfiguration",
                &self.configuration,
                "--ignore-not-found",
            ],
        );
    }
}

fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = TowerToHyperService::new(Router::new().route("/", post(inject)));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}

async fn inject(Json(review): Json<Value>) -> Json<Value> {
    let container = json!({
        "name": INJECTED, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"],
        "restartPolicy": "Always",
    });
    // Restored pods of the tests have init containers: restore-wait at least.
    let patch = json!([{"op": "add", "path": "/spec/initContainers/0", "value": container}]).to_string();
    Json(json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch),
        },
    }))
}

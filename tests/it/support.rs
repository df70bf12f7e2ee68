//! A webhook on a real socket with a CA of its own, and a client that trusts it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use reveille::{
    hooks::restored::RestoreInfo,
    infra::{clock, health::Readiness, metrics::Metrics, pki::Ca},
    webhook::{
        handler::{Settings, Webhook},
        limits::Limits,
        restores::{ListRestores, RestoreCache},
        serve::Server,
        tls::{ServingCertificate, server_config},
    },
};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

pub(crate) const NAME: &str = "reveille.test.svc";

/// Answers live lists: after a while, or with a panic for the name `panic`.
#[derive(Clone, Default)]
pub(crate) struct FakeVelero {
    pub(crate) restores: Vec<RestoreInfo>,
    pub(crate) takes: Duration,
    pub(crate) asked: Arc<AtomicUsize>,
}

impl ListRestores for FakeVelero {
    fn list(&self, name: Option<String>) -> BoxFuture<'_, Result<Vec<RestoreInfo>, String>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            assert_ne!(name.as_deref(), Some("panic"), "asked to panic");
            tokio::time::sleep(self.takes).await;
            let of_name = |restore: &&RestoreInfo| name.as_ref().is_none_or(|name| *name == restore.name);
            Ok(self.restores.iter().filter(of_name).cloned().collect())
        })
    }
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Ca,
    pub(crate) certificate: ServingCertificate,
    pub(crate) stopping: CancellationToken,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) task: JoinHandle<()>,
}

pub(crate) fn sign(ca: &Ca, certificate: &ServingCertificate) {
    let leaf = ca.sign_leaf(&[NAME.to_owned()], clock::now()).unwrap();
    certificate.serve(vec![leaf.certificate], &leaf.key).unwrap();
}

#[allow(clippy::disallowed_methods)] // a test's server, ended with the test's runtime
pub(crate) async fn start(limits: Limits, velero: FakeVelero, cached: Vec<RestoreInfo>) -> TestServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ca = Ca::generate(clock::now()).unwrap();
    let certificate = ServingCertificate::default();
    sign(&ca, &certificate);
    let metrics = Arc::new(Metrics::webhook());
    let cache = Arc::new(RestoreCache::new(velero));
    cache.replace(cached);
    let webhook = Webhook::new(Settings::default(), limits, cache, Arc::clone(&metrics));
    let readiness = Readiness::default();
    let server = Server {
        router: Arc::new(webhook).router(),
        tls: server_config(certificate.clone()).unwrap(),
        limits,
        gate: readiness.gate("serving"),
    };
    let stopping = CancellationToken::new();
    let task = tokio::spawn(server.run(listener, stopping.clone()));
    TestServer {
        address,
        ca,
        certificate,
        stopping,
        readiness,
        metrics,
        task,
    }
}

/// Limits of which none matters within a test.
pub(crate) fn limits() -> Limits {
    Limits {
        shutdown_delay: Duration::ZERO,
        ..Limits::default()
    }
}

pub(crate) async fn tls(address: SocketAddr, cas: &[&Ca]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        let certificates = reveille::infra::pki::certificates(ca.certificate.as_bytes()).unwrap();
        roots.add_parsable_certificates(certificates);
    }
    let mut config = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = NAME.try_into().unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// One kept connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) closes: bool,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The `response` of the AdmissionReview.
    pub(crate) fn response(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        let review: Value = serde_json::from_slice(&self.body).unwrap();
        review["response"].clone()
    }

    /// The object after the patch.
    pub(crate) fn applied(&self, object: &Value) -> Value {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let response = self.response();
        assert_eq!(response["patchType"], "JSONPatch");
        let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        reveille::admission::patch::apply(object, &patch).unwrap()
    }
}

impl Client {
    #[allow(clippy::disallowed_methods)] // ended with the test's runtime
    pub(crate) async fn connect(address: SocketAddr, cas: &[&Ca]) -> std::io::Result<Self> {
        let stream = tls(address, cas).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    pub(crate) async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Result<Reply, hyper::Error> {
        self.sender.ready().await?;
        let request = Request::post(path)
            .header("host", NAME)
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap();
        let response = self.sender.send_request(request).await?;
        let closes = response
            .headers()
            .get("connection")
            .is_some_and(|value| value == "close");
        Ok(Reply {
            status: response.status(),
            closes,
            body: response.into_body().collect().await?.to_bytes(),
        })
    }

    pub(crate) async fn pod(&mut self, pod: &Value) -> Result<Reply, hyper::Error> {
        let body = pod_review("u-1", pod).to_string();
        self.post("/mutate/pods?timeout=5s", body).await
    }
}

impl TestServer {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address, &[&self.ca]).await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.stopping.cancel();
        self.task.await.unwrap();
    }
}

pub(crate) fn review(uid: &str, group: &str, resource: &str, object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "resource": {"group": group, "version": "v1", "resource": resource},
            "operation": "CREATE",
            "namespace": "app",
            "userInfo": {"username": "system:serviceaccount:velero:velero"},
            "object": object,
            "oldObject": null,
        },
    })
}

pub(crate) fn pod_review(uid: &str, pod: &Value) -> Value {
    review(uid, "", "pods", pod)
}

/// A pod under the restore of this name, with one post hook of its own.
pub(crate) fn pod(restore: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "db-0",
            "labels": {"velero.io/restore-name": restore},
            "annotations": {"post.hook.restore.velero.io/command": "check"},
        },
        "spec": {"containers": [{"name": "pg", "image": "postgres"}]},
    })
}

pub(crate) fn restore_object(name: &str, uid: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "velero.io/v1",
        "kind": "Restore",
        "metadata": {"namespace": "velero", "name": name, "uid": uid, "annotations": {"reveille.dev/owner": "reveille"}},
        "spec": {},
        "status": {"phase": phase},
    })
}

pub(crate) fn restore(name: &str, uid: &str, phase: &str) -> RestoreInfo {
    RestoreInfo::read(&restore_object(name, uid, phase)).unwrap()
}

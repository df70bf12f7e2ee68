//! Load on the webhook, as the API server makes it: calls at a steady rate over kept connections to the Service's address, from the node's
//! own network, trusting what the webhook configuration says at that moment.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Service};
use kube::{Api, Client};
use reveille::infra::pki;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{REVEILLE, eventually, state_folder};

/// Kept connections.
const CONNECTIONS: usize = 25;
/// Between two calls on each of them: 100 calls a second together.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest that an API server waits for a webhook.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug)]
pub(crate) struct LoadReport {
    /// Calls that were answered.
    pub(crate) answered: usize,
    /// Connections that were opened.
    pub(crate) connections: usize,
    /// What went wrong.
    pub(crate) failures: Vec<String>,
}

#[derive(Default)]
struct Shared {
    answered: AtomicUsize,
    connections: AtomicUsize,
    failures: Mutex<Vec<String>>,
    bundle: Mutex<Vec<u8>>,
    stop: CancellationToken,
}

/// Calls that go on until they are stopped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    follow: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Begins, and returns when every connection has had an answer.
    pub(crate) async fn start(client: &Client) -> Self {
        let (address, shared) = target(client).await;
        let of_thread = Arc::clone(&shared);
        let thread = on_the_node(async move {
            let calls = (0..CONNECTIONS).map(|_| call_until_stopped(address, &of_thread));
            futures::future::join_all(calls).await;
        });
        // The API server learns of a new bundle by its watch.
        let (of_follow, client) = (Arc::clone(&shared), client.clone());
        #[allow(clippy::disallowed_methods)] // it ends with the test
        let follow = tokio::spawn(async move {
            while !of_follow.stop.is_cancelled() {
                // What was known stays known while the API server does not answer.
                if let Some(bundle) = ca_bundle(&client).await {
                    *of_follow.bundle.lock().unwrap() = bundle;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        let load = Self { shared, thread, follow };
        load.reaches(CONNECTIONS).await;
        load
    }

    /// How many calls were answered so far.
    pub(crate) fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Waits for so many answers in all, or for a failure: there is nothing to wait for then.
    pub(crate) async fn reaches(&self, answers: usize) {
        eventually("calls are answered", async || {
            (self.answered() >= answers || !self.shared.failures.lock().unwrap().is_empty()).then_some(())
        })
        .await;
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> LoadReport {
        self.shared.stop.cancel();
        self.follow.await.unwrap();
        let thread = self.thread;
        tokio::task::spawn_blocking(move || thread.join().unwrap())
            .await
            .unwrap();
        LoadReport {
            answered: self.shared.answered.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
            failures: std::mem::take(&mut *self.shared.failures.lock().unwrap()),
        }
    }
}

/// On one connection each: a call, nothing for so long, and another call. Fails if one of them fails.
pub(crate) async fn call_after_gaps(client: &Client, gaps: &[Duration]) -> anyhow::Result<()> {
    let (address, shared) = target(client).await;
    let gaps = gaps.to_vec();
    let (sender, outcome) = tokio::sync::oneshot::channel();
    on_the_node(async move {
        let calls = gaps.into_iter().map(|gap| {
            let shared = &shared;
            async move {
                let mut connection = connect(address, shared).await?;
                call(&mut connection).await?;
                tokio::time::sleep(gap).await;
                let result = call(&mut connection).await;
                result.map_err(|error| error.context(format!("after {} s", gap.as_secs())))
            }
        });
        let _ = sender.send(futures::future::try_join_all(calls).await);
    });
    outcome.await?.map(|_| ())
}

/// The Service's address, and what the API server trusts there.
async fn target(client: &Client) -> (SocketAddr, Arc<Shared>) {
    let service = Api::<Service>::namespaced(client.clone(), REVEILLE)
        .get("reveille")
        .await;
    let address = service.unwrap().spec.unwrap().cluster_ip.unwrap();
    let shared = Arc::new(Shared::default());
    *shared.bundle.lock().unwrap() = ca_bundle(client).await.expect("there is a webhook configuration");
    (SocketAddr::new(address.parse::<IpAddr>().unwrap(), 443), shared)
}

/// Does it in a thread whose sockets are those of the node, where the API server's are, too.
fn on_the_node(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let number = fs::read_to_string(state_folder().join("n")).unwrap();
    let network = fs::File::open(format!("/run/netns/rv{}", number.trim())).unwrap();
    std::thread::spawn(move || {
        // The sockets of this thread, and of no other.
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work);
    })
}

async fn ca_bundle(client: &Client) -> Option<Vec<u8>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let mut entries = api.get("reveille").await.ok()?.webhooks.into_iter().flatten();
    Some(entries.find_map(|entry| entry.client_config.ca_bundle)?.0)
}

/// One connection and its successors: a client that was told `Connection: close`, or that finds its connection closed before a call,
/// opens another one. Everything else is a failure.
async fn call_until_stopped(address: SocketAddr, shared: &Shared) {
    let mut tick = interval(PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept: Option<SendRequest<Full<Bytes>>> = None;
    while !shared.stop.is_cancelled() {
        tick.tick().await;
        let call = async {
            let mut connection = match kept.take().filter(|connection| !connection.is_closed()) {
                Some(connection) => connection,
                None => connect(address, shared).await?,
            };
            call(&mut connection).await?;
            anyhow::Ok(connection)
        };
        match timeout(PATIENCE, call).await {
            Ok(Ok(connection)) => {
                shared.answered.fetch_add(1, Ordering::Relaxed);
                kept = Some(connection);
            }
            Ok(Err(error)) => shared.failures.lock().unwrap().push(format!("{error:#}")),
            Err(_) => shared.failures.lock().unwrap().push("no answer in time".to_owned()),
        }
    }
}

async fn connect(address: SocketAddr, shared: &Shared) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(pki::certificates(&shared.bundle.lock().unwrap())?);
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = format!("reveille.{REVEILLE}.svc");
    let stream = TcpStream::connect(address).await?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name.try_into()?, stream)
        .await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    #[allow(clippy::disallowed_methods)] // it ends with its connection
    tokio::spawn(connection);
    shared.connections.fetch_add(1, Ordering::Relaxed);
    Ok(sender)
}

/// A review of a pod that nobody restores.
async fn call(connection: &mut SendRequest<Full<Bytes>>) -> anyhow::Result<()> {
    let pod = json!({"metadata": {"name": "load"}, "spec": {"containers": [{"name": "main", "image": "localhost/busybox:1"}]}});
    let body = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "load", "operation": "CREATE", "namespace": "load", "object": pod, "oldObject": null,
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "userInfo": {"username": "load"},
        },
    });
    let request = Request::post("/mutate/pods?timeout=10s")
        .header("host", "reveille")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let response = connection.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    anyhow::ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
    let review: Value = serde_json::from_slice(&body)?;
    anyhow::ensure!(review["response"]["allowed"] == true, "{review}");
    Ok(())
}

//! The floor: axum and rustls and nothing else. It parses the review, and answers a patch that is always the same.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use axum::{Json, Router, routing::post};
use clap::Args;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Arguments of `floor`.
#[derive(Args)]
pub(crate) struct FloorArgs {
    #[arg(long)]
    listen: SocketAddr,
    /// Folder with tls.crt and tls.key.
    #[arg(long)]
    certificates: PathBuf,
}

/// `[{"op":"add","path":"/metadata/labels/bench","value":"floor"}]`
const PATCH: &str = "W3sib3AiOiJhZGQiLCJwYXRoIjoiL21ldGFkYXRhL2xhYmVscy9iZW5jaCIsInZhbHVlIjoiZmxvb3IifV0=";

async fn answer(Json(review): Json<Value>) -> Json<Value> {
    let uid = review.pointer("/request/uid").cloned().unwrap_or_default();
    Json(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": PATCH},
    }))
}

/// Serves until it is killed.
pub(crate) async fn run(arguments: FloorArgs) -> anyhow::Result<()> {
    let file = |name: &str| arguments.certificates.join(name);
    let chain: Vec<_> = CertificateDer::pem_file_iter(file("tls.crt"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(file("tls.key"))?;
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    let router = Router::new().route("/mutate/pods", post(answer));
    let listener = TcpListener::bind(arguments.listen).await.context("can't listen")?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (tls, service) = (tls.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            // A client that goes away is no matter.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

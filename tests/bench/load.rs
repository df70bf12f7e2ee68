//! Load on an HTTPS server: some connections, each with one request after the other, and every answer's time.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One that calls a server.
#[derive(Clone)]
pub(crate) struct Caller {
    address: SocketAddr,
    tls: TlsConnector,
    body: Bytes,
}

/// What came of it: each answer's time in milliseconds, and how many calls failed.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) times: Vec<f64>,
    pub(crate) failed: usize,
}

type Connection = http1::SendRequest<Full<Bytes>>;

impl Caller {
    /// `ca`: the certificate (PEM) that the server's must come from.
    pub(crate) fn new(address: SocketAddr, ca: &str, body: Bytes) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
        let mut tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // As the API server: a new connection is a new session.
        tls.resumption = Resumption::disabled();
        Ok(Self {
            address,
            tls: TlsConnector::from(Arc::new(tls)),
            body,
        })
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(ServerName::try_from("localhost")?, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One call; gives the answer's body.
    async fn call(&self, connection: &mut Connection) -> anyhow::Result<Bytes> {
        connection.ready().await?;
        let request = Request::post("/mutate/pods?timeout=10s")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(self.body.clone()))?;
        let response = connection.send_request(request).await?;
        ensure!(response.status().is_success(), "status {}", response.status());
        Ok(response.into_body().collect().await?.to_bytes())
    }

    /// One call over a connection of its own.
    pub(crate) async fn once(&self) -> anyhow::Result<Bytes> {
        let mut connection = self.connect().await?;
        self.call(&mut connection).await
    }

    /// Kept connections, each with one call after the other for so long.
    pub(crate) async fn kept(&self, connections: usize, duration: Duration) -> anyhow::Result<Answers> {
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(self.connect().await.context("a connection")?);
        }
        let end = Instant::now() + duration;
        let workers = open.into_iter().map(|mut connection| async move {
            let mut answers = Answers::default();
            while Instant::now() < end {
                let start = Instant::now();
                let ok = self.call(&mut connection).await.is_ok();
                answers.note(start, ok);
                if !ok {
                    break;
                }
            }
            answers
        });
        Ok(Answers::all(join_all(workers).await))
    }

    /// A new connection for each call, one after the other for so long.
    pub(crate) async fn fresh(&self, duration: Duration) -> Answers {
        let mut answers = Answers::default();
        let end = Instant::now() + duration;
        while Instant::now() < end {
            let start = Instant::now();
            let ok = self.once().await.is_ok();
            answers.note(start, ok);
        }
        answers
    }

    /// So many calls at once, each over a new connection.
    pub(crate) async fn burst(&self, calls: usize) -> Answers {
        let start = Instant::now();
        let all = (0..calls).map(|_| async {
            let mut answers = Answers::default();
            let ok = self.once().await.is_ok();
            answers.note(start, ok);
            answers
        });
        Answers::all(join_all(all).await)
    }
}

impl Answers {
    fn note(&mut self, start: Instant, ok: bool) {
        if ok {
            self.times.push(start.elapsed().as_secs_f64() * 1000.0);
        } else {
            self.failed += 1;
        }
    }

    fn all(parts: Vec<Self>) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.times.extend(part.times);
            sum.failed += part.failed;
        }
        sum
    }
}

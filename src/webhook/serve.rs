//! The HTTPS server: an accept loop of our own, as it has to outwait the API server's idle connections, bound everything that
//! a client can hold, and end without losing a call.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
};
use futures::FutureExt;
use http::{HeaderValue, header::CONNECTION};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::{
    connection::{Answering, Timed},
    limits::Limits,
};
use crate::infra::{
    health::Gate,
    slots::{Slot, Slots},
};

/// How long to wait when no connection can be accepted, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection may hold of a head that has not ended, or of a body that is not read yet.
const READ_BUFFER: usize = 32 << 10;
/// When the kernel begins to ask a silent peer whether it is still there, and how often.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// The server.
pub struct Server {
    /// What to answer.
    pub router: Router,
    /// How to speak TLS.
    pub tls: Arc<ServerConfig>,
    /// What to bear.
    pub limits: Limits,
    /// Open while not draining.
    pub gate: Gate,
}

impl Server {
    /// Serves until `stopping` fires, and then ends in steps: not ready any more; for the shutdown delay every call is still
    /// answered, with `Connection: close`; then no new connections; then, when calls in flight are answered or the drain time
    /// is over, it returns.
    pub async fn run(self, listener: TcpListener, stopping: CancellationToken) {
        let limits = self.limits;
        self.gate.set(true);
        let connections = TaskTracker::new();
        let (closing, cut) = (CancellationToken::new(), CancellationToken::new());
        let each = Each {
            router: self.router,
            tls: TlsAcceptor::from(self.tls),
            limits,
            stopping: stopping.clone(),
            closing: closing.clone(),
        };
        let start = |stream: TcpStream, slot: Slot| {
            let (each, cut) = (each.clone(), cut.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = each.serve(stream, slot) => {}
                    () = cut.cancelled() => {}
                }
            });
        };
        let slots = Slots::new(limits.connections, limits.give_way);
        let accepting = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => start(stream, slots.take().await),
                    Err(error) => {
                        warn!(%error, "no connection can be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        let delay = async {
            stopping.cancelled().await;
            self.gate.set(false);
            info!(delay = ?limits.shutdown_delay, "draining");
            sleep(limits.shutdown_delay).await;
        };
        tokio::select! {
            () = accepting => {}
            () = delay => {}
        }
        // Whoever has reached the kernel's queue is served too.
        while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
            let Some(slot) = slots.take().now_or_never() else { break };
            start(stream, slot);
        }
        drop(listener);
        closing.cancel();
        connections.close();
        if timeout(limits.drain, connections.wait()).await.is_err() {
            warn!(open = connections.len(), "calls did not end in time and are cut off");
            cut.cancel();
            connections.wait().await;
        }
    }
}

/// What each connection needs.
#[derive(Clone)]
struct Each {
    router: Router,
    tls: TlsAcceptor,
    limits: Limits,
    stopping: CancellationToken,
    closing: CancellationToken,
}

impl Each {
    async fn serve(self, stream: TcpStream, slot: Slot) {
        prepare(&stream);
        let accepted = tokio::select! {
            accepted = timeout(self.limits.handshake, self.tls.accept(stream)) => accepted,
            () = slot.leave().cancelled() => return debug!("TLS handshake cut short for want of places"),
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
            Err(_) => return debug!("TLS handshake took too long"),
        };
        let answering = Answering::default();
        let stream = Timed::new(stream, answering.clone(), self.limits.head, self.limits.write);
        let slot = Arc::new(slot);
        let service = service_fn(|request: hyper::Request<Incoming>| {
            answering.set(true);
            let (router, answering, stopping) = (self.router.clone(), answering.clone(), self.stopping.clone());
            let slot = Arc::clone(&slot);
            async move {
                let request: Request = request.map(|body| Body::new(Arriving::new(body, Arc::clone(&slot))));
                let mut response: Response = router.oneshot(request).await?;
                if stopping.is_cancelled() {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                answering.set(false);
                slot.idle();
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Runs between requests too: it is the idle time. A head that has begun is bound by `Timed`.
            .header_read_timeout(self.limits.idle)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            // First what has arrived, then the end.
            biased;
            result = connection.as_mut() => result,
            () = slot.leave().cancelled() => {
                if slot.awaits_body() {
                    return debug!("a call that was still arriving is cut off for want of places");
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%error, "connection ended");
        }
    }
}

/// A body that tells its connection's slot when all of it has arrived.
struct Arriving {
    body: Incoming,
    slot: Arc<Slot>,
}

impl Arriving {
    fn new(body: Incoming, slot: Arc<Slot>) -> Self {
        if body.is_end_stream() {
            slot.busy();
        } else {
            slot.await_body();
        }
        Self { body, slot }
    }
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if frame.is_none() || this.body.is_end_stream() {
            this.slot.busy();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Answers go out at once, and a peer that vanished is noticed. Both are niceties: without them things still work.
fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(TCP_KEEPALIVE)
        .with_interval(TCP_KEEPALIVE);
    let result = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = result {
        debug!(%error, "socket options");
    }
}

//! Reading a request's body: bounded in size, in time, and in what all calls hold together.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::limits::Limits;

/// How many times the limit is read and thrown away, so that the client gets to read the refusal: a connection closed on
/// unread bytes is reset, and the answer lost.
const DISCARD: usize = 4;

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// More bytes than allowed.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// It did not arrive in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// The connection or the encoding broke.
    #[error("the body can't be read: {0}")]
    Broken(axum::Error),
}

/// Reads a body. Its bytes count as in flight for as long as the permit lives; while all calls together hold too many, it
/// waits, and the client with it.
pub(super) async fn read(
    body: Body,
    limits: &Limits,
    in_flight: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), BodyError> {
    timeout(limits.body, collect(body, limits, in_flight))
        .await
        .unwrap_or(Err(BodyError::TooSlow))
}

async fn collect(
    mut body: Body,
    limits: &Limits,
    in_flight: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), BodyError> {
    let mut collected = Vec::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    let mut seen = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() else {
            continue;
        };
        seen = seen.saturating_add(data.len());
        if seen > limits.body_bytes {
            (collected, held) = (Vec::new(), None);
            if seen > limits.body_bytes.saturating_mul(DISCARD) {
                break;
            }
            continue;
        }
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let more = Arc::clone(in_flight).acquire_many_owned(bytes);
        // The semaphore is never closed; without a permit the body would only go uncounted.
        if let Ok(more) = more.await {
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
        }
        collected.extend_from_slice(&data);
    }
    if seen > limits.body_bytes {
        return Err(BodyError::TooLarge(limits.body_bytes));
    }
    Ok((collected.into(), held))
}

//! Reading a request's body: bounded in size, in time, and in what all calls hold together.

use std::{cmp::min, sync::Arc};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};

use super::limits::Limits;
use crate::admission::weight::weight;

/// How many times the limit is read and thrown away, so that the client gets to read the refusal: a connection closed on
/// unread bytes is reset, and the answer lost.
const DISCARD: usize = 4;
/// The reviews of nearly all pods are smaller than this. They have room of their own, so that a few huge bodies, or clients
/// that announce huge ones and send nothing, do not hold them up. Clients that announce many small ones and send nothing hold them up
/// for [`Limits::body_pause`] at a time; keeping such clients away is a `NetworkPolicy`'s work.
const SMALL: usize = 256 << 10;

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// More bytes than allowed.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// Read into a tree it would take more memory than allowed.
    #[error(
        "the body holds too many JSON values: reading it would take about {0} bytes of memory, and {1} are allowed"
    )]
    TooHeavy(usize, usize),
    /// The calls before it hold all the room there is, for as long as this call may take.
    #[error("too many bytes of other calls are in flight")]
    NoRoom,
    /// It did not arrive in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// The connection or the encoding broke.
    #[error("the body can't be read: {0}")]
    Broken(axum::Error),
}

/// Room for the bytes of all bodies together.
#[derive(Debug)]
pub(super) struct Room {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    trees: Semaphore,
}

impl Room {
    /// A quarter of the room is for small bodies alone; there is room for at least one body of each kind.
    pub(super) fn new(limits: &Limits) -> Self {
        let (all, largest) = (limits.bytes_in_flight, limits.body_bytes);
        Self {
            small: Arc::new(Semaphore::new((all / 4).max(min(SMALL, largest)))),
            large: Arc::new(Semaphore::new((all - all / 4).max(largest))),
            trees: Semaphore::new(limits.tree_bytes),
        }
    }

    /// Waits for room for a whole body, in the order of arrival. Nobody who waits holds any: bodies that were let in always get
    /// to their end.
    async fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let pool = if bytes <= SMALL { &self.small } else { &self.large };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphores are never closed; without a permit the body would only go uncounted.
        Arc::clone(pool).acquire_many_owned(bytes).await.ok()
    }
}

/// Waits until `deadline` for the memory that a body takes when it is read into a tree of values.
pub(super) async fn room_for_tree<'a>(
    body: &[u8],
    limits: &Limits,
    room: &'a Room,
    deadline: Instant,
) -> Result<Option<SemaphorePermit<'a>>, BodyError> {
    let (weight, allowed) = (weight(body), limits.tree_bytes);
    let permits = u32::try_from(weight).ok().filter(|_| weight <= allowed);
    let permits = permits.ok_or(BodyError::TooHeavy(weight, allowed))?;
    let held = timeout_at(deadline, room.trees.acquire_many(permits)).await;
    // The semaphore is never closed.
    held.map(Result::ok).map_err(|_| BodyError::NoRoom)
}

/// Reads a body until `deadline`. Its bytes count as in flight for as long as the permit lives.
pub(super) async fn read(
    body: Body,
    limits: &Limits,
    room: &Room,
    deadline: Instant,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), BodyError> {
    let announced = body.size_hint().upper();
    // Without a Content-Length (the API server always sends one) it may be as large as allowed.
    let bytes = announced.map_or(limits.body_bytes, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let held = if bytes > limits.body_bytes {
        // It will be thrown away while it arrives.
        None
    } else {
        timeout_at(deadline, room.reserve(bytes))
            .await
            .map_err(|_| BodyError::NoRoom)?
    };
    let deadline = min(deadline, Instant::now() + limits.body);
    let body = timeout_at(deadline, collect(body, limits))
        .await
        .unwrap_or(Err(BodyError::TooSlow))?;
    Ok((body, held))
}

async fn collect(mut body: Body, limits: &Limits) -> Result<Bytes, BodyError> {
    let limit = limits.body_bytes;
    let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    let mut collected = Vec::with_capacity(announced.filter(|bytes| *bytes <= limit).unwrap_or_default());
    let mut seen = 0_usize;
    let mut next = async || timeout(limits.body_pause, body.frame()).await;
    while let Some(frame) = next().await.map_err(|_| BodyError::TooSlow)? {
        let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() else {
            continue;
        };
        seen = seen.saturating_add(data.len());
        if seen > limit.saturating_mul(DISCARD) {
            break;
        }
        if seen > limit {
            collected = Vec::new();
        } else {
            collected.extend_from_slice(&data);
        }
    }
    if seen > limit {
        return Err(BodyError::TooLarge(limit));
    }
    Ok(collected.into())
}

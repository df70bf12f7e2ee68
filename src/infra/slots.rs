//! Places for connections. When all are taken, a newcomer gets the place of a connection that lies idle: one that never made a
//! whole call first, else the one that has been idle the longest. A call that is still arriving counts as none. So connections that are
//! only held open shut nobody out. (Many clients that make real calls can: a `NetworkPolicy` is the guard against those.)

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// In which order idle connections have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// It has made a call. `false` sorts first.
    used: bool,
    /// Counts up: the connection that became idle first goes first.
    since: u64,
}

/// One that may be asked to go.
#[derive(Debug)]
struct Idle {
    since: Instant,
    leave: CancellationToken,
}

/// All places.
#[derive(Debug)]
pub(crate) struct Slots {
    places: Arc<Semaphore>,
    idle: Mutex<BTreeMap<Rank, Idle>>,
    counter: AtomicU64,
    /// How long an idle connection keeps its place though another one needs it: a new one must get to make its first call.
    give_way: Duration,
}

impl Slots {
    /// So many places.
    pub(crate) fn new(places: usize, give_way: Duration) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(places)),
            idle: Mutex::default(),
            counter: AtomicU64::default(),
            give_way,
        })
    }

    /// Takes a place. While all are taken it asks idle connections, one after the other, to go; calls that are being answered are
    /// never cut short.
    pub(crate) async fn take(self: &Arc<Self>) -> Slot {
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Slot::new(Arc::clone(self), place);
            }
            let pause = self.ask_one_to_leave();
            // The semaphore is never closed.
            if let Ok(Ok(place)) = timeout(pause, Arc::clone(&self.places).acquire_owned()).await {
                return Slot::new(Arc::clone(self), place);
            }
        }
    }

    /// Asks the next idle connection, if one has been idle for long enough, and says when to ask again.
    fn ask_one_to_leave(&self) -> Duration {
        let mut idle = self.lock();
        let ready = idle.iter().find(|(_, idle)| idle.since.elapsed() >= self.give_way);
        if let Some(rank) = ready.map(|(rank, _)| *rank) {
            if let Some(one) = idle.remove(&rank) {
                one.leave.cancel();
            }
            return self.give_way;
        }
        let longest = idle.values().map(|idle| idle.since.elapsed()).max();
        self.give_way.saturating_sub(longest.unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Rank, Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place, given back when it is dropped. Counts as idle at first.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    _place: OwnedSemaphorePermit,
    rank: Mutex<Option<Rank>>,
    awaits_body: AtomicBool,
    leave: CancellationToken,
}

impl Slot {
    fn new(slots: Arc<Slots>, place: OwnedSemaphorePermit) -> Self {
        let slot = Self {
            slots,
            _place: place,
            rank: Mutex::default(),
            awaits_body: AtomicBool::new(false),
            leave: CancellationToken::new(),
        };
        slot.wait(false);
        slot
    }

    /// The head of a call has arrived, and its body is awaited: until it is there the connection may be asked to go.
    pub(crate) fn await_body(&self) {
        self.wait(false);
        self.awaits_body.store(true, Ordering::Release);
    }

    /// Whether a call is still arriving.
    pub(crate) fn awaits_body(&self) -> bool {
        self.awaits_body.load(Ordering::Acquire)
    }

    /// A call has arrived.
    pub(crate) fn busy(&self) {
        self.awaits_body.store(false, Ordering::Release);
        if let Some(rank) = self.own().take() {
            self.slots.lock().remove(&rank);
        }
    }

    /// The call is answered.
    pub(crate) fn idle(&self) {
        self.wait(true);
    }

    /// Fires when somebody else needs the place.
    pub(crate) fn leave(&self) -> &CancellationToken {
        &self.leave
    }

    fn wait(&self, used: bool) {
        self.busy();
        let since = self.slots.counter.fetch_add(1, Ordering::Relaxed);
        let rank = Rank { used, since };
        let idle = Idle {
            since: Instant::now(),
            leave: self.leave.clone(),
        };
        *self.own() = Some(rank);
        self.slots.lock().insert(rank, idle);
    }

    fn own(&self) -> MutexGuard<'_, Option<Rank>> {
        self.rank.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.busy();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `slots` finds room for a newcomer within a moment.
    async fn newcomer(slots: &Arc<Slots>) -> Option<Slot> {
        timeout(Duration::from_millis(50), slots.take()).await.ok()
    }

    #[tokio::test]
    async fn unused_ones_go_first_then_the_longest_idle_and_never_a_busy_one() {
        let slots = Slots::new(4, Duration::ZERO);
        let [used_early, used_late, unused, busy] = [
            slots.take().await,
            slots.take().await,
            slots.take().await,
            slots.take().await,
        ];
        for slot in [&used_early, &used_late, &busy] {
            slot.busy();
        }
        used_early.idle();
        used_late.idle();
        let mut newcomers = Vec::new();
        for expected in [unused, used_early, used_late] {
            // Nobody gives a place up before it is asked to.
            assert!(!expected.leave().is_cancelled());
            slots.ask_one_to_leave();
            assert!(expected.leave().is_cancelled());
            drop(expected);
            let newcomer = newcomer(&slots).await.expect("its place is free");
            newcomer.busy();
            newcomers.push(newcomer);
        }
        assert!(newcomer(&slots).await.is_none());
        assert!(!busy.leave().is_cancelled());
    }

    #[tokio::test]
    async fn a_call_that_is_still_arriving_is_asked_to_go_and_one_that_has_arrived_is_not() {
        let slots = Slots::new(1, Duration::ZERO);
        let slot = slots.take().await;
        slot.busy();
        slot.idle();
        slot.await_body();
        assert!(slot.awaits_body());
        slot.busy();
        assert!(!slot.awaits_body());
        slots.ask_one_to_leave();
        assert!(!slot.leave().is_cancelled());
        slot.await_body();
        slots.ask_one_to_leave();
        assert!(slot.leave().is_cancelled());
    }

    #[tokio::test]
    async fn one_that_has_just_come_is_not_sent_away() {
        let slots = Slots::new(1, Duration::from_secs(3600));
        let slot = slots.take().await;
        assert!(newcomer(&slots).await.is_none());
        assert!(!slot.leave().is_cancelled());
        drop(slot);
        assert!(newcomer(&slots).await.is_some());
    }
}

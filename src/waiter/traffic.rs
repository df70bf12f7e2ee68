//! Who goes first to the API server. When hundreds of pods become ready at once, their starts wait for nothing else: the
//! records of ends go few at a time, and what nobody waits for (Events, cleaning up) one at a time, until the rush is over.

use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// Records of ends at the same time, while commands are being started.
const ENDS: usize = 4;
/// Questions at the same time whether a success is true. They wait for no start: the later one is asked, the less its answer says.
const QUESTIONS: usize = 32;
/// Other calls at the same time, while starts or ends are under way.
const OTHERS: usize = 1;

/// What is under way.
#[derive(Debug)]
pub struct Traffic {
    starts: Lane,
    ends: Lane,
    questions: Semaphore,
    few_ends: Semaphore,
    few_others: Semaphore,
}

/// Counts those who are under way on it.
#[derive(Debug, Default)]
struct Lane(watch::Sender<usize>);

/// Somebody is under way.
#[derive(Debug)]
pub struct UnderWay<'a>(&'a Lane);

/// The turn of somebody who had to wait for it. In a rush it keeps one of the few places.
#[derive(Debug)]
pub struct Turn<'a> {
    _place: Option<SemaphorePermit<'a>>,
    _under_way: Option<UnderWay<'a>>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            starts: Lane::default(),
            ends: Lane::default(),
            questions: Semaphore::new(QUESTIONS),
            few_ends: Semaphore::new(ENDS),
            few_others: Semaphore::new(OTHERS),
        }
    }
}

impl Traffic {
    /// A command is about to be started. Never waits.
    pub fn start(&self) -> UnderWay<'_> {
        self.starts.enter()
    }

    /// The turn for a question whether a success is true.
    pub async fn question(&self) -> Turn<'_> {
        Turn {
            // Never closed.
            _place: self.questions.acquire().await.ok(),
            _under_way: None,
        }
    }

    /// The turn for the record of an end.
    pub async fn end(&self) -> Turn<'_> {
        let under_way = Some(self.ends.enter());
        let place = first(self.starts.is_free(), &self.few_ends).await;
        Turn {
            _place: place,
            _under_way: under_way,
        }
    }

    /// The turn for what nobody waits for.
    pub async fn other(&self) -> Turn<'_> {
        let free = async {
            self.starts.is_free().await;
            self.ends.is_free().await;
        };
        Turn {
            _place: first(free, &self.few_others).await,
            _under_way: None,
        }
    }
}

/// Waits until the way is free, or for one of the few places.
async fn first(free: impl Future<Output = ()>, few: &Semaphore) -> Option<SemaphorePermit<'_>> {
    tokio::select! {
        biased;
        () = free => None,
        // Never closed.
        place = few.acquire() => place.ok(),
    }
}

impl Lane {
    fn enter(&self) -> UnderWay<'_> {
        self.0.send_modify(|count| *count += 1);
        UnderWay(self)
    }

    async fn is_free(&self) {
        // The sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn in_a_rush_starts_never_wait_and_others_go_few_at_a_time() {
        let traffic = Traffic::default();
        let (first, second) = (traffic.start(), traffic.start());
        let ends: Vec<_> = (0..=ENDS).map(|_| traffic.end().now_or_never()).collect();
        assert_eq!(ends.iter().flatten().count(), ENDS);
        let questions: Vec<_> = (0..=QUESTIONS).map(|_| traffic.question().now_or_never()).collect();
        assert_eq!(questions.iter().flatten().count(), QUESTIONS);
        let others: Vec<_> = (0..=OTHERS).map(|_| traffic.other().now_or_never()).collect();
        assert_eq!(others.iter().flatten().count(), OTHERS);
        drop((others, questions, ends, first));
        assert!(traffic.end().now_or_never().is_some(), "its place is free again");
        drop(second);
        let all: Vec<_> = (0..100).map(|_| traffic.end().now_or_never()).collect();
        assert_eq!(all.iter().flatten().count(), 100, "the way is free");
        let others: Vec<_> = (0..=OTHERS).map(|_| traffic.other().now_or_never()).collect();
        assert_eq!(others.iter().flatten().count(), OTHERS, "ends are under way");
        drop(others);
        drop(all);
        let others: Vec<_> = (0..100).map(|_| traffic.other().now_or_never()).collect();
        assert_eq!(others.iter().flatten().count(), 100);
    }

    #[test]
    fn who_waits_goes_on_when_the_rush_is_over() {
        let traffic = Traffic::default();
        let start = traffic.start();
        let taken: Vec<_> = (0..ENDS).map(|_| traffic.end().now_or_never()).collect();
        let mut waiting = Box::pin(traffic.end());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(start);
        assert!(waiting.now_or_never().is_some());
        drop(taken);
    }
}

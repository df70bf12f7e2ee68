//! What a Lease says, and what follows from it for a process that looks at it. Pure: the time is that of a stopwatch which
//! the process started itself, so nobody's wall clock counts.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

use crate::digest;

/// What stands before the digest of a process' name in the annotation by which it says that its commands still run.
const FINISHING_PREFIX: &str = "finishing.reveille.dev/";

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Who holds it; empty when it was given up.
    pub(super) holder: String,
    /// When the holder last renewed it. Only ever compared for equality.
    pub(super) renewed: Option<Timestamp>,
    /// How often it has changed hands.
    pub(super) transitions: i32,
    /// Its resource version.
    pub(super) version: String,
    /// Processes that have given it up, or lost it, while commands of theirs run; each with its last sign of life.
    pub(super) finishing: BTreeMap<String, String>,
}

impl Record {
    pub(super) fn read(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let annotations = lease.metadata.annotations.iter().flatten();
        let finishing = annotations
            .filter(|(key, _)| key.starts_with(FINISHING_PREFIX))
            .filter_map(|(_, value)| value.rsplit_once(' '))
            .map(|(process, sign)| (process.to_owned(), sign.to_owned()));
        Self {
            holder: spec.holder_identity.unwrap_or_default(),
            renewed: spec.renew_time.map(|time| time.0),
            transitions: spec.lease_transitions.unwrap_or_default(),
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            finishing: finishing.collect(),
        }
    }

    /// Whether `other` is known to have been written later. Versions are numbers; where they are not, this can't be told.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let number = |record: &Self| record.version.parse::<u64>().ok();
        number(self).zip(number(other)).is_some_and(|(own, other)| own < other)
    }
}

/// The annotation by which a process says that commands of its still run: key and value.
pub(super) fn finishing_mark(process: &str, now: Timestamp) -> (String, String) {
    // A process' name may be too long for a key.
    let key = format!("{FINISHING_PREFIX}{}", digest::hex(process, 8));
    (key, format!("{process} {now}"))
}

/// What to do about the Lease next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing yet.
    Wait,
    /// Take it over, if it still has this version.
    Take(Record),
    /// Make it.
    Create,
}

/// What a process that does not hold the Lease has seen of it.
#[derive(Debug)]
pub(super) struct Candidate {
    /// How long a holder may be silent.
    patience: Duration,
    /// How the names of earlier processes in this very container begin: they are dead, or this one would not run.
    predecessors: Option<String>,
    seen: Option<Seen>,
    /// The Lease is not there (any more).
    absent: bool,
}

#[derive(Debug)]
struct Seen {
    record: Record,
    /// When its holder's last sign of life was seen.
    since: Duration,
}

impl Candidate {
    pub(super) fn new(patience: Duration, predecessors: Option<String>) -> Self {
        Self {
            patience,
            predecessors,
            seen: None,
            absent: false,
        }
    }

    /// Takes over what was read at a time.
    pub(super) fn see(&mut self, record: Option<Record>, now: Duration) {
        self.absent = record.is_none();
        // A Lease that somebody has deleted still counts as held, until its last holder has been silent for long enough.
        let Some(record) = record else { return };
        let since = match &self.seen {
            Some(seen) if seen.record.holder == record.holder && seen.record.renewed == record.renewed => seen.since,
            _ => now,
        };
        self.seen = Some(Seen { record, since });
    }

    /// The Lease could not be read up to now: the holder's silence proves nothing.
    pub(super) fn blind(&mut self, now: Duration) {
        if let Some(seen) = &mut self.seen {
            seen.since = now;
        }
    }

    /// What follows.
    pub(super) fn wish(&self, now: Duration) -> Wish {
        let Some(Seen { record, since }) = &self.seen else {
            return if self.absent { Wish::Create } else { Wish::Wait };
        };
        let is_free = record.holder.is_empty();
        let is_predecessors = self
            .predecessors
            .as_ref()
            .is_some_and(|prefix| record.holder.starts_with(prefix));
        let is_over = now.saturating_sub(*since) >= self.patience;
        match (is_free || is_predecessors || is_over, self.absent) {
            (false, _) => Wish::Wait,
            (true, true) => Wish::Create,
            (true, false) => Wish::Take(record.clone()),
        }
    }
}

/// Processes whose commands may still run although they do not lead any more.
#[derive(Debug, Default)]
pub(super) struct Finishing {
    /// Each with its last sign of life, and when that was seen.
    signs: BTreeMap<String, (String, Duration)>,
}

impl Finishing {
    /// Takes over what was read at a time. True when a process has come or gone.
    pub(super) fn see(&mut self, now_finishing: &BTreeMap<String, String>, now: Duration) -> bool {
        let before: Vec<String> = self.signs.keys().cloned().collect();
        self.signs.retain(|process, _| now_finishing.contains_key(process));
        for (process, sign) in now_finishing {
            match self.signs.get(process) {
                Some((known, _)) if known == sign => {}
                _ => {
                    self.signs.insert(process.clone(), (sign.clone(), now));
                }
            }
        }
        !before.iter().eq(self.signs.keys())
    }

    /// The Lease could not be written up to now, by anybody: silence proves nothing.
    pub(super) fn blind(&mut self, now: Duration) {
        for (_, seen) in self.signs.values_mut() {
            *seen = now;
        }
    }

    /// The living ones, each with how much longer its last sign of life is to be believed.
    pub(super) fn alive(&self, patience: Duration, now: Duration) -> BTreeMap<String, Duration> {
        let left = |seen: Duration| {
            patience
                .checked_sub(now.saturating_sub(seen))
                .filter(|left| !left.is_zero())
        };
        let alive = self.signs.iter();
        alive
            .filter_map(|(process, (_, seen))| Some((process.clone(), left(*seen)?)))
            .collect()
    }

    /// Those that have been silent for too long.
    pub(super) fn dead(&self, patience: Duration, now: Duration) -> Vec<String> {
        let alive = self.alive(patience, now);
        let dead = self.signs.keys().filter(|process| !alive.contains_key(*process));
        dead.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn held(holder: &str, renewed: i64) -> Record {
        Record {
            holder: holder.to_owned(),
            renewed: Timestamp::from_second(renewed).ok(),
            ..Record::default()
        }
    }

    fn candidate() -> Candidate {
        Candidate::new(PATIENCE, Some("me/".to_owned()))
    }

    #[test]
    fn a_lease_that_never_was_is_made_and_one_that_is_given_up_is_taken_at_once() {
        let mut candidate = candidate();
        assert_eq!(candidate.wish(at(100)), Wish::Wait, "nothing has been read yet");
        candidate.see(None, at(0));
        assert_eq!(candidate.wish(at(0)), Wish::Create);
        candidate.see(Some(held("", 1)), at(1));
        assert_eq!(candidate.wish(at(1)), Wish::Take(held("", 1)));
    }

    #[test]
    fn a_holder_that_shows_life_keeps_it_whatever_its_clock_says() {
        let mut candidate = candidate();
        for second in 0..100 {
            // Its clock stands at 1970, and runs backwards.
            let sign = i64::try_from(second).unwrap();
            candidate.see(Some(held("other", 1000 - sign)), at(second * 10));
            assert_eq!(candidate.wish(at(second * 10 + 14)), Wish::Wait);
        }
        assert!(matches!(candidate.wish(at(990 + 15)), Wish::Take(_)));
    }

    #[test]
    fn time_without_sight_does_not_count() {
        let mut candidate = candidate();
        candidate.see(Some(held("other", 1)), at(0));
        candidate.blind(at(60));
        candidate.see(Some(held("other", 1)), at(61));
        assert_eq!(candidate.wish(at(74)), Wish::Wait);
        assert!(matches!(candidate.wish(at(75)), Wish::Take(_)));
    }

    #[test]
    fn a_lease_that_was_deleted_is_still_its_holders_for_a_while() {
        let mut candidate = candidate();
        candidate.see(Some(held("other", 1)), at(0));
        candidate.see(None, at(5));
        assert_eq!(candidate.wish(at(14)), Wish::Wait);
        assert_eq!(candidate.wish(at(15)), Wish::Create);
    }

    #[test]
    fn a_dead_predecessor_in_the_same_container_is_not_waited_for() {
        let mut candidate = candidate();
        candidate.see(Some(held("me/1", 1)), at(0));
        assert!(matches!(candidate.wish(at(0)), Wish::Take(_)));
        candidate.see(Some(held("me2/1", 1)), at(0));
        assert_eq!(candidate.wish(at(0)), Wish::Wait);
    }

    #[test]
    fn a_process_that_finishes_its_commands_is_believed_as_long_as_it_shows_life() {
        let signs = |sign: &str| BTreeMap::from([("old".to_owned(), sign.to_owned())]);
        let mut finishing = Finishing::default();
        assert!(finishing.see(&signs("1"), at(0)), "it is new");
        assert!(!finishing.see(&signs("2"), at(10)));
        assert!(!finishing.see(&signs("2"), at(20)), "the same sign again is none");
        assert_eq!(finishing.alive(PATIENCE, at(20))["old"], at(5));
        finishing.blind(at(10));
        assert_eq!(finishing.dead(PATIENCE, at(25)), ["old"]);
        assert!(finishing.alive(PATIENCE, at(25)).is_empty());
        assert!(finishing.see(&BTreeMap::new(), at(26)), "it is gone");
    }

    #[test]
    fn marks_are_read_back() {
        let (key, value) = finishing_mark("pod uid/17", Timestamp::from_second(5).unwrap());
        let mut lease = Lease::default();
        lease.metadata.annotations = Some(BTreeMap::from([(key, value), ("other".to_owned(), "x y".to_owned())]));
        let record = Record::read(&lease);
        assert_eq!(
            record.finishing,
            BTreeMap::from([("pod uid/17".to_owned(), "1970-01-01T00:00:05Z".to_owned())])
        );
    }
}

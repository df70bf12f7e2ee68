//! Keeps a `HookRun` small enough for etcd, however many hooks it has, however much they print and however often they are
//! tried. Pure.

use std::io;

use super::events;
use crate::api::hook_run::HookRunStatus;

/// The largest status, in bytes of JSON. Etcd takes 1.5 MiB; the rest is for the plan, of which a pod's annotations hold at most
/// 256 KiB, and for the API server's own notes.
pub const BUDGET: usize = 768 * 1024;
/// Where cutting output begins, in bytes of a stream, and where it pauses: short output goes last.
const FIRST_CUT: usize = 32 * 1024;
const SHORT: usize = 1024;
/// What stands before output that was cut here.
const NOTE: &str = "… (cut further: the run's hooks have printed too much)\n";
/// How long a message may be in a large record, in bytes.
const SHORT_MESSAGE: usize = 100;
/// How many of a hook's latest attempts stay in a large record, beside the first.
const LATEST: usize = 3;

/// Makes a status fit: first long output is cut, the longest first, to 32 KiB each, then to half of that, and so on; then
/// messages; then attempts between the first and the latest are left out and counted; then all output goes.
pub fn fit(status: &mut HookRunStatus) {
    let limits = std::iter::successors(Some(FIRST_CUT), |limit| Some(limit / 2));
    for limit in limits.take_while(|limit| *limit >= SHORT) {
        if !is_too_large(status) {
            return;
        }
        cut_output(status, limit);
    }
    for shorten in SHORTEN {
        if !is_too_large(status) {
            return;
        }
        shorten(status);
    }
}

/// What makes a record shorter where cutting output is not enough, one after the other.
const SHORTEN: [fn(&mut HookRunStatus); 3] = [cut_messages, leave_out_attempts, drop_output];

/// The least that still says what became of each hook, for an API server that takes no more.
pub fn strip(status: &mut HookRunStatus) {
    for shorten in SHORTEN {
        shorten(status);
    }
}

/// Counts what would be written.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_too_large(status: &HookRunStatus) -> bool {
    let mut counter = Counter(0);
    // A status that can't be written at all is not made writable by cutting.
    serde_json::to_writer(&mut counter, status).is_ok() && counter.0 > BUDGET
}

fn cut_output(status: &mut HookRunStatus, limit: usize) {
    for attempt in status.post.iter_mut().flat_map(|post| &mut post.attempts) {
        cut(&mut attempt.stdout, limit);
        cut(&mut attempt.stderr, limit);
    }
}

fn drop_output(status: &mut HookRunStatus) {
    for attempt in status.post.iter_mut().flat_map(|post| &mut post.attempts) {
        for text in [&mut attempt.stdout, &mut attempt.stderr] {
            if !text.is_empty() {
                NOTE.clone_into(text);
            }
        }
    }
}

fn cut_messages(status: &mut HookRunStatus) {
    let init = status.init.iter_mut().map(|init| &mut init.message);
    let post = status.post.iter_mut().flat_map(|post| {
        let attempts = post.attempts.iter_mut().map(|attempt| &mut attempt.message);
        attempts.chain([&mut post.message])
    });
    for message in init.chain(post) {
        *message = events::cut(message, SHORT_MESSAGE);
    }
}

/// Of each hook the first attempt and the latest stay; of those between only their number does.
fn leave_out_attempts(status: &mut HookRunStatus) {
    for post in &mut status.post {
        let last = post.attempts.len().saturating_sub(LATEST);
        if last > 1 {
            let gone = post.attempts.drain(1..last).count();
            let gone = u32::try_from(gone).unwrap_or(u32::MAX);
            post.attempts_left_out = post.attempts_left_out.saturating_add(gone);
        }
    }
}

/// Keeps the last bytes.
fn cut(text: &mut String, limit: usize) {
    let known = text.strip_prefix(NOTE).map_or(0, |_| NOTE.len());
    let start = text.len().saturating_sub(limit).max(known);
    if start == known {
        return;
    }
    let start = (start..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    *text = format!("{NOTE}{}", text.get(start..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hook_run::PostStatus;
    use serde_json::json;

    fn status(outputs: &[(usize, usize)]) -> HookRunStatus {
        let post = outputs.iter().enumerate().map(|(index, (attempts, bytes))| PostStatus {
            name: format!("hook-{index}"),
            attempts: (0..*attempts)
                .map(|number| {
                    serde_json::from_value(json!({
                        "number": number, "claimedBy": "somebody", "startedAt": "2026-01-01T00:00:00.000000Z", "exitCode": 0,
                        // The worst: each byte is two in JSON.
                        "stdout": "\"\\".repeat(bytes / 2), "stderr": "\n".repeat(*bytes),
                    }))
                    .unwrap()
                })
                .collect(),
            ..PostStatus::default()
        });
        HookRunStatus {
            post: post.collect(),
            ..HookRunStatus::default()
        }
    }

    #[test]
    fn what_fits_is_left_alone_and_the_longest_is_cut_first() {
        let mut small = status(&[(1, 4096), (1, 4096)]);
        let before = small.clone();
        fit(&mut small);
        assert_eq!(small, before);

        let mut one_large = status(&[(1, 400_000), (1, 4096)]);
        fit(&mut one_large);
        assert!(one_large.post[0].attempts[0].stdout.starts_with(NOTE));
        assert_eq!(one_large.post[1], before.post[1]);
        assert!(one_large.post[0].attempts[0].stdout.len() >= FIRST_CUT);
    }

    #[test]
    fn hundreds_of_hooks_with_full_output_fit_into_etcd() {
        for outputs in [
            vec![(1, 4096 * 10); 300],
            vec![(1, 65_536); 100],
            vec![(20, 4096); 50],
            vec![(1, 2_000_000)],
            vec![(1, 600); 1500],
        ] {
            let mut status = status(&outputs);
            fit(&mut status);
            let json = serde_json::to_vec(&status).unwrap().len();
            assert!(json < 1024 * 1024, "{outputs:?}: {json} bytes");
            let again = status.clone();
            fit(&mut status);
            assert_eq!(status, again, "what has been cut is not cut again");
        }
    }

    /// A hook that could not be started, again and again, with a long reason each time.
    fn refused_often(hooks: usize, attempts: u32, message: usize, output: usize) -> HookRunStatus {
        let mut status = status(&vec![(1, output); hooks]);
        for post in &mut status.post {
            let one = post.attempts.remove(0);
            post.attempts = (1..=attempts)
                .map(|number| {
                    let mut attempt = one.clone();
                    attempt.number = number;
                    attempt.message = "\"".repeat(message);
                    attempt
                })
                .collect();
            post.message = "m".repeat(message);
        }
        status
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(8))]
        #[test]
        fn however_often_hooks_are_tried_and_run_again_the_record_fits_and_says_how_often(
            hooks in 1_usize..150, attempts in 1_u32..25, message in 0_usize..1024, output in 0_usize..1000,
        ) {
            let mut status = refused_often(hooks, attempts, message, output);
            fit(&mut status);
            let size = serde_json::to_vec(&status).unwrap().len();
            proptest::prop_assert!(size <= BUDGET, "{size} bytes");
            for post in &status.post {
                proptest::prop_assert_eq!(post.times_started(), attempts);
                let numbers: Vec<u32> = post.attempts.iter().map(|attempt| attempt.number).collect();
                proptest::prop_assert_eq!((numbers[0], numbers[numbers.len() - 1]), (1, attempts));
                proptest::prop_assert!(post.attempts_left_out == 0 || numbers.len() == LATEST + 1);
            }
            let again = status.clone();
            fit(&mut status);
            proptest::prop_assert!(status == again);
        }
    }

    #[test]
    fn a_record_that_grows_by_reruns_without_end_stays_small_and_counts_on() {
        let mut status = refused_often(40, 1, 1024, 4096);
        for number in 2..50 {
            for post in &mut status.post {
                let mut next = post.attempts[0].clone();
                next.number = post.times_started() + 1;
                assert_eq!(next.number, number);
                next.message = "m".repeat(1024);
                next.stdout = "\"".repeat(4096);
                post.attempts.push(next);
            }
            fit(&mut status);
        }
        assert!(serde_json::to_vec(&status).unwrap().len() <= BUDGET);
        assert!(
            status
                .post
                .iter()
                .all(|post| post.times_started() == 49 && post.attempts_left_out > 0)
        );
    }

    #[test]
    fn what_is_stripped_still_says_how_each_hook_ended() {
        let mut status = refused_often(3, 20, 1000, 1000);
        strip(&mut status);
        assert!(serde_json::to_vec(&status).unwrap().len() < 10_000);
        for post in &status.post {
            let last = post.attempts.last().unwrap();
            assert_eq!((post.times_started(), last.number, last.exit_code), (20, 20, Some(0)));
        }
    }
}

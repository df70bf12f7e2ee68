//! Keeps a `HookRun` small enough for etcd, however many hooks it has and however much they print. Pure.

use crate::api::hook_run::{Attempt, HookRunStatus};

/// Room for all output of one run, in bytes of JSON. Etcd takes 1.5 MiB; the rest is for plan and reasons.
pub const OUTPUT_BUDGET: usize = 512 * 1024;
/// Where cutting begins, in bytes of a stream.
const FIRST_CUT: usize = 32 * 1024;
/// What stands before output that was cut here.
const NOTE: &str = "… (cut further: the run's hooks have printed too much)\n";

/// Cuts the longest outputs until all of them fit: first to 32 KiB each, then to half of that, and so on.
pub fn fit(status: &mut HookRunStatus) {
    let mut limit = FIRST_CUT;
    while limit > 0 && size(status) > OUTPUT_BUDGET {
        for text in streams(status) {
            cut(text, limit);
        }
        limit /= 2;
    }
}

fn streams(status: &mut HookRunStatus) -> impl Iterator<Item = &mut String> {
    let attempts = status.post.iter_mut().flat_map(|post| &mut post.attempts);
    attempts.flat_map(|Attempt { stdout, stderr, .. }| [stdout, stderr])
}

fn size(status: &HookRunStatus) -> usize {
    let attempts = status.post.iter().flat_map(|post| &post.attempts);
    attempts
        .map(|attempt| in_json(&attempt.stdout) + in_json(&attempt.stderr))
        .sum()
}

/// How long a text is as a JSON string.
fn in_json(text: &str) -> usize {
    let escapes = text
        .bytes()
        .filter(|byte| matches!(byte, b'"' | b'\\' | b'\n' | b'\t'))
        .count();
    text.len() + escapes
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
}

//! What to make of a call that failed: how long to pause, and whether to say so. Pure.

use std::time::Duration;

use crate::infra::kube::reason;

/// The first pause after an error.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two tries after an error.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause where the API server refuses: somebody has to change its rules first.
const MAX_REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// What a failed call means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It may work the next time.
    Passing,
    /// The API server does not allow it.
    Refused,
    /// The namespace is being deleted: nothing can be created in it any more.
    NamespaceEnds,
}

/// The failures of one run since its last success.
#[derive(Debug)]
pub(super) struct Setbacks {
    pause: Duration,
    said: Option<String>,
    lasting: bool,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Advice {
    /// How long to pause, if nothing changes meanwhile.
    pub(super) pause: Duration,
    /// What it means.
    pub(super) kind: Kind,
    /// It has not been said yet.
    pub(super) is_news: bool,
    /// It is time to say on the pod that its hooks can't go on.
    pub(super) is_to_be_told: bool,
}

impl Default for Setbacks {
    fn default() -> Self {
        Self {
            pause: FIRST_PAUSE,
            said: None,
            lasting: false,
        }
    }
}

impl Setbacks {
    /// Takes note of a failure.
    pub(super) fn after(&mut self, error: &kube::Error) -> Advice {
        let kind = kind(error);
        self.pause = match kind {
            Kind::Passing => (self.pause * 2).min(MAX_PAUSE),
            Kind::Refused => (self.pause * 2).min(MAX_REFUSED_PAUSE),
            // Its pod's end wakes the run.
            Kind::NamespaceEnds => MAX_REFUSED_PAUSE,
        };
        let words = Some(reason(error));
        let is_news = words != self.said;
        self.said = words;
        let is_to_be_told = match kind {
            Kind::Refused => is_news,
            // What passes by itself is told once, if it does not.
            Kind::Passing => self.pause == MAX_PAUSE && !std::mem::replace(&mut self.lasting, true),
            Kind::NamespaceEnds => false,
        };
        Advice {
            pause: self.pause,
            kind,
            is_news,
            is_to_be_told,
        }
    }

    /// Takes note of a success.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What a failed call means.
pub(super) fn kind(error: &kube::Error) -> Kind {
    let kube::Error::Api(status) = error else {
        return Kind::Passing;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut reasons = causes.map(|cause| cause.reason.as_str());
    match status.code {
        403 if reasons.any(|reason| reason == "NamespaceTerminating") => Kind::NamespaceEnds,
        401 | 403 | 413 | 422 => Kind::Refused,
        _ => Kind::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(code: u16, cause: &str, message: &str) -> kube::Error {
        let status = json!({"code": code, "message": message, "details": {"causes": [{"reason": cause}]}});
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn refusals_are_said_once_and_tried_seldom() {
        let mut setbacks = Setbacks::default();
        let forbidden = refused(403, "", "pods \"a\" is forbidden");
        let first = setbacks.after(&forbidden);
        assert_eq!(
            (first.kind, first.is_news, first.pause),
            (Kind::Refused, true, FIRST_PAUSE * 2)
        );
        for _ in 0..20 {
            assert!(!setbacks.after(&forbidden).is_news);
        }
        assert_eq!(setbacks.after(&forbidden).pause, MAX_REFUSED_PAUSE);
        assert!(setbacks.after(&refused(403, "", "something else")).is_news);
        setbacks.clear();
        assert!(setbacks.after(&forbidden).is_news);
    }

    #[test]
    fn a_namespace_that_ends_is_left_alone_and_other_failures_are_tried_again_soon() {
        let ends = Setbacks::default().after(&refused(403, "NamespaceTerminating", "it is being terminated"));
        assert_eq!((ends.kind, ends.pause), (Kind::NamespaceEnds, MAX_REFUSED_PAUSE));
        let mut setbacks = Setbacks::default();
        let mut pause = Duration::ZERO;
        let mut told = Vec::new();
        for number in 0..20 {
            let advice = setbacks.after(&refused(500, "", "etcd"));
            pause = advice.pause;
            told.extend(advice.is_to_be_told.then_some(number));
        }
        assert_eq!(
            (pause, told),
            (MAX_PAUSE, vec![7]),
            "once, when it has lasted for a while"
        );
        assert_eq!(kind(&refused(409, "", "conflict")), Kind::Passing);
    }
}

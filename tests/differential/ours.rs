//! Reveille's answer, from the functions that the webhook and `reveille preview` call.

use std::collections::BTreeMap;

use jiff::Timestamp;
use reveille::{
    admission::{Mode, PodContext, PodDecision, decide_pod, decide_restore, patch},
    hooks::{
        PostHook,
        restored::{KnownRestores, RestoreInfo, restored},
    },
    names::{OWNER_ANNOTATION, OWNER_REVEILLE},
};
use serde_json::{Value, json};

use crate::{
    case::init_containers,
    model::{Init, Outcome, settings_of},
    oracle::Hook,
};

/// A rule of ours, broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Excluded namespaces count as included.
    Excludes,
    /// Label selectors are not looked at.
    Selectors,
    /// A post hook annotation no longer silences the Restore's post hooks.
    PostPrecedence,
    /// An init hook annotation no longer silences the Restore's init hooks.
    InitPrecedence,
    /// The last hook of a pod comes first.
    Order,
    /// The last init container comes first.
    InitOrder,
    /// Unset is Fail.
    OnError,
    /// 30 s whatever is written.
    ExecTimeout,
    /// No wait timeout.
    WaitTimeout,
    /// Ready is never asked for.
    Ready,
    /// The last container instead of the first.
    DefaultContainer,
    /// A command is split at spaces.
    Command,
}

impl Broken {
    pub(crate) const ALL: [Self; 12] = [
        Self::Excludes,
        Self::Selectors,
        Self::PostPrecedence,
        Self::InitPrecedence,
        Self::Order,
        Self::InitOrder,
        Self::OnError,
        Self::ExecTimeout,
        Self::WaitTimeout,
        Self::Ready,
        Self::DefaultContainer,
        Self::Command,
    ];

    fn input(self, pod: &mut Value, restore: &mut Value) {
        let annotations = pod["metadata"]["annotations"].as_object_mut();
        let rules = restore["spec"]["hooks"]["resources"].as_array_mut();
        match self {
            Self::Excludes => rules
                .into_iter()
                .flatten()
                .for_each(|rule| rule["excludedNamespaces"] = json!([])),
            Self::Selectors => rules
                .into_iter()
                .flatten()
                .for_each(|rule| rule["labelSelector"] = Value::Null),
            Self::PostPrecedence => {
                annotations.map(|annotations| annotations.remove("post.hook.restore.velero.io/command"));
            }
            Self::InitPrecedence => {
                annotations.map(|annotations| annotations.remove("init.hook.restore.velero.io/container-image"));
            }
            _ => {}
        }
    }

    fn output(self, pod: &Value, after: &mut Value, hooks: &mut [PostHook]) {
        match self {
            Self::Order => hooks.rotate_right(usize::from(!hooks.is_empty())),
            Self::InitOrder => {
                if let Some(init) = after["spec"]["initContainers"].as_array_mut() {
                    let by = usize::from(!init.is_empty());
                    init.rotate_right(by);
                }
            }
            _ => {}
        }
        let last = pod["spec"]["containers"]
            .as_array()
            .and_then(|list| list.last()?["name"].as_str());
        for hook in hooks {
            match self {
                Self::OnError => hook.on_error = reveille::hooks::OnError::Fail,
                Self::ExecTimeout => hook.exec_timeout = reveille::hooks::hook::DEFAULT_EXEC_TIMEOUT,
                Self::WaitTimeout => hook.wait_timeout = reveille::duration::GoDuration::ZERO,
                Self::Ready => hook.wait_for_ready = false,
                Self::DefaultContainer => last.unwrap_or_default().clone_into(&mut hook.container),
                Self::Command => {
                    let words = hook.command.iter().flat_map(|word| word.split(' ')).map(str::to_owned);
                    hook.command = words.collect();
                }
                _ => {}
            }
        }
    }
}

/// The Restore as it is known to the webhook, marked.
fn marked(restore: &Value) -> Value {
    let mut restore = restore.clone();
    restore["metadata"]["uid"] = json!("11111111-1111-1111-1111-111111111111");
    restore["metadata"]["annotations"][OWNER_ANNOTATION] = json!(OWNER_REVEILLE);
    restore["status"] = json!({"phase": "InProgress"});
    restore
}

fn decide(pod: &Value, restore: &Value) -> PodDecision {
    let info = RestoreInfo::read(restore).unwrap();
    let namespace = pod["metadata"]["namespace"].as_str().unwrap();
    let known = KnownRestores {
        restores: &[&info],
        complete: Ok(()),
    };
    let context = PodContext {
        namespace,
        restored: restored(pod, namespace, None, known, &[]),
        mode: Mode::Takeover,
        marks_protected: false,
        now: Timestamp::UNIX_EPOCH,
    };
    decide_pod(pod, &context)
}

/// What Reveille makes of a pod as it arrives. Also checks what must hold whatever Velero does.
pub(crate) fn decide_arriving(pod: &Value, restore: &Value, broken: Option<Broken>) -> Result<Outcome, String> {
    let (mut pod, mut restore) = (pod.clone(), restore.clone());
    if let Some(broken) = broken {
        broken.input(&mut pod, &mut restore);
    }
    let known = marked(&restore);
    let decision = decide(&pod, &known);
    let mut after =
        patch::apply(&pod, &decision.operations).map_err(|error| format!("the patch does not fit: {error}"))?;

    let again = decide(&after, &known);
    if !again.operations.is_empty() {
        return Err(format!(
            "a second admission changes the pod again: {:?}",
            again.operations
        ));
    }
    // On a cluster the exec hooks have been moved off the Restore before.
    let moving = decide_restore(&restore, None, Mode::Takeover);
    let moved = patch::apply(&restore, &moving.operations).map_err(|error| format!("the Restore's patch: {error}"))?;
    let by_way_of_the_restore = decide(&pod, &marked(&moved));
    let hooks = |decision: &PodDecision| {
        let (mut post, mut init) = decision
            .plan
            .as_ref()
            .map(|plan| (plan.post.clone(), plan.init.clone()))
            .unwrap_or_default();
        // Errors name paths, and items move up in their list where others have been moved off.
        let errors = post.iter_mut().map(|hook| &mut hook.error);
        let errors = errors.chain(init.iter_mut().map(|hook| &mut hook.error));
        errors.flatten().for_each(String::clear);
        (post, init)
    };
    if hooks(&by_way_of_the_restore) != hooks(&decision) {
        return Err(format!(
            "moving the exec hooks off the Restore changes the plan:\n{:#?}\n{:#?}",
            hooks(&decision),
            hooks(&by_way_of_the_restore)
        ));
    }

    let mut post = decision.hooks.clone();
    if let Some(broken) = broken {
        broken.output(&pod, &mut after, &mut post);
    }
    in_pod_order(&after, &post)?;
    let (planned, placed) = hooks(&decision);
    let mut post_errors: Vec<(String, String)> = planned
        .into_iter()
        .filter(|hook| hook.error.is_some())
        .map(|hook| (hook.name, hook.container))
        .collect();
    post_errors.sort();
    let mut init_errors: Vec<String> = placed
        .into_iter()
        .filter(|hook| hook.error.is_some())
        .map(|hook| hook.container)
        .collect();
    init_errors.sort();
    let mut by_container: BTreeMap<String, Vec<Hook>> = BTreeMap::new();
    for hook in post {
        by_container
            .entry(hook.container.clone())
            .or_default()
            .push(as_velero_prints_it(hook));
    }
    Ok(Outcome {
        post: by_container,
        post_errors,
        init: Init {
            containers: init_containers(&after).iter().map(settings_of).collect(),
            errors: init_errors,
        },
    })
}

fn as_velero_prints_it(hook: PostHook) -> Hook {
    let source = serde_json::to_value(hook.source).unwrap();
    Hook {
        name: hook.name,
        source: source.as_str().unwrap().to_owned(),
        container: hook.container,
        command: hook.command,
        on_error: format!("{:?}", hook.on_error),
        exec_timeout: hook.exec_timeout.to_string(),
        wait_timeout: hook.wait_timeout.to_string(),
        wait_for_ready: hook.wait_for_ready,
    }
}

/// Native sidecars first, then the containers.
fn in_pod_order(pod: &Value, hooks: &[PostHook]) -> Result<(), String> {
    let order = reveille::hooks::select::exec_targets(pod);
    let places: Vec<_> = hooks
        .iter()
        .map(|hook| order.iter().position(|name| *name == hook.container))
        .collect();
    if places.is_sorted() {
        Ok(())
    } else {
        Err(format!("the hooks are not in the order of {order:?}: {places:?}"))
    }
}

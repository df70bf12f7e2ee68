//! What Reveille has to answer, worked out from what Velero answers.

use std::collections::{BTreeMap, BTreeSet};

use reveille::hooks::restored::is_wait;
use serde_json::{Value, json};

use crate::{
    case::{Case, init_containers, name_of},
    difference::Difference,
    oracle::{Answer, Hook, Oracle},
    restate::{Differences, ERROR, ERROR_IMAGE, GENERATED, NO_COMMAND, Restating},
};

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// The post hooks that run, by container, each in order.
    pub(crate) post: BTreeMap<String, Vec<Hook>>,
    /// Name and container of the post hooks that are errors, sorted.
    pub(crate) post_errors: Vec<(String, String)>,
    pub(crate) init: Init,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Init {
    /// All init containers of the pod, in order.
    pub(crate) containers: Vec<Value>,
    /// Container names of the init hooks that are errors, sorted.
    pub(crate) errors: Vec<String>,
}

/// Whether Velero has put init containers in before Reveille sees the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// As on a cluster with Velero.
    BehindVelero,
    /// As from another restore tool.
    Bare,
}

/// An init hook.
struct Wanted {
    container: Value,
    generated: bool,
    error: bool,
}

/// Without what Velero's encoder adds.
pub(crate) fn settings_of(container: &Value) -> Value {
    let mut container = container.clone();
    if let Some(fields) = container.as_object_mut() {
        fields.retain(|key, value| !(key == "resources" && *value == json!({})));
    }
    container
}

impl Answer {
    /// Velero would restore such a pod.
    pub(crate) fn restores(&self) -> bool {
        self.undecodable.is_empty()
            && self.invalid.is_empty()
            && self.init_error.is_empty()
            && self.init_panic.is_empty()
    }
}

/// Velero's own answer to a case as it is.
pub(crate) fn ask(oracle: &mut Oracle, case: &Case) -> Answer {
    oracle.hooks(&case.pod, &case.arriving(&case.pod), &case.restore)
}

/// The pod that Reveille sees; none if Velero restores none.
pub(crate) fn arriving(case: &Case, raw: &Answer, arrival: Arrival) -> Option<Value> {
    match arrival {
        Arrival::Bare => Some(case.arriving(&case.pod)),
        Arrival::BehindVelero if raw.restores() => raw.pod.as_ref().map(|pod| case.arriving(pod)),
        Arrival::BehindVelero => None,
    }
}

/// What is to be expected with these differences; `None` if Velero restores nothing. `pod`: as it arrives.
pub(crate) fn expect(oracle: &mut Oracle, case: &Case, pod: &Value, differences: &mut Differences) -> Option<Outcome> {
    let restated = Restating::new(oracle, differences).restate(case);
    let answer = ask(oracle, &restated.case);
    if !answer.restores() {
        return None;
    }
    let hooks = wanted(&case.pod, answer.pod.as_ref()?, restated.generated);
    let mut silenced = restated
        .silenced
        .and_then(|case| Some(wanted(&case.pod, ask(oracle, &case).pod.as_ref()?, false)));
    let silenced = silenced.get_or_insert_default();
    // Velero refuses a Restore with such a one.
    silenced.retain(|hook| !hook.container["command"].is_null());
    let init = place(pod, &hooks, silenced, differences);
    let (post, post_errors) = post(pod, &init, answer.post?, differences);
    Some(Outcome {
        post,
        post_errors,
        init,
    })
}

/// What Velero's action has added to the pod.
fn wanted(before: &Value, after: &Value, generated: bool) -> Vec<Wanted> {
    let own = init_containers(before);
    let wait_first = own
        .first()
        .is_some_and(|container| name_of(container) == "restore-wait");
    let added = init_containers(after).len() - own.len();
    let mut added: Vec<Wanted> = init_containers(after)
        .iter()
        .skip(usize::from(wait_first))
        .take(added)
        .map(|container| {
            let mut container = settings_of(container);
            let failed = container["image"]
                .as_str()
                .and_then(|image| image.strip_prefix(ERROR_IMAGE))
                .map(str::to_owned);
            if let Some(name) = &failed {
                container["name"] = json!(name);
            }
            let no_command = container["command"] == json!([NO_COMMAND]) || container["command"] == json!([]);
            if let Some(fields) = container.as_object_mut().filter(|_| no_command) {
                fields.remove("command");
            }
            Wanted {
                container,
                generated: false,
                error: failed.is_some(),
            }
        })
        .collect();
    if let Some(first) = added.first_mut() {
        first.generated = generated;
    }
    added
}

fn is_generated(name: &str) -> bool {
    name.starts_with("velero-restore-init-") || name.starts_with("reveille-init-")
}

/// Same name, image and command.
fn does_the_work_of(present: &Value, wanted: &Wanted) -> bool {
    let named = if wanted.generated {
        is_generated(name_of(present))
    } else {
        name_of(present) == name_of(&wanted.container)
    };
    named && present["image"] == wanted.container["image"] && present["command"] == wanted.container["command"]
}

/// Each hook's container once, directly behind the last wait container; an earlier one that does the same work is used or goes.
/// `silenced`: what the spec wants and an annotation keeps out.
fn place(pod: &Value, wanted: &[Wanted], silenced: &[Wanted], differences: &mut Differences) -> Init {
    let present = init_containers(pod);
    let done = |container: &Value, hooks: &[Wanted]| hooks.iter().any(|hook| does_the_work_of(container, hook));
    let mut kept_out: BTreeSet<usize> = (0..present.len())
        .filter(|&index| done(&present[index], silenced))
        .collect();
    if !kept_out.is_empty() && !differences.has(Difference::NoSecondInjection) {
        kept_out.clear();
    }
    let containers: Vec<&str> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(name_of)
        .collect();
    let first = &pod["spec"]["containers"][0];
    let again = present.iter().any(|container| {
        wanted
            .iter()
            .any(|hook| !hook.error && does_the_work_of(container, hook))
    });
    let once = again && differences.has(Difference::NoSecondInjection);
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    let mut gone = BTreeSet::new();
    let mut block = Vec::new();
    for hook in wanted {
        let wanted_name = if hook.generated {
            GENERATED
        } else {
            name_of(&hook.container)
        };
        if hook.error {
            errors.push(wanted_name.to_owned());
            continue;
        }
        let same: Vec<usize> = (0..present.len())
            .filter(|&index| once && does_the_work_of(&present[index], hook))
            .collect();
        let used = same
            .iter()
            .copied()
            .find(|index| !gone.contains(index) && !names.contains(name_of(&present[*index])));
        let name = used.map_or(wanted_name, |index| name_of(&present[index]));
        let taken = names.contains(name)
            || containers.contains(&name)
            || present
                .iter()
                .enumerate()
                .any(|(index, other)| name_of(other) == name && !same.contains(&index) && !kept_out.contains(&index));
        if taken && differences.has(Difference::NameClashIsReported) {
            errors.push(wanted_name.to_owned());
            continue;
        }
        names.insert(name.to_owned());
        gone.extend(same);
        let mut container = used.map_or_else(|| hook.container.clone(), |index| settings_of(&present[index]));
        for field in ["securityContext", "resources", "imagePullPolicy"] {
            let unset = |container: &Value| container[field].is_null() || container[field] == json!({});
            if unset(&container) && !unset(first) && differences.has(Difference::HookInheritsFromTarget) {
                container[field] = first[field].clone();
            }
        }
        block.push(container);
    }
    let others: Vec<&Value> = present
        .iter()
        .enumerate()
        .filter(|(index, _)| !gone.contains(index) && !kept_out.contains(index))
        .map(|(_, container)| container)
        .collect();
    let behind_wait = others
        .iter()
        .rposition(|container| is_wait(container))
        .map_or(0, |index| index + 1);
    let mut list: Vec<Value> = others.into_iter().map(settings_of).collect();
    list.splice(behind_wait..behind_wait, block);
    errors.sort();
    Init {
        containers: list,
        errors,
    }
}

type Post = (BTreeMap<String, Vec<Hook>>, Vec<(String, String)>);

fn post(pod: &Value, init: &Init, groups: BTreeMap<String, Vec<Hook>>, differences: &mut Differences) -> Post {
    let has = |list: &[Value], name: &str| list.iter().any(|container| name_of(container) == name);
    let sidecars: Vec<Value> = init
        .containers
        .iter()
        .filter(|container| container["restartPolicy"] == "Always")
        .cloned()
        .collect();
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let (mut run, mut errors): Post = Post::default();
    for (container, hooks) in groups {
        let there = if has(containers, &container) {
            true
        } else if has(&sidecars, &container) {
            // Velero drops the hooks of what is no ordinary container, before it waits.
            if !differences.has(Difference::NativeSidecarIsATarget) {
                continue;
            }
            true
        } else if differences.has(Difference::MissingContainerIsAnError) {
            false
        } else {
            continue;
        };
        for hook in hooks {
            if !there || hook.command == [ERROR] {
                errors.push((hook.name, container.clone()));
            } else {
                run.entry(container.clone()).or_default().push(with_defaults(hook));
            }
        }
    }
    errors.sort();
    (run, errors)
}

/// What Velero fills in when it runs a hook.
fn with_defaults(mut hook: Hook) -> Hook {
    if hook.on_error.is_empty() {
        "Continue".clone_into(&mut hook.on_error);
    }
    if hook.exec_timeout == "0s" {
        "30s".clone_into(&mut hook.exec_timeout);
    }
    hook
}

/// Without what differs in every answer, or in a way that these differences allow.
pub(crate) fn comparable(mut outcome: Outcome, allowed: &BTreeSet<Difference>) -> Outcome {
    let stable = allowed.contains(&Difference::GeneratedNameIsStable);
    let neutral = |name: &str| {
        // Velero's own is random.
        let generated = name.starts_with("velero-restore-init-") || (stable && name.starts_with("reveille-init-"));
        if generated {
            GENERATED.to_owned()
        } else {
            name.to_owned()
        }
    };
    for container in &mut outcome.init.containers {
        container["name"] = json!(neutral(name_of(container)));
        if let Some(fields) = container
            .as_object_mut()
            .filter(|_| allowed.contains(&Difference::UnknownFieldsAreKept))
        {
            fields.remove("futureField");
        }
    }
    for name in &mut outcome.init.errors {
        *name = neutral(name);
    }
    outcome.init.errors.sort();
    outcome
}

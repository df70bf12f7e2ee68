//! Where hook containers stand in `initContainers`: each wanted one once, directly behind the last wait container and before
//! all others, in order of definition, whoever put it there first.

use std::collections::BTreeSet;

use json_patch::PatchOperation;
use serde_json::Value;

use super::patch;
use crate::{
    hooks::{
        InitHook, Problem,
        restored::is_wait,
        select::{container_name, pod_containers},
    },
    names::{GENERATED_INIT_PREFIX, VELERO_GENERATED_INIT_PREFIX},
    plan::PlannedInit,
};

/// The fields that a hook may leave unset and that are then copied from the pod's first container.
const INHERITED: [&str; 3] = ["securityContext", "resources", "imagePullPolicy"];

/// What is to be done to a pod's init containers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// The patch.
    pub operations: Vec<PatchOperation>,
    /// One for each wanted hook, in order.
    pub planned: Vec<PlannedInit>,
    /// Names of the containers that Reveille adds (Velero's own are not among them).
    pub injected: Vec<String>,
    /// Hooks that could not be placed, in words.
    pub problems: Vec<Problem>,
}

/// One place in the wanted sequence.
enum Slot<'a> {
    /// The container at this index of the present list.
    Present(usize),
    /// A hook to add.
    New(&'a InitHook),
}

/// Decides where the hooks' containers go. `silenced`: hooks whose containers must not stand in the pod. `leftovers`: names
/// that an older plan on this pod lists.
pub fn place(pod: &Value, hooks: &[InitHook], silenced: &[InitHook], leftovers: &BTreeSet<String>) -> Placement {
    let present = pod_containers(pod, "initContainers");
    let mut placement = Placement::default();
    let claims = claim(pod, hooks, silenced, leftovers, &mut placement);
    let dropped = leftover_indexes(present, hooks, silenced, leftovers, &claims);

    let block: Vec<Slot> = hooks
        .iter()
        .zip(&claims)
        .filter_map(|(hook, claim)| match claim {
            Claim::At(index) => Some(Slot::Present(*index)),
            Claim::Missing => Some(Slot::New(hook)),
            Claim::Refused => None,
        })
        .collect();
    let claimed: BTreeSet<usize> = block
        .iter()
        .filter_map(|slot| {
            if let Slot::Present(index) = slot {
                Some(*index)
            } else {
                None
            }
        })
        .collect();
    let others: Vec<usize> = (0..present.len())
        .filter(|index| !dropped.contains(index) && !claimed.contains(index))
        .collect();
    let behind_wait = others
        .iter()
        .rposition(|&index| present.get(index).is_some_and(is_wait))
        .map_or(0, |position| position + 1);
    let (front, back) = others.split_at(behind_wait);
    let kept = |indexes: &[usize]| indexes.iter().map(|&index| Slot::Present(index)).collect::<Vec<_>>();
    let target: Vec<Slot> = kept(front).into_iter().chain(block).chain(kept(back)).collect();

    let inherited = pod_containers(pod, "containers").first();
    placement.injected = target
        .iter()
        .filter_map(|slot| {
            if let Slot::New(hook) = slot {
                Some(hook.container_name().to_owned())
            } else {
                None
            }
        })
        .collect();
    placement.operations = rewrite(pod, present, &target, &claimed, inherited);
    placement
}

/// What stands in the pod for a wanted hook.
enum Claim {
    /// The container at this index.
    At(usize),
    /// Nothing yet.
    Missing,
    /// The hook can't be used.
    Refused,
}

/// Finds for each hook the container that already does its work.
fn claim(
    pod: &Value,
    hooks: &[InitHook],
    silenced: &[InitHook],
    leftovers: &BTreeSet<String>,
    placement: &mut Placement,
) -> Vec<Claim> {
    let present = pod_containers(pod, "initContainers");
    let mut taken = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut claims = Vec::with_capacity(hooks.len());
    for hook in hooks {
        let mut planned = PlannedInit {
            name: hook.name.clone(),
            source: hook.source,
            container: hook.container_name().to_owned(),
            timeout: hook.timeout,
            error: hook.error.clone(),
            missed: false,
        };
        let found = present.iter().enumerate().find(|(index, container)| {
            let free = !taken.contains(index) && container_name(container).is_none_or(|name| !names.contains(name));
            free && does_the_work_of(container, hook)
        });
        let found = found.map(|(index, container)| (index, container_name(container).unwrap_or_default().to_owned()));
        let name = found
            .as_ref()
            .map_or(planned.container.as_str(), |(_, name)| name.as_str())
            .to_owned();
        if planned.error.is_none() {
            planned.error = clash(
                pod,
                hook,
                &name,
                found.as_ref().map(|(index, _)| *index),
                &names,
                silenced,
                leftovers,
            );
            if let Some(message) = &planned.error {
                placement
                    .problems
                    .push(Problem::error(hook.path.clone(), message.clone()));
            }
        }
        let claim = match (&planned.error, found) {
            (Some(_), _) => Claim::Refused,
            (None, Some((index, _))) => {
                taken.insert(index);
                Claim::At(index)
            }
            (None, None) => Claim::Missing,
        };
        if planned.error.is_none() {
            names.insert(name.clone());
            planned.container = name;
        }
        claims.push(claim);
        placement.planned.push(planned);
    }
    claims
}

/// Why a hook's container can't stand in the pod, if so.
fn clash(
    pod: &Value,
    hook: &InitHook,
    name: &str,
    own: Option<usize>,
    names: &BTreeSet<String>,
    silenced: &[InitHook],
    leftovers: &BTreeSet<String>,
) -> Option<String> {
    if names.contains(name) {
        return Some(format!(
            "two hooks want an init container named {name:?}; the first one has it"
        ));
    }
    if pod_containers(pod, "containers")
        .iter()
        .any(|container| container_name(container) == Some(name))
    {
        return Some(format!(
            "the pod has a container named {name:?} of its own; give the hook's container another name"
        ));
    }
    let foreign = pod_containers(pod, "initContainers")
        .iter()
        .enumerate()
        .any(|(index, container)| {
            Some(index) != own
                && container_name(container) == Some(name)
                && !leftovers.contains(name)
                && !does_the_work_of(container, hook)
                && !silenced.iter().any(|other| does_the_work_of(container, other))
        });
    foreign.then(|| {
        format!("the pod has another init container named {name:?} with another image or command; it stays as it is, the hook's is not added")
    })
}

/// Whether a present container is the one that the hook asks for: same name, image and command; or a generated name with
/// the same image and command.
fn does_the_work_of(container: &Value, hook: &InitHook) -> bool {
    let name = container_name(container).unwrap_or_default();
    let named_so = if hook.generated_name {
        name.starts_with(VELERO_GENERATED_INIT_PREFIX) || name.starts_with(GENERATED_INIT_PREFIX)
    } else {
        name == hook.container_name()
    };
    let command = |container: &Value| {
        let list = container
            .get("command")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        list.into_iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    named_so && container.get("image") == hook.container.get("image") && command(container) == command(&hook.container)
}

/// Containers that go: of an earlier restore (named in an older plan, or doing the work of a hook that another one already
/// does), or of a silenced hook.
fn leftover_indexes(
    present: &[Value],
    hooks: &[InitHook],
    silenced: &[InitHook],
    leftovers: &BTreeSet<String>,
    claims: &[Claim],
) -> BTreeSet<usize> {
    let claimed: BTreeSet<usize> = claims
        .iter()
        .filter_map(|claim| {
            if let Claim::At(index) = claim {
                Some(*index)
            } else {
                None
            }
        })
        .collect();
    let served: Vec<&InitHook> = hooks
        .iter()
        .zip(claims)
        .filter(|(_, claim)| !matches!(claim, Claim::Refused))
        .map(|(hook, _)| hook)
        .collect();
    let is_leftover = |container: &Value| {
        container_name(container).is_some_and(|name| leftovers.contains(name))
            || served
                .iter()
                .copied()
                .chain(silenced)
                .any(|hook| does_the_work_of(container, hook))
    };
    present
        .iter()
        .enumerate()
        .filter(|(index, container)| !claimed.contains(index) && !is_wait(container) && is_leftover(container))
        .map(|(index, _)| index)
        .collect()
}

/// The operations that turn the present list into the target, moving no container of anybody else's.
fn rewrite(
    pod: &Value,
    present: &[Value],
    target: &[Slot],
    claimed: &BTreeSet<usize>,
    inherited: Option<&Value>,
) -> Vec<PatchOperation> {
    let path = ["spec", "initContainers"];
    let sequence: Vec<usize> = target
        .iter()
        .filter_map(|slot| {
            if let Slot::Present(index) = slot {
                Some(*index)
            } else {
                None
            }
        })
        .collect();
    // Hooks that stand out of order are taken out and put in again; the others keep their relative order by construction.
    let in_order = sequence.is_sorted();
    let stays = |index: usize| sequence.contains(&index) && (in_order || !claimed.contains(&index));

    let complete = |container: &Value| {
        let mut container = container.clone();
        for (field, value) in lacking(&container, inherited) {
            if let Some(object) = container.as_object_mut() {
                object.insert(field.to_owned(), value.clone());
            }
        }
        container
    };
    if !pod
        .get("spec")
        .and_then(|spec| spec.get("initContainers"))
        .is_some_and(Value::is_array)
    {
        let list: Vec<Value> = target
            .iter()
            .filter_map(|slot| {
                if let Slot::New(hook) = slot {
                    Some(complete(&hook.container))
                } else {
                    None
                }
            })
            .collect();
        return if list.is_empty() {
            Vec::new()
        } else {
            vec![patch::add(&path, Value::Array(list))]
        };
    }
    let mut operations: Vec<PatchOperation> = (0..present.len())
        .rev()
        .filter(|&index| !stays(index))
        .map(|index| patch::remove(&[path[0], path[1], &index.to_string()]))
        .collect();
    let mut fills = Vec::new();
    for (position, slot) in target.iter().enumerate() {
        let position = position.to_string();
        let added = match slot {
            Slot::New(hook) => Some(complete(&hook.container)),
            Slot::Present(index) if stays(*index) => {
                let container = present.get(*index).filter(|_| claimed.contains(index));
                for (field, value) in container
                    .into_iter()
                    .flat_map(|container| lacking(container, inherited))
                {
                    fills.push(patch::add(&[path[0], path[1], &position, field], value.clone()));
                }
                None
            }
            Slot::Present(index) => present.get(*index).map(complete),
        };
        operations.extend(added.map(|container| patch::add(&[path[0], path[1], &position], container)));
    }
    operations.extend(fills);
    operations
}

/// The fields that a hook's container leaves unset and the pod's first container has.
fn lacking<'a>(container: &Value, inherited: Option<&'a Value>) -> Vec<(&'static str, &'a Value)> {
    let unset = |container: &Value, field: &str| match container.get(field) {
        None | Some(Value::Null) => true,
        // The API server fills in an empty object where nothing was asked for.
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    };
    let fields = INHERITED.into_iter().filter(|field| unset(container, field));
    fields
        .filter_map(|field| Some((field, inherited.filter(|first| !unset(first, field))?.get(field)?)))
        .collect()
}

#[cfg(test)]
mod tests;

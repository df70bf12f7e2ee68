//! Makes a failing case small: takes out what can go without the failure going away.

use serde_json::Value;

use crate::{
    case::{Case, Wait, name_of},
    generate::is_container,
};

enum Step {
    Key(String),
    Index(usize),
}

/// The ways to everything that could be taken out, outermost first.
fn parts(value: &Value) -> Vec<Vec<Step>> {
    let children: Vec<(Step, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (Step::Key(key.clone()), value)).collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| (Step::Index(index), value))
            .collect(),
        _ => Vec::new(),
    };
    let mut ways = Vec::new();
    for (step, child) in children {
        let deeper = parts(child);
        let again = |step: &Step| match step {
            Step::Key(key) => Step::Key(key.clone()),
            Step::Index(index) => Step::Index(*index),
        };
        ways.push(vec![again(&step)]);
        ways.extend(
            deeper
                .into_iter()
                .map(|way| std::iter::once(again(&step)).chain(way).collect()),
        );
    }
    ways.sort_by_key(Vec::len);
    ways
}

fn without(value: &Value, way: &[Step]) -> Value {
    let mut value = value.clone();
    let mut place = &mut value;
    for step in &way[..way.len() - 1] {
        place = match step {
            Step::Key(key) => &mut place[key.as_str()],
            Step::Index(index) => &mut place[*index],
        };
    }
    match way.last() {
        Some(Step::Key(key)) => drop(place.as_object_mut().unwrap().remove(key)),
        Some(Step::Index(index)) => drop(place.as_array_mut().unwrap().remove(*index)),
        None => {}
    }
    value
}

/// What a real pod and a real Restore always have.
fn is_possible(case: &Case) -> bool {
    let filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let lists =
        ["containers", "initContainers"].map(|key| case.pod["spec"][key].as_array().cloned().unwrap_or_default());
    let named = lists
        .iter()
        .flatten()
        .all(|container| is_container(container) && !name_of(container).is_empty());
    let rules = case.restore["spec"]["hooks"]["resources"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let expressions = |rule: &Value| {
        rule["labelSelector"]["matchExpressions"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let execs = |rule: &Value| {
        let items = rule["postHooks"].as_array().cloned().unwrap_or_default();
        items.iter().all(|item| {
            item["exec"].is_null() || item["exec"]["command"].as_array().is_some_and(|list| !list.is_empty())
        })
    };
    let well_formed = rules.iter().all(|rule| {
        rule["name"].is_string()
            && execs(rule)
            && expressions(rule)
                .iter()
                .all(|expression| filled(&expression["key"]) && filled(&expression["operator"]))
    });
    named
        && well_formed
        && !lists[0].is_empty()
        && filled(&case.restore["metadata"]["name"])
        && filled(&case.restore["metadata"]["namespace"])
        && filled(&case.pod["metadata"]["namespace"])
}

pub(crate) fn shrink(mut case: Case, fails: &mut dyn FnMut(&Case) -> bool) -> Case {
    loop {
        let mut candidates = vec![Case {
            wait: Wait::None,
            ..case.clone()
        }];
        candidates.extend(parts(&case.pod).iter().map(|way| Case {
            pod: without(&case.pod, way),
            ..case.clone()
        }));
        candidates.extend(parts(&case.restore).iter().map(|way| Case {
            restore: without(&case.restore, way),
            ..case.clone()
        }));
        let size = |case: &Case| {
            case.pod.to_string().len() + case.restore.to_string().len() + usize::from(case.wait != Wait::None)
        };
        let smaller = candidates
            .into_iter()
            .find(|other| size(other) < size(&case) && is_possible(other) && fails(other));
        match smaller {
            Some(smaller) => case = smaller,
            None => return case,
        }
    }
}

//! Kubernetes' strategic merge patch for a `PodSpec`: lists of containers, volumes and so on are merged by key.
//!
//! Own code: the API server merges strategically only into objects that it has, and no crate does it.

use serde_json::{Map, Value};

/// The lists of a `PodSpec` that are merged item by item, with the field that identifies an item. All others are replaced.
const KEYS: [(&str, &str); 13] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("env", "name"),
    ("ports", "containerPort"),
    ("imagePullSecrets", "name"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
    ("resourceClaims", "name"),
    ("schedulingGates", "name"),
];

/// Merges `patch` into `target`. An error names a directive that is not known.
pub fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), String> {
    match directive(patch)? {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        _ => {}
    }
    if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|key, _| kept.iter().any(|name| name == key.as_str()));
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        merge_field(target, key, value)?;
    }
    Ok(())
}

fn merge_field(target: &mut Map<String, Value>, key: &str, patch: &Value) -> Result<(), String> {
    match patch {
        Value::Null => {
            target.remove(key);
        }
        Value::Object(patch) => {
            let field = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if !field.is_object() {
                *field = Value::Object(Map::new());
            }
            if let Value::Object(field) = field {
                merge(field, patch)?;
            }
        }
        Value::Array(items) => match KEYS.iter().find(|(list, _)| *list == key) {
            Some((_, id)) => {
                let list = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
                if !list.is_array() {
                    *list = Value::Array(Vec::new());
                }
                if let Value::Array(list) = list {
                    merge_list(list, items, key, id)?;
                }
            }
            None => {
                target.insert(key.to_owned(), patch.clone());
            }
        },
        other => {
            target.insert(key.to_owned(), other.clone());
        }
    }
    Ok(())
}

fn merge_list(list: &mut Vec<Value>, items: &[Value], name: &str, id: &str) -> Result<(), String> {
    // An item that is nothing but the directive speaks of the whole list.
    if items
        .iter()
        .any(|item| item.get("$patch").is_some_and(|word| word == "replace") && item.get(id).is_none())
    {
        list.clear();
    }
    for item in items {
        let Some(item) = item.as_object() else {
            return Err(format!("an item of {name} is no object"));
        };
        let Some(key) = item.get(id) else {
            if item.contains_key("$patch") {
                continue;
            }
            return Err(format!("an item of {name} has no {id}"));
        };
        let place = list.iter().position(|old| old.get(id) == Some(key));
        if directive(item)? == Some("delete") {
            if let Some(place) = place {
                list.remove(place);
            }
            continue;
        }
        match place
            .and_then(|place| list.get_mut(place))
            .and_then(Value::as_object_mut)
        {
            Some(old) => merge(old, item)?,
            None => list.push(Value::Object(without_directives(item))),
        }
    }
    Ok(())
}

/// `$patch`, if it is there. Other directives than these are written by machines only.
fn directive(patch: &Map<String, Value>) -> Result<Option<&str>, String> {
    if let Some(other) = patch
        .keys()
        .find(|key| key.starts_with('$') && !matches!(key.as_str(), "$patch" | "$retainKeys"))
    {
        return Err(format!("the patch directive {other} is not supported"));
    }
    match patch.get("$patch") {
        None => Ok(None),
        Some(Value::String(word)) if matches!(word.as_str(), "replace" | "delete" | "merge") => Ok(Some(word)),
        Some(other) => Err(format!("$patch is {other}: it must be replace, delete or merge")),
    }
}

fn without_directives(item: &Map<String, Value>) -> Map<String, Value> {
    let fields = item
        .iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null());
    fields.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(mut target: Value, patch: Value) -> Value {
        merge(target.as_object_mut().unwrap(), patch.as_object().unwrap()).unwrap();
        target
    }

    #[test]
    fn lists_are_merged_by_their_keys_and_others_replaced() {
        let pod = json!({
            "containers": [{"name": "container", "image": "a", "env": [{"name": "X", "value": "1"}]}],
            "tolerations": [{"key": "a"}],
            "securityContext": {"runAsUser": 0, "fsGroup": 1},
        });
        let patch = json!({
            "containers": [
                {"name": "container", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}]},
                {"name": "sidecar", "image": "b"},
            ],
            "tolerations": [{"key": "b"}],
            "securityContext": {"fsGroup": null, "runAsNonRoot": true},
        });
        assert_eq!(
            merged(pod, patch),
            json!({
                "containers": [
                    {"name": "container", "image": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}]},
                    {"name": "sidecar", "image": "b"},
                ],
                "tolerations": [{"key": "b"}],
                "securityContext": {"runAsUser": 0, "runAsNonRoot": true},
            })
        );
    }

    #[test]
    fn directives_replace_and_delete() {
        let pod = || json!({"containers": [{"name": "a"}, {"name": "b"}], "securityContext": {"runAsUser": 0}});
        assert_eq!(
            merged(pod(), json!({"containers": [{"$patch": "delete", "name": "a"}]}))["containers"],
            json!([{"name": "b"}])
        );
        assert_eq!(
            merged(pod(), json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}))["containers"],
            json!([{"name": "c"}])
        );
        assert_eq!(
            merged(pod(), json!({"securityContext": {"$patch": "replace", "fsGroup": 2}}))["securityContext"],
            json!({"fsGroup": 2})
        );
        let mut pod = pod();
        let patch = json!({"containers": [{"name": "a", "$setElementOrder/env": []}]});
        let error = merge(pod.as_object_mut().unwrap(), patch.as_object().unwrap()).unwrap_err();
        assert!(error.contains("$setElementOrder/env"), "{error}");
    }
}

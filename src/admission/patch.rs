//! Building minimal JSON patches (RFC 6902) on raw objects: unknown fields stay as they are, keys with `/` are escaped.

use json_patch::{AddOperation, PatchOperation, RemoveOperation, ReplaceOperation, jsonptr::PointerBuf};
use serde_json::{Map, Value};

fn pointer(tokens: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(tokens.iter().copied())
}

/// `add` at the path made of these tokens.
pub fn add(tokens: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation {
        path: pointer(tokens),
        value,
    })
}

/// `remove` at the path made of these tokens.
pub fn remove(tokens: &[&str]) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation { path: pointer(tokens) })
}

/// `replace` at the path made of these tokens.
pub fn replace(tokens: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation {
        path: pointer(tokens),
        value,
    })
}

/// Operations that set (`Some`) and remove (`None`) entries of `metadata.annotations` or `metadata.labels`.
///
/// Nothing is written for an entry that already is as wanted; an absent or null map is made first.
pub fn edit_metadata(object: &Value, field: &str, changes: &[(&str, Option<&str>)]) -> Vec<PatchOperation> {
    let metadata = object.get("metadata").filter(|metadata| metadata.is_object());
    let current = metadata
        .and_then(|metadata| metadata.get(field))
        .and_then(Value::as_object);
    let Some(current) = current else {
        let wanted: Map<String, Value> = changes
            .iter()
            .filter_map(|(key, value)| Some(((*key).to_owned(), Value::from((*value)?))))
            .collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        let map = add(&["metadata", field], Value::Object(wanted));
        return match metadata {
            Some(_) => vec![map],
            None => vec![add(&["metadata"], Value::Object(Map::new())), map],
        };
    };
    let operations = changes.iter().filter_map(|(key, wanted)| {
        let old = current.get(*key);
        match wanted {
            Some(value) if old.and_then(Value::as_str) == Some(value) => None,
            Some(value) => Some(add(&["metadata", field, key], Value::from(*value))),
            None => old.map(|_| remove(&["metadata", field, key])),
        }
    });
    operations.collect()
}

/// The object after the patch; an error names the operation that did not fit.
pub fn apply(object: &Value, operations: &[PatchOperation]) -> Result<Value, json_patch::PatchError> {
    let mut patched = object.clone();
    json_patch::patch(&mut patched, operations)?;
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_escaped_and_parents_made() {
        let change = [("reveille.dev/plan~x", Some("v"))];
        for object in [
            json!({}),
            json!({"metadata": null}),
            json!({"metadata": {}}),
            json!({"metadata": {"annotations": null}}),
        ] {
            let after = apply(&object, &edit_metadata(&object, "annotations", &change)).unwrap();
            assert_eq!(after["metadata"]["annotations"], json!({"reveille.dev/plan~x": "v"}));
        }
        let object = json!({"metadata": {"annotations": {"a": "1", "b/c": "2"}}});
        let operations = edit_metadata(
            &object,
            "annotations",
            &[("b/c", None), ("a", Some("1")), ("gone", None)],
        );
        assert_eq!(
            serde_json::to_value(&operations).unwrap(),
            json!([{"op": "remove", "path": "/metadata/annotations/b~1c"}])
        );
    }
}

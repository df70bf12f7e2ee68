//! Reading the object of a review without the API server's notes on who wrote which field (`metadata.managedFields`). They may
//! be half of a pod, nobody here reads or changes them, and building a tree of them costs more than all decisions together.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

const PATH: [&str; 2] = ["metadata", "managedFields"];

/// For `#[serde(deserialize_with)]`: any JSON value, less `metadata.managedFields`.
pub(super) fn without_managed_fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Without(&PATH).deserialize(deserializer)
}

/// Reads a value without what is at this path in it.
struct Without<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Without<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Without<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("any valid JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = match self.0 {
                [last] if key == *last => {
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
                [first, rest @ ..] if key == *first => access.next_value_seed(Without(rest))?,
                _ => access.next_value()?,
            };
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Value {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let value = without_managed_fields(&mut deserializer).unwrap();
        deserializer.end().unwrap();
        value
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let key = prop_oneof![Just("metadata".to_owned()), Just("managedFields".to_owned()), ".{0,3}"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1000.0..1000.0).prop_map(Value::from),
            ".{0,5}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(key.clone(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn all_else_stays(value in any_json()) {
            let text = value.to_string();
            let mut expected: Value = serde_json::from_str(&text).unwrap();
            if let Some(metadata) = expected.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            prop_assert_eq!(read(&text), expected);
        }
    }

    #[test]
    fn only_the_objects_own_are_left_out() {
        let pod = json!({
            "metadata": {"name": "db", "managedFields": [{"manager": "x"}]},
            "spec": {"metadata": {"managedFields": 1}},
            "managedFields": 2,
        });
        let expected =
            json!({"metadata": {"name": "db"}, "spec": {"metadata": {"managedFields": 1}}, "managedFields": 2});
        assert_eq!(read(&pod.to_string()), expected);
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        assert!(without_managed_fields(&mut serde_json::Deserializer::from_str("{\"metadata\": {")).is_err());
    }
}

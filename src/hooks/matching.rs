//! Does a rule of a Restore match a pod: Velero's include and exclude lists, its globs, and label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use serde_json::Value;

use super::glob::Glob;

/// An include list and an exclude list of patterns ([`Glob`]), by Velero's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncludeExclude {
    /// What is in; empty is all.
    pub include: Vec<String>,
    /// What is out; it wins.
    pub exclude: Vec<String>,
}

impl IncludeExclude {
    /// Whether `name` is in.
    pub fn includes(&self, name: &str) -> bool {
        let all = self.include.is_empty() || self.include.iter().any(|pattern| pattern == "*");
        !any_matches(&self.exclude, name) && (all || any_matches(&self.include, name))
    }

    /// Whether the lists, read as lists of resources, let pods in. Velero ignores them; Reveille honours them.
    pub fn includes_pods(&self) -> bool {
        let names_pods = |entry: &String| {
            let entry = entry.to_ascii_lowercase();
            matches!(entry.as_str(), "*" | "pods" | "pod" | "po" | "pods.v1" | "pods.v1.")
        };
        !self.exclude.iter().any(names_pods) && (self.include.is_empty() || self.include.iter().any(names_pods))
    }
}

/// Entries are tried in sorted order, and one that does not compile ends the search without a match, as in Velero.
fn any_matches(patterns: &[String], name: &str) -> bool {
    let mut sorted: Vec<&String> = patterns.iter().collect();
    sorted.sort();
    for pattern in sorted {
        match Glob::parse(pattern) {
            Ok(glob) if glob.matches(name) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Reads a label selector; `None` or null selects all pods.
pub fn selector(value: Option<&Value>) -> Result<Selector, String> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(Selector::default());
    };
    let keys = value.as_object().into_iter().flat_map(serde_json::Map::keys);
    if let Some(key) = keys
        .into_iter()
        .find(|key| !matches!(key.as_str(), "matchLabels" | "matchExpressions"))
    {
        // Left unread it would select all pods.
        return Err(format!("{key:?} is neither matchLabels nor matchExpressions"));
    }
    let selector: LabelSelector = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    for requirement in selector.match_expressions.iter().flatten() {
        let filled = requirement.values.as_ref().is_some_and(|values| !values.is_empty());
        match requirement.operator.as_str() {
            "In" | "NotIn" if !filled => return Err(format!("operator {} needs values", requirement.operator)),
            "Exists" | "DoesNotExist" if filled => {
                return Err(format!("operator {} takes no values", requirement.operator));
            }
            _ => {}
        }
    }
    Selector::try_from(selector).map_err(|error| error.to_string())
}

/// Whether a selector hits a pod with these labels.
pub fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    selector.matches(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lists(include: &[&str], exclude: &[&str]) -> IncludeExclude {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        IncludeExclude {
            include: own(include),
            exclude: own(exclude),
        }
    }

    #[test]
    fn include_and_exclude() {
        let check = |include: &[&str], exclude: &[&str], name: &str, expected: bool| {
            assert_eq!(
                lists(include, exclude).includes(name),
                expected,
                "{include:?} {exclude:?} {name}"
            );
        };
        check(&[], &[], "a", true);
        check(&["*"], &[], "a", true);
        check(&["*"], &["a"], "a", false);
        check(&["a"], &[], "b", false);
        check(&["team-*"], &[], "team-a", true);
        check(&["team-?"], &[], "team-ab", false);
        check(&["[a-c]x"], &[], "bx", true);
        check(&["[!a]x"], &[], "ax", false);
        check(&["{prod,stage}-db"], &[], "stage-db", true);
        check(&[], &["*"], "a", false);
        check(&[""], &[], "a", false);
        // A bad pattern ends the search: what sorts after it no longer excludes.
        check(&[], &["[", "a"], "a", true);
        check(&[], &["A", "["], "A", false);
    }

    #[test]
    fn resource_lists_are_honoured() {
        assert!(lists(&[], &[]).includes_pods());
        assert!(lists(&["Pod"], &[]).includes_pods());
        assert!(!lists(&["deployments"], &[]).includes_pods());
        assert!(!lists(&[], &["pods"]).includes_pods());
    }

    #[test]
    fn selectors() {
        let labels = BTreeMap::from([("app".to_owned(), "db".to_owned())]);
        let check = |value: Value, expected: bool| {
            assert_eq!(
                selects(&selector(Some(&value)).expect("a selector"), &labels),
                expected,
                "{value}"
            );
        };
        check(Value::Null, true);
        check(json!({}), true);
        check(json!({"matchLabels": {"app": "db"}}), true);
        check(json!({"matchLabels": {"app": "web"}}), false);
        check(
            json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]}),
            true,
        );
        check(
            json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}),
            true,
        );
        check(
            json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}),
            false,
        );
        for bad in [
            json!({"matchExpressions": [{"key": "a", "operator": "Near", "values": ["x"]}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}),
            json!({"matchLabels": 5}),
        ] {
            assert!(selector(Some(&bad)).is_err(), "{bad}");
        }
    }
}

//! Hooks written on the pod: Velero's annotation keys, the two more of Velero's design document, and the same keys under
//! Reveille's own domain.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

use super::{
    hook::{DEFAULT_EXEC_TIMEOUT, DEFAULT_RETRY_BACKOFF, HookSource, InitHook, OnError, PostHook, Problem, Retry},
    values,
};
use crate::{
    digest,
    duration::GoDuration,
    names::{
        FROM_ANNOTATION, GENERATED_INIT_PREFIX, INIT_PREFIX, POST_PREFIX, RESULT_FILE_ANNOTATION, REVEILLE_DOMAIN,
        VELERO_DOMAIN,
    },
};

/// A pod's annotations.
pub type Annotations = BTreeMap<String, String>;

const POST_KEYS: [&str; 9] = [
    "command",
    "container",
    "on-error",
    "exec-timeout",
    "wait-timeout",
    "wait-for-ready",
    "retries",
    "retry-backoff",
    "on-unknown",
];
/// Those of them that Velero does not have: they are read with Reveille's domain only.
const OWN_POST_KEYS: [&str; 3] = ["retries", "retry-backoff", "on-unknown"];
const INIT_KEYS: [&str; 5] = [
    "container-image",
    "container-name",
    "command",
    "timeout",
    "initContainers",
];
/// The init keys that Velero itself never reads, so they are Reveille's whoever owns the restore's hooks.
const INIT_KEYS_VELERO_IGNORES: [&str; 2] = ["timeout", "initContainers"];

/// What a pod's annotations ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnnotationHooks {
    /// The post hook; `Some` also when it has an error, for it silences the Restore's post hooks all the same.
    pub post: Option<PostHook>,
    /// The init hooks; `Some` (perhaps empty) when an annotation silences the Restore's init hooks.
    pub init: Option<Vec<InitHook>>,
    /// Everything worth saying.
    pub problems: Vec<Problem>,
}

/// Reads the hooks from a pod's annotations.
///
/// `velero_owned`: Velero runs this restore's hooks, so the keys that it reads are left to it; Reveille's own keys, and those
/// that Velero never reads, still count.
pub fn read(annotations: &Annotations, velero_owned: bool) -> AnnotationHooks {
    let mut reader = Reader {
        annotations,
        velero_owned,
        problems: Vec::new(),
    };
    let post = reader.post();
    let init = reader.init();
    reader.unknown_keys(POST_PREFIX, &POST_KEYS);
    reader.unknown_keys(INIT_PREFIX, &INIT_KEYS);
    AnnotationHooks {
        post,
        init,
        problems: reader.problems,
    }
}

/// The annotations that make Velero run a post hook; they are moved into the plan so that it does not.
pub fn velero_post_keys(annotations: &Annotations) -> Annotations {
    let prefix = format!("{POST_PREFIX}{VELERO_DOMAIN}/");
    annotations
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Whether an annotation is, or should be, a setting of a restore hook.
pub fn is_hook_key(key: &str) -> bool {
    let rest = [POST_PREFIX, INIT_PREFIX]
        .iter()
        .find_map(|prefix| key.strip_prefix(prefix));
    let domain = rest.and_then(|rest| rest.split_once('/')).map(|(domain, _)| domain);
    matches!(domain, Some(VELERO_DOMAIN | REVEILLE_DOMAIN)) || key == RESULT_FILE_ANNOTATION
}

struct Reader<'a> {
    annotations: &'a Annotations,
    velero_owned: bool,
    problems: Vec<Problem>,
}

/// An annotation that was found: its full key and its value.
type Found<'a> = (String, &'a str);

impl<'a> Reader<'a> {
    /// The value of a key, Reveille's domain first. Empty values count as absent, as in Velero.
    fn find(&mut self, prefix: &str, key: &str) -> Option<Found<'a>> {
        let get = |domain: &str| {
            let full = format!("{prefix}{domain}/{key}");
            let value = self
                .annotations
                .get(&full)
                .map(String::as_str)
                .filter(|value| !value.is_empty());
            value.map(|value| (full, value))
        };
        let own = get(REVEILLE_DOMAIN);
        let left_to_velero = self.velero_owned && !(prefix == INIT_PREFIX && INIT_KEYS_VELERO_IGNORES.contains(&key));
        let only_own = prefix == POST_PREFIX && OWN_POST_KEYS.contains(&key);
        let velero = if left_to_velero || only_own {
            None
        } else {
            get(VELERO_DOMAIN)
        };
        if let (Some((own_key, own_value)), Some((velero_key, velero_value))) = (&own, &velero)
            && own_value != velero_value
        {
            let message = format!(
                "{} is overridden by {own_key}: {}",
                values::quote(velero_value),
                values::quote(own_value)
            );
            self.problems.push(Problem::warning(velero_key.clone(), message));
        }
        own.or(velero)
    }

    /// Reads an optional value with `parse`; a value that does not parse is an error and gives `None`.
    fn value<T>(
        found: Option<Found<'a>>,
        errors: &mut Vec<Problem>,
        parse: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (key, text) = found?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(message) => {
                errors.push(Problem::error(key, message));
                None
            }
        }
    }

    fn command(&mut self, (key, text): Found<'a>) -> Vec<String> {
        let (command, warning) = values::command(text);
        self.problems
            .extend(warning.map(|message| Problem::warning(key, message)));
        command
    }

    fn post(&mut self) -> Option<PostHook> {
        let found = self.find(POST_PREFIX, "command");
        let Some((command_key, _)) = found.clone() else {
            self.post_keys_without_command();
            return None;
        };
        let mut errors = Vec::new();
        let command = found.map(|found| self.command(found)).unwrap_or_default();
        if command.is_empty() {
            errors.push(Problem::error(command_key.clone(), "the command is an empty list"));
        }
        let (path, container) = self.find(POST_PREFIX, "container").unwrap_or((command_key, ""));
        let container = container.to_owned();
        let found = self.find(POST_PREFIX, "on-error");
        let given = found.is_some();
        // An unreadable mode counts as the strict one: its author wanted to be told.
        let unreadable = if given { OnError::Fail } else { OnError::default() };
        let on_error = Self::value(found, &mut errors, values::on_error).unwrap_or(unreadable);
        let found = self.find(POST_PREFIX, "exec-timeout");
        let exec_timeout = Self::value(found, &mut errors, values::limit).filter(|limit| !limit.is_zero());
        let found = self.find(POST_PREFIX, "wait-timeout");
        let wait_timeout = Self::value(found, &mut errors, values::limit).unwrap_or_default();
        let found = self.find(POST_PREFIX, "wait-for-ready");
        let wait_for_ready = Self::value(found, &mut errors, values::boolean).unwrap_or_default();
        let retry = self.retry(&mut errors);
        let error = join(&errors);
        self.problems.extend(errors);
        Some(PostHook {
            name: FROM_ANNOTATION.to_owned(),
            source: HookSource::Annotation,
            container,
            command,
            on_error,
            exec_timeout: exec_timeout.unwrap_or(DEFAULT_EXEC_TIMEOUT),
            wait_timeout,
            wait_for_ready,
            retry,
            result_file: None,
            error,
            left_to_velero: false,
            path,
        })
    }

    fn retry(&mut self, errors: &mut Vec<Problem>) -> Retry {
        let limit = Self::value(self.find(POST_PREFIX, "retries"), errors, values::retries);
        let backoff = Self::value(self.find(POST_PREFIX, "retry-backoff"), errors, values::limit);
        let on_unknown = Self::value(self.find(POST_PREFIX, "on-unknown"), errors, values::on_unknown);
        Retry {
            limit,
            backoff: backoff.unwrap_or(DEFAULT_RETRY_BACKOFF),
            on_unknown: on_unknown.unwrap_or_default(),
        }
    }

    /// Settings without a command make no hook; whoever wrote them should know.
    fn post_keys_without_command(&mut self) {
        for key in POST_KEYS {
            if let Some((full, _)) = self.find(POST_PREFIX, key) {
                let command = full.replace(&format!("/{key}"), "/command");
                self.problems
                    .push(Problem::warning(full, format!("has no effect without {command}")));
            }
        }
    }

    fn init(&mut self) -> Option<Vec<InitHook>> {
        let image = self.find(INIT_PREFIX, "container-image");
        let list = self.find(INIT_PREFIX, "initContainers");
        if image.is_none() && list.is_none() {
            for key in ["container-name", "command", "timeout"] {
                if let Some((full, _)) = self.find(INIT_PREFIX, key) {
                    let needed = full.replace(&format!("/{key}"), "/container-image");
                    self.problems
                        .push(Problem::warning(full, format!("has no effect without {needed}")));
                }
            }
            return None;
        }
        let mut errors = Vec::new();
        let found = self.find(INIT_PREFIX, "timeout");
        let timeout = Self::value(found, &mut errors, values::limit).unwrap_or_default();
        let error = join(&errors);
        self.problems.extend(errors);
        let mut hooks = Vec::new();
        if let Some(image) = image {
            hooks.push(self.init_from_image(image, timeout, error.clone()));
        }
        if let Some((key, text)) = list {
            hooks.extend(self.init_from_list(&key, text, timeout, error.as_deref()));
        }
        Some(hooks)
    }

    fn init_from_image(&mut self, image: Found<'a>, timeout: GoDuration, error: Option<String>) -> InitHook {
        let (image_key, image) = image;
        let command = self
            .find(INIT_PREFIX, "command")
            .map(|found| self.command(found))
            .unwrap_or_default();
        let given = self.find(INIT_PREFIX, "container-name");
        let generated_name = given.is_none();
        let (path, name) = match given {
            Some((key, name)) => (key, name.to_owned()),
            None => (image_key, generated_name_for(image, &command)),
        };
        let mut container = json!({"name": name, "image": image});
        if !command.is_empty()
            && let Some(object) = container.as_object_mut()
        {
            object.insert("command".to_owned(), json!(command));
        }
        InitHook {
            name: FROM_ANNOTATION.to_owned(),
            source: HookSource::Annotation,
            container,
            generated_name,
            timeout,
            error,
            path,
        }
    }

    fn init_from_list(&mut self, key: &str, text: &str, timeout: GoDuration, error: Option<&str>) -> Vec<InitHook> {
        let items = match values::document(text) {
            Ok(Value::Array(items)) => items,
            Ok(_) => {
                self.problems.push(Problem::error(
                    key,
                    format!("{} is not a list of containers", values::quote(text)),
                ));
                return Vec::new();
            }
            Err(message) => {
                self.problems
                    .push(Problem::error(key, format!("{} is {message}", values::quote(text))));
                return Vec::new();
            }
        };
        let hooks = items.into_iter().enumerate().map(|(index, container)| {
            let path = format!("{key}[{index}]");
            let own = container_error(&container).map(|message| Problem::error(path.clone(), message));
            let error = own
                .as_ref()
                .map(|problem| problem.message.clone())
                .or_else(|| error.map(str::to_owned));
            self.problems.extend(own);
            InitHook {
                name: FROM_ANNOTATION.to_owned(),
                source: HookSource::Annotation,
                container,
                generated_name: false,
                timeout,
                error,
                path,
            }
        });
        hooks.collect()
    }

    /// Keys under a hook prefix that nobody reads: most often a misspelled timeout.
    fn unknown_keys(&mut self, prefix: &str, known: &[&str]) {
        for (full, _) in self.annotations.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let Some((domain, key)) = full.get(prefix.len()..).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            let is_only_own = prefix == POST_PREFIX && OWN_POST_KEYS.contains(&key);
            let is_known = known.contains(&key) && !(is_only_own && domain == VELERO_DOMAIN);
            if (domain == VELERO_DOMAIN || domain == REVEILLE_DOMAIN) && !is_known {
                let advice = match (prefix, key) {
                    _ if is_only_own => format!("the key is {prefix}{REVEILLE_DOMAIN}/{key}"),
                    (POST_PREFIX, "timeout") => format!("the key is {prefix}{domain}/exec-timeout"),
                    (POST_PREFIX, "readyTimeout" | "ready-timeout") => {
                        format!("the key is {prefix}{domain}/wait-timeout")
                    }
                    (POST_PREFIX, "onError") => format!("the key is {prefix}{domain}/on-error"),
                    (INIT_PREFIX, "image") => format!("the key is {prefix}{domain}/container-image"),
                    _ => format!("the keys are {}", known.join(", ")),
                };
                self.problems
                    .push(Problem::warning(full.clone(), format!("is not read; {advice}")));
            }
        }
    }
}

/// What is wrong with a container of a list, if anything. The API server would refuse the whole pod for it.
pub(super) fn container_error(container: &Value) -> Option<String> {
    if !container.is_object() {
        return Some("is not a container".to_owned());
    }
    let mut decodable = container.clone();
    if let Some(fields) = decodable.as_object_mut() {
        // Quantities may be numbers, which the typed container does not take.
        fields.remove("resources");
    }
    if let Err(error) = serde_json::from_value::<Container>(decodable) {
        return Some(format!("is not a container: {error}"));
    }
    let lacking = ["name", "image"].iter().find(|field| {
        let value = container.get(**field).and_then(Value::as_str);
        value.is_none_or(str::is_empty)
    });
    lacking.map(|field| format!("the container has no {field}"))
}

/// The same name for the same container each time, so that a second call or a second restore recognises it.
fn generated_name_for(image: &str, command: &[String]) -> String {
    format!(
        "{GENERATED_INIT_PREFIX}{}",
        digest::hex(&json!([image, command]).to_string(), 4)
    )
}

/// All messages of a hook's errors in one, or `None`.
pub(super) fn join(errors: &[Problem]) -> Option<String> {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

#[cfg(test)]
mod tests;

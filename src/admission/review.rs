//! AdmissionReview v1 on the wire: read leniently, answered strictly (the request's uid, no echo of the request).

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use json_patch::PatchOperation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::object;

/// The one version that is spoken.
pub const API_VERSION: &str = "admission.k8s.io/v1";
/// The kind of both question and answer.
pub const KIND: &str = "AdmissionReview";

/// Warnings reach the user through a header; the API server cuts longer ones.
const WARNING_LIMIT: usize = 250;

/// The question, with its object as raw JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// To be repeated in the answer.
    pub uid: String,
    /// What kind of resource.
    #[serde(default)]
    pub resource: GroupResource,
    /// For example `status`; empty for the object itself.
    #[serde(default)]
    pub sub_resource: String,
    /// `CREATE`, `UPDATE`, …
    #[serde(default)]
    pub operation: String,
    /// The object's namespace.
    #[serde(default)]
    pub namespace: String,
    /// Who asks the API server.
    #[serde(default)]
    pub user_info: UserInfo,
    /// Nothing will be stored.
    #[serde(default)]
    pub dry_run: bool,
    /// The object as it is to be, without its managed fields.
    #[serde(default, deserialize_with = "object::without_managed_fields")]
    pub object: Value,
    /// The object as it is, without its managed fields; null for a creation.
    #[serde(default, deserialize_with = "object::without_managed_fields")]
    pub old_object: Value,
}

/// A resource by group and plural name.
#[derive(Debug, Default, Deserialize)]
pub struct GroupResource {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// For example `pods`.
    #[serde(default)]
    pub resource: String,
}

/// The user, as far as it matters.
#[derive(Debug, Default, Deserialize)]
pub struct UserInfo {
    /// For example `system:serviceaccount:velero:velero`.
    #[serde(default)]
    pub username: String,
}

/// Reads a request. The error is a sentence for an HTTP 400.
pub fn read(body: &[u8]) -> Result<Request, String> {
    let question: Question =
        serde_json::from_slice(body).map_err(|error| format!("the body is no AdmissionReview: {error}"))?;
    if question.kind != KIND || question.api_version != API_VERSION {
        return Err(format!(
            "the body is {:?} {:?}; expected {API_VERSION:?} {KIND:?}",
            question.api_version, question.kind
        ));
    }
    question
        .request
        .ok_or_else(|| "the AdmissionReview has no request".to_owned())
}

/// The answer: always "allowed", perhaps with a patch, warnings and notes for the audit log.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// The patch.
    pub operations: Vec<PatchOperation>,
    /// For the user.
    pub warnings: Vec<String>,
    /// For the API server's audit log.
    pub audit: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: &'a str,
    kind: &'a str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: &'a BTreeMap<String, String>,
}

/// The answer's bytes.
pub fn write(uid: &str, answer: &Answer) -> Result<Vec<u8>, serde_json::Error> {
    let patch = match answer.operations.as_slice() {
        [] => None,
        operations => Some(STANDARD.encode(serde_json::to_vec(operations)?)),
    };
    let warnings = answer.warnings.iter().map(|warning| header_safe(warning)).collect();
    let patch_type = patch.as_ref().map(|_| "JSONPatch");
    let response = Response {
        uid,
        allowed: true,
        patch_type,
        patch,
        warnings,
        audit_annotations: &answer.audit,
    };
    serde_json::to_vec(&Review {
        api_version: API_VERSION,
        kind: KIND,
        response,
    })
}

/// Control characters would break the header that carries a warning.
fn header_safe(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(WARNING_LIMIT)
        .collect();
    if clean.chars().count() < text.chars().count() {
        format!("{clean}…")
    } else {
        clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_review_is_refused_with_the_reason() {
        for body in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}"#,
            r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
            r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#,
        ] {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn the_answer_is_complete_and_short() {
        let bytes = write("u", &Answer::default()).unwrap();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            answer,
            json!({"apiVersion": API_VERSION, "kind": KIND, "response": {"uid": "u", "allowed": true}})
        );

        let patched = Answer {
            operations: vec![crate::admission::patch::remove(&["a"])],
            warnings: vec!["x\ny".to_owned()],
            ..Answer::default()
        };
        let answer: Value = serde_json::from_slice(&write("u", &patched).unwrap()).unwrap();
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(
            STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap(),
            br#"[{"op":"remove","path":"/a"}]"#
        );
        assert_eq!(answer["response"]["warnings"], json!(["x y"]));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(body: Vec<u8>) {
            let _ = read(&body);
        }
    }
}

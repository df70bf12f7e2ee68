//! What a Backup holds: Velero gives an address for its resource list in the object store, and that is read.

use std::{collections::BTreeSet, io::Read, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Limited};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, DynamicObject, PostParams},
    client::Body,
};
use serde_json::{Map, Value, json};

use super::{plan::listed_namespaces, velero::resource};
use crate::infra::kube::reason;

/// How long Velero may take to give an address, and the object store to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked whether Velero has given it.
const INTERVAL: Duration = Duration::from_millis(500);
/// The largest resource list that is read, in bytes: packed, and unpacked (about a million objects). It has to fit into the
/// controller's memory.
const LIMITS: (usize, usize) = (16 << 20, 64 << 20);

/// The namespaces in a Backup. `location`: the `BackupStorageLocation` in which it lies.
pub async fn namespaces(
    client: &Client,
    velero: &str,
    backup: &str,
    location: Option<&Value>,
) -> Result<BTreeSet<String>, String> {
    let requests: Api<DynamicObject> = Api::namespaced_with(client.clone(), velero, &resource("DownloadRequest"));
    let request = json!({
        "apiVersion": "velero.io/v1",
        "kind": "DownloadRequest",
        "metadata": {"generateName": "reveille-", "namespace": velero},
        "spec": {"target": {"kind": "BackupResourceList", "name": backup}},
    });
    let request = serde_json::from_value(request).map_err(|error| error.to_string())?;
    let request = requests
        .create(&PostParams::default(), &request)
        .await
        .map_err(|error| reason(&error))?;
    let name = request.name_any();
    let list = match address(&requests, &name).await {
        Ok(address) => match tokio::time::timeout(PATIENCE, fetch(&address, location)).await {
            Ok(packed) => packed.and_then(|packed| unpack(&packed)),
            Err(_) => Err("the object store did not answer in time".to_owned()),
        },
        Err(why) => Err(why),
    };
    // Velero removes what is left over.
    let _ = requests.delete(&name, &DeleteParams::default()).await;
    Ok(listed_namespaces(&list?))
}

/// Waits for the address that Velero gives.
async fn address(requests: &Api<DynamicObject>, name: &str) -> Result<String, String> {
    let given = async {
        loop {
            let request = requests.get(name).await.map_err(|error| reason(&error))?;
            let address = request.data.pointer("/status/downloadURL").and_then(Value::as_str);
            if let Some(address) = address.filter(|address| !address.is_empty()) {
                return Ok(address.to_owned());
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let given = tokio::time::timeout(PATIENCE, given).await;
    given.unwrap_or_else(|_| Err("Velero gave no address for it in time".to_owned()))
}

/// Gets what lies at a signed address. Errors never repeat it: its query is a password.
async fn fetch(address: &str, location: Option<&Value>) -> Result<Vec<u8>, String> {
    let address: http::Uri = address
        .parse()
        .map_err(|_| "Velero's address for it can't be read".to_owned())?;
    let (Some(scheme), Some(authority), Some(path)) =
        (address.scheme_str(), address.authority(), address.path_and_query())
    else {
        return Err("Velero's address for it has no host".to_owned());
    };
    let base = format!("{scheme}://{authority}")
        .parse()
        .map_err(|_| "Velero's address for it can't be read".to_owned())?;
    // The Kubernetes client speaks HTTP and TLS to any host; without credentials it sends none.
    let mut config = Config::new(base);
    let setting = |pointer: &str| {
        location
            .and_then(|location| location.pointer(pointer))
            .and_then(Value::as_str)
    };
    if let Some(authority) = setting("/spec/objectStorage/caCert") {
        config.root_cert = Some(certificates(authority)?);
    }
    config.accept_invalid_certs = setting("/spec/config/insecureSkipTLSVerify") == Some("true");
    let client = Client::try_from(config.clone()).or_else(|_| {
        // Reveille's image has no certificates of a system, and without any no client can be made, not even one without TLS.
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
        config.root_cert = Some(roots.map(|root| root.to_vec()).collect());
        Client::try_from(config)
    });
    let client = client.map_err(|error| error.to_string())?;
    let request = http::Request::get(path.clone())
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let unreachable = |_| format!("the object store at {authority} can't be reached");
    let response = client.send(request).await.map_err(unreachable)?;
    if !response.status().is_success() {
        return Err(format!(
            "the object store at {authority} answered {}",
            response.status().as_u16()
        ));
    }
    let body = Limited::new(response.into_body(), LIMITS.0).collect().await;
    Ok(body
        .map_err(|_| format!("the answer of the object store at {authority} broke off, or is too large"))?
        .to_bytes()
        .to_vec())
}

/// The certificates of an object store's authority: base64 of PEM.
fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let bad = || "the location's caCert can't be read".to_owned();
    let pem = STANDARD.decode(text).map_err(|_| bad())?;
    let blocks = x509_parser::pem::Pem::iter_from_buffer(&pem);
    blocks
        .map(|block| block.map(|block| block.contents))
        .collect::<Result<_, _>>()
        .map_err(|_| bad())
}

fn unpack(packed: &[u8]) -> Result<Map<String, Value>, String> {
    let mut text = Vec::new();
    let limit = LIMITS.1;
    let unpacked = GzDecoder::new(packed).take(limit as u64).read_to_end(&mut text);
    unpacked.map_err(|error| format!("it can't be unpacked: {error}"))?;
    if text.len() == limit {
        return Err(format!("it is longer than {limit} bytes"));
    }
    serde_json::from_slice(&text).map_err(|error| format!("it is no resource list: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn pack(text: &[u8]) -> Vec<u8> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(text).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn a_resource_list_is_unpacked_up_to_a_limit() {
        let list = unpack(&pack(br#"{"v1/Pod": ["shop/web-0"]}"#)).unwrap();
        assert_eq!(list["v1/Pod"], json!(["shop/web-0"]));
        let error = unpack(&pack(&vec![b' '; LIMITS.1])).unwrap_err();
        assert!(error.contains("longer"), "{error}");
        assert!(unpack(b"no gzip").unwrap_err().contains("can't be unpacked"));
        assert!(unpack(&pack(b"[]")).unwrap_err().contains("no resource list"));
    }
}

//! Clients for the API server, and its errors in words.

use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, ListParams},
    client::ClientBuilder,
    core::ListMeta,
    runtime::watcher,
};
use tower::limit::ConcurrencyLimitLayer;

use crate::api::HookRun;

/// How many calls may be under way at once. When a waiter starts, a thousand runs may want to make one each: without a limit
/// each would open a connection of its own (over HTTP/1.1 no two calls share one), and keep it for a while.
const CALLS_AT_ONCE: usize = 32;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// Neither a kubeconfig nor a service account was found, or it can't be read.
    #[error("no way to the Kubernetes API: {0}")]
    Config(kube::config::InferConfigError),
    /// The configuration was read but no client can be built from it.
    #[error("the Kubernetes client can't be built: {0}")]
    Client(kube::Error),
}

/// One client for each need.
#[derive(Clone)]
pub struct Clients {
    /// For everything but exec. Retries calls that the API server turned away (429, 503, 504).
    pub api: Client,
    /// For exec, and for the Lease, whose renewals must wait for no other call. Never retries: after a 504 the command may already
    /// run, and a second try would run it twice.
    pub exec: Client,
}

/// Builds the clients from KUBECONFIG, `~/.kube/config` or the pod's service account, in this order.
///
/// Needs [`install_crypto_provider`] to have been called. No connection is made yet.
pub async fn clients() -> Result<Clients, KubeError> {
    Clients::new(Config::infer().await.map_err(KubeError::Config)?)
}

impl Clients {
    /// Builds the clients from a configuration.
    pub fn new(config: Config) -> Result<Self, KubeError> {
        let mut exec = config.clone();
        exec.default_retry = false;
        Ok(Self {
            // A watch counts only until its first answer.
            api: ClientBuilder::try_from(config)
                .map_err(KubeError::Client)?
                .with_layer(&ConcurrencyLimitLayer::new(CALLS_AT_ONCE))
                .build(),
            exec: Client::try_from(exec).map_err(KubeError::Client)?,
        })
    }
}

/// Makes ring the process's TLS provider. To be called first in `main` and in tests; again does nothing.
pub fn install_crypto_provider() {
    // The error is "there is one already", which is the wanted state.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// All `HookRun`s that these parameters select. Those that a newer Reveille has planned, or that are not whole, are read as far as
/// they are understood, and hide no others.
pub async fn hook_runs(client: &Client, parameters: &ListParams) -> Result<Vec<HookRun>, kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<HookRun>(&()));
    Ok(api
        .list(parameters)
        .await?
        .items
        .into_iter()
        .map(HookRun::read)
        .collect())
}

/// How many objects are asked for at once where there may be thousands: a list is a multiple of its objects in memory while it is
/// read, and the memory is not given back.
const PAGE: u32 = 100;

/// A list in pages, each of which is asked for when the one before is done with.
pub struct Pages {
    next: Option<ListParams>,
}

impl Pages {
    /// The pages of what these parameters select.
    pub fn of(parameters: &ListParams) -> Self {
        Self {
            next: Some(parameters.clone().limit(PAGE)),
        }
    }

    /// The parameters of the next page; none when there is no other.
    pub fn ask(&mut self) -> Option<ListParams> {
        self.next.take()
    }

    /// To be told what has come for these parameters.
    pub fn came(&mut self, parameters: ListParams, list: &ListMeta) {
        let token = list.continue_.clone().filter(|token| !token.is_empty());
        self.next = token.map(|token| parameters.continue_token(&token));
    }
}

/// Whether the API server said that the object, or its whole kind, does not exist.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the object existed already, or changed since it was read.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// A failed call in one sentence: of a refusal only the API server's message, which says all.
pub fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A failed watch in one sentence.
pub fn watch_reason(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => reason(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another_until_there_is_no_other() {
        let mut pages = Pages::of(&ListParams::default().labels("a=b"));
        let mut tokens = Vec::new();
        for token in [Some("x"), Some("y"), Some("")] {
            let page = pages.ask().unwrap();
            assert_eq!((page.limit, page.label_selector.as_deref()), (Some(PAGE), Some("a=b")));
            tokens.push(page.continue_token.clone());
            let came = ListMeta {
                continue_: token.map(str::to_owned),
                ..ListMeta::default()
            };
            pages.came(page, &came);
        }
        assert!(pages.ask().is_none());
        assert_eq!(tokens, [None, Some("x".to_owned()), Some("y".to_owned())]);
    }
}

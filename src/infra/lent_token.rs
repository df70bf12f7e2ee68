//! The webhook's way to the API server: a token of its own account, which the waiter beside it fetches and keeps fresh.
//!
//! A pod has one account, and whatever answers on the open HTTPS port should hold as little as possible. So the pod's account
//! is the waiter's, its token is mounted into the waiter alone, and the waiter asks the API server for a token of the webhook's
//! account (`TokenRequest`), which may only read. It lies in a folder in memory that both containers see.

use std::{
    convert::Infallible,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{clock, kube::reason};

/// Where a client in a pod looks for its account: token, the API server's CA, the namespace.
pub const ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN: &str = "token";
/// Copied from the waiter's own folder. The token comes last: who finds it finds all.
const COPIED: [&str; 2] = ["ca.crt", "namespace"];

/// How long a token is asked for, in seconds. The API server may give one of another life.
const TOKEN_SECONDS: i64 = 3600;
/// How often the wall clock is compared with the token's life; it may have jumped.
const CHECK: Duration = Duration::from_secs(30);
/// The first pause after a failure, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often the webhook looks whether the token is there.
const LOOK: Duration = Duration::from_millis(200);

/// Why no token was lent.
#[derive(Debug, thiserror::Error)]
enum LendError {
    #[error("asking for a token of the account {account} failed: {}", reason(cause))]
    Request { account: String, cause: Box<kube::Error> },
    #[error("the API server answered without a token")]
    Empty,
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
}

/// Keeps a token of `account` in `folder` until `end` fires.
pub async fn run_lender(
    client: Client,
    namespace: String,
    account: String,
    folder: PathBuf,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client, &namespace);
    let mut life: Option<Life> = None;
    let mut pause = RETRY.0;
    loop {
        let mut wait = CHECK;
        if life.is_none_or(|life| life.renewal_due(clock::now())) {
            match lend(&accounts, &account, Path::new(ACCOUNT_FOLDER), &folder).await {
                Ok(new) => {
                    info!(account, until = %new.ends, "the webhook has a token");
                    life = Some(new);
                    pause = RETRY.0;
                }
                Err(error) => {
                    warn!(%error, "the webhook gets no new token");
                    wait = pause;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// How long a token is good for.
#[derive(Clone, Copy, Debug)]
struct Life {
    begins: Timestamp,
    ends: Timestamp,
}

impl Life {
    /// After a third of its life, so that some failures in a row do no harm; or when the clock was set back.
    fn renewal_due(self, now: Timestamp) -> bool {
        now < self.begins || now.duration_since(self.begins) * 3 >= self.ends.duration_since(self.begins)
    }
}

async fn lend(accounts: &Api<ServiceAccount>, account: &str, own: &Path, folder: &Path) -> Result<Life, LendError> {
    let begins = clock::now();
    let request = TokenRequest {
        spec: TokenRequestSpec {
            // For whom the token is meant: nobody named is the API server itself.
            audiences: Vec::new(),
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: None,
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(|cause| LendError::Request {
            account: account.to_owned(),
            cause: Box::new(cause),
        })?;
    let Some(given) = answer.status.filter(|status| !status.token.is_empty()) else {
        return Err(LendError::Empty);
    };
    put(own, folder, &given.token)?;
    Ok(Life {
        begins,
        ends: given.expiration_timestamp.0,
    })
}

/// Writes the three files, the token last.
fn put(own: &Path, folder: &Path, token: &str) -> Result<(), LendError> {
    for name in COPIED {
        let path = own.join(name);
        let bytes = fs::read(&path).map_err(|cause| LendError::File { path, cause })?;
        replace(folder, name, &bytes)?;
    }
    replace(folder, TOKEN, token.as_bytes())
}

/// A reader finds the old file or the new one, never a half.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), LendError> {
    let (new, path) = (folder.join(format!(".{name}.new")), folder.join(name));
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        fs::rename(&new, &path)
    };
    write().map_err(|cause| LendError::File { path, cause })
}

/// Waits until the token is there.
pub async fn await_token(folder: &Path) {
    let token = folder.join(TOKEN);
    while !token.exists() {
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_renewed_after_a_third_of_its_life_and_when_the_clock_was_set_back() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let life = Life {
            begins: at(0),
            ends: at(3600),
        };
        let due = |seconds| life.renewal_due(at(seconds));
        assert_eq!(
            [due(-1), due(0), due(1199), due(1200), due(9999)],
            [true, false, false, true, true]
        );
    }

    #[tokio::test]
    async fn whoever_finds_the_token_finds_all_and_nobody_else_reads_it() {
        let (own, lent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(own.path().join("ca.crt"), "authority").unwrap();
        // Without the namespace nothing is lent.
        let error = put(own.path(), lent.path(), "one").unwrap_err().to_string();
        assert!(error.contains("namespace"), "{error}");
        assert!(!lent.path().join(TOKEN).exists());
        fs::write(own.path().join("namespace"), "reveille").unwrap();
        let (waiting, folder) = (await_token(lent.path()), lent.path().to_owned());
        let lending = async { put(own.path(), &folder, "one").unwrap() };
        tokio::join!(waiting, lending);
        put(own.path(), lent.path(), "two").unwrap();
        let read = |name: &str| fs::read_to_string(lent.path().join(name)).unwrap();
        assert_eq!(
            (read("token"), read("ca.crt"), read("namespace")),
            ("two".into(), "authority".into(), "reveille".into())
        );
        let mode = fs::metadata(lent.path().join(TOKEN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(lent.path()).unwrap().count(), 3, "no half files are left");
    }
}

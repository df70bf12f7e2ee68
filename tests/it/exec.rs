//! Exec through a client that never repeats a request: a second one could run the command twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Config};
use reveille::{
    infra::kube::{Clients, install_crypto_provider},
    waiter::{
        attempt::Outcome,
        exec::{ApiExec, Command, Exec},
        output::OutputRules,
        redact::Redactor,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// An API server that answers each request with this, and counts them. Its address, and the count.
#[allow(clippy::disallowed_methods)] // a test's server, ended with the test's runtime
async fn answers(code: u16) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            if head.is_empty() {
                continue;
            }
            counted.fetch_add(1, Ordering::SeqCst);
            let answer =
                format!("HTTP/1.1 {code} No\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, count)
}

fn clients(address: &str) -> Clients {
    install_crypto_provider();
    Clients::new(Config::new(address.parse().unwrap())).unwrap()
}

#[tokio::test]
async fn exec_is_asked_for_once_whatever_the_answer_is() {
    for code in [401, 403, 404, 429, 500, 502, 503, 504] {
        let (address, count) = answers(code).await;
        let rules = OutputRules {
            tail: 4096,
            redactor: Redactor::new(&[]).unwrap(),
        };
        let exec = ApiExec::new(clients(&address).exec, rules);
        let command = Command {
            namespace: "n",
            pod: "p",
            container: "c",
            argv: &["x".to_owned()],
            timeout: "60s".parse().unwrap(),
            answers: false,
        };
        let report = exec.run(command).await;
        // After a failure of the API server or a gateway the command may run; after a refusal it does not.
        let as_expected = match code {
            401 | 403 | 429 => matches!(report.outcome, Outcome::TurnedAway { code: said, .. } if said == code),
            500.. => matches!(report.outcome, Outcome::Lost(_)),
            _ => matches!(report.outcome, Outcome::Refused(_)),
        };
        assert!(as_expected, "{code}: {report:?}");
        assert_eq!(count.load(Ordering::SeqCst), 1, "{code}");
    }
}

/// That the count could be another: the client for everything else does try again.
#[tokio::test]
async fn the_other_client_tries_again() {
    let (address, count) = answers(503).await;
    let pods: Api<Pod> = Api::namespaced(clients(&address).api, "n");
    let asks = pods.get("p");
    let counts = async {
        while count.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let twice = async {
        tokio::select! {
            answer = asks => assert!(answer.is_err()),
            () = counts => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(60), twice).await.unwrap();
    assert!(count.load(Ordering::SeqCst) >= 2);
}

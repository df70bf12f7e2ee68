//! Handshakes, and certificates that change under load.

use std::{sync::Arc, time::Duration};

use reveille::{
    infra::{clock, metrics::Metrics, pki::Ca},
    webhook::{
        limits::Limits,
        tls::{Target, run_files},
    },
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{self, Client, FakeVelero, NAME, limits, pod, restore, sign, start};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn http_1_1_is_agreed_on() {
    let server = start(limits(), FakeVelero::default(), vec![]).await;
    let stream = support::tls(server.address, &[&server.ca]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_client_with_another_ca_is_not_taken_in() {
    let server = start(limits(), FakeVelero::default(), vec![]).await;
    let other = Ca::generate(clock::now()).unwrap();
    assert!(Client::connect(server.address, &[&other]).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_cut() {
    let limits = Limits {
        handshake: SHORT,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![]).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let read = timeout(LONG, stream.read(&mut [0; 8])).await.expect("cut");
    assert!(matches!(read, Ok(0) | Err(_)));
    server.stop().await;
}

/// CA and leaf change while calls come over 10 kept and many new connections: none fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_load_fails_no_call() {
    let server = start(limits(), FakeVelero::default(), vec![restore("r", "u1", "InProgress")]).await;
    let next = Ca::generate(clock::now()).unwrap();
    // As published: both are trusted before the second signs.
    let cas = [&server.ca, &next];
    let done = CancellationToken::new();
    let kept = (0..10).map(|_| async {
        let mut client = Client::connect(server.address, &cas).await.unwrap();
        let mut calls = 0;
        while !done.is_cancelled() {
            client.pod(&pod("r")).await.unwrap().response();
            calls += 1;
        }
        calls
    });
    let fresh = std::cell::Cell::new(0);
    let connecting = async {
        while !done.is_cancelled() {
            let mut client = Client::connect(server.address, &cas).await.unwrap();
            client.pod(&pod("r")).await.unwrap().response();
            fresh.set(fresh.get() + 1);
        }
    };
    let rotation = async {
        for round in 0..20 {
            // Each certificate meets a new connection, however slow this machine is.
            let before = fresh.get();
            while fresh.get() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let ca = if round < 10 { &server.ca } else { &next };
            sign(ca, &server.certificate);
        }
        done.cancel();
    };
    let (kept, (), ()) = tokio::join!(futures::future::join_all(kept), connecting, rotation);
    assert!(kept.iter().all(|calls| *calls > 0), "{kept:?}");
    // The new CA alone is enough now.
    Client::connect(server.address, &[&next]).await.unwrap();
    assert!(Client::connect(server.address, &[&server.ca]).await.is_err());
    server.stop().await;
}

/// As a Secret volume changes: by swapping a link.
#[cfg(unix)]
#[tokio::test]
#[allow(clippy::disallowed_methods)] // ended by its token
async fn certificate_files_are_followed_and_a_broken_pair_is_not_taken() {
    let server = start(limits(), FakeVelero::default(), vec![]).await;
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (Ca::generate(clock::now()).unwrap(), Ca::generate(clock::now()).unwrap());
    let write = |version: &str, ca: &Ca, key_of: Option<&str>| {
        let place = folder.path().join(version);
        std::fs::create_dir(&place).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&ca.certificate, rcgen::KeyPair::from_pem(&ca.key()).unwrap());
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &issuer.unwrap()).unwrap();
        std::fs::write(place.join("tls.crt"), leaf.pem()).unwrap();
        let key = key_of.map_or_else(
            || key.serialize_pem(),
            |other| std::fs::read_to_string(folder.path().join(other).join("tls.key")).unwrap(),
        );
        std::fs::write(place.join("tls.key"), key).unwrap();
        let link = folder.path().join("new");
        std::os::unix::fs::symlink(version, &link).unwrap();
        std::fs::rename(link, folder.path().join("..data")).unwrap();
    };
    write("1", &one, None);
    let gate = server.readiness.gate("certificate");
    let metrics = Arc::new(Metrics::webhook());
    let target = Target {
        certificate: server.certificate.clone(),
        gate,
        metrics: Arc::clone(&metrics),
    };
    let end = CancellationToken::new();
    let data = folder.path().join("..data");
    let period = Duration::from_millis(20);
    let task = tokio::spawn(run_files(
        data.join("tls.crt"),
        data.join("tls.key"),
        period,
        target,
        end.clone(),
    ));
    let trusted = async |ca: &Ca| {
        for _ in 0..100 {
            if Client::connect(server.address, &[ca]).await.is_ok() {
                return true;
            }
            tokio::time::sleep(period).await;
        }
        false
    };
    assert!(trusted(&one).await);
    assert!(server.readiness.unmet().is_empty());
    write("2", &two, None);
    assert!(trusted(&two).await);
    write("3", &one, Some("2"));
    tokio::time::sleep(period * 5).await;
    assert!(trusted(&two).await);
    assert!(
        metrics
            .encode()
            .unwrap()
            .contains(r#"reveille_certificate_reloads_total{result="failure"}"#)
    );
    end.cancel();
    task.await.unwrap().unwrap();
    server.stop().await;
}

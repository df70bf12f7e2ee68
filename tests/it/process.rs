//! The real binary.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use reveille::infra::{clock, pki::Ca};

fn reveille() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reveille"));
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("REVEILLE_LOG_FORMAT", "text");
    command
}

#[test]
fn the_command_line() {
    let output = reveille().arg("--version").output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        output.stdout,
        format!("reveille {}\n", env!("CARGO_PKG_VERSION")).as_bytes()
    );
    for wrong in [
        &[][..],
        &["nonsense"],
        &["webhook"],
        &["webhook", "--mode=sometimes"],
        &["webhook", "--tls-cert=x"],
        &[
            "webhook",
            "--namespace=n",
            "--service=s",
            "--ca-secret=c",
            "--shutdown-delay=soon",
        ],
    ] {
        let output = reveille().args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_failure_is_one_clear_message() {
    let args = [
        "webhook",
        "--listen=127.0.0.1:0",
        "--health-listen=127.0.0.1:0",
        "--namespace=n",
        "--service=s",
        "--ca-secret=c",
    ];
    let output = reveille().args(args).env("REVEILLE_LOG", "error").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("reveille: no way to the Kubernetes API") && text.lines().count() == 1,
        "{text}"
    );
    let output = reveille().args(args).env("REVEILLE_LOG", "=,=").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("REVEILLE_LOG"));
}

#[test]
fn commands_for_people_fail_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(folder.path(), empty_api_server());
    for (arguments, words) in [
        (&["status", "a/b/c"][..], "neither NAME nor NAMESPACE/NAME"),
        (&["wait", "n/r", "-n", "m"], "--namespace is \"m\""),
        (&["wait", "shop"], "is Reveille installed?"),
        (&["logs", "shop"], "is Reveille installed?"),
        (&["cancel", "shop"], "is Reveille installed?"),
        (&["rerun", "shop"], "is Reveille installed?"),
        (&["pause", "shop"], "is Reveille installed?"),
        (&["pause"], "there is no ConfigMap reveille/reveille-pause"),
        (
            &["resume", "--reveille-namespace", "x"],
            "there is no ConfigMap x/reveille-pause",
        ),
        (&["pause", "-n", "velero"], "<RESTORE>"),
        (&["rerun"], "<RUN>"),
    ] {
        let output = reveille()
            .args(arguments)
            .env("KUBECONFIG", &kubeconfig)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(2), 0),
            "{arguments:?}: {text}"
        );
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
}

/// An API server that knows no kind at all.
fn empty_api_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"no","code":404}"#;
            let _ = write!(
                stream,
                "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    address
}

/// A kubeconfig that leads to this API server.
fn kubeconfig(folder: &Path, server: SocketAddr) -> PathBuf {
    let path = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"http://{server}\"}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// The child is killed if a test ends early.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn webhook(folder: &Path) -> (Running, SocketAddr) {
    let ca = Ca::generate(clock::now()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca.certificate, rcgen::KeyPair::from_pem(&ca.key()).unwrap());
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let (certificate_file, key_file) = (folder.join("tls.crt"), folder.join("tls.key"));
    std::fs::write(
        &certificate_file,
        params.signed_by(&key, &issuer.unwrap()).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let kubeconfig = kubeconfig(folder, empty_api_server());
    let mut child = reveille()
        .args([
            "webhook",
            "--listen=127.0.0.1:0",
            "--health-listen=127.0.0.1:0",
            "--shutdown-delay=100ms",
        ])
        .arg(format!("--tls-cert={}", certificate_file.display()))
        .arg(format!("--tls-key={}", key_file.display()))
        .env("KUBECONFIG", &kubeconfig)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            // The health port is bound first.
            if let Some(address) = line.split("address=").nth(1) {
                let _ = sender.send(address.trim().parse::<SocketAddr>().unwrap());
            }
        }
    });
    let address = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    (Running(child), address)
}

#[test]
#[allow(clippy::disallowed_methods)] // a test's patience
fn ready_without_velero_and_an_orderly_end() {
    let folder = tempfile::tempdir().unwrap();
    let (mut webhook, health) = webhook(folder.path());
    assert!(get(health, "/livez").starts_with("HTTP/1.1 200"));
    let patience = Instant::now() + Duration::from_secs(10);
    let mut ready = get(health, "/readyz");
    while !ready.starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < patience, "{ready}");
        std::thread::sleep(Duration::from_millis(20));
        ready = get(health, "/readyz");
    }
    let metrics = get(health, "/metrics");
    assert!(
        metrics.contains("reveille_restore_cache_synced 1") && metrics.contains(r#"certificate="leaf""#),
        "{metrics}"
    );

    let kill = Command::new("kill").arg(webhook.0.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(webhook.0.wait().unwrap().code(), Some(0));
}

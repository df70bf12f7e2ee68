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
use tokio::io::AsyncWriteExt;

use crate::support::{self, Client};

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

/// A webhook that serves a certificate for the tests' name.
struct RunningWebhook {
    process: Running,
    ca: Ca,
    health: SocketAddr,
    https: SocketAddr,
}

fn webhook(folder: &Path) -> RunningWebhook {
    let ca = Ca::generate(clock::now()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca.certificate, rcgen::KeyPair::from_pem(&ca.key()).unwrap());
    let params = rcgen::CertificateParams::new(vec![support::NAME.to_owned()]).unwrap();
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
        // As the chart has it.
        .env("MALLOC_ARENA_MAX", "1")
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
    let process = Running(child);
    let address = || receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    RunningWebhook {
        process,
        ca,
        health: address(),
        https: address(),
    }
}

/// Waits until it is ready.
#[allow(clippy::disallowed_methods)] // a test's patience
fn ready(health: SocketAddr) {
    let patience = Instant::now() + Duration::from_secs(60);
    let mut ready = get(health, "/readyz");
    while !ready.starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < patience, "{ready}");
        std::thread::sleep(Duration::from_millis(20));
        ready = get(health, "/readyz");
    }
}

/// The most memory that a process ever held, in MiB.
fn peak_memory(process: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kibibytes >> 10
}

#[test]
fn ready_without_velero_and_an_orderly_end() {
    let folder = tempfile::tempdir().unwrap();
    let RunningWebhook {
        process: mut webhook,
        health,
        ..
    } = webhook(folder.path());
    assert!(get(health, "/livez").starts_with("HTTP/1.1 200"));
    ready(health);
    let metrics = get(health, "/metrics");
    assert!(
        metrics.contains("reveille_restore_cache_synced 1") && metrics.contains(r#"certificate="leaf""#),
        "{metrics}"
    );

    let kill = Command::new("kill").arg(webhook.0.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(webhook.0.wait().unwrap().code(), Some(0));
}

/// The webhook's container has 128 MiB. What strangers send must not get there: the kernel would end the replica.
const MEMORY: u64 = 112;

/// A review whose object is a list of these, about so heavy in bytes of memory.
fn heavy_review(unit: &str, count: usize) -> String {
    let object = format!("[{}0]", unit.repeat(count));
    format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","operation":"CREATE","object":{object}}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviews_that_are_small_on_the_wire_and_huge_in_memory_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let webhook = webhook(folder.path());
    ready(webhook.health);
    let post = async |body: String| {
        let mut client = Client::connect(webhook.https, &[&webhook.ca]).await.unwrap();
        client.post("/mutate/pods?timeout=30s", body).await.unwrap()
    };
    for unit in ["0,", r#"{"":0},"#, r#"{"a":{"b":[0]}},"#, "[0],"] {
        let calls = (0..4).map(|_| post(heavy_review(unit, (7 << 20) / unit.len())));
        for reply in futures::future::join_all(calls).await {
            assert_eq!(reply.status, 413, "{unit}");
            assert!(String::from_utf8_lossy(&reply.body).contains("too many JSON values"));
        }
        // As many as are allowed.
        let weight = reveille::admission::weight::weight(heavy_review(unit, 1 << 14).as_bytes()) >> 14;
        let calls = (0..4).map(|_| post(heavy_review(unit, (38 << 20) / weight)));
        for reply in futures::future::join_all(calls).await {
            assert_eq!(reply.status, 200, "{unit}: {reply:?}");
        }
        let peak = peak_memory(&webhook.process);
        println!("{unit} {peak} MiB");
        assert!(peak < MEMORY, "{peak} MiB after {unit}");
    }
}

/// Heads that do not end, on many connections, on both ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_do_not_end_cost_little_memory() {
    const CONNECTIONS: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let webhook = webhook(folder.path());
    ready(webhook.health);
    let mut head = b"POST /mutate/pods HTTP/1.1\r\nhost: x\r\nx: ".to_vec();
    head.resize(400 << 10, b'x');
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = support::tls(webhook.https, &[&webhook.ca]).await.unwrap();
        // It is cut off when it has sent too much.
        let _ = stream.write_all(&head).await;
        connections.push(stream);
    }
    let mut plain_connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = tokio::net::TcpStream::connect(webhook.health).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(20), stream.write_all(&head)).await;
        plain_connections.push(stream);
    }
    // Nobody is shut out.
    let health = webhook.health;
    let page = tokio::task::spawn_blocking(move || get(health, "/livez"));
    assert!(page.await.unwrap().starts_with("HTTP/1.1 200"));
    let peak = peak_memory(&webhook.process);
    println!("{peak} MiB");
    assert!(peak < MEMORY, "{peak} MiB");
}

/// The process whose parent this is, and that has these words among its arguments.
fn child_of(parent: u32, argument: &str) -> Option<u32> {
    let read =
        |process: u32, file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let processes = std::fs::read_dir("/proc").unwrap();
    let mut processes = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    processes.find(|process| {
        let status = read(*process, "status");
        let parents = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parents.is_some_and(|id| id.trim() == parent.to_string())
            && read(*process, "cmdline").split('\0').any(|word| word == argument)
    })
}

/// Looks until it comes true.
#[allow(clippy::disallowed_methods)] // a test's patience
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn send(signal: &str, process: u32) {
    let sent = Command::new("kill").args([signal, &process.to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_waiter_that_dies_is_started_again_and_ends_with_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(folder.path(), empty_api_server());
    let start = || {
        let mut command = reveille();
        let command = command.args(["waiter", "--health-listen=127.0.0.1:0", "--drain-seconds=1"]);
        let child = command.env("KUBECONFIG", &kubeconfig).stderr(Stdio::null()).spawn();
        Running(child.unwrap())
    };
    let mut parent = start();
    let id = parent.0.id();
    let first = eventually("there is a child", || child_of(id, "--no-supervisor"));
    send("-KILL", first);
    let second = eventually("there is another child", || {
        child_of(id, "--no-supervisor").filter(|child| *child != first)
    });
    // SIGTERM is passed on, and the child's exit code is the answer. Before it handles signals it would be 143.
    eventually("it handles SIGTERM", || {
        let status = std::fs::read_to_string(format!("/proc/{second}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        (u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << 14) != 0).then_some(())
    });
    send("-TERM", id);
    assert_eq!(parent.0.wait().unwrap().code(), Some(0));
    assert_eq!(child_of(id, "--no-supervisor"), None);

    // A parent that is killed leaves nobody behind.
    let mut parent = start();
    let id = parent.0.id();
    let child = eventually("there is a child", || child_of(id, "--no-supervisor"));
    send("-KILL", id);
    parent.0.wait().unwrap();
    eventually("the child has ended, too", || {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // Dead, or gone: nobody may be there to bury it.
        (state.is_empty() || state.contains(") Z ")).then_some(())
    });
}

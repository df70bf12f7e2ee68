//! What a client can hold, and for how long: connections, bytes, time.

use std::time::Duration;

use reveille::webhook::limits::Limits;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::support::{self, Client, FakeVelero, TestServer, limits, pod, start};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(60);

/// A Velero whose Restores take that long to be listed: a call about an unknown one is busy meanwhile.
fn slow_velero(takes: Duration) -> FakeVelero {
    FakeVelero {
        takes,
        ..FakeVelero::default()
    }
}

async fn ok(client: &mut Client) {
    let reply = timeout(LONG, client.pod(&json!({}))).await.expect("answered");
    assert_eq!(reply.unwrap().status, 200);
}

/// A connection on which the beginning of a call has been sent: its head, and a part of its body.
async fn begun(server: &TestServer, announced: usize, sent: usize) -> TlsStream<TcpStream> {
    let mut stream = support::tls(server.address, &[&server.ca]).await.unwrap();
    let head = format!("POST /mutate/pods?timeout=30s HTTP/1.1\r\nhost: x\r\ncontent-length: {announced}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; sent]).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// The status line of the answer.
async fn status(stream: &mut TlsStream<TcpStream>) -> String {
    let mut answer = [0; 12];
    let read = timeout(LONG, stream.read_exact(&mut answer)).await;
    read.expect("an answer comes").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// All places are held by connections that do nothing: the API server's is opened all the same, and a call that is being answered is
/// not cut short for it.
#[tokio::test]
async fn idle_connections_give_way_to_new_ones_and_busy_ones_do_not() {
    let limits = Limits {
        connections: 3,
        give_way: SHORT / 4,
        ..limits()
    };
    let server = start(limits, slow_velero(SHORT * 10), vec![]).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    let mut kept = server.client().await;
    ok(&mut kept).await;
    let mut working = server.client().await;
    let pod = pod("unknown");
    let calls = async {
        let mut newcomers = Vec::new();
        for _ in 0..6 {
            let mut client = server.client().await;
            ok(&mut client).await;
            newcomers.push(client);
        }
        newcomers
    };
    let (answer, mut newcomers) = timeout(LONG, async { tokio::join!(working.pod(&pod), calls) })
        .await
        .expect("everybody is served");
    assert_eq!(answer.unwrap().status, 200);
    // The last ones are still connected, the first ones not.
    ok(newcomers.last_mut().unwrap()).await;
    assert!(kept.pod(&json!({})).await.is_err());
    drop(silent);
    server.stop().await;
}

/// The only place is held by a call of which most is yet to come.
#[tokio::test]
async fn a_call_that_does_not_arrive_gives_way() {
    let limits = Limits {
        connections: 1,
        give_way: SHORT / 4,
        body: LONG,
        body_pause: LONG,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![]).await;
    let mut stuck = begun(&server, 1000, 10).await;
    timeout(LONG / 2, async { ok(&mut server.client().await).await })
        .await
        .expect("the place is given up");
    let mut rest = Vec::new();
    let _ = timeout(LONG / 2, stuck.read_to_end(&mut rest)).await.expect("cut off");
    assert!(rest.is_empty(), "{rest:?}");
    server.stop().await;
}

#[tokio::test]
async fn more_busy_connections_than_allowed_wait_their_turn() {
    let limits = Limits {
        connections: 2,
        give_way: LONG,
        ..limits()
    };
    let server = start(limits, slow_velero(SHORT), vec![]).await;
    let calls = (0..6).map(|_| async {
        let mut client = server.client().await;
        let reply = client.pod(&pod("unknown")).await.unwrap();
        assert_eq!(reply.status, 200);
    });
    timeout(LONG, futures::future::join_all(calls)).await.expect("served");
    server.stop().await;
}

/// Four bodies that need more room than there is, and each of which has begun: whoever has room gets to the end.
#[tokio::test]
async fn bodies_do_not_hold_room_while_they_wait_for_more() {
    let limits = Limits {
        body_bytes: 1 << 20,
        bytes_in_flight: 1 << 20,
        body: LONG,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![]).await;
    let (whole, half) = (800 << 10, 400 << 10);
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(begun(&server, whole, half).await);
    }
    let rest = streams.into_iter().map(|mut stream| async move {
        stream.write_all(&vec![b' '; whole - half]).await.unwrap();
        stream.flush().await.unwrap();
        // Blanks are no review: the body was read to its end.
        assert_eq!(status(&mut stream).await, "HTTP/1.1 400");
    });
    // Long before any of the clocks.
    timeout(LONG / 2, futures::future::join_all(rest))
        .await
        .expect("no deadlock");
    server.stop().await;
}

/// Clients that announce much and send nothing hold up neither an ordinary call nor, for longer than a body may pause, a large one.
#[tokio::test]
async fn announced_bodies_that_do_not_come_hold_up_nobody_for_long() {
    let limits = Limits {
        body_bytes: 1 << 20,
        bytes_in_flight: 1 << 20,
        body: LONG,
        body_pause: SHORT * 5,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![]).await;
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(begun(&server, 1 << 20, 1).await);
    }
    ok(&mut server.client().await).await;
    let mut large = begun(&server, 900 << 10, 900 << 10).await;
    assert_eq!(status(&mut large).await, "HTTP/1.1 400");
    for mut stream in greedy {
        assert_eq!(status(&mut stream).await, "HTTP/1.1 408");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_call_that_finds_no_room_in_its_time_is_told_so() {
    let limits = Limits {
        body_bytes: 1 << 20,
        bytes_in_flight: 1 << 20,
        body: LONG,
        // The greedy one keeps its room for longer than the call may take.
        body_pause: LONG,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![]).await;
    let _greedy = begun(&server, 1 << 20, 1).await;
    let told = async {
        loop {
            let mut client = server.client().await;
            let body = vec![b' '; 1 << 20];
            let reply = client.post("/mutate/pods?timeout=1s", body).await.unwrap();
            // Until the greedy one's head has been read there is room: blanks are no review.
            if reply.status != 400 {
                return reply;
            }
        }
    };
    let reply = timeout(LONG / 2, told).await.expect("told in time");
    assert_eq!(reply.status, 503);
    assert!(String::from_utf8_lossy(&reply.body).contains("in flight"), "{reply:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_slow_request_is_cut_and_an_idle_connection_is_not() {
    let limits = Limits {
        head: SHORT,
        body: SHORT,
        idle: LONG,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![]).await;

    // A head that does not end.
    let mut stream = support::tls(server.address, &[&server.ca]).await.unwrap();
    stream
        .write_all(b"POST /mutate/pods HTTP/1.1\r\nhost: x\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("cut");
    assert!(!String::from_utf8_lossy(&rest).contains("200"));

    // A body that does not end.
    let mut stream = support::tls(server.address, &[&server.ca]).await.unwrap();
    let head = b"POST /mutate/pods HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head).await.unwrap();
    let mut answer = vec![0; 12];
    timeout(LONG, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");

    // Idle several times as long as a head may take, before the first request and between two.
    let mut client = server.client().await;
    for _ in 0..3 {
        tokio::time::sleep(SHORT * 3).await;
        ok(&mut client).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_connection_idle_for_too_long_is_closed() {
    let limits = Limits {
        idle: SHORT,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![]).await;
    let mut client = server.client().await;
    client.pod(&json!({})).await.unwrap();
    tokio::time::sleep(SHORT * 3).await;
    assert!(client.pod(&json!({})).await.is_err());
    server.stop().await;
}

/// hyper's own default would close the connection after 30 s, and the API server keeps an idle one for 90 s.
#[tokio::test]
async fn idle_gaps_of_31_61_and_89_seconds_do_no_harm() {
    let server = start(limits(), FakeVelero::default(), vec![]).await;
    let each = &server;
    let gaps = [31, 61, 89].map(|seconds| async move {
        let mut client = each.client().await;
        ok(&mut client).await;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        ok(&mut client).await;
    });
    futures::future::join_all(gaps).await;
    server.stop().await;
}

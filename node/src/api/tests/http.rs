//! Who is let in, and what HTTP answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::Daemon;
use super::fake::{id, transfer};
use crate::api::model::*;
use crate::api::routes::ROUTES;
use crate::api::{ApiError, ErrorBody, ErrorCode};
use crate::client::ClientError;

/// Sends a request exactly as written and returns the status and the body.
fn raw(daemon: &Daemon, head: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    let mut text = format!(
        "{head} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).unwrap();
    // A server that refuses early closes before it has read everything.
    drop(stream.write_all(body));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status line");
    (
        status,
        answer
            .split_once("\r\n\r\n")
            .map_or(String::new(), |(_, body)| body.to_owned()),
    )
}

fn owned(daemon: &Daemon, head: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let (host, token) = (daemon.address.to_string(), daemon.token());
    raw(
        daemon,
        head,
        &[("Host", &host), ("Authorization", &token), ("Content-Type", kind)],
        body,
    )
}

fn refusal(error: Result<impl std::fmt::Debug, ClientError>) -> ApiError {
    match error {
        Err(ClientError::Refused(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn every_route_wants_the_token() {
    let daemon = Daemon::start();
    let host = daemon.address.to_string();
    let heads = ROUTES.iter().map(|route| {
        format!(
            "{} {}",
            route.method.to_uppercase(),
            route.path.replace("{id}", "a")
        )
    });
    for head in heads.chain([
        "GET /".to_owned(),
        "GET /nothing".to_owned(),
        "DELETE /metrics".to_owned(),
    ]) {
        assert_eq!(raw(&daemon, &head, &[("Host", &host)], b"").0, 401, "{head}");
        let wrong = [("Host", host.as_str()), ("Authorization", "Bearer 0000")];
        assert_eq!(raw(&daemon, &head, &wrong, b"").0, 401, "{head}");
        let basic = [("Host", host.as_str()), ("Authorization", "Basic YTpi")];
        assert_eq!(raw(&daemon, &head, &basic, b"").0, 401, "{head}");
    }
}

#[test]
fn a_foreign_host_or_origin_is_refused_even_with_the_token() {
    let daemon = Daemon::start();
    let (host, token) = (daemon.address.to_string(), daemon.token());
    let port = daemon.address.port();
    let ask = |host: &str, origin: Option<&str>| {
        let mut headers = vec![("Host", host), ("Authorization", token.as_str())];
        headers.extend(origin.map(|origin| ("Origin", origin)));
        raw(&daemon, "GET /v1/fabric/status", &headers, b"").0
    };
    assert_eq!(ask(&host, None), 200);
    assert_eq!(ask(&format!("localhost:{port}"), None), 200);
    assert_eq!(ask(&host, Some(&format!("http://{host}"))), 200);
    assert_eq!(ask("evil.example", None), 403);
    assert_eq!(ask(&format!("evil.example:{port}"), None), 403);
    assert_eq!(ask("127.0.0.1:1", None), 403);
    assert_eq!(ask(&host, Some("http://evil.example")), 403);
    assert_eq!(ask(&host, Some("null")), 403);
    assert_eq!(ask(&host, Some(&format!("https://{host}"))), 403);
    assert_eq!(ask(&host, Some(&format!("http://localhost:{port}"))), 403);
    let twice = [
        ("Host", host.as_str()),
        ("Host", "evil.example"),
        ("Authorization", token.as_str()),
    ];
    assert_ne!(raw(&daemon, "GET /v1/fabric/status", &twice, b"").0, 200);
    let none = [("Authorization", token.as_str())];
    assert_ne!(raw(&daemon, "GET /v1/fabric/status", &none, b"").0, 200);
}

#[test]
fn a_refusal_says_nothing_about_the_token_to_a_foreign_page() {
    let daemon = Daemon::start();
    let token = daemon.token();
    let headers = [("Host", "evil.example"), ("Authorization", token.as_str())];
    let right = raw(&daemon, "GET /v1/fabric/status", &headers, b"");
    let wrong = raw(&daemon, "GET /v1/fabric/status", &headers[..1], b"");
    assert_eq!(right, wrong);
}

#[test]
fn the_client_asks_everything_that_the_api_answers() {
    let daemon = Daemon::start();
    let client = daemon.client();
    daemon.control.put(transfer(7, TransferState::Failed));
    let seven = hyperfabric_protocol::TransferId([7; 16]);
    assert_eq!(client.status().unwrap().name, id("a"));
    assert_eq!(client.nodes().unwrap().len(), 2);
    assert_eq!(
        client.node(&id("a/gpu0")).unwrap().signature.node_id,
        id("a/gpu0")
    );
    let unknown = refusal(client.node(&id("b")));
    assert_eq!(
        (unknown.code.exit_code(), unknown.name.as_deref()),
        (3, Some("NodeNotFoundError"))
    );
    let node = super::fake::node_record("a/gpu1").signature;
    assert!(client.register(&node).unwrap().created);
    assert_eq!(client.peers().unwrap(), [super::fake::peer()]);
    let ping = PingRequest {
        node: id("b"),
        count: 3,
        size: 64,
        timeout_ms: 1_000,
    };
    assert_eq!(client.ping(&ping).unwrap().samples_ns.len(), 3);
    assert_eq!(
        refusal(client.ping(&PingRequest { count: 0, ..ping })).code,
        ErrorCode::Usage
    );
    assert_eq!(client.transfers().unwrap().len(), 1);
    assert_eq!(client.resume(seven).unwrap().state, TransferState::Active);
    assert_eq!(client.cancel(seven).unwrap().state, TransferState::Cancelled);
    assert_eq!(client.transfer(seven).unwrap().state, TransferState::Cancelled);
    assert_eq!(
        refusal(client.transfer(hyperfabric_protocol::TransferId([9; 16]))).code,
        ErrorCode::NotFound
    );
    let invite = InviteRequest {
        name: id("c"),
        expires_seconds: 60,
        uses: 2,
    };
    assert_eq!(client.invite(&invite).unwrap().uses, 2);
    assert_eq!(
        refusal(client.invite(&InviteRequest { uses: 0, ..invite })).code,
        ErrorCode::Usage
    );
    assert_eq!(client.members().unwrap(), [super::fake::member()]);
    assert_eq!(client.revoke(id("c")).unwrap().name, id("c"));
    assert!(client.shutdown().unwrap().done && daemon.control.shutdown.load(Ordering::SeqCst));
}

#[test]
fn metrics_are_text_and_the_document_names_every_route_and_no_other() {
    let daemon = Daemon::start();
    let (status, text) = owned(&daemon, "GET /metrics", "", b"");
    assert!(status == 200 && text.contains("hyperfabric_peers 2\n"), "{text}");
    let (status, text) = owned(&daemon, "GET /openapi.json", "", b"");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut described: Vec<(String, String)> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            // Whatever the answer is, it is not that of a route or method that does not exist.
            // An event stream would go on for ever, so it is asked for in a way that it refuses.
            let query = if path.ends_with("/events") {
                "?colour=red"
            } else {
                ""
            };
            let head = format!("{} {}{query}", method.to_uppercase(), path.replace("{id}", "00"));
            let (status, body) = owned(&daemon, &head, "application/json", b"{}");
            assert!(
                status != 405 && !body.contains("there is no route"),
                "{head}: {status} {body}"
            );
            described.push((path.clone(), method.clone()));
        }
    }
    let mut routed: Vec<_> = ROUTES
        .iter()
        .map(|route| (route.path.to_owned(), route.method.to_owned()))
        .collect();
    routed.sort();
    described.sort();
    assert_eq!(described, routed);
    // Every reference leads somewhere.
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
    }
}

#[test]
fn a_request_that_makes_no_sense_gets_a_json_error() {
    let daemon = Daemon::start();
    let order = json!({ "node": "b", "colour": "red" }).to_string();
    for (head, kind, body, expected) in [
        ("GET /nothing", "", "", 404),
        ("DELETE /v1/fabric/status", "", "", 405),
        ("POST /v1/fabric/ping", "application/json", "{", 400),
        ("POST /v1/fabric/ping", "application/json", order.as_str(), 400),
        ("POST /v1/fabric/ping", "text/plain", r#"{"node":"b"}"#, 400),
        (
            "POST /v1/fabric/ping",
            "application/json",
            r#"{"node":"../b"}"#,
            400,
        ),
        (
            "POST /v1/fabric/nodes",
            "application/json",
            r#"{"node_id":"a/q","hardware_type":"quantum_qpu","bandwidth_gbps":1,"latency_ns":1}"#,
            400,
        ),
        ("GET /v1/fabric/transfers/xyz", "", "", 400),
        (
            "GET /v1/fabric/events?transfer=00000000000000000000000000000000",
            "",
            "",
            404,
        ),
        ("GET /v1/fabric/events?colour=red", "", "", 400),
        ("POST /v1/fabric/send", "text/plain", "bytes", 400),
    ] {
        let (status, answer) = owned(&daemon, head, kind, body.as_bytes());
        assert_eq!(status, expected, "{head} {body}: {answer}");
        let error: ErrorBody = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{head}: {answer}"));
        assert_eq!(error.error.code.status().as_u16(), expected);
    }
}

#[test]
fn a_body_beyond_its_limit_is_refused() {
    let daemon = Daemon::start_with(|config| config.limits.upload_bytes = 1_000);
    let large = vec![b' '; 70_000];
    assert_eq!(
        owned(&daemon, "POST /v1/fabric/ping", "application/json", &large).0,
        413
    );
    let upload = "POST /v1/fabric/send?to=b&name=x";
    assert_eq!(owned(&daemon, upload, "application/octet-stream", &large).0, 413);
    assert_eq!(
        owned(&daemon, upload, "application/octet-stream", &large[..1_000]).0,
        200
    );
    assert_eq!(
        std::fs::read_dir(daemon.data_dir.uploads()).unwrap().count(),
        1,
        "only what was taken is kept"
    );
}

#[test]
fn an_upload_is_spooled_sent_and_left_to_the_transfer() {
    let daemon = Daemon::start();
    let upload = "POST /v1/fabric/send?to=b&name=w.bin&type=tensor&priority=high&timeout_ms=5000&sync=true";
    let (status, body) = owned(&daemon, upload, "application/octet-stream", b"content");
    assert_eq!(status, 200, "{body}");
    let sent = daemon.control.sent.lock().unwrap();
    assert_eq!(sent[0].content.as_deref(), Some(&b"content"[..]));
    let order = &sent[0].order;
    assert!(
        order.source.upload
            && order
                .source
                .path
                .starts_with(daemon.data_dir.uploads().canonicalize().unwrap())
    );
    assert!(order.sync && order.name == "w.bin" && order.timeout == Some(std::time::Duration::from_secs(5)));
    assert_eq!(order.data_type, hyperfabric_protocol::types::DataType::Tensor);
}

#[test]
fn an_upload_that_is_refused_or_has_no_proper_name_leaves_nothing_behind() {
    let daemon = Daemon::start();
    let bytes = "application/octet-stream";
    assert_eq!(
        owned(&daemon, "POST /v1/fabric/send?to=nobody&name=x", bytes, b"1").0,
        404
    );
    assert_eq!(std::fs::read_dir(daemon.data_dir.uploads()).unwrap().count(), 0);
    for query in [
        "to=b",
        "to=b&name=",
        "to=b&name=..",
        "to=b&name=a/b",
        "to=b&name=x&path=/etc/passwd",
        "name=x",
    ] {
        assert_eq!(
            owned(&daemon, &format!("POST /v1/fabric/send?{query}"), bytes, b"1").0,
            400,
            "{query}"
        );
    }
}

#[test]
fn a_follower_sees_the_present_state_then_every_change_and_the_end() {
    let daemon = Daemon::start();
    daemon.control.put(transfer(1, TransferState::Active));
    daemon.control.put(transfer(2, TransferState::Active));
    let mut stream = daemon
        .client()
        .follow(Some(hyperfabric_protocol::TransferId([1; 16])))
        .unwrap();
    assert_eq!(
        stream.next_transfer().unwrap().unwrap().state,
        TransferState::Active
    );
    daemon.control.put(transfer(2, TransferState::Done));
    daemon.control.put(transfer(1, TransferState::Sealing));
    daemon.control.put(transfer(1, TransferState::Done));
    assert_eq!(
        stream.next_transfer().unwrap().unwrap().state,
        TransferState::Sealing
    );
    assert_eq!(
        stream.next_transfer().unwrap().unwrap().state,
        TransferState::Done
    );
    assert!(stream.next_transfer().unwrap().is_none());
}

#[test]
fn a_follower_that_is_too_slow_is_told_the_present_state() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let feed = crate::api::TransferFeed::default();
    let mut items = feed.subscribe();
    for number in 0..=u8::MAX {
        feed.publish(transfer(number, TransferState::Active));
        feed.publish(transfer(number, TransferState::Done));
    }
    let first = runtime.block_on(futures::StreamExt::next(&mut items));
    assert_eq!(first, Some(crate::api::FeedItem::Missed));
}

#[test]
fn a_stop_ends_event_streams_and_takes_the_address_away() {
    let mut daemon = Daemon::start();
    let mut stream = daemon.client().follow(None).unwrap();
    daemon.stop();
    assert!(matches!(
        stream.next_transfer(),
        Ok(None) | Err(ClientError::Lost(_))
    ));
    assert!(!daemon.data_dir.api_addr().exists() && !daemon.data_dir.api_socket().exists());
    match crate::client::Client::connect(&daemon.data_dir) {
        Err(error @ ClientError::NotRunning { .. }) => {
            let error = ApiError::from(error);
            assert_eq!(error.code.exit_code(), 1);
            assert!(error.hint.unwrap().contains("hyperfabric up"));
        }
        other => panic!("{:?}", other.map(|_| "connected")),
    }
}

#[test]
fn the_token_is_not_shown_to_whoever_took_the_port_of_a_dead_daemon() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    std::fs::write(
        daemon.data_dir.api_addr(),
        stranger.local_addr().unwrap().to_string(),
    )
    .unwrap();
    assert!(matches!(
        crate::client::Client::connect(&daemon.data_dir),
        Err(ClientError::NotRunning { .. })
    ));
    assert_eq!(
        stranger.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[test]
fn a_folder_that_was_never_initialised_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = crate::paths::DataDir::at(folder.path());
    let error = ApiError::from(crate::client::Client::connect(&data_dir).err().unwrap());
    assert!(error.hint.unwrap().contains("hyperfabric init"));
}

//! The few lines of HTTP that a test needs.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(20);

/// Returns the status and the body of a page.
pub(crate) async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    get_as(at, path, &at.to_string()).await
}

/// As [`get`], with another `Host`.
pub(crate) async fn get_as(at: SocketAddr, path: &str, host: &str) -> (u16, String) {
    let visit = async {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Without `Connection: close` the server ends the connection by itself.
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = tokio::time::timeout(DEADLINE, visit)
        .await
        .expect("an answer within the deadline");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Sends a header without end, and returns how many bytes were taken.
pub(crate) async fn flood(at: SocketAddr, bytes: usize) -> usize {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
    let line = format!("X-Filler: {}\r\n", "x".repeat(1024));
    let mut taken = 0;
    while taken < bytes {
        let sent = tokio::time::timeout(DEADLINE, stream.write_all(line.as_bytes())).await;
        match sent.expect("the server takes or refuses") {
            Ok(()) => taken += line.len(),
            Err(_) => break,
        }
    }
    taken
}

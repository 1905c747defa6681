//! HTTP requests as a browser or an attacker would send them. A client library would refuse to forge a Host header.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// A request to be sent to one local API.
#[derive(Clone, Debug)]
pub struct Request {
    address: SocketAddr,
    headers: Vec<(String, String)>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header lines, as they came.
    pub headers: String,
    /// The body.
    pub body: String,
}

impl Request {
    /// Prepares a request to the server at `base`, such as `http://127.0.0.1:4000`.
    ///
    /// # Errors
    /// When `base` is no such address.
    pub fn new(base: &str) -> Result<Self> {
        let authority = base
            .strip_prefix("http://")
            .context("not an http address")?
            .trim_end_matches('/');
        let address = authority
            .parse()
            .with_context(|| format!("{authority} is not IP:PORT"))?;
        Ok(Self {
            address,
            headers: vec![("Host".to_owned(), authority.to_owned())],
        })
    }

    /// Sets a header, instead of an earlier one of the same name.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends the request and reads the whole answer.
    ///
    /// # Errors
    /// When the server cannot be reached or does not answer in HTTP/1.1.
    pub fn send(&self, method: &str, path: &str, body: &str) -> Result<Response> {
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in &self.headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Response::parse(&String::from_utf8_lossy(&answer))
    }
}

impl Response {
    fn parse(answer: &str) -> Result<Self> {
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("the answer has no end of headers")?;
        let (first, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        ensure!(first.starts_with("HTTP/1.1 "), "not HTTP/1.1: {first}");
        let status = first
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .context("no status")?;
        let chunked = headers
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        let body = if chunked { dechunk(body)? } else { body.to_owned() };
        Ok(Self {
            status,
            headers: headers.to_owned(),
            body,
        })
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{}: {}", self.status, self.body))
    }
}

fn dechunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk without its size")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("a chunk is cut")?);
        body = rest.get(size + 2..).context("a chunk is cut")?;
    }
}

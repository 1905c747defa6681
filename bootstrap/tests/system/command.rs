//! The command as its users and supervisors see it, and the memory of its process.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use hyperfabric_mesh::PeerAddress;
use hyperfabric_mesh::workers::WorkerPool;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::http;
use crate::member::{DEADLINE, Member, ONE, eventually};

fn command(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperfabric-bootstrap"));
    command
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .env_remove("RUST_LOG");
    command
}

/// A running command; killed when a test fails.
struct Running {
    child: Child,
    // Held, so that the command can go on printing.
    _output: BufReader<ChildStdout>,
    ready: Value,
}

impl Running {
    fn start(data_dir: &Path) -> Self {
        let mut child = command(data_dir)
            .args(["--open", "lab", "--name", "first", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self {
            child,
            _output: output,
            ready,
        }
    }

    fn health(&self) -> SocketAddr {
        self.ready["health"]
            .as_str()
            .unwrap()
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap()
    }

    fn address(&self) -> PeerAddress {
        self.ready["listen"][0].as_str().unwrap().parse().unwrap()
    }

    /// Sends a signal, and returns the exit code and the log.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let log = std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

#[tokio::test]
async fn the_command_says_when_it_is_ready_and_ends_in_order_on_a_signal() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("new");
    let mut addresses = Vec::new();
    for signal in [Signal::TERM, Signal::INT] {
        let running = Running::start(&folder);
        assert_eq!(running.ready["event"], "ready");
        assert_eq!(
            running.address().peer.unwrap().to_string(),
            running.ready["peer_id"].as_str().unwrap()
        );
        let (status, body) = http::get(running.health(), "/health").await;
        assert_eq!(status, 200, "{body}");
        addresses.push(running.address());
        let (code, log) = running.end(signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("ERROR"), "{log}");
    }
    assert_eq!(addresses[0], addresses[1], "the port is kept");
}

#[test]
fn exit_codes_tell_wrong_usage_from_failure() {
    let place = tempfile::tempdir().unwrap();
    let failed = run(&mut command(place.path()));
    assert_eq!(failed.status.code(), Some(1));
    let error = String::from_utf8(failed.stderr).unwrap();
    assert!(error.contains("hyperfabric init"), "{error}");
    assert_eq!(
        run(command(place.path()).args(["--connections-max", "0"]))
            .status
            .code(),
        Some(2)
    );
    let help = run(command(place.path()).arg("--help"));
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("--announce"));
}

/// Members connected before the first measurement: what the process makes once, it has made then.
const FIRST_MEMBERS: u8 = 16;
/// Members connected for the second measurement.
const MEMBERS: u8 = 80;
/// What one may cost, with handshakes that come all at once.
const MEMBER_BYTES_MAX: u64 = 256 * 1024;
/// What the process may have without any.
const IDLE_BYTES_MAX: u64 = 40 * 1024 * 1024;

#[tokio::test]
async fn a_connected_member_costs_little_memory() {
    let place = tempfile::tempdir().unwrap();
    let running = Running::start(place.path());
    let idle = metric(running.health(), "resident_memory_bytes").await;
    let pool = WorkerPool::new(ONE).unwrap();
    let mut members = Vec::new();
    let first = connect(&running, &pool, &mut members, FIRST_MEMBERS).await;
    let second = connect(&running, &pool, &mut members, MEMBERS).await;
    let each = second.saturating_sub(first) / u64::from(MEMBERS - FIRST_MEMBERS);
    println!(
        "{} KiB idle, {} KiB with {FIRST_MEMBERS} members, {} KiB with {MEMBERS}: {} KiB for each more",
        idle >> 10,
        first >> 10,
        second >> 10,
        each >> 10
    );
    assert!(idle <= IDLE_BYTES_MAX, "idle: {idle} bytes");
    assert!(each <= MEMBER_BYTES_MAX, "a member costs {each} bytes");
    let mut stopping = tokio::task::JoinSet::new();
    for member in members {
        stopping.spawn(member.stop());
    }
    stopping.join_all().await;
    let (code, log) = running.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

/// Connects members until there are as many, and returns the memory of the peer's process then.
async fn connect(running: &Running, pool: &WorkerPool, members: &mut Vec<Member>, count: u8) -> u64 {
    while members.len() < usize::from(count) {
        let seed = u8::try_from(members.len() + 1).unwrap();
        let member = Member::open_in("lab", seed, pool);
        member.learn(running.address()).await;
        members.push(member);
    }
    let health = running.health();
    eventually("all are connected and known", async || {
        metric(health, "connections").await == u64::from(count)
            && metric(health, "members").await == u64::from(count) + 1
    })
    .await;
    metric(health, "resident_memory_bytes").await
}

async fn metric(at: SocketAddr, name: &str) -> u64 {
    let asked = tokio::time::timeout(DEADLINE, http::get(at, "/metrics"))
        .await
        .unwrap();
    let line = asked.1.lines().find_map(|line| {
        line.strip_prefix(&format!("hyperfabric_bootstrap_{name} "))
            .map(str::to_owned)
    });
    line.unwrap_or_else(|| panic!("no {name} in {}", asked.1))
        .parse()
        .unwrap()
}

//! Whose files are sent: over the socket by descriptor, over HTTP by path.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use serde_json::json;

use super::Daemon;
use crate::api::frame::{self, SocketReply, SocketRequest};
use crate::api::model::SendOrder;
use crate::api::source::{SourceError, arrival_name, below_roots, from_descriptor, open_for_sending};
use crate::api::{ApiError, ErrorCode};
use crate::client::ClientError;

fn order(path: &Path) -> SendOrder {
    serde_json::from_value(json!({ "to": "b", "path": path, "wait_ms": 0 })).unwrap()
}

fn refused(daemon: &Daemon, path: &Path, file: impl AsFd) -> ApiError {
    match daemon.client().send(&order(path), file.as_fd()) {
        Err(ClientError::Refused(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn file_in(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, name).unwrap();
    path
}

#[test]
fn a_readable_descriptor_of_the_file_at_the_path_is_sent() {
    let daemon = Daemon::start();
    let path = file_in(daemon.folder.path(), "w.bin");
    let file = open_for_sending(&path).unwrap();
    daemon.client().send(&order(&path), file.as_fd()).unwrap();
    let folder = open_for_sending(daemon.folder.path()).unwrap();
    daemon
        .client()
        .send(&order(daemon.folder.path()), folder.as_fd())
        .unwrap();
    let sent = daemon.control.sent.lock().unwrap();
    assert_eq!(sent[0].content.as_deref(), Some(&b"w.bin"[..]));
    assert_eq!(
        (sent[0].order.name.as_str(), &sent[0].order.source.path),
        ("w.bin", &path)
    );
    assert!(!sent[0].order.source.upload);
    assert_eq!(sent[1].content, None, "a folder has no content of its own");
}

#[test]
fn a_descriptor_that_does_not_prove_reading_is_refused() {
    let daemon = Daemon::start();
    let path = file_in(daemon.folder.path(), "w.bin");
    let write_only = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(refused(&daemon, &path, &write_only).code, ErrorCode::Refused);
    // The kernel gives one of these to anybody who can reach the name, whatever the file's mode.
    let path_only = rustix::fs::openat(CWD, &path, OFlags::PATH, Mode::empty()).unwrap();
    assert_eq!(refused(&daemon, &path, &path_only).code, ErrorCode::Refused);
    assert!(daemon.control.sent.lock().unwrap().is_empty());
}

#[test]
fn a_descriptor_of_another_file_than_the_path_is_refused() {
    let daemon = Daemon::start();
    let (one, two) = (
        file_in(daemon.folder.path(), "one"),
        file_in(daemon.folder.path(), "two"),
    );
    let file = File::open(&one).unwrap();
    assert_eq!(refused(&daemon, &two, &file).code, ErrorCode::Refused);
    assert_eq!(
        refused(&daemon, &daemon.folder.path().join("three"), &file).code,
        ErrorCode::Refused
    );
    assert_eq!(refused(&daemon, Path::new("one"), &file).code, ErrorCode::Usage);
    fs::remove_file(&one).unwrap();
    file_in(daemon.folder.path(), "one");
    assert_eq!(
        refused(&daemon, &one, &file).code,
        ErrorCode::Refused,
        "replaced since it was opened"
    );
}

#[test]
fn what_is_neither_file_nor_folder_is_refused() {
    let daemon = Daemon::start();
    let null = File::open("/dev/null").unwrap();
    assert_eq!(
        refused(&daemon, Path::new("/dev/null"), &null).code,
        ErrorCode::Usage
    );
    let pipe = daemon.folder.path().join("pipe");
    rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(matches!(open_for_sending(&pipe), Err(SourceError::Kind { .. })));
    let root = daemon.folder.path().canonicalize().unwrap();
    assert!(matches!(
        below_roots(&[root], &pipe),
        Err(SourceError::Kind { .. })
    ));
}

#[test]
fn a_request_without_a_descriptor_or_of_nonsense_is_refused() {
    let daemon = Daemon::start();
    let say = |bytes: &[u8]| {
        let mut socket = UnixStream::connect(daemon.data_dir.api_socket()).unwrap();
        socket.write_all(bytes).unwrap();
        let mut reply = Vec::new();
        socket.read_to_end(&mut reply).unwrap();
        match serde_json::from_slice(&reply[4..]).unwrap() {
            SocketReply::Error(error) => error.code,
            SocketReply::Accepted(accepted) => panic!("{accepted:?}"),
        }
    };
    let plain = frame::encode(&SocketRequest::Send(order(Path::new("/etc/hostname")))).unwrap();
    assert_eq!(say(&plain), ErrorCode::Refused);
    assert_eq!(say(&[0, 0, 0, 2, b'{', b'}']), ErrorCode::Usage);
    assert_eq!(say(&[0xff; 4]), ErrorCode::TooLarge);
}

#[test]
fn the_socket_is_private_and_works_below_a_long_path() {
    let daemon = Daemon::start();
    let mode = fs::metadata(daemon.data_dir.api_socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let deep = tempfile::Builder::new()
        .prefix(&"long-".repeat(40))
        .tempdir()
        .unwrap();
    let daemon = Daemon::start_in(deep, |_| {});
    let path = file_in(daemon.folder.path(), "w.bin");
    daemon
        .client()
        .send(&order(&path), File::open(&path).unwrap().as_fd())
        .unwrap();
}

#[test]
fn over_http_only_what_lies_below_a_root_after_resolving_links_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().canonicalize().unwrap();
    let (root, secret) = (base.join("root"), base.join("root-secret"));
    fs::create_dir_all(root.join("sub")).unwrap();
    fs::create_dir(&secret).unwrap();
    let inside = file_in(&root.join("sub"), "inside");
    let outside = file_in(&secret, "outside");
    symlink(&outside, root.join("leak")).unwrap();
    symlink(&secret, root.join("leaks")).unwrap();
    symlink(&inside, root.join("fine")).unwrap();
    let roots = [root.clone()];
    for path in [
        &inside,
        &root.join("fine"),
        &root.join("sub/../sub/inside"),
        &root,
        &root.join("sub"),
    ] {
        let source = below_roots(&roots, path).unwrap();
        assert_eq!(source.path, path.canonicalize().unwrap());
    }
    for path in [
        outside.clone(),
        root.join("leak"),
        root.join("leaks/outside"),
        root.join("../root-secret/outside"),
        secret.join("missing"),
        root.join("../missing"),
        base.clone(),
        PathBuf::from("/"),
        PathBuf::from("/proc/self/environ"),
    ] {
        let result = below_roots(&roots, &path);
        assert!(
            matches!(result, Err(SourceError::OutsideRoots { configured: true, .. })),
            "{path:?}: {result:?}"
        );
    }
    assert!(matches!(
        below_roots(&roots, &root.join("missing")),
        Err(SourceError::Missing { .. })
    ));
    assert!(matches!(
        below_roots(&roots, Path::new("inside")),
        Err(SourceError::Relative { .. })
    ));
    let none = ApiError::from(below_roots(&[], &inside).unwrap_err());
    assert!(none.code == ErrorCode::Refused && none.hint.unwrap().contains("send.roots"));
}

#[test]
fn http_sends_a_path_below_a_root_and_refuses_one_outside() {
    let folder = tempfile::tempdir().unwrap();
    let inside = file_in(folder.path(), "inside");
    let root = folder.path().to_path_buf();
    let daemon = Daemon::start_with(move |config| config.send_roots = vec![root]);
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .new_agent();
    let post = |path: &Path| {
        let request = agent.post(format!("http://{}/v1/fabric/send", daemon.address));
        let answer = request
            .header("authorization", daemon.token())
            .send_json(json!({ "to": "b", "path": path }));
        answer.unwrap().status().as_u16()
    };
    assert_eq!(post(&inside), 200);
    assert_eq!(post(Path::new("/etc/hostname")), 403);
    assert_eq!(post(&folder.path().join("missing")), 404);
    assert_eq!(daemon.control.sent.lock().unwrap().len(), 1);
}

#[test]
fn the_name_at_the_receiver_is_one_segment() {
    let name = |asked: Option<&str>, path: &str| arrival_name(asked.map(str::to_owned), Path::new(path));
    assert_eq!(name(None, "/a/b.bin").unwrap(), "b.bin");
    assert_eq!(name(Some("c.bin"), "/a/b.bin").unwrap(), "c.bin");
    assert_eq!(name(Some("c.bin"), "/").unwrap(), "c.bin");
    for (asked, path) in [
        (None, "/"),
        (None, "/a/.."),
        (Some(""), "/a"),
        (Some("."), "/a"),
        (Some(".."), "/a"),
        (Some("a/b"), "/a"),
        (Some("a/"), "/a"),
    ] {
        assert!(
            matches!(name(asked, path), Err(SourceError::Nameless { .. })),
            "{asked:?} {path}"
        );
    }
}

#[test]
fn a_descriptor_open_for_both_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let path = file_in(folder.path(), "f");
    let file: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap()
        .into();
    from_descriptor(file, path).unwrap();
}

//! Files arrive as they were.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::files::b3sum;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, Outcome, PATIENCE, Running};

use crate::support::{KIB, MIB, send, transfers};

#[test]
fn a_file_arrives_verified_in_the_folder_of_its_sender() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random(
        "weights.bin",
        Content {
            bytes: 24 * MIB + 12_345,
            seed: 1,
        },
    )?;
    let sent = send(alpha, &path, "beta")?;
    ensure!(sent["resumed_bytes"] == 0, "{sent}");
    ensure!(sent["route"] == serde_json::json!(["alpha", "beta"]), "{sent}");
    let (landed, hash) = beta.received_named("weights.bin")?;
    ensure!(hash == b3sum(&path)?);
    ensure!(
        landed.starts_with(beta.inbox().join("alpha")),
        "landed at {}",
        landed.display()
    );
    Ok(())
}

#[test]
fn every_size_around_the_edges_of_chunks_arrives() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let around = [1, 2, 4, 8]
        .into_iter()
        .flat_map(|chunks| [chunks * MIB - 1, chunks * MIB, chunks * MIB + 1]);
    let whole_chunks = [3, 5, 7, 9].into_iter().map(|chunks| chunks * MIB);
    for bytes in [0, 1, 1023, KIB, KIB + 1]
        .into_iter()
        .chain(around)
        .chain(whole_chunks)
    {
        let name = format!("{bytes}.bin");
        let path = folder.random(&name, Content { bytes, seed: bytes })?;
        send(alpha, &path, "beta")?;
        ensure!(beta.received_named(&name)?.1 == b3sum(&path)?, "{bytes} bytes");
    }
    Ok(())
}

#[test]
fn a_folder_arrives_as_a_tree() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let names = [
        "run/a.bin",
        "run/deep/er/b.bin",
        "run/deep/empty.bin",
        "run/deep/\u{e9}t\u{e9}.bin",
    ];
    for (seed, name) in names.iter().enumerate() {
        let bytes = if name.contains("empty") {
            0
        } else {
            300 * KIB + seed as u64
        };
        folder.random(
            name,
            Content {
                bytes,
                seed: seed as u64,
            },
        )?;
    }
    let sent = send(alpha, &folder.path().join("run"), "beta")?;
    ensure!(sent["skipped"]["count"] == 0, "{sent}");
    for name in names {
        let landed = beta.inbox().join("alpha").join(name);
        ensure!(b3sum(&landed)? == b3sum(&folder.path().join(name))?, "{name}");
    }
    Ok(())
}

#[test]
fn what_of_a_folder_is_not_sent_is_said() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    folder.random("run/a.bin", Content { bytes: 10, seed: 1 })?;
    let run = folder.path().join("run");
    std::os::unix::fs::symlink("a.bin", run.join("latest"))?;
    let _socket = std::os::unix::net::UnixListener::bind(run.join("socket"))?;
    let expected = serde_json::json!({
        "count": 2,
        "listed": [{"path": "latest", "kind": "symbolic_link"}, {"path": "socket", "kind": "socket"}],
    });
    let sent = send(alpha, &run, "beta")?;
    ensure!(sent["skipped"] == expected, "{sent}");
    ensure!(
        transfers(alpha)?[0]["skipped"] == expected,
        "{:?}",
        transfers(alpha)?
    );
    ensure!(transfers(beta)?[0]["skipped"].is_null(), "{:?}", transfers(beta)?);
    let to_beta = ["send", run.to_str().context("UTF-8")?, "--to", "beta"];
    let text = alpha.run(&to_beta)?.expect(Exit::Done)?.stdout;
    for line in ["skipped   latest: a symbolic link", "skipped   socket: a socket"] {
        ensure!(text.lines().any(|said| said == line), "{text}");
    }
    Ok(())
}

#[test]
fn two_files_of_one_name_are_both_kept() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let paths = ["one/same.bin", "two/same.bin"];
    for (seed, name) in paths.iter().enumerate() {
        let path = folder.random(
            name,
            Content {
                bytes: 10 * KIB,
                seed: seed as u64,
            },
        )?;
        send(alpha, &path, "beta")?;
    }
    let received = beta.received()?;
    let hashes: Vec<String> = received.iter().map(|path| b3sum(path)).collect::<Result<_>>()?;
    for name in paths {
        ensure!(
            hashes.contains(&b3sum(&folder.path().join(name))?),
            "{name} is lost; the inbox: {received:?}"
        );
    }
    Ok(())
}

#[test]
fn an_unknown_node_is_looked_for_and_then_not_found() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha"])?;
    let [alpha] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random("f", Content { bytes: 1, seed: 0 })?;
    let path = path.to_str().context("UTF-8")?;
    alpha
        .run(&["send", path, "--to", "nobody", "--wait", "1s"])?
        .expect(Exit::NotFound)?;
    alpha
        .run(&["send", "/no/such/file", "--to", "alpha"])?
        .expect(Exit::NotFound)?;
    Ok(())
}

#[test]
fn a_transfer_without_an_end_stops_at_its_timeout() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    beta.kill()?;
    let folder = Folder::new()?;
    let path = folder.random("f", Content { bytes: MIB, seed: 0 })?;
    let path = path.to_str().context("UTF-8")?;
    alpha
        .run(&["send", path, "--to", "beta", "--timeout", "2s"])?
        .expect(Exit::TimedOut)?;
    Ok(())
}

#[test]
fn a_file_the_caller_cannot_read_is_not_sent() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random("secret", Content { bytes: 10, seed: 0 })?;
    let arguments = ["send", path.to_str().context("UTF-8")?, "--to", "beta"];
    mode(&path, 0o000)?;
    if fs::File::open(&path).is_err() {
        alpha.run(&arguments)?.expect(Exit::Failed)?;
        ensure!(beta.received()?.is_empty());
        return Ok(());
    }
    // Root reads everything, so the caller is somebody else; the daemon could read the file.
    let binary = folder.path().join("hyperfabric");
    fs::copy(hyperfabric_tests::binary::hyperfabric()?, &binary)?;
    mode(&binary, 0o755)?;
    mode(folder.path(), 0o755)?;
    let nobody = || -> Result<_> {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(&binary).args(arguments);
        command
            .arg("--data-dir")
            .arg(alpha.data_dir())
            .env_remove("HYPERFABRIC_DATA_DIR");
        Running::start(&mut command)?.wait(PATIENCE)
    };
    let refused = |outcome: &Outcome| {
        matches!(outcome.exit, Exit::Failed | Exit::Refused | Exit::NotFound)
            && outcome.stderr.contains("error: ")
    };
    let outcome = nobody()?;
    ensure!(refused(&outcome), "behind a closed data folder: {outcome:?}");
    // Even one who may talk to the daemon gets no further than its own rights.
    mode(&alpha.data_dir(), 0o755)?;
    for name in ["api.token", "api.addr", "config.yaml"] {
        mode(&alpha.data_dir().join(name), 0o644)?;
    }
    mode(&alpha.data_dir().join("api.sock"), 0o666)?;
    let outcome = nobody()?;
    ensure!(refused(&outcome), "beside an open data folder: {outcome:?}");
    mode(&alpha.data_dir(), 0o700)?;
    mode(&alpha.data_dir().join("api.token"), 0o600)?;
    ensure!(transfers(alpha)?.is_empty(), "{:?}", transfers(alpha)?);
    ensure!(beta.received()?.is_empty());
    Ok(())
}

#[test]
fn a_large_file_needs_little_memory_at_either_end() -> Result<()> {
    const PEAK_KIB_MAX: u64 = 120 * 1024;
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random(
        "large.bin",
        Content {
            bytes: 512 * MIB,
            seed: 1,
        },
    )?;
    send(alpha, &path, "beta")?;
    for peer in [alpha, beta] {
        let peak = peer.status_field("VmHWM")?;
        ensure!(peak <= PEAK_KIB_MAX, "{} needed {peak} KiB", peer.name());
    }
    Ok(())
}

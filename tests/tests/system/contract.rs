//! What scripts rely on: exit codes, JSON, private files, errors that name their cause.

use anyhow::{Result, ensure};
use hyperfabric_tests::peer::is_private;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, Peer};

#[test]
fn wrong_usage_exits_2_and_help_exits_0() -> Result<()> {
    let peer = Peer::init("alpha")?;
    for wrong in [
        &["no-such-command"][..],
        &["send"],
        &["send", "f"],
        &["mesh", "invite"],
        &["ping"],
    ] {
        peer.run(wrong)?.expect(Exit::Usage)?;
    }
    let commands = [
        "init",
        "mesh",
        "join",
        "up",
        "nodes",
        "peers",
        "status",
        "ping",
        "send",
        "transfers",
        "config",
        "completions",
        "bootstrap",
        "demo",
    ];
    let all = peer.run(&["--help"])?.expect(Exit::Done)?.stdout;
    for command in commands {
        ensure!(all.contains(command), "--help does not name {command}");
        let help = peer.run(&[command, "--help"])?.expect(Exit::Done)?;
        ensure!(
            help.stdout.contains("--data-dir"),
            "{command} --help does not name --data-dir"
        );
    }
    Ok(())
}

#[test]
fn init_makes_private_secrets_and_never_replaces_them() -> Result<()> {
    let peer = Peer::init("alpha")?;
    let key = peer.data_dir().join("key");
    ensure!(is_private(&key)? && is_private(&peer.data_dir().join("api.token"))?);
    let before = std::fs::read(&key)?;
    let again = peer.run(&["init", "--name", "beta"])?;
    ensure!(again.exit != Exit::Done || std::fs::read(&key)? == before);
    ensure!(std::fs::read(&key)? == before, "a second init replaced the key");
    Ok(())
}

#[test]
fn every_command_that_prints_prints_one_json_object() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha"])?;
    let [alpha] = mesh.by_name();
    for command in [
        &["status"][..],
        &["peers"],
        &["nodes"],
        &["nodes", "list"],
        &["nodes", "show", "alpha"],
        &["transfers"],
        &["mesh", "members"],
        &["mesh", "invite", "--name", "beta"],
        &["config", "show"],
        &["config", "check"],
    ] {
        alpha.json(command)?;
    }
    let status = alpha.json(&["status"])?;
    ensure!(
        status["name"] == "alpha" && status["mesh"] == "lab" && status["admitter"] == true,
        "{status}"
    );
    Ok(())
}

#[test]
fn a_command_without_a_daemon_says_how_to_start_one() -> Result<()> {
    let peer = Peer::init("alpha")?;
    let outcome = peer.run(&["status"])?.expect(Exit::Failed)?;
    ensure!(outcome.stderr.contains("hyperfabric up"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn a_misspelt_key_in_the_configuration_is_named() -> Result<()> {
    let peer = Peer::init("alpha")?;
    peer.configure("inbox:\n  qouta_bytes: 5\n")?;
    let outcome = peer.run(&["config", "check"])?;
    ensure!(
        outcome.exit != Exit::Done && outcome.stderr.contains("qouta_bytes"),
        "{outcome:?}"
    );
    Ok(())
}

#[test]
fn one_data_folder_serves_one_daemon() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha"])?;
    let [alpha] = mesh.by_name();
    let second = alpha
        .run(&["up", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"])?
        .expect(Exit::Refused)?;
    ensure!(second.stderr.contains("already"), "{}", second.stderr);
    alpha.json(&["status"])?;
    Ok(())
}

#[test]
fn a_corrupt_store_is_moved_aside_and_reported() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha"])?;
    let [alpha] = mesh.by_name();
    alpha.terminate()?;
    std::fs::write(alpha.data_dir().join("state.redb"), b"this is no database")?;
    alpha.tolerate("corrupt");
    alpha.up()?;
    let aside = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("state.redb.corrupt-")
        })
    };
    ensure!(
        std::fs::read_dir(alpha.data_dir())?.any(aside),
        "the store was not kept"
    );
    let status = alpha.json(&["status"])?;
    ensure!(
        status["warnings"]
            .as_array()
            .is_some_and(|warnings| !warnings.is_empty()),
        "{status}"
    );
    Ok(())
}

#[test]
fn completions_are_printed_for_every_shell() -> Result<()> {
    let peer = Peer::init("alpha")?;
    for shell in ["bash", "zsh", "fish"] {
        let script = peer.run(&["completions", shell])?.expect(Exit::Done)?.stdout;
        ensure!(script.contains("hyperfabric"), "{shell}");
    }
    Ok(())
}

#[test]
fn a_daemon_keeps_its_state_private_and_its_log_to_what_concerns_its_owner() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random("f", Content { bytes: 1000, seed: 1 })?;
    crate::support::send(alpha, &path, "beta")?;
    for peer in [alpha, beta] {
        for entry in std::fs::read_dir(peer.data_dir())? {
            let path = entry?.path();
            ensure!(
                path.is_dir() || is_private(&path)?,
                "{} is not private",
                path.display()
            );
        }
        let log = peer.log();
        ensure!(log.contains(" INFO "), "nothing is logged:\n{log}");
        ensure!(!log.contains("libp2p"), "{log}");
    }
    Ok(())
}

#[test]
fn what_libp2p_does_is_logged_when_it_is_named() -> Result<()> {
    let mut peer = Peer::init("alpha")?;
    peer.run(&["mesh", "create", "lab"])?.expect(Exit::Done)?;
    peer.configure("log: \"info,libp2p=info\"\n")?;
    peer.up()?;
    peer.logs(" INFO libp2p")
}

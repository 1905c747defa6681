//! What the compiler and clippy do not see: layering, headers, file sizes, purity of the core, reasons, and that code
//! and specification name the same requirements.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

/// Which crates of this workspace each one may use. Dependencies point one way.
const LAYERS: &[(&str, &[&str])] = &[
    ("hyperfabric-protocol", &[]),
    ("hyperfabric-packet", &["protocol"]),
    ("hyperfabric-mesh", &["protocol"]),
    ("hyperfabric-gateway", &["protocol"]),
    ("hyperfabric-bootstrap", &["protocol", "mesh"]),
    (
        "hyperfabric-node",
        &["protocol", "packet", "mesh", "gateway", "bootstrap"],
    ),
    (
        "hyperfabric-sim",
        &["protocol", "packet", "mesh", "gateway", "bootstrap", "node"],
    ),
    (
        "hyperfabric-tests",
        &[
            "protocol",
            "packet",
            "mesh",
            "gateway",
            "bootstrap",
            "node",
            "sim",
        ],
    ),
];

/// The one crate that may hold unsafe code.
const UNSAFE_CRATE: &str = "hyperfabric-packet";

/// What would give the core a clock, a socket, a file, a thread or entropy of its own.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::time",
    "std::thread",
    "std::env",
    "std::process",
    "std::io",
    "SystemTime",
    "Instant::now",
    "tokio",
    "getrandom",
    "rand::rng",
    "OsRng",
    "thread_rng",
    "HashMap",
];

/// Crates that must not be below the core, whatever pulls them in.
const IMPURE_CRATES: &[&str] = &[
    "tokio",
    "getrandom",
    "mio",
    "socket2",
    "rustix",
    "libc",
    "quinn",
    "libp2p",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
}

/// Every file of the repository that a person wrote, relative to its root.
fn files() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root().to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let (path, name) = {
                let entry = entry?;
                (entry.path(), entry.file_name())
            };
            if name == "target" || name == ".git" || name == "Cargo.lock" || name == "corpus" {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(root())?.to_path_buf());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn rust_files() -> Result<Vec<(PathBuf, String)>> {
    let rust = files()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "rs"));
    rust.map(|path| {
        let text = fs::read_to_string(root().join(&path))?;
        Ok((path, text))
    })
    .collect()
}

/// Fails with every complaint at once, so that one run shows all there is to mend.
fn none(complaints: Vec<String>) -> Result<()> {
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    Ok(())
}

fn metadata() -> Result<Vec<Value>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    Ok(metadata["packages"].as_array().context("no packages")?.clone())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Removes comments and string literals roughly enough for a search for paths.
fn code_of(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn is_test_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path
            .iter()
            .any(|part| part == "tests" || part == "benches" || part == "fuzz")
}

#[test]
fn every_source_file_says_what_it_is() -> Result<()> {
    let silent = rust_files()?
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"));
    none(
        silent
            .map(|(path, _)| format!("{} does not open with //!", path.display()))
            .collect(),
    )
}

#[test]
fn no_source_file_is_longer_than_a_person_reads() -> Result<()> {
    let counted = rust_files()?
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()));
    let long = counted.filter(|(_, lines)| *lines > FILE_LINES_MAX);
    none(
        long.map(|(path, lines)| format!("{}: {lines} lines", path.display()))
            .collect(),
    )
}

#[test]
fn modules_are_files_named_after_themselves() -> Result<()> {
    let named_mod = files()?
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name == "mod.rs"));
    none(
        named_mod
            .map(|path| format!("{}: use foo.rs and foo/", path.display()))
            .collect(),
    )
}

#[test]
fn only_the_packet_crate_may_hold_unsafe_code() -> Result<()> {
    let mut complaints = Vec::new();
    for package in metadata()?
        .iter()
        .filter(|package| text(package, "name") != UNSAFE_CRATE)
    {
        for target in package["targets"].as_array().context("no targets")? {
            let kind = target["kind"][0].as_str().unwrap_or_default();
            let source = text(target, "src_path");
            let is_root = matches!(kind, "lib" | "bin" | "example" | "bench" | "proc-macro");
            if is_root && !fs::read_to_string(source)?.contains("#![forbid(unsafe_code)]") {
                complaints.push(format!("{source} does not forbid unsafe code"));
            }
        }
    }
    none(complaints)
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() -> Result<()> {
    let mut complaints = Vec::new();
    for package in metadata()?
        .iter()
        .filter(|package| text(package, "name") != UNSAFE_CRATE)
    {
        let manifest = text(package, "manifest_path");
        if !fs::read_to_string(manifest)?.contains("[lints]\nworkspace = true") {
            complaints.push(format!("{manifest} does not inherit [workspace.lints]"));
        }
    }
    none(complaints)
}

#[test]
fn dependencies_point_one_way() -> Result<()> {
    let layers: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let mut complaints = Vec::new();
    for package in metadata()? {
        let name = text(&package, "name");
        let Some(allowed) = layers.get(name) else {
            complaints.push(format!("{name} has no place in the layers"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let Some(below) = text(dependency, "name").strip_prefix("hyperfabric-") else {
                continue;
            };
            if !allowed.contains(&below) {
                complaints.push(format!("{name} must not use hyperfabric-{below}"));
            }
        }
    }
    none(complaints)
}

#[test]
fn the_core_has_no_clock_no_files_no_sockets_no_threads_and_no_entropy() -> Result<()> {
    let lib = fs::read_to_string(root().join("protocol/src/lib.rs"))?;
    ensure!(lib.contains("#![no_std]"), "protocol is not no_std");
    let mut complaints = Vec::new();
    for (path, text) in rust_files()? {
        if !path.starts_with("protocol/src") || is_test_file(&path) {
            continue;
        }
        let code = code_of(&text);
        for word in IMPURE.iter().filter(|word| code.contains(**word)) {
            complaints.push(format!("{} uses {word}", path.display()));
        }
    }
    none(complaints)
}

#[test]
fn nothing_below_the_core_has_a_clock_or_entropy_either() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--package",
            "hyperfabric-protocol",
            "--edges",
            "normal",
        ])
        .args(["--no-default-features", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8(output.stdout)?;
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let impure = IMPURE_CRATES.iter().filter(|name| names.contains(**name));
    none(
        impure
            .map(|name| format!("hyperfabric-protocol pulls in {name}"))
            .collect(),
    )
}

#[test]
fn the_virtual_time_world_uses_the_protocol_only() -> Result<()> {
    let forbidden = [
        "hyperfabric_node",
        "hyperfabric_mesh",
        "hyperfabric_bootstrap",
        "tokio",
        "quinn",
        "SystemTime",
        "std::time::Instant",
        "Instant::now",
    ];
    let mut complaints = Vec::new();
    for (path, text) in rust_files()? {
        if !path.starts_with("sim/src/world") && path != Path::new("sim/src/world.rs") {
            continue;
        }
        let code = code_of(&text);
        for word in forbidden.iter().filter(|word| code.contains(**word)) {
            complaints.push(format!("{} uses {word}", path.display()));
        }
    }
    none(complaints)
}

#[test]
fn every_dependency_has_a_reason() -> Result<()> {
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let (_, section) = manifest
        .split_once("[workspace.dependencies]\n")
        .context("no [workspace.dependencies]")?;
    let section = section.split("\n[").next().unwrap_or_default();
    let mut complaints = Vec::new();
    let mut above = "";
    for line in section.lines() {
        let is_ours = line.starts_with("hyperfabric-");
        if line.contains(" = ") && !line.starts_with('#') && !is_ours && !above.starts_with("# ") {
            complaints.push(format!("no line of reason above: {line}"));
        }
        above = line;
    }
    none(complaints)
}

#[test]
fn crates_take_versions_from_the_workspace() -> Result<()> {
    let mut complaints = Vec::new();
    for path in files()?
        .into_iter()
        .filter(|path| path.ends_with("Cargo.toml") && path.iter().count() > 1)
    {
        if path.starts_with("tests/fuzz") {
            continue;
        }
        let manifest = fs::read_to_string(root().join(&path))?;
        for line in manifest
            .lines()
            .filter(|line| line.contains("version = \"") || line.contains(" = \"0."))
        {
            complaints.push(format!("{}: {line}", path.display()));
        }
    }
    none(complaints)
}

#[test]
fn nothing_is_left_for_later() -> Result<()> {
    // In pieces, so that this file does not find itself.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("to", "do!("),
    ];
    let mut complaints = Vec::new();
    for path in files()?
        .into_iter()
        .filter(|path| !path.starts_with(".git") && *path != Path::new("Cargo.toml"))
    {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                complaints.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    none(complaints)
}

#[test]
fn no_file_names_the_host_of_a_package_registry() -> Result<()> {
    let hosts = [
        concat!("crates", ".io"),
        concat!("py", "pi.org"),
        concat!("python", "hosted.org"),
        concat!("npm", "js.org"),
        concat!("npm", "js.com"),
        concat!("deb.deb", "ian.org"),
        concat!("proxy.gol", "ang.org"),
    ];
    let mut complaints = Vec::new();
    for path in files()? {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for host in hosts.iter().filter(|host| text.contains(**host)) {
            complaints.push(format!("{} names {host}", path.display()));
        }
    }
    none(complaints)
}

/// Finds requirement numbers in brackets: `[AREA-3]`, or a range `[AREA-3..5]`.
fn requirements(text: &str) -> BTreeSet<(String, u32)> {
    let mut found = BTreeSet::new();
    for piece in text.split('[').skip(1) {
        let Some((inside, _)) = piece.split_once(']') else {
            continue;
        };
        let Some((area, numbers)) = inside.rsplit_once('-') else {
            continue;
        };
        if area.is_empty() || !area.chars().all(|c| c.is_ascii_uppercase() || c == '-') {
            continue;
        }
        let (first, last) = numbers.split_once("..").unwrap_or((numbers, numbers));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.trim_start_matches('=').parse::<u32>()) {
            found.extend((first..=last).map(|number| (area.to_owned(), number)));
        }
    }
    found
}

#[test]
fn code_and_specification_name_the_same_requirements() -> Result<()> {
    let specification = fs::read_to_string(root().join("protocol/SPEC.md")).context("protocol/SPEC.md")?;
    let specified = requirements(&specification);
    ensure!(!specified.is_empty(), "protocol/SPEC.md numbers no requirement");
    let mut complaints = Vec::new();
    let mut cited = BTreeSet::new();
    for (path, text) in rust_files()?
        .into_iter()
        .filter(|(path, _)| path != Path::new("tests/tests/tidy.rs"))
    {
        for requirement in requirements(&text) {
            if !specified.contains(&requirement) {
                complaints.push(format!(
                    "{} cites [{}-{}], which SPEC.md does not have",
                    path.display(),
                    requirement.0,
                    requirement.1
                ));
            }
            cited.insert(requirement);
        }
    }
    let uncited = specified.difference(&cited);
    complaints.extend(uncited.map(|(area, number)| format!("no code or test cites [{area}-{number}]")));
    none(complaints)
}

#[test]
fn requirement_numbers_are_found_alone_and_in_ranges() {
    let found = requirements("see [FAB-FLOOD-3], [TICKET-1..2]; not [x-1], [RFC 9000], [A-b], a[0]");
    let expected =
        [("FAB-FLOOD", 3), ("TICKET", 1), ("TICKET", 2)].map(|(area, number)| (area.to_owned(), number));
    assert_eq!(found, expected.into_iter().collect());
}

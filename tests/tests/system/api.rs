//! The local API answers its owner only.

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::http::Request;
use hyperfabric_tests::wait::eventually;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer};

const STATUS: &str = "/v1/fabric/status";

fn alone() -> Result<Mesh> {
    Mesh::start("lab", &["alpha"])
}

fn request(peer: &Peer) -> Result<Request> {
    Request::new(&peer.ready()?.api)
}

fn with_token(peer: &Peer) -> Result<Request> {
    Ok(request(peer)?.header("Authorization", &format!("Bearer {}", peer.api_token()?)))
}

#[test]
fn a_request_without_the_token_is_refused() -> Result<()> {
    let mesh = alone()?;
    let peer = &mesh.peers[0];
    ensure!(request(peer)?.send("GET", STATUS, "")?.status == 401);
    let wrong = request(peer)?.header("Authorization", "Bearer 00000000000000000000000000000000");
    ensure!(wrong.send("GET", STATUS, "")?.status == 401);
    let right = with_token(peer)?.send("GET", STATUS, "")?;
    ensure!(
        right.status == 200 && right.json()?["name"] == "alpha",
        "{right:?}"
    );
    Ok(())
}

#[test]
fn a_page_of_another_site_is_refused_even_with_the_token() -> Result<()> {
    let mesh = alone()?;
    let peer = &mesh.peers[0];
    let foreign = [
        ("Host", "evil.example"),
        ("Host", "evil.example:80"),
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
    ];
    for (name, value) in foreign {
        let answer = with_token(peer)?.header(name, value).send("GET", STATUS, "")?;
        ensure!(answer.status == 403, "{name}: {value} got {}", answer.status);
        ensure!(
            !answer.headers.to_lowercase().contains("access-control-allow"),
            "{}",
            answer.headers
        );
    }
    Ok(())
}

#[test]
fn a_path_outside_send_roots_is_refused() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    folder.random("allowed/f.bin", Content { bytes: 10, seed: 1 })?;
    folder.random("secret.bin", Content { bytes: 10, seed: 2 })?;
    let order = |path: &str| {
        let path = folder.path().join(path);
        serde_json::json!({"path": path, "to": "beta"}).to_string()
    };
    let post = |peer: &Peer, path: &str| {
        with_token(peer)?.header("Content-Type", "application/json").send(
            "POST",
            "/v1/fabric/send",
            &order(path),
        )
    };
    ensure!(
        post(alpha, "allowed/f.bin")?.status == 403,
        "no path is allowed by default"
    );
    alpha.terminate()?;
    let roots = serde_json::json!([folder.path().join("allowed")]);
    alpha.configure(&format!("send:\n  roots: {roots}\n"))?;
    std::os::unix::fs::symlink("../secret.bin", folder.path().join("allowed/link.bin"))?;
    alpha.up()?;
    alpha.knows(&["beta"])?;
    for path in ["secret.bin", "allowed/../secret.bin", "allowed/link.bin"] {
        let answer = post(alpha, path)?;
        ensure!(answer.status == 403, "{path}: {} {}", answer.status, answer.body);
    }
    let answer = post(alpha, "allowed/f.bin")?;
    ensure!(
        (200..300).contains(&answer.status),
        "{} {}",
        answer.status,
        answer.body
    );
    beta.received_named("f.bin")?;
    Ok(())
}

#[test]
fn a_body_can_be_sent_without_a_file() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let upload = with_token(alpha)?.header("Content-Type", "application/octet-stream");
    let answer = upload.send("POST", "/v1/fabric/send?to=beta&name=note.txt", "four")?;
    ensure!(
        (200..300).contains(&answer.status),
        "{} {}",
        answer.status,
        answer.body
    );
    let (path, _) = beta.received_named("note.txt")?;
    ensure!(std::fs::read_to_string(path)? == "four");
    Ok(())
}

#[test]
fn an_upload_that_failed_says_that_it_cannot_be_resumed() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    // The name stays known, and nobody answers.
    beta.kill()?;
    let upload = with_token(alpha)?.header("Content-Type", "application/octet-stream");
    let answer = upload.send(
        "POST",
        "/v1/fabric/send?to=beta&name=note.txt&timeout_ms=1",
        "four",
    )?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    let id = answer.json()?["transfer_id"]
        .as_str()
        .context("no id")?
        .to_owned();
    let ended = eventually("the end of the transfer", PATIENCE, || {
        let transfer = alpha.api("GET", &format!("/v1/fabric/transfers/{id}"))?.json()?;
        Ok((transfer["state"] == "failed").then_some(transfer))
    })?;
    let hint = ended["error"]["hint"].as_str().unwrap_or_default();
    ensure!(hint.contains("cannot be resumed: upload it again"), "{ended}");
    let resumed = alpha.run(&["transfers", "resume", &id])?.expect(Exit::Usage)?;
    ensure!(resumed.stderr.contains("upload it again"), "{}", resumed.stderr);
    Ok(())
}

#[test]
fn the_api_describes_itself_and_counts() -> Result<()> {
    let mesh = alone()?;
    let peer = &mesh.peers[0];
    let document = peer.api("GET", "/openapi.json")?.json()?;
    ensure!(document["paths"][STATUS].is_object(), "{document}");
    ensure!(peer.api("GET", "/metrics")?.body.contains("# TYPE "));
    ensure!(peer.api("GET", "/v1/fabric/nothing")?.status == 404);
    Ok(())
}

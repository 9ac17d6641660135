//! The matrix once more with a client of the world outside: Python's `websockets`.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::server::Server;

const CONNECTIONS: u64 = 2000;
const TOPICS: u64 = 200;
const PUBLISHERS: u64 = 20;
const ROUNDS: u64 = 1;

#[test]
fn the_matrix_with_websockets() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.venv/bin/python");
    assert!(python.exists(), "{} is missing: run `tests/run rust`, which makes it", python.display());
    let server = Server::build(4, "websocket: {max_total_connections: 4096}", |builder| builder);
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/matrix.py"))
        .args([&format!("ws://{}/ws", server.address), &CONNECTIONS.to_string(), &TOPICS.to_string()])
        .args([&PUBLISHERS.to_string(), &ROUNDS.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}\nis the package missing? `tests/run rust` installs it");
    let summary: Value = serde_json::from_str(stdout.lines().last().expect("a summary")).unwrap();
    let published = PUBLISHERS * TOPICS * ROUNDS;
    let deliveries = published * CONNECTIONS / TOPICS;
    assert_eq!(
        summary,
        json!({"published": published, "matched": deliveries, "queued": deliveries, "received": deliveries})
    );
    assert_eq!(server.sum(|shard| &shard.published), published);
    server.rest();
}

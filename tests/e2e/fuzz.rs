//! A fuzzer that reads the API's own description: schemathesis, with every check it has.

use std::path::Path;
use std::process::{Command, Stdio};

use super::api::{Api, KEY};

/// Seconds; the examples that must be tried take about ten.
const TIME: &str = "120";

#[test]
fn schemathesis_finds_nothing_wrong_with_the_api() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("tests/.venv/bin/schemathesis");
    assert!(program.exists(), "{} is missing: run `tests/run rust`, which installs it", program.display());
    let api = Api::start("");
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .current_dir(directory.path())
        .arg("--config-file")
        .arg(root.join("tests/clients/schemathesis.toml"))
        .args(["run", &format!("http://{}/api/openapi.json", api.server.admin)])
        .args(["--header", &format!("Authorization: Bearer {KEY}"), "--seed", "1", "--max-time", TIME, "--no-color"])
        // It works, and then there is no server.
        .args(["--exclude-name", "POST /api/drain"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    let paths = api.get("openapi.json")["paths"].as_object().unwrap().len();
    assert!(stdout.contains("Tested: ") && stdout.contains("Fuzzing"), "{stdout}");
    let requests = |outcome: &str| {
        let text = super::http::request(api.server.admin, "GET /metrics", "", b"").body;
        let label = format!(r#"outcome="{outcome}"}}"#);
        let lines =
            text.lines().filter(|line| line.starts_with("tidewheel_api_requests_total") && line.contains(&label));
        lines.filter(|line| !line.ends_with(" 0")).count()
    };
    // It got through to every endpoint but the one left out, and was turned away where it had no key.
    let counts = [requests("ok"), requests("refused"), requests("denied")];
    assert!(counts[0] + counts[1] > paths && counts[2] >= paths - 1, "{counts:?} of {paths}: {stdout}");
    assert_eq!(requests("failed"), 0);
    api.server.rest();
}

//! The files of `tuning/`: what they say agrees with the program, and the program runs under them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tidewheel::Config;
use tidewheel::server::host::wanted;

fn tuning(name: &str) -> String {
    fs::read_to_string(format!("{}/tuning/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The value of a setting of the unit.
fn unit(name: &str) -> String {
    let text = tuning("tidewheel.service");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.expect(name).trim().to_owned()
}

#[test]
fn the_unit_waits_longer_than_a_drain_takes() {
    let stop_s: u64 = unit("TimeoutStopSec").parse().unwrap();
    // A shard that is cut at the deadline still has to close what is left.
    let drain = Config::default().drain.deadline + Duration::from_secs(10);
    assert!(Duration::from_secs(stop_s) >= drain, "{stop_s} s, and a drain takes {drain:?}");
}

#[test]
fn open_files_are_the_same_everywhere() {
    let most = wanted("fs.nr_open").unwrap();
    assert_eq!(unit("LimitNOFILE"), most);
    let limits = tuning("tidewheel.limits.conf");
    let lines: Vec<Vec<&str>> = limits
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines, [["*", "hard", "nofile", most], ["root", "hard", "nofile", most]]);
}

#[test]
fn what_the_unit_forbids_the_server_does_not_need() {
    // io_uring is in none of systemd's sets.
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register", "@system-service", "@io-event"] {
        assert!(unit("SystemCallFilter").split_whitespace().any(|name| name == call), "{call}");
    }
}

/// The command under a seccomp filter that is made of a profile.
fn under(profile: &str, arguments: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(format!("{}/tests/clients/under_seccomp.py", env!("CARGO_MANIFEST_DIR"))).arg(profile);
    command.arg(env!("CARGO_BIN_EXE_tidewheel")).args(arguments.split_whitespace());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEWHEEL_")) {
        command.env_remove(name);
    }
    command
}

fn profile() -> String {
    format!("{}/tuning/seccomp.json", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_server_runs_under_the_seccomp_profile() {
    let echo = "serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --shards 2 --echo";
    let mut server = under(&profile(), echo).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut banner = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut address = |name: &str| -> SocketAddr {
        let line = banner.find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.split("://").nth(1).unwrap().split('/').next().unwrap().parse().unwrap()
    };
    let (echo, admin) = (address("echo"), address("health"));

    // A masked text frame with the key 0, and its echo; then pages of the internal port.
    let mut stream = TcpStream::connect(echo).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    write!(stream, "GET /echo HTTP/1.1\r\nHost: {echo}\r\n{upgrade}").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 101 Switching Protocols\r\n");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    stream.write_all(b"\x81\x82\0\0\0\0hi").unwrap();
    let mut frame = [0; 4];
    reader.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\x81\x02hi");
    for page in ["/readyz", "/metrics"] {
        let mut stream = TcpStream::connect(admin).unwrap();
        write!(stream, "GET {page} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{page}: {answer}");
    }
    for signal in ["-HUP", "-TERM"] {
        assert!(Command::new("kill").args([signal, &server.id().to_string()]).status().unwrap().success());
    }
    drop(stream);
    let Output { status, stderr, .. } = server.wait_with_output().unwrap();
    let log = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("not permitted") && !log.contains("ERROR"), "{log}");
}

/// Without io_uring in it, the same profile stops the server, and both it and the doctor say what it is.
#[test]
fn a_profile_without_io_uring_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("seccomp.json");
    let mut profile: serde_json::Value = serde_json::from_str(&tuning("seccomp.json")).unwrap();
    let names = profile["syscalls"][0]["names"].as_array_mut().unwrap();
    let all = names.len();
    names.retain(|name| !name.as_str().unwrap().starts_with("io_uring"));
    assert_eq!(all - names.len(), 3);
    fs::write(&file, profile.to_string()).unwrap();

    let serve =
        under(file.to_str().unwrap(), "serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0").output().unwrap();
    let text = String::from_utf8(serve.stderr).unwrap();
    assert_eq!(serve.status.code(), Some(1), "{text}");
    assert!(text.contains("most likely a seccomp filter forbids it"), "{text}");

    let found = |profile: &str| {
        let output = under(profile, "doctor --connections 10 --json").output().unwrap();
        let diagnosis: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = diagnosis["findings"].as_array().unwrap();
        let verdict = |what: &str| findings.iter().find(|finding| finding["what"] == what).unwrap()["verdict"].clone();
        (output.status.code(), verdict("io_uring"), verdict("seccomp"))
    };
    assert_eq!(found(file.to_str().unwrap()), (Some(1), "bad".into(), "bad".into()));
    let (code, ring, seccomp) = found(&self::profile());
    assert!(code != Some(1) && ring != "bad" && seccomp == "ok", "{code:?} {ring} {seccomp}");
}

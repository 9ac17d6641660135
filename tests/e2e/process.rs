//! The server as a process of its own: signals, sudden death, streams that nobody reads, and memory.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::auth::{SECRET, in_an_hour, token};
use super::bad_input;
use super::client::Client;
use super::raw::{Raw, request_with};

/// A running `tidewheel serve`, killed if the test ends before it does.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// What it prints at the start, for people.
    banner: Vec<String>,
    /// Kept open: a server must not notice that nobody reads on.
    _stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a server on ports that the kernel chooses, with settings from the environment.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::spawn(serve("127.0.0.1:0", settings).stderr(Stdio::null()))
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut banner = Vec::new();
        while !banner.last().is_some_and(|line: &String| line.starts_with("memory")) {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "the server ended: {banner:?}");
            banner.push(line);
        }
        let mut process = Self { child, address: "127.0.0.1:0".parse().unwrap(), banner, _stdout: stdout };
        let url = process.said("websocket").strip_prefix("ws://").unwrap().strip_suffix("/ws").unwrap();
        process.address = url.parse().unwrap();
        process
    }

    /// What the banner says under this name.
    fn said(&self, name: &str) -> &str {
        let line = self.banner.iter().find(|line| line.starts_with(name)).expect("a line of this name");
        line[name.len()..].trim()
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// The exit code; `None` if a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        super::until("the server to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// The internal port.
    pub fn admin(&self) -> SocketAddr {
        let url = self.said("health").strip_prefix("http://").unwrap();
        url.split('/').next().unwrap().parse().unwrap()
    }

    /// Resident memory in KiB.
    fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most resident memory that it has had so far, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, or the test has failed; either way nothing is left to say.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `tidewheel serve` in an environment without other settings. Nobody needs a token unless the settings say so.
pub fn serve(listen: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidewheel"));
    command.args(["serve", "--shards", "2", "--admin-listen", "127.0.0.1:0", "--listen", listen]);
    for (name, _) in std::env::vars() {
        if name == "RUST_LOG" || name.starts_with("TIDEWHEEL_") {
            command.env_remove(name);
        }
    }
    let usual = [
        ("TIDEWHEEL_AUTH_REQUIRED", "false"),
        ("TIDEWHEEL_WEBSOCKET_MAX_TOTAL_CONNECTIONS", "1000"),
        ("TIDEWHEEL_LIMITS_MESSAGES", "null"),
        ("TIDEWHEEL_LIMITS_BYTES", "null"),
        ("TIDEWHEEL_LIMITS_CONNECTION_ATTEMPTS", "null"),
    ];
    command.envs(usual).envs(settings.iter().copied());
    command
}

#[test]
fn what_it_prints_is_enough_to_connect() {
    let mut server = Process::start(&[("TIDEWHEEL_AUTH_REQUIRED", "true")]);
    let (page, token) = server.said("page").split_once("/#token=").expect("a page that brings its token");
    assert!(page.starts_with("http://127.0.0.1:"), "{page}");
    let mut client = Client::connect(server.address);
    client.refused("subscribe", json!({"topic": "t"}), "unauthorized");
    let reply = client.ask("authenticate", json!({"token": token}));
    assert_eq!(reply["payload"]["authenticated"], true, "{reply}");
    client.subscribe("t");
    assert_eq!(client.publish("t", json!(1)), (1, 1, 0));
    assert_eq!(client.data("t"), 1);
    server.signal("-TERM");
    client.parted(1012, true);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn signals_drain() {
    for signal in ["-TERM", "-INT"] {
        let mut server = Process::start(&[]);
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(server.address)).collect();
        for client in &mut clients {
            client.subscribe("t");
        }
        assert_eq!(clients[0].publish("t", json!("last")), (20, 20, 0));
        server.signal(signal);
        for client in &mut clients {
            assert_eq!(client.data("t"), "last");
            client.parted(1012, true);
        }
        assert_eq!(server.wait(), Some(0), "{signal}");
    }
}

#[test]
fn the_command_drains() {
    let key = "a-key-of-the-admin-api";
    let mut server = Process::start(&[("TIDEWHEEL_ADMIN_KEY", key)]);
    let admin = server.said("health").strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let drain = |settings: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidewheel"));
        let output = command.env_clear().envs(settings.iter().copied()).arg("drain").args(arguments).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), stdout, stderr)
    };
    let refused = |settings: &[(&str, &str)], arguments: &[&str], code: i32, said: &str| {
        let (status, stdout, stderr) = drain(settings, arguments);
        assert_eq!((status, stdout.as_str()), (Some(code), ""), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    };
    let with_key = [("TIDEWHEEL_ADMIN_KEY", key)];
    let there = ["--admin-listen", &admin];
    refused(&[], &there, 2, "TIDEWHEEL_ADMIN_KEY");
    refused(&[("TIDEWHEEL_ADMIN_KEY", "some-other-key-than-it")], &there, 2, "another admin.key");
    refused(&with_key, &["--admin-listen", "127.0.0.1:0"], 2, "--admin-listen ADDR");
    refused(&with_key, &["--admin-listen", &admin, "--deadline", "soon"], 2, "drain.deadline");
    refused(&with_key, &["--admin-listen", &server.address.to_string()], 1, "405: this is no internal port");
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    refused(&with_key, &["--admin-listen", &nobody], 1, "nobody answers");

    let mut client = Client::connect(server.address);
    let mut deaf = Raw::connect(server.address);
    deaf.upgrade("/ws");
    let reader = thread::spawn(move || client.parted(1012, true));
    let (status, stdout, stderr) = drain(&with_key, &["--admin-listen", &admin, "--deadline", "2s", "--wait"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{stdout}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(
        lines[0].starts_with("draining: 2 connections left, 0 closed cleanly, 0 cut, 0 bytes unsent, 2 s"),
        "{stdout}"
    );
    assert!(lines.iter().any(|line| line.starts_with("draining: 1 connections left, 1 closed cleanly")), "{stdout}");
    assert_eq!(lines.last(), Some(&"the server has ended"));
    assert_eq!(server.wait(), Some(0));
    reader.join().unwrap();
}

/// Another server answers before the command has seen the one that drains gone.
#[test]
fn the_command_does_not_wait_for_the_next_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    let servers = thread::spawn(move || {
        for (phase, deadline_ms) in [("draining", json!(1000)), ("draining", json!(0)), ("ready", json!(null))] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(&stream).lines();
            while request.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let body = json!({"phase": phase, "connections_left": 0, "deadline_in_ms": deadline_ms}).to_string();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            io::copy(&mut stream, &mut io::sink()).unwrap();
        }
    });
    let output = Command::new(env!("CARGO_BIN_EXE_tidewheel"))
        .env_clear()
        .env("TIDEWHEEL_ADMIN_KEY", "a-key-of-the-admin-api")
        .args(["drain", "--admin-listen", &admin, "--wait"])
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && stdout.ends_with("the server has ended, and another answers\n"), "{stdout}");
    servers.join().unwrap();
}

#[test]
fn a_drain_ends_although_a_client_does_nothing() {
    let mut server = Process::start(&[("TIDEWHEEL_DRAIN_DEADLINE", "1s")]);
    let mut deaf = Raw::connect(server.address);
    deaf.upgrade("/ws");
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(0));
    deaf.rest();
    // A second signal does not wait for the drain.
    let mut server = Process::start(&[("TIDEWHEEL_DRAIN_DEADLINE", "1h")]);
    let mut deaf = Raw::connect(server.address);
    deaf.upgrade("/ws");
    server.signal("-TERM");
    assert_eq!(deaf.json()["type"], "disconnect");
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(1));
}

/// A file that is read again, a bad one too, and what the log says of both.
#[test]
fn hung_up() {
    let directory = tempfile::tempdir().unwrap();
    let (file, log) = (directory.path().join("tidewheel.yaml"), directory.path().join("log"));
    fs::write(&file, "log: {level: warn}").unwrap();
    let mut command = serve("127.0.0.1:0", &[]);
    command.arg("--config").arg(&file).args(["--set", "limits.errors=60"]);
    let mut server = Process::spawn(command.stderr(fs::File::create(&log).unwrap()));
    let mut client = Client::connect(server.address);
    client.subscribe("longer.than.that");
    let said = |what: &str| fs::read_to_string(&log).unwrap().contains(what);

    fs::write(&file, "log: {level: debug}\nlimits: {topic_length: 9, errors: 70}\nio: {wait: poll}").unwrap();
    server.signal("-HUP");
    super::until("the shards to log that they have new settings", || said("new settings"));
    super::until("the log of the reload", || said("limits.topic_length") && said("io.wait") && !said("limits.errors"));
    client.refused("subscribe", json!({"topic": "longer.than.this"}), "too_large");

    fs::write(&file, "limits: {topic_length: 0}\nauth: {secrt: hunter2}").unwrap();
    server.signal("-HUP");
    super::until("the log of what is wrong", || {
        said("limits.topic_length: 0 is out of range") && said("did you mean `auth.secret`")
    });
    client.refused("subscribe", json!({"topic": "longer.than.this"}), "too_large");
    assert!(!said("hunter2"));
    client.quiet();
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn killed_and_started_again_on_the_same_port() {
    let mut server = Process::start(&[]);
    let address = server.address;
    for _ in 0..5 {
        let mut clients: Vec<Raw> = (0..20).map(|_| Raw::connect(address)).collect();
        clients.iter_mut().for_each(|client| client.upgrade("/ws"));
        server.signal("-KILL");
        assert_eq!(server.wait(), None);
        server = Process::spawn(serve(&address.to_string(), &[]).stderr(Stdio::null()));
        assert_eq!(server.address, address);
        Client::connect(address).quiet();
        // The clients of the dead process see an end, not a silence.
        clients.iter_mut().for_each(Raw::rest);
    }
    let mut second = serve(&address.to_string(), &[]);
    let output = second.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&address.to_string()), "{text}");
}

/// Everything is logged, under load, to a stderr that is closed, that nobody reads, or that is full.
#[test]
fn logs_that_go_nowhere_cost_nothing() {
    let trace = [("RUST_LOG", "trace")];
    let check = |command: &mut Command| {
        let mut server = Process::spawn(command);
        thread::scope(|scope| {
            scope.spawn(|| bad_input::play_all(server.address));
            let (mut publisher, mut subscriber) = (Client::connect(server.address), Client::connect(server.address));
            subscriber.subscribe("t");
            for number in 0..2000 {
                assert_eq!(publisher.publish("t", json!(number)), (1, 1, 0));
                assert_eq!(subscriber.data("t"), number);
            }
        });
        server.signal("-TERM");
        assert_eq!(server.wait(), Some(0));
    };
    let (reader, writer) = io::pipe().unwrap();
    check(serve("127.0.0.1:0", &trace).stderr(writer));
    let (closed, writer) = io::pipe().unwrap();
    drop(closed);
    check(serve("127.0.0.1:0", &trace).stderr(writer));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    check(serve("127.0.0.1:0", &trace).stderr(full));
    // No stderr at all: the shell closes it before the server starts.
    let mut shell = Command::new("sh");
    let program = serve("127.0.0.1:0", &trace);
    shell.args(["-c", r#"exec "$0" "$@" 2>&-"#]).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    check(&mut shell);
    drop(reader);
}

/// Everything is logged, and what a request carried is not in it.
#[test]
fn no_credential_is_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let settings = [
        ("RUST_LOG", "trace"),
        ("TIDEWHEEL_AUTH_SECRET", SECRET),
        ("TIDEWHEEL_AUTH_COOKIE", "session"),
        ("TIDEWHEEL_AUTH_QUERY", "true"),
    ];
    let mut server = Process::spawn(serve("127.0.0.1:0", &settings).stderr(fs::File::create(&file).unwrap()));
    let good = token(in_an_hour());
    for (path, lines, status) in [
        ("/ws?page=hush", format!("Authorization: Bearer {good}\r\n"), 101),
        ("/ws?token=hush", String::new(), 401),
        ("/ws", "Sec-WebSocket-Protocol: tidewheel.v1, bearer.hush\r\n".into(), 401),
        ("/ws", format!("Cookie: session=hush\r\nAuthorization: Bearer {good}\r\n"), 400),
        ("/elsewhere?token=hush", format!("Authorization: Bearer {good}\r\n"), 404),
        ("/ws", format!("Authorization: Bearer {good}\r\nX\r\n"), 400),
    ] {
        let mut raw = Raw::connect(server.address);
        raw.write(request_with(path, &lines).as_bytes());
        let head = raw.head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {lines}: {head}");
    }
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(0));
    let log = fs::read_to_string(&file).unwrap();
    for said in ["authenticated", "401", "400", "404", "closed session="] {
        assert!(log.contains(said), "{said} is not in the log:\n{log}");
    }
    for part in good.split('.').chain(["hush"]) {
        assert!(!log.contains(part), "{part} is in the log:\n{log}");
    }
}

#[test]
fn a_check_tells_all_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    let mut yaml = fs::File::create(&file).unwrap();
    writeln!(yaml, "shards: 0\npath: ws\nwebsocket: {{max_message_size: 0B, pong_timeout: 1ms}}").unwrap();
    writeln!(yaml, "outbound: {{max_frames: 0}}\nauth: {{secret: '', cookie: 'a b'}}\nlimits: {{errors: 0}}").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidewheel"));
    let output = command.args(["check", "--config"]).arg(&file).env_clear().output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for key in [
        "shards",
        "path",
        "websocket.max_message_size",
        "websocket.pong_timeout",
        "outbound.max_frames",
        "auth.secret",
        "auth.cookie",
        "limits.errors",
    ] {
        assert!(text.lines().any(|line| line.contains(&format!(": {key}: "))), "nothing on {key}:\n{text}");
    }
}

/// A process that was stopped reads what came meanwhile before it judges anybody idle.
#[test]
fn a_freeze_is_no_silence_of_the_clients() {
    let server = Process::start(&[
        ("TIDEWHEEL_WEBSOCKET_IDLE_TIMEOUT_SECONDS", "1"),
        ("TIDEWHEEL_WEBSOCKET_PING_INTERVAL_SECONDS", "1"),
        ("TIDEWHEEL_WEBSOCKET_PONG_TIMEOUT", "100ms"),
    ]);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(server.address)).collect();
    clients.iter_mut().for_each(Client::quiet);
    server.signal("-STOP");
    for client in &mut clients {
        client.send(r#"{"type":"ping","id":"frozen"}"#);
    }
    thread::sleep(Duration::from_millis(2500));
    server.signal("-CONT");
    for client in &mut clients {
        assert_eq!(client.next()["reply_to"], "frozen");
        client.quiet();
    }
}

/// What twenty rounds of bad input used is given back.
#[test]
fn memory_comes_back() {
    // The neighbour does not read meanwhile, so it cannot answer pings.
    let server = Process::start(&[("TIDEWHEEL_WEBSOCKET_PING_INTERVAL_SECONDS", "0")]);
    let mut neighbour = Client::connect(server.address);
    let round = || {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| bad_input::play_all(server.address));
            }
        });
    };
    // The first rounds fill what is kept on purpose: receive buffers, tables, and the allocator's arenas.
    (0..5).for_each(|_| round());
    let before = server.resident_kib();
    (0..20).for_each(|_| round());
    neighbour.quiet();
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more than the {before} KiB before");
}

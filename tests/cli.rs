//! The command line as a person and a service manager meet it: texts, exit codes, and an end that always comes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use certificates::Authority;

#[path = "e2e/certificates.rs"]
mod certificates;

#[test]
fn every_wrong_usage_ends_with_2_and_says_what_to_write() {
    let check = |arguments: &str, said: &str| {
        let output = tidewheel(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {stderr}");
        assert!(stderr.contains(said), "{arguments}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments}");
    };
    check("", "Usage: tidewheel <COMMAND>");
    check("sing", "unrecognized subcommand 'sing'");
    check("serve --listen nowhere", "write IP:PORT, such as 127.0.0.1:8080");
    check("serve --listen 8080", "write IP:PORT, such as 127.0.0.1:8080");
    check("serve --admin-listen localhost:9090", "write IP:PORT, such as 127.0.0.1:8080");
    check("drain --admin-listen 9090", "write IP:PORT, such as 127.0.0.1:8080");
    check("serve --shards 0", "shards: 0 is out of range; write 1 to 255");
    check("serve --echo=echo", "echo_path");
    check("serve --config /nonexistent.yaml", "/nonexistent.yaml: No such file");
    check("serve --listen 0.0.0.0:0", "TIDEWHEEL_AUTH_SECRET");
    check("serve --listen 127.0.0.1:0 --listen [::]:0", "[::]:0 can be reached from outside");
    check("check", "--config <FILE>");
    check("token make", "--sub <ID>");
    check("token make --sub ada", "give --key, --key-file or the variable TIDEWHEEL_AUTH_SECRET");
    check("token make --sub ada --key k --key-file f", "cannot be used with");
    check("token make --sub ada --key k --ttl 5", "a number with a unit is needed");
    check("token make --sub ada --key k --ttl 0s", "at least a second");
    check("token make --sub ada --key k --ttl 99999999999999999d", "at most a hundred years");
    check("token make --sub ada --key k --algorithm none", "invalid value 'none'");
    check(
        "token make --sub ada --key k --algorithm RS256",
        "it is a secret, and RS256 needs a private key in PEM form",
    );
    let key_file = |name: &str, said: &str| {
        let file = format!("tests/keys/{name}.pem");
        check(
            &format!("token make --sub ada --key-file {file}"),
            &format!("{file}: cannot sign with this key: {said}"),
        );
    };
    key_file("rsa_public", "it is a public one");
    key_file("es256_private", "it is no private key in PEM form that RS256 can use; name its own algorithm");
    let no_server = |arguments: &str, said: &str| {
        check(&format!("token make --key k {arguments}"), &format!("no server would accept this token: {said}"));
    };
    no_server("--sub=", "claim `sub` must be a string of 1 to 255 bytes");
    no_server(&format!("--sub {}", "a".repeat(256)), "claim `sub` must be");
    no_server("--sub ada --subscribe a..b", "claim `topics.subscribe`: a topic must not have empty segments");
    no_server("--sub ada --publish a.>.b", "claim `topics.publish`: `>` must be the last segment");
    no_server(&format!("--sub ada --publish{}", " a".repeat(65)), "claim `topics.publish` has more than 64 patterns");
    no_server(&format!("--sub ada --issuer {}", "i".repeat(16 << 10)), "token longer than 16384 bytes");
    check("plan", "--connections <N>");
    check("plan --connections some", "invalid value 'some'");
    check("plan --connections 1 --rate -1", "unexpected argument");
    check("plan --connections 1 --rate=-1", "a number from 0 to 1000000");
    check("plan --connections 1 --rate NaN", "a number from 0 to 1000000");
    check("plan --connections 1 --set shards=0", "shards: 0 is out of range");
    check("bench echo", "<URL>...");
    check("bench echo http://127.0.0.1:1/", "write ws://HOST:PORT/PATH");
    check("bench echo wss://127.0.0.1:1/ --ca /nowhere", "--ca /nowhere: No such file");
    check("bench echo wss://127.0.0.1:1/ --ca Cargo.toml", "--ca Cargo.toml holds no certificate");
    check("bench echo ws://127.0.0.1:1/ wss://127.0.0.1:1/", "all servers speak TLS, or none");
    check("bench echo ws://127.0.0.1:1/a ws://127.0.0.1:2/b", "the same path");
    check("bench echo ws://127.0.0.1:1/ --size 3", "16 to 16777216 bytes");
    check("bench echo ws://127.0.0.1:1/ --rate 0", "a number a second, more than 0");
    check("bench echo ws://127.0.0.1:1/ --rate 5 --in-flight 2", "cannot be used with");
    check("bench echo ws://127.0.0.1:1/ --time 5", "a number with a unit is needed");
    check("bench echo ws://127.0.0.1:1/ --from 127.0.0.0/8", "at most a /16");
    check("bench echo ws://127.0.0.1:1/ --pid 4294967295", "there is no process 4294967295");
    check("bench echo ws://127.0.0.1:1/ -c 0", "invalid value '0'");
    check("bench fanout ws://127.0.0.1:1/ -c 1", "more connections than publishers");
    check("bench mixed ws://127.0.0.1:1/ -c 5 --publishers 5", "more connections than publishers");
    check("doctor --connections -5", "unexpected argument");
    check("doctor --config /nonexistent.yaml", "/nonexistent.yaml: No such file");
}

#[test]
fn a_wrong_log_level_names_its_variable() {
    let output = tidewheel("serve --listen 127.0.0.1:0").env("RUST_LOG", "tidewheel=loud").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr).unwrap().starts_with("tidewheel: RUST_LOG: `tidewheel=loud` is no log level")
    );
}

#[test]
fn results_go_to_stdout_and_end_with_0() {
    let check = |arguments: &str, said: &str| {
        let output = tidewheel(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains(said), "{arguments}: {stdout}");
        assert!(output.stderr.is_empty(), "{arguments}");
    };
    check("--help", "Usage: tidewheel <COMMAND>");
    check("--version", concat!("tidewheel ", env!("CARGO_PKG_VERSION")));
    check("version", "\nkernel ");
    check("help serve", "--admin-listen <ADDR>");
    check("help plan", "0 it fits, 1 it does not");
}

#[test]
fn a_missing_key_file_is_a_failure_at_run_time() {
    let output = tidewheel("token make --sub ada --key-file /nonexistent.pem").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("tidewheel: /nonexistent.pem: No such file"));
}

#[test]
fn a_closed_stdout_is_no_failure() {
    for arguments in ["version", "--help", "token make --sub ada --key 0123456789abcdef0123456789abcdef"] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = tidewheel(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]), "{arguments}");
    }
}

#[test]
fn check_reads_a_file_as_serve_does() {
    let directory = tempfile::tempdir().unwrap();
    let check = |yaml: &str, code: i32, said: &str| {
        let file: PathBuf = directory.path().join("tidewheel.yaml");
        std::fs::write(&file, yaml).unwrap();
        let Output { status, stdout, stderr } = tidewheel("check --config").arg(&file).output().unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert_eq!(status.code(), Some(code), "{yaml}: {text}");
        assert!(text.contains(said), "{yaml}: {text}");
    };
    check("shards: 2", 0, "valid\nno key is configured: one is made");
    check("auth: {secret: 0123456789abcdef0123456789abcdef}", 0, "valid\nfor holders of a token");
    check("auth: {required: false}", 0, "valid\nopen to everyone");
    check("shards: 2\nshard: 3", 2, "did you mean `shards`?");
    check("shards: 999\noutbound: {max_frames: 0}", 2, "outbound.max_frames");
    check("listen: 0.0.0.0:8080", 2, "can be reached from outside");
    check("auth: {algorithm: RS256}", 2, "there is no key to check a token with");
    check("auth: {secret: hunter2}", 0, "warning: ");
    let authority = Authority::new();
    authority.issue("named", &["a.example"]);
    authority.issue("nameless", &[]);
    std::fs::set_permissions(authority.path().join("named.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let tls = |chain: &str, key: &str| {
        let dir = authority.path().display();
        let files = format!("cert_file: {dir}/{chain}.pem, key_file: {dir}/{key}.key");
        format!("auth: {{required: false}}\ntls: {{listen: 127.0.0.1:0, {files}}}")
    };
    check(&tls("named", "named"), 0, "valid\nopen to everyone");
    check(&tls("named", "named"), 0, "key can be read by everyone on this machine");
    check(&tls("nameless", "nameless"), 0, "warning: tls.cert_file: ");
    let broken = tls("named", "nameless");
    check(&broken, 2, "tls.key_file: ");
    check(&broken.replace("required: false", "algorithm: HS512"), 2, "does not fit");
    check(&broken, 2, &format!("does not fit the first certificate of {}/named.pem,", authority.path().display()));
    // A pipe that nobody writes to, as file and as key, and what has no end.
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    check(&format!("auth: {{public_key_file: {}}}", pipe.display()), 2, "is no regular file");
    for file in [pipe.to_str().unwrap(), "/dev/zero", "/dev"] {
        let output = tidewheel("check --config").arg(file).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains("is no regular file"), "{file}: {text}");
    }
    check(&format!("#{}", "x".repeat((4 << 20) - 1)), 0, "valid");
    check(&format!("#{}", "x".repeat(4 << 20)), 2, "has more than 4 MiB");
    check("websocket: {idel_timeout_seconds: 5}\nlimits: {errors: x}\nshards: 0", 2, "tidewheel.yaml:3: shards: 0 is");
}

#[test]
fn tokens_are_checked_as_serve_does() {
    let directory = tempfile::tempdir().unwrap();
    let set = directory.path().join("keys.json");
    // The Ed25519 key of RFC 8037, appendix A.2; the other one is no key.
    let good = r#"{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    std::fs::write(&set, format!(r#"{{"keys": [{good}, {{"kty": "oct", "k": "AAAA", "kid": "b"}}]}}"#)).unwrap();
    let file = directory.path().join("tidewheel.yaml");
    let key = "0123456789abcdef0123456789abcdef";
    let yaml = format!("auth: {{jwks: '{}', keys: [{{id: k, secret: {key}}}]}}", set.display());
    std::fs::write(&file, &yaml).unwrap();
    let output = tidewheel("check --config").arg(&file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("keys[1] `b`: a shared secret has no place"), "{text}");

    let make = |kid: &str| {
        let output = tidewheel(&format!("token make --sub ada --key {key} --kid {kid}")).output().unwrap();
        output.stdout
    };
    let check = |token: &[u8], code: i32, said: &str| {
        let mut command = tidewheel("token check --config");
        command.arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(token).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(status.code() == Some(code) && text.contains(said), "{text}");
        assert!(token.is_empty() || !text.contains(str::from_utf8(token).unwrap().trim()), "{text}");
    };
    check(&make("k"), 0, "accepted as \"ada\", until ");
    check(&make("a"), 1, "refused: algorithm HS256 is not allowed for this key");
    check(&make("c"), 1, "refused: token signed with an unknown key");
    check(b"", 1, "refused: not a JSON Web Token");
    std::fs::write(&set, "{}").unwrap();
    let output = tidewheel("check --config").arg(&file).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("keys.json: not a JSON Web Key Set"), "{text}");
}

#[test]
fn a_token_is_not_refused_for_a_configuration_that_cannot_be_used() {
    let check = |set: &str, code: i32, said: &str| {
        let mut command = tidewheel("token check --set");
        command.arg(set).stdin(Stdio::null());
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(status.code() == Some(code) && text.contains(said), "{set}: {text}");
        assert_eq!(text.contains("refused"), code == 1, "{set}: {text}");
    };
    check("auth.secret=0123456789abcdef0123456789abcdef", 1, "refused: not a JSON Web Token");
    check("auth.public_key_file=/nope", 2, "not valid\nauth.public_key_file: /nope cannot be read: No such file");
    check(
        "auth.public_key_file=Cargo.toml",
        2,
        "auth.public_key_file: Cargo.toml holds no public key in PEM form that",
    );
    check("auth.jwks=/nope", 2, "auth.jwks[0].source: /nope: cannot be read: No such file");
    check("auth.leeway=2h", 2, "auth.leeway: 2h is out of range");
}

/// Whoever writes a file with every key, sets every variable or reads the reference finds what the engine has.
#[test]
fn config_prints_what_can_be_read_again() {
    let print = |what: &str| {
        let output = tidewheel(&format!("config {what}")).output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]), "{what}");
        String::from_utf8(output.stdout).unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidewheel.yaml");
    std::fs::write(&file, print("defaults")).unwrap();
    let output = tidewheel("check --config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(print("env").contains("\n#TIDEWHEEL_WEBSOCKET_PONG_TIMEOUT=10s\n"));
    assert!(print("doc").contains("\n| `websocket.pong_timeout` |"));
}

#[test]
fn a_key_can_be_set_on_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidewheel.yaml");
    std::fs::write(&file, "limits: {errors: 0}").unwrap();
    let check = |set: &[&str], env: &str, code: i32, said: &str| {
        let mut command = tidewheel("check --config");
        command.arg(&file).env("TIDEWHEEL_LIMITS_ERRORS", env);
        command.args(set.iter().flat_map(|set| ["--set", set]));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert_eq!(status.code(), Some(code), "{set:?}: {text}");
        assert!(text.contains(said) && !text.contains("hunter2"), "{set:?}: {text}");
    };
    check(&[], "5", 0, "valid");
    check(&[], "0", 2, "TIDEWHEEL_LIMITS_ERRORS: 0 is out of range");
    check(&["limits.errors=7"], "0", 0, "valid");
    check(&["limits.errors=7", "limits.errors=0"], "5", 2, "--set: limits.errors: 0 is out of range");
    check(&["limits.eror=7"], "5", 2, "did you mean `limits.errors`?");
    check(&["hunter2"], "5", 2, "write KEY=VALUE");
    check(&["auth.secrt=hunter2"], "5", 2, "did you mean `auth.secret`?");
    check(&["auth.secret="], "5", 0, "valid");
}

/// What the program prints as JSON, and its exit code.
fn judged(arguments: &str) -> (serde_json::Value, Option<i32>) {
    let Output { status, stdout, stderr } = tidewheel(arguments).output().unwrap();
    assert!(stderr.is_empty(), "{arguments}: {}", String::from_utf8_lossy(&stderr));
    (serde_json::from_slice(&stdout).expect(arguments), status.code())
}

#[test]
fn a_plan_fits_or_does_not() {
    let (plan, code) = judged("plan --connections 10 --json");
    assert_eq!((code, plan["connections"].as_u64()), (Some(0), Some(10)), "{plan}");
    let fitting = plan["fits"]["connections"].as_u64().unwrap();
    let limits = plan["limits"].as_array().unwrap();
    let limit = |what: &str| limits.iter().find(|limit| limit["what"] == what).expect(what);
    for what in ["nofile", "shards", "fs.nr_open", "fs.file-max", "memory", "net.ipv4.tcp_mem", "net.core.somaxconn"] {
        let limit = limit(what);
        assert!(limit["needed"].is_u64() && limit["has"].is_u64() && limit["unit"].is_string(), "{limit}");
        assert!(limit["needed"].as_u64() <= limit["has"].as_u64() && limit["verdict"] == "ok", "{limit}");
    }
    let (plan, code) = judged(&format!("plan --connections {} --rate 2 --json", 2 * fitting));
    assert_eq!((code, plan["verdict"].as_str()), (Some(1), Some("bad")), "{plan}");
    let bad = plan["limits"].as_array().unwrap().iter().find(|limit| limit["verdict"] == "bad").unwrap();
    assert!(bad["mend"].is_string() && plan["fits"]["limited_by"][0].is_string(), "{plan}");
    let user = |more: &str| {
        let (plan, _) = judged(&format!("plan --connections 1000 --json {more}"));
        plan["idle"]["user"].as_u64().unwrap()
    };
    assert!(user("--tls") - user("") > 1_000_000, "TLS takes a kilobyte each");
    assert_eq!(user("--set tls.listen=127.0.0.1:0 --set tls.cert_file=a --set tls.key_file=b"), user("--tls"));

    let text = String::from_utf8(tidewheel("plan --connections 10").output().unwrap().stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("ok       nofile ")) && text.contains("\nfits: "), "{text}");
}

#[test]
fn a_doctor_s_exit_code_is_the_worst_that_was_found() {
    let check = |arguments: &str| {
        let (diagnosis, code) = judged(arguments);
        let findings = diagnosis["findings"].as_array().unwrap();
        let has = |verdict: &str| findings.iter().any(|finding| finding["verdict"] == verdict);
        let expected = match (has("bad"), has("unknown") || has("warning")) {
            (true, _) => 1,
            (false, true) => 3,
            (false, false) => 0,
        };
        assert_eq!(code, Some(expected), "{diagnosis}");
        diagnosis
    };
    let diagnosis = check("doctor --connections 10 --json");
    assert_eq!(diagnosis["connections"], 10);
    let findings = diagnosis["findings"].as_array().unwrap();
    let ring = &findings[0];
    assert_eq!((&ring["what"], ring["verdict"] == "bad"), (&"io_uring".into(), false), "{ring}");
    assert!(findings.len() > 15 && findings.iter().all(|finding| finding["effect"].is_string()), "{findings:?}");

    let diagnosis = check("doctor --connections 60000000 --json");
    assert_eq!(diagnosis["verdict"], "bad");
    let mended = |finding: &serde_json::Value| finding["mend"].is_string() && finding["breaks_at"].is_u64();
    let findings = diagnosis["findings"].as_array().unwrap();
    assert!(findings.iter().filter(|finding| finding["verdict"] == "bad").all(mended), "{findings:?}");

    let help = String::from_utf8(tidewheel("doctor --help").output().unwrap().stdout).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("Exit code: 0 all is well, 1 something will break, 2 wrong usage"), "{help}");
    let text = String::from_utf8(tidewheel("doctor --connections 10").output().unwrap().stdout).unwrap();
    assert!(text.starts_with("for 10 connections\n"), "{text}");
}

/// What the doctor takes for what the server admits is what the server says at its start.
#[test]
fn the_doctor_counts_as_the_server_does() {
    let (diagnosis, _) = judged("doctor --json");
    assert_eq!(diagnosis["computed"], true);
    let admitted = diagnosis["connections"].as_u64().unwrap();
    let mut server = tidewheel("serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("capacity")).unwrap();
    signal(&server, "-TERM");
    assert_eq!(wait(&mut server), Some(0));
    let connections: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Memory that can be had changes meanwhile; descriptors do not.
    assert!(connections.abs_diff(admitted) <= admitted / 5, "{connections} and {admitted}");
}

#[test]
fn serve_says_where_it_is_and_keeps_tokens_out_of_its_log() {
    let mut server = tidewheel("serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --shards 1 --echo")
        .env("TIDEWHEEL_LOG_FORMAT", "json")
        .env("TIDEWHEEL_LOG_LEVEL", "trace")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut banner = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut line = |name: &str| {
        let line = banner.find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].trim().to_owned()
    };
    assert_eq!(line("tidewheel"), concat!(env!("CARGO_PKG_VERSION"), ", 1 shard"));
    assert!(line("websocket").starts_with("ws://127.0.0.1:"));
    assert!(line("echo").ends_with("/echo"));
    let page = line("page");
    let (address, token) = page.strip_prefix("http://").unwrap().split_once("/#token=").unwrap();
    assert_eq!(token.split('.').count(), 3, "{token}");
    let address: SocketAddr = address.parse().unwrap();
    assert!(get(address, &format!("/readyz?token={token}")).unwrap().starts_with("HTTP/1.1 200 "));

    signal(&server, "-TERM");
    assert_eq!(wait(&mut server), Some(0));
    let mut log = String::new();
    server.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(!log.contains(token), "the token is in the log");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
    assert!(log.lines().last().unwrap().contains("served 0 connections"), "{log}");
    let begin = log.lines().find(|line| line.contains(r#""message":"serving""#)).expect("where it is, for a log alone");
    assert!(begin.contains(r#""listen":"127.0.0.1:"#) && begin.contains(r#""connections_max":"#), "{begin}");
}

/// Who has no other eyes than the log sees at once that pages are refused, and which key lets them in.
#[test]
fn the_log_says_that_newcomers_are_turned_away() {
    let address = free_address();
    let serve = format!("serve --shards 1 --listen {address} --admin-listen 127.0.0.1:0");
    let mut server = tidewheel(&serve)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("TIDEWHEEL_LOG_FORMAT", "json")
        .spawn()
        .unwrap();
    let mut banner = BufReader::new(server.stdout.take().unwrap()).lines();
    while !banner.next().expect("a banner").unwrap().starts_with("websocket") {}
    for _ in 0..3 {
        let mut page = TcpStream::connect(address).unwrap();
        write!(
            page,
            "GET /ws HTTP/1.1\r\nHost: {address}\r\nOrigin: https://app.example\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        page.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = log.find(|line| line.contains("turned away")).expect("a line about it");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], &line["cause"]), (&"WARN".into(), &"origin".into()), "{line}");
    assert!(matches!(line["count"].as_u64(), Some(1..=3)), "{line}");
    assert!(line["message"].as_str().unwrap().contains("origins.allow"), "{line}");
    signal(&server, "-TERM");
    assert_eq!(wait(&mut server), Some(0));
}

/// The load generator beside the server, as the README has it; and where there is no server.
#[test]
fn bench_reports_what_it_found() {
    const SECRET: &str = "a-secret-of-32-bytes-for-the-bench";
    let address = free_address();
    let serve = format!(
        "serve --shards 1 --listen {address} --admin-listen 127.0.0.1:0 --echo --set auth.secret={SECRET} \
         --set limits.connection_attempts=null --set limits.messages=null --set limits.bytes=null"
    );
    let mut server = tidewheel(&serve).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    while !lines.next().expect("a banner").unwrap().starts_with("websocket") {}
    let pid = server.id();
    for (run, figure) in [
        (format!("bench echo ws://{address}/echo -c 20 --time 200ms --pid {pid}"), "server_cpu_ns_per_message"),
        (format!("bench echo ws://{address}/echo -c 20 --time 200ms --rate 500 --from 127.0.7.0/30"), "messages"),
        (format!("bench fanout ws://{address}/ws -c 20 --topics 2 --publishers 2 --time 200ms"), "delivered"),
        (format!("bench mixed ws://{address}/ws -c 20 --rate 50 --time 200ms"), "delivered"),
        (format!("bench idle ws://{address}/ws -c 20 --time 100ms"), "reached_by_one_message"),
        (format!("bench connect ws://{address}/ws -c 4 --time 200ms --plain"), "served_per_second"),
        (format!("bench storm ws://{address}/ws -c 20"), "back"),
    ] {
        let output = tidewheel(&format!("{run} --json")).env("TIDEWHEEL_AUTH_SECRET", SECRET).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{run}: {}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["figures"][figure].as_f64().unwrap() > 0.0, "{run}: {report}");
        assert_eq!(report["findings"], serde_json::json!([]), "{run}");
    }
    let output = tidewheel(&format!("bench fanout ws://{address}/ws -c 20 --patience 300ms")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("19 requests were refused; one of them: authenticate first"), "{stderr}");
    signal(&server, "-TERM");
    assert_eq!(wait(&mut server), Some(0));

    let output = tidewheel(&format!("bench echo ws://{address}/ --patience 300ms")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("connecting: 0 of 100, and nothing more in 300ms") && stderr.contains("not connected"),
        "{stderr}"
    );
}

#[test]
fn serve_ends_although_nobody_reads_its_output() {
    let check = |prepare: fn() -> (io::PipeReader, io::PipeWriter), keep_reader: bool| {
        let (websocket, admin) = (free_address(), free_address());
        let (reader, writer) = prepare();
        let mut server = tidewheel(&format!("serve --listen {websocket} --admin-listen {admin} --shards 1"))
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .spawn()
            .unwrap();
        let reader = keep_reader.then_some(reader);
        let begun = Instant::now();
        while !get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            assert!(begun.elapsed() < Duration::from_secs(20), "never ready");
            thread::sleep(Duration::from_millis(50));
        }
        signal(&server, "-HUP");
        signal(&server, "-TERM");
        assert_eq!(wait(&mut server), Some(0));
        drop(reader);
    };
    check(|| io::pipe().unwrap(), false);
    check(full_pipe, true);
}

/// A pipe that takes no more byte.
fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(&vec![b'\n'; PIPE_BYTES]).unwrap();
    (reader, writer)
}

/// What a pipe holds unless told otherwise (pipe(7)).
const PIPE_BYTES: usize = 64 * 1024;

/// A command with arguments separated by spaces, in an environment without settings.
fn tidewheel(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidewheel"));
    command.args(arguments.split_whitespace());
    for (name, _) in std::env::vars_os() {
        if name == "RUST_LOG" || name.to_string_lossy().starts_with("TIDEWHEEL_") {
            command.env_remove(name);
        }
    }
    command
}

/// A port of loopback that nobody had a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn get(address: SocketAddr, target: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn signal(server: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &server.id().to_string()]).status().unwrap().success());
}

/// The exit code, or `None` for a signal; a server that does not end is killed and fails the test.
fn wait(server: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if let Some(status) = server.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(20));
    }
    server.kill().unwrap();
    panic!("the server did not end");
}

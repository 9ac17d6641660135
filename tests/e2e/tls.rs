//! TLS: what holds without it holds with it, and what only it can do wrong.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, SupportedProtocolVersion};
use serde_json::json;
use tidewheel::metrics::{CloseReason, TlsHandshake};
use tidewheel::tls::trust::anybody;
use tungstenite::Message;

use super::auth::{SECRET, in_an_hour, token};
use super::certificates::Authority;
use super::client::Client;
use super::raw::request_with;
use super::server::{Server, tcp};
use super::until;

type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Authority {
    /// One that has issued a certificate for the server.
    pub fn of_server() -> Self {
        let authority = Self::new();
        authority.issue("server", &["localhost"]);
        authority
    }

    /// The section `tls`, and what comes with it.
    pub fn yaml(&self, more: &str) -> String {
        let dir = self.path().display();
        format!("tls: {{listen: 127.0.0.1:0, cert_file: {dir}/server.pem, key_file: {dir}/server.key{more}}}")
    }

    fn client_config(&self, versions: &[&'static SupportedProtocolVersion], named: Option<&str>) -> ClientConfig {
        self.config_with(versions, named.map(|name| self.sign(name, &[])))
    }

    /// A client that shows this certificate.
    fn config_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        shown: Option<(rcgen::Certificate, rcgen::KeyPair)>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match shown {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        }
    }

    fn stream(&self, address: SocketAddr) -> Stream {
        stream(&Arc::new(self.client_config(&[&TLS13], None)), address)
    }
}

fn stream(config: &Arc<ClientConfig>, address: SocketAddr) -> Stream {
    over(config, tcp(address), "localhost")
}

fn over(config: &Arc<ClientConfig>, socket: TcpStream, name: &'static str) -> Stream {
    StreamOwned::new(ClientConnection::new(config.clone(), ServerName::try_from(name).unwrap()).unwrap(), socket)
}

#[track_caller]
fn client(stream: Stream) -> Client<Stream> {
    Client::over(stream, "wss://localhost/ws").unwrap().0
}

/// Where clients speak TLS.
fn port(server: &Server) -> SocketAddr {
    server.tls_address.expect("a port with TLS")
}

#[test]
fn messages_of_every_size_both_ways() {
    let authority = Authority::of_server();
    let limits = "websocket: {max_message_size: 4MiB, max_total_connections: 99}\noutbound: {max_bytes: 8MiB}";
    let server = Server::start(&format!("echo_path: /echo\n{limits}\n{}", authority.yaml("")));
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let config = Arc::new(authority.client_config(versions, None));
        let mut client = Client::over(stream(&config, port(&server)), "wss://localhost/echo").unwrap().0;
        for len in [0, 1, 125, 126, 4000, 4096, 16_360, 16_384, 16_390, 65_536, 3_000_000] {
            let text: String = (0..len).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
            client.send(&text);
            assert!(client.text() == text, "{len}");
        }
        for len in 1..200 {
            client.send(&"x".repeat(len));
        }
        for len in 1..200 {
            assert_eq!(client.text().len(), len);
        }
        client.close();
    }
    server.rest();
    assert_eq!(server.sum(|shard| &shard.tls_connections), 0);
}

/// One publisher, and subscribers with and without TLS on every shard.
#[test]
fn a_publish_reaches_both_kinds() {
    let authority = Authority::of_server();
    let server = Server::build(4, &authority.yaml(""), |builder| builder);
    let config = Arc::new(authority.client_config(&[&TLS13, &TLS12], None));
    let mut plain: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let mut secure: Vec<_> = (0..20).map(|_| client(stream(&config, port(&server)))).collect();
    plain.iter_mut().for_each(|client| client.subscribe("t"));
    secure.iter_mut().for_each(|client| client.subscribe("t"));
    for n in 0..50 {
        assert_eq!(secure[0].publish("t", json!({"n": n})), (40, 40, 0));
    }
    for n in 0..50 {
        plain.iter_mut().for_each(|client| assert_eq!(client.data("t"), json!({"n": n})));
        secure.iter_mut().for_each(|client| assert_eq!(client.data("t"), json!({"n": n})));
    }
    plain.into_iter().for_each(Client::close);
    secure.into_iter().for_each(Client::close);
    server.rest();
    assert_eq!(server.sum(|shard| &shard.tls_handshakes[TlsHandshake::Failed as usize]), 0);
    assert!(server.sum(|shard| &shard.tls_handshakes[TlsHandshake::Resumed as usize]) > 0, "tickets were taken");
}

#[test]
fn who_comes_back_has_a_ticket() {
    let authority = Authority::of_server();
    let server = Server::start(&authority.yaml(""));
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let config = Arc::new(authority.client_config(versions, None));
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut client = client(stream(&config, port(&server)));
            client.quiet(); // tickets of TLS 1.3 come behind the handshake
            assert_eq!(client.socket.get_ref().conn.handshake_kind(), Some(expected));
            client.close();
        }
    }
    let without = Server::start(&authority.yaml(", session_tickets: 0"));
    let config = Arc::new(authority.client_config(&[&TLS13], None));
    for _ in 0..2 {
        let mut client = client(stream(&config, port(&without)));
        client.quiet();
        assert_eq!(client.socket.get_ref().conn.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn both_say_that_they_end() {
    let authority = Authority::of_server();
    let server = Server::start(&authority.yaml(""));
    // The server's close_notify, behind its close frame.
    let mut socket = client(authority.stream(port(&server))).socket;
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    let mut end = Vec::new();
    // rustls says UnexpectedEof if the stream ends without it.
    assert_eq!(socket.get_mut().read_to_end(&mut end).unwrap(), 0);
    // The client's, without a close frame: what it has asked for is answered.
    let mut client = client(authority.stream(port(&server)));
    client.tell("ping", json!({}));
    let stream = client.socket.get_mut();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    client.expect("pong");
    assert_eq!(client.socket.get_mut().read_to_end(&mut end).unwrap(), 0);
    server.rest();
    assert_eq!((server.closed(CloseReason::Peer), server.closed(CloseReason::Lost)), (1, 1));
}

#[test]
fn the_wrong_port() {
    let authority = Authority::of_server();
    let server = Server::start(&authority.yaml(""));
    let mut plain = tcp(port(&server));
    plain.write_all(request_with("/ws", "").as_bytes()).unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("use wss:// in the address"), "{answer}");
    let mut secure = authority.stream(server.address);
    let error = secure.flush().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    drop(secure);
    server.rest();
    assert_eq!(server.closed(CloseReason::BadHandshake), 2);
    assert_eq!(server.sum(|shard| &shard.tls_handshakes[TlsHandshake::Failed as usize]), 1);
}

#[test]
fn who_does_not_finish_is_cut() {
    let authority = Authority::of_server();
    let yaml = authority.yaml("");
    let server = Server::start(&format!("websocket: {{handshake_timeout: 300ms, max_total_connections: 99}}\n{yaml}"));
    let mut silent = tcp(port(&server));
    let mut slow = tcp(port(&server));
    slow.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    // Its keys are agreed, its request does not come.
    let mut mute = authority.stream(port(&server));
    mute.flush().unwrap();
    let mut rest = Vec::new();
    assert_eq!(silent.read_to_end(&mut rest).unwrap(), 0);
    assert_eq!(slow.read_to_end(&mut rest).unwrap(), 0);
    mute.read_to_end(&mut rest).unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&rest));
    server.rest();
    assert_eq!(server.sum(|shard| &shard.handshakes), 0);
}

#[test]
fn what_was_changed_on_its_way_ends_the_connection() {
    let authority = Authority::of_server();
    let server = Server::start(&authority.yaml(""));
    let mut client = client(authority.stream(port(&server)));
    client.quiet();
    let stream = client.socket.get_mut();
    stream.conn.writer().write_all(b"a frame, or not").unwrap();
    let mut record = Vec::new();
    stream.conn.write_tls(&mut record).unwrap();
    *record.last_mut().unwrap() ^= 1;
    stream.sock.write_all(&record).unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    drop(client);
    server.rest();
    assert_eq!(server.closed(CloseReason::Protocol), 1);
}

#[test]
fn keys_change_while_messages_go_on() {
    let authority = Authority::of_server();
    let server = Server::start(&authority.yaml(""));
    let mut client = client(authority.stream(port(&server)));
    for n in 0..20 {
        client.socket.get_mut().conn.refresh_traffic_keys().unwrap();
        client.subscribe(&format!("t{n}"));
    }
    client.quiet();
    client.close();
    server.rest();
    assert_eq!(server.sum(|shard| &shard.tls_key_updates), 20);
}

#[test]
fn a_certificate_says_who_a_client_is() {
    let authority = Authority::of_server();
    let ca = authority.path().join("ca.pem");
    let more = format!(", client_ca_file: {}, client_auth: required, client_id: common_name", ca.display());
    let server = Server::start(&format!("auth: {{required: true}}\n{}", authority.yaml(&more)));
    let ann = Arc::new(authority.client_config(&[&TLS13], Some("ann")));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut client = client(stream(&ann, port(&server)));
        let payload = client.expect("auth_result");
        assert_eq!((&payload["authenticated"], &payload["user_id"]), (&json!(true), &json!("ann")));
        assert!(payload["expires_at"].is_u64(), "its certificate ends: {payload}");
        assert_eq!(client.socket.get_ref().conn.handshake_kind(), Some(kind));
        client.quiet();
        client.close();
    }
    // Nobody, and somebody whom a stranger has signed.
    let mut stranger = Authority::new().client_config(&[&TLS13], Some("ann"));
    stranger.dangerous().set_certificate_verifier(anybody()); // whose root has not signed the server's
    for config in [authority.client_config(&[&TLS13], None), stranger] {
        let mut stream = stream(&Arc::new(config), port(&server));
        let _ = stream.write_all(request_with("/ws", "").as_bytes());
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("alert"), "{error}");
    }
    server.rest();
    assert_eq!(server.sum(|shard| &shard.tls_handshakes[TlsHandshake::Failed as usize]), 2);
}

/// A ticket brings the certificate back that it was given for, without anybody verifying it again.
#[test]
fn a_ticket_does_not_outlive_the_certificate() {
    let authority = Authority::of_server();
    let ca = authority.path().join("ca.pem");
    let more = format!(", client_ca_file: {}, client_auth: required", ca.display());
    let yaml = format!("echo_path: /echo\nauth: {{required: true, secret: '{SECRET}', query: true}}\n");
    let server = Server::start(&format!("{yaml}{}", authority.yaml(&more)));
    let mut params = rcgen::CertificateParams::default();
    params.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let config = Arc::new(authority.config_with(&[&TLS13], Some((certificate, key))));
    let answer = |path: &str| {
        let mut stream = stream(&config, port(&server));
        stream.write_all(request_with(path, "").as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), stream.conn.handshake_kind().unwrap())
    };
    let with_token = format!("/ws?token={}", token(in_an_hour()));
    let paths = ["/echo", "/ws", &with_token];
    for (number, path) in paths.into_iter().enumerate() {
        let kind = if number == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
        assert_eq!(answer(path), ("HTTP/1.1 101".to_owned(), kind), "{path}");
    }
    std::thread::sleep(Duration::from_secs(4));
    for path in paths {
        assert_eq!(answer(path), ("HTTP/1.1 401".to_owned(), HandshakeKind::Resumed), "{path}");
    }
    server.rest();
}

#[test]
fn a_proxy_says_whose_connection_it_is_before_tls_begins() {
    let authority = Authority::of_server();
    let proxy = "proxy: {trusted: [127.0.0.1], proxy_protocol: true}";
    let server = Server::start(&format!("{proxy}\n{}", authority.yaml("")));
    let config = Arc::new(authority.client_config(&[&TLS13], None));
    for pieces in [1, 1000] {
        let mut socket = tcp(port(&server));
        let header = b"PROXY TCP4 203.0.113.9 127.0.0.1 5000 443\r\n";
        for piece in header.chunks(header.len().div_ceil(pieces)) {
            socket.write_all(piece).unwrap();
        }
        let mut client = client(over(&config, socket, "localhost"));
        client.quiet();
        client.close();
    }
    server.rest();
}

/// Certificates are renewed, and more come, while connections go on.
#[test]
fn a_reload_changes_what_newcomers_are_shown() {
    let authority = Authority::of_server();
    authority.issue("other", &["other.example"]);
    let dir = authority.path().display().to_string();
    let server = Server::start(&authority.yaml(""));
    let config = Arc::new(authority.client_config(&[&TLS13], None));
    let shown = |stream: &Stream| -> CertificateDer<'static> {
        stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let mut old = client(over(&config, tcp(port(&server)), "localhost"));
    let first = shown(old.socket.get_ref());
    authority.issue("server", &["localhost"]);
    let more = format!(", certificates: [{{cert_file: {dir}/other.pem, key_file: {dir}/other.key}}]");
    let next = super::server::config(2, &authority.yaml(&more));
    server.handle.reload(next).unwrap();
    // A ticket brings the certificate of before back: this one has none.
    let fresh = || Arc::new(authority.client_config(&[&TLS13], None));
    until("what newcomers are shown is new", || {
        let client = client(over(&fresh(), tcp(port(&server)), "localhost"));
        let new = shown(client.socket.get_ref()) != first;
        client.close();
        new
    });
    let other = client(over(&fresh(), tcp(port(&server)), "other.example"));
    assert_ne!(shown(other.socket.get_ref()), first);
    other.close();
    std::fs::write(authority.path().join("server.pem"), "not a certificate").unwrap();
    let broken = super::server::config(2, &authority.yaml(&more));
    let error = server.handle.reload(broken).unwrap_err().to_string();
    assert!(error.contains("server.pem"), "{error}");
    client(over(&fresh(), tcp(port(&server)), "localhost")).close();
    old.quiet();
    old.close();
    server.rest();
}

/// A drain, a client that does not read, a message that is too large: the same as without TLS.
#[test]
fn ends_are_told_through_tls() {
    let authority = Authority::of_server();
    let limits = "websocket: {max_message_size: 1KiB, max_total_connections: 99}";
    let server = Server::start(&format!("{limits}\noutbound: {{max_bytes: 64KiB}}\n{}", authority.yaml("")));
    let mut large = client(authority.stream(port(&server)));
    large.socket.send(Message::text("x".repeat(2000))).unwrap();
    assert_eq!(large.ended().close.unwrap().0, 1009);
    let mut slow = client(authority.stream(port(&server)));
    slow.subscribe("t");
    let mut publisher = server.connect();
    let text = "y".repeat(900);
    until("the slow one is parted from", || publisher.publish("t", json!(text)).0 == 0);
    slow.parted(4008, true);
    let waiting = client(authority.stream(port(&server)));
    server.handle.drain();
    let mut waiting = waiting;
    waiting.parted(1012, true);
    publisher.parted(1012, true);
    let mut server = server;
    assert_eq!(server.wait().broken_shards, 0);
}

/// Half of a client's stream ends in the middle of everything.
#[test]
fn streams_that_end_without_a_word() {
    let authority = Authority::of_server();
    let server = Server::start(&authority.yaml(""));
    for cut in 0..40 {
        let config = Arc::new(authority.client_config(&[&TLS13], None));
        let mut conn = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        let mut hello = Vec::new();
        conn.write_tls(&mut hello).unwrap();
        let mut socket = tcp(port(&server));
        socket.write_all(&hello[..cut * hello.len() / 40]).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest); // an end, or a reset
    }
    server.rest();
}

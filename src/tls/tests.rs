//! A client and a server that shake hands in memory, and the layer over the simulated kernel.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::handshake::{Failed, Finished, Handshake, Progress};
use super::*;
use crate::io::sim::{ClientId, Faults, Sim, SimConfig, World};

/// What a server offers, and a client that trusts it.
pub(super) fn configs(
    versions: &[&'static SupportedProtocolVersion],
    suite: Option<rustls::CipherSuite>,
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let mut provider = default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites.retain(|known| known.suite() == suite);
    }
    let provider = Arc::new(provider);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.enable_secret_extraction = true;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

pub(super) fn client(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// What the client wants to send.
pub(super) fn take_tls(client: &mut ClientConnection) -> Vec<u8> {
    let mut out = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut out).unwrap();
    }
    out
}

/// Gives the client what the server sent.
pub(super) fn give_tls(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
        let _ = client.reader().read_to_end(&mut plain); // ends with WouldBlock
    }
    Ok(plain)
}

/// Shakes hands in pieces of `piece` bytes; `first` is what the client says right behind its last message.
pub(super) fn shake_hands(
    server: &Arc<ServerConfig>,
    client: &mut ClientConnection,
    first: &[u8],
    piece: usize,
) -> Result<Finished, (Failed, Vec<u8>)> {
    let mut handshake = Handshake::new(server.clone()).unwrap();
    client.writer().write_all(first).unwrap();
    for _ in 0..10 {
        let sent = take_tls(client);
        for from in (0..sent.len()).step_by(piece) {
            let to = sent.len().min(from + piece);
            handshake.receive(&sent[from..to]);
            let mut out = Vec::new();
            let outcome = handshake.advance(&mut out);
            let told = give_tls(client, &out);
            match outcome {
                Ok(Progress::Complete) => {
                    told.unwrap();
                    handshake.receive(&sent[to..]);
                    handshake.receive(&take_tls(client));
                    return handshake.finish().map_err(|failed| (failed, Vec::new()));
                }
                Err(failed) => return Err((failed, out)),
                Ok(Progress::NeedMore) if told.is_err() => {
                    handshake.receive(&take_tls(client));
                    return Err((handshake.advance(&mut Vec::new()).unwrap_err(), Vec::new()));
                }
                Ok(Progress::NeedMore) => {}
            }
        }
    }
    panic!("a handshake without end");
}

#[test]
fn a_handshake_ends_however_it_is_cut() {
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let (server, client_config) = configs(versions, None);
        for (piece, expected) in [(1, false), (7, true), (100, true), (1 << 20, true)] {
            let mut client = client(&client_config);
            let Finished { is_resumed, certificate, .. } =
                shake_hands(&server, &mut client, b"", piece).map_err(|(failed, _)| failed).unwrap();
            // The second and later ones come back with the first one's ticket.
            assert_eq!((is_resumed, certificate.is_some()), (expected, false), "{piece}");
        }
    }
}

#[test]
fn what_follows_the_handshake_is_not_lost() {
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let (server, client_config) = configs(versions, None);
        for piece in [1, 50, 1 << 20] {
            let mut client = client(&client_config);
            let first = [7; 3000];
            let Finished { mut records, mut rest, .. } =
                shake_hands(&server, &mut client, &first, piece).map_err(|(failed, _)| failed).unwrap();
            let batch = records.open_all(&mut rest);
            let plain = &rest[..batch.plain];
            assert!(plain == first, "{piece}: {} of {} bytes", plain.len(), first.len());
            assert_eq!((batch.taken, batch.end), (rest.len(), None), "{piece}");
        }
    }
}

/// A message may be longer than a record, and its records may come one by one.
#[test]
fn a_handshake_in_many_records() {
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let (server, client_config) = configs(versions, None);
        for (piece, fragment) in [(1, 64), (64, 64), (100, 64), (1 << 20, 64), (130, 200)] {
            let mut client_config = (*client_config).clone();
            client_config.max_fragment_size = Some(fragment);
            let mut client = client(&Arc::new(client_config));
            let Finished { mut records, mut rest, .. } =
                shake_hands(&server, &mut client, b"first", piece).map_err(|(failed, _)| failed).unwrap();
            let batch = records.open_all(&mut rest);
            assert_eq!((&rest[..batch.plain], batch.end), (&b"first"[..], None), "{piece} {fragment}");
        }
    }
}

#[test]
fn failures_are_told() {
    let (server, _) = configs(&[&rustls::version::TLS13], None);
    let (_, stranger) = configs(&[&rustls::version::TLS13], None);
    let (_, old) = configs(&[&rustls::version::TLS12], None);
    let fails = |config: &Arc<ClientConfig>| {
        let (failed, out) = shake_hands(&server, &mut client(config), b"", 1 << 20).unwrap_err();
        (failed.to_string(), out)
    };
    assert!(fails(&stranger).0.contains("received fatal alert"), "{}", fails(&stranger).0);
    let (why, out) = fails(&old);
    assert!(why.contains("incompatible"), "{why}");
    assert_eq!(out, [21, 3, 3, 0, 2, 2, 70], "protocol_version (RFC 8446 §6.2)");
}

#[track_caller]
fn check_first_bytes(bytes: &[u8], expected: &str, told: &[u8]) {
    let (server, _) = configs(&[&rustls::version::TLS13], None);
    let mut handshake = Handshake::new(server).unwrap();
    handshake.receive(bytes);
    let mut out = Vec::new();
    let failed = handshake.advance(&mut out).unwrap_err().to_string();
    assert!(failed.contains(expected), "{failed}");
    assert!(out.starts_with(told), "{}", String::from_utf8_lossy(&out));
}

#[test]
fn what_is_no_handshake() {
    check_first_bytes(b"GET /ws HTTP/1.1\r\n", "without TLS", b"HTTP/1.1 400 Bad Request\r\n");
    check_first_bytes(b"\x00\x01\x02\x03\x04\x05\x06\x07", "InvalidContentType", &[21, 3, 3, 0, 2, 2, 50]);
    // A message of 0xffffff bytes in records of which each is full.
    let mut long = Vec::new();
    for _ in 0..3 {
        long.extend_from_slice(&[22, 3, 1, 0x40, 0]);
        long.extend_from_slice(&[1, 0, 0xff, 0xff]);
        long.resize(long.len() + (1 << 14) - 4, 0);
    }
    check_first_bytes(&long, "", b"");
}

/// The layer over a simulated kernel, and clients that a test plays.
struct Port {
    world: World,
    layer: Layer<Sim>,
    terms: Arc<ServerConfig>,
    keys: Vec<ConnKey>,
    /// What was yielded besides.
    ended: Vec<ConnKey>,
    failed: Vec<ConnKey>,
    /// How many bytes were.
    received: usize,
}

impl Port {
    fn new(terms: Arc<ServerConfig>) -> Self {
        let world = World::new(3, Faults::default());
        let sim = world.driver(ShardId(0), SimConfig { table: 99, buffers: 99, buffer_size: 4096 });
        let mut layer = Layer::new(sim, Arc::default());
        layer.accept();
        Self { world, layer, terms, keys: Vec::new(), ended: Vec::new(), failed: Vec::new(), received: 0 }
    }

    /// One turn, in which newcomers are secured.
    fn turn(&mut self) {
        self.world.advance(Duration::from_millis(20));
        self.layer.wait(Wait::No).unwrap();
        while let Some(completion) = self.layer.poll() {
            match completion {
                Completion::Accepted(socket) => {
                    let key = ConnKey { slot: self.keys.len() as u32, generation: 1 };
                    self.layer.adopt(socket, key);
                    self.layer.receive(key);
                    self.layer.secure(key, &self.terms, &[]);
                    self.keys.push(key);
                }
                Completion::Received { conn, bytes, armed } => {
                    self.received += bytes.len();
                    drop(bytes);
                    if !armed {
                        self.layer.receive(conn);
                    }
                }
                Completion::ReceiveStopped { conn, .. }
                    if self.layer.secured(conn).is_some_and(|secured| !matches!(secured.stage, Stage::Over)) =>
                {
                    self.layer.receive(conn);
                }
                Completion::Sent { conn, sent: Err(_) } => self.failed.push(conn),
                Completion::ReceiveEnded { conn, .. } => self.ended.push(conn),
                _ => {}
            }
        }
    }
}

#[test]
fn handshakes_have_a_share_of_a_turn() {
    let (server, client_config) = configs(&[&rustls::version::TLS13], None);
    let mut port = Port::new(server);
    let hello = take_tls(&mut client(&client_config));
    for _ in 0..40 {
        let client = port.world.connect();
        port.world.client_send(client, &hello);
    }
    // Turns take no time here, so each makes one step. Some of what is said comes in pieces.
    let mut waiting = Vec::new();
    while waiting.len() < 100 || waiting.last() != Some(&0) {
        port.turn();
        waiting.push(port.layer.waiting.len());
    }
    assert!(*waiting.iter().max().unwrap() > 30, "{waiting:?}");
    assert!(waiting.is_sorted_by(|before, after| *before <= after + 1), "{waiting:?}");
    assert_eq!(port.layer.metrics.tls_waiting.get(), 0);
}

/// However long a step is beside a turn: what it takes too much the next turns make up for.
#[test]
fn handshakes_take_a_quarter_of_a_busy_shard() {
    let steps_of_a_thousand_turns = |worked_ns: u64, step_ns: u64| {
        let (mut share, mut now_ns, mut steps) = (Share::default(), 0, 0u64);
        for _ in 0..1_000 {
            share.begin(now_ns, now_ns);
            now_ns += worked_ns;
            while share.has_time() {
                share.spend(step_ns as i64);
                now_ns += step_ns;
                steps += 1;
            }
        }
        steps
    };
    let idle = IDLE_NS as u64 - 1;
    for (worked_ns, step_ns, steps) in [
        (0, 130_000, 1_000),
        (idle, 130_000, 1_000),
        (IDLE_NS as u64, 130_000, 129),
        (150_000, 130_000, 385),
        (300_000, 50_000, 2_000),
        (3_000_000, 130_000, 7_692),
        (300_000, 1_000_000_000, 10),
    ] {
        let made = steps_of_a_thousand_turns(worked_ns, step_ns);
        assert!(made.abs_diff(steps) <= 1 + steps / 500, "{made} steps of {step_ns} ns in turns of {worked_ns} ns");
    }
}

/// Neither who ends its stream behind its first message nor who sends more behind it than is held has its step before others.
#[test]
fn nobody_has_its_step_out_of_turn() {
    for is_long in [false, true] {
        let (server, client_config) = configs(&[&rustls::version::TLS13], None);
        let mut port = Port::new(server);
        let mut said = take_tls(&mut client(&client_config));
        let clients: Vec<_> = (0..40).map(|_| port.world.connect()).collect();
        while port.keys.len() < clients.len() {
            port.turn();
        }
        if is_long {
            said.resize(said.len() + RECEIVED_MAX, 0);
        }
        for &client in &clients {
            port.world.client_send(client, &said);
            if !is_long {
                port.world.client_shutdown(client);
            }
        }
        // Turns take no time here, so each makes one step.
        let mut waiting = Vec::new();
        while waiting.len() < 200 || waiting.last() != Some(&0) {
            port.turn();
            waiting.push(port.layer.waiting.len());
        }
        assert!(*waiting.iter().max().unwrap() > 30, "{waiting:?}");
        assert!(waiting.is_sorted_by(|before, after| *before <= after + 1), "long: {is_long}: {waiting:?}");
        (0..100).for_each(|_| port.turn());
        assert_eq!(port.ended.len(), clients.len(), "long: {is_long}");
        let answered = clients.iter().filter(|&&client| !port.world.client_take(client).is_empty()).count();
        assert_eq!(answered, clients.len(), "long: {is_long}");
    }
}

/// A port with a client that has shaken hands.
fn port_with_client() -> (Port, ClientId, ClientConnection) {
    let (server, client_config) = configs(&[&rustls::version::TLS13], None);
    let mut port = Port::new(server);
    let (id, mut client) = (port.world.connect(), client(&client_config));
    let full = |port: &Port| port.layer.metrics.tls_handshakes[TlsHandshake::Full as usize].get();
    while full(&port) == 0 || port.layer.palette().live() > 0 {
        port.world.client_send(id, &take_tls(&mut client));
        port.turn();
        give_tls(&mut client, &port.world.client_take(id)).unwrap();
    }
    (port, id, client)
}

/// A connection whose stream this side has ended is read from until its peer has ended its own.
#[test]
fn who_was_told_the_last_is_read_on() {
    let (mut port, id, mut client) = port_with_client();
    let key = port.keys[0];
    port.layer.shutdown(key);
    // The kernel ends a receive after so many bytes, and has to be asked again.
    port.world.set_faults(Faults { disarm: 1.0, ..Faults::default() });
    client.writer().write_all(&[7; 3000]).unwrap();
    let said = take_tls(&mut client);
    port.world.client_send(id, &said);
    port.world.client_shutdown(id);
    for _ in 0..500 {
        port.turn();
    }
    assert_eq!((port.ended.as_slice(), port.received), (&[key][..], said.len()), "the shard knows how much it is");
}

/// The send that failed was the layer's own, and the shard's waited behind it.
#[test]
fn a_send_behind_one_that_fails_ends_too() {
    let (mut port, id, mut client) = port_with_client();
    let key = port.keys[0];
    port.world.client_stall(id, true);
    // Answers to key updates fill the client's window; then one is in flight, and stays there.
    while port.layer.palette().live() == 0 {
        for _ in 0..20 {
            client.writer().write_all(b"a word").unwrap();
            client.refresh_traffic_keys().unwrap();
            port.world.client_send(id, &take_tls(&mut client));
            port.turn();
        }
        (0..50).for_each(|_| port.turn());
    }
    let frame = port.layer.palette().open();
    port.layer.palette().append(frame, |out| out.extend_from_slice(b"of the shard")).unwrap();
    port.layer.send(key, frame, 0);
    port.layer.pause(key); // so that its receive does not tell
    port.world.client_reset(id);
    for _ in 0..20 {
        port.turn();
    }
    assert_eq!(port.failed, [key]);
    port.layer.palette().release(frame);
    assert_eq!(port.layer.palette().live(), 0);
}

#[test]
fn who_has_gone_leaves_the_line() {
    let (server, client_config) = configs(&[&rustls::version::TLS13], None);
    let mut port = Port::new(server);
    let hello = take_tls(&mut client(&client_config));
    for _ in 0..60 {
        let client = port.world.connect();
        port.world.client_send(client, &hello);
    }
    let late = port.world.connect();
    while port.keys.len() < 61 {
        port.turn();
    }
    let there = port.layer.waiting.len();
    assert!(there > 30, "{there}");
    let keys = std::mem::take(&mut port.keys);
    keys[1..60].iter().for_each(|&key| port.layer.close(key));
    port.turn();
    port.world.client_send(late, &hello[..hello.len() / 2]);
    port.turn();
    port.world.client_send(late, &hello[hello.len() / 2..]);
    port.turn();
    assert!(port.layer.waiting.len() <= 2 * port.layer.live(), "{} wait", port.layer.waiting.len());
    port.layer.close(keys[0]);
    port.layer.close(keys[60]);
    port.turn();
    port.turn();
    assert_eq!((port.layer.live(), port.layer.waiting.len(), port.layer.palette().live()), (0, 0, 0));
}

/// A client that changes its keys again and again and reads nothing makes one answer wait, not one for each.
#[test]
fn key_updates_have_one_answer_while_nobody_reads() {
    let (mut port, id, mut client) = port_with_client();
    port.world.client_stall(id, true);
    let most = |port: &mut Port| port.layer.palette().live_bytes();
    let mut seen = 0;
    for number in 0..20_000 {
        if number % 16 == 0 {
            client.writer().write_all(b"a word").unwrap(); // or it would be too many in a row
        }
        client.refresh_traffic_keys().unwrap();
        port.world.client_send(id, &take_tls(&mut client));
        port.turn();
        seen = seen.max(most(&mut port));
    }
    assert!(seen > 0, "the client's window is closed, and nothing waits");
    assert!(seen < 200, "{seen} bytes wait");
    assert!(port.ended.is_empty());
    let key = port.keys[0];
    port.layer.close(key);
    while port.layer.live() > 0 {
        port.turn();
    }
    assert_eq!(port.layer.palette().live(), 0);
}

//! `Forwarded` and `X-Forwarded-For`: only trusted peers are believed, and nobody left of them.

use std::net::SocketAddr;

use tidewheel::app::forwarded::{client_of, is_trusted};
use tidewheel::config::network::Network;
use tidewheel::ws::{HandshakeLimits, Progress, parse_request};

use crate::script::Script;

/// Which headers there are, how long the first is, and the values.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let kind = script.byte();
    let first = script.piece();
    let (first, second) = (legal(first), legal(script.0));
    let names = if kind & 1 == 0 { ["Forwarded", "X-Forwarded-For"] } else { ["X-Forwarded-For", "Forwarded"] };
    let name_of_second = if kind & 2 == 0 { names[0] } else { names[1] };
    let trusted: Vec<Network> = TRUSTED.iter().map(|text| text.parse().expect("a network")).collect();
    let ask = |peer: &str, lines: &[(&str, &[u8])]| {
        let peer: SocketAddr = peer.parse().expect("an address");
        client(peer, lines, &trusted).map(|client| (client, is_trusted(client, &trusted)))
    };
    let lines = [(names[0], &*first), (name_of_second, &*second)];
    let Some((client, _)) = ask(PROXY, &lines) else { return };
    assert_eq!(ask(STRANGER, &lines).map(|(client, _)| client.to_string()).as_deref(), Some(STRANGER));
    assert_eq!(client.ip().to_canonical(), client.ip(), "an IPv4 address is one");
    // One header: what stands left of the client changes nothing.
    let alone = [(names[0], &*second)];
    let Some((client_alone, is_one_of_ours)) = ask(PROXY, &alone) else { return };
    if !is_one_of_ours {
        let more = [&*first, b",", &second].concat();
        let same = [(names[0], &*more)];
        assert_eq!(ask(PROXY, &same).map(|(client, _)| client), Some(client_alone));
        let above = [(names[0], &*first), (names[0], &*second)];
        assert_eq!(ask(PROXY, &above).map(|(client, _)| client), Some(client_alone));
    }
}

fn client(peer: SocketAddr, lines: &[(&str, &[u8])], trusted: &[Network]) -> Option<SocketAddr> {
    let mut head = HEAD.to_vec();
    for (name, value) in lines {
        head.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    match parse_request(&head, 0, &HandshakeLimits { header_bytes_max: 1 << 20 }) {
        Ok(Progress::Complete { request, .. }) => Some(client_of(peer, &request, trusted)),
        _ => None,
    }
}

/// The bytes that may stand in a value.
fn legal(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| !matches!(byte, 0..0x20 | 0x7f)).collect()
}

const HEAD: &[u8] = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const TRUSTED: [&str; 3] = ["10.0.0.0/8", "fd00::/8", "::1"];
const PROXY: &str = "10.0.0.1:1000";
const STRANGER: &str = "192.0.2.9:1000";

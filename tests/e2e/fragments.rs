//! A 4 MiB message in fragments of 64 bytes, of one byte and of none: there is no most number of them, and what they cost is
//! the one buffer that they grow.
//! Law: the buffer is at most twice what has been received, all along, and the process is not asked for much more than that.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::process::Process;
use super::raw::{BINARY, FIN, Frame, MASK, Raw, masked};
use super::server::Server;
use super::until;

const MESSAGE_BYTES: usize = 4 << 20;
const RSV1: u8 = 0x40;
const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
const PIECES: usize = 8;

/// Hexadecimal digits, which compression makes half as long.
fn digits() -> Vec<u8> {
    let mut state = 1_u64;
    let mut digit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b"0123456789abcdef"[(state >> 60) as usize]
    };
    (0..MESSAGE_BYTES).map(|_| digit()).collect()
}

/// As the payload of a compressed message.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(2 * message.len());
    Compress::new(Compression::default(), false).compress_vec(message, &mut payload, FlushCompress::Sync).unwrap();
    assert!(payload.ends_with(&[0, 0, 0xff, 0xff]));
    payload.truncate(payload.len() - 4);
    payload
}

fn inflated(mut payload: Vec<u8>) -> Vec<u8> {
    payload.extend_from_slice(&[0, 0, 0xff, 0xff]);
    let mut message = Vec::with_capacity(MESSAGE_BYTES + 1);
    Decompress::new(false).decompress_vec(&payload, &mut message, FlushDecompress::Sync).unwrap();
    message
}

/// The payload in fragments of `sizes` bytes, again and again; a last one that is empty ends the message.
struct Fragments<'a> {
    payload: &'a [u8],
    first: u8,
    sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl<'a> Fragments<'a> {
    fn new(payload: &'a [u8], is_deflated: bool, sizes: &'a [usize]) -> Self {
        let first = BINARY | if is_deflated { RSV1 } else { 0 };
        Self { payload, first, sizes: sizes.iter().cycle() }
    }

    /// The frames of the next `bytes` bytes.
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let (mut frames, mut left) = (Vec::new(), bytes);
        while left > 0 {
            let size = (*self.sizes.next().unwrap()).min(left);
            let (piece, rest) = self.payload.split_at(size);
            let first = std::mem::take(&mut self.first);
            match size {
                // Millions of them: without an allocation each.
                ..126 => {
                    frames.extend_from_slice(&[first, 0x80 | size as u8]);
                    frames.extend_from_slice(&MASK);
                    frames.extend(piece.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
                }
                _ => frames.extend(masked(first, piece)),
            }
            self.payload = rest;
            left -= size;
        }
        frames
    }
}

/// Sends a message in `sizes` and gets it back. After each eighth `look` is told how many bytes of it the server has.
fn play(raw: &mut Raw, message: &[u8], is_deflated: bool, sizes: &[usize], look: impl Fn(usize)) {
    let payload = if is_deflated { deflated(message) } else { message.to_vec() };
    let mut fragments = Fragments::new(&payload, is_deflated, sizes);
    for part in 1..=PIECES {
        let bytes = payload.len() * part / PIECES - payload.len() * (part - 1) / PIECES;
        raw.write(&fragments.take(bytes));
        look(payload.len() * part / PIECES);
    }
    raw.write(&masked(FIN, b""));
    let Frame { first, payload } = raw.next().expect("the message");
    assert_eq!(first, FIN | BINARY | if is_deflated { RSV1 } else { 0 });
    let back = if is_deflated { inflated(payload) } else { payload };
    assert!(back == message, "the message came back changed");
}

/// Fragments of 64 bytes, and of one byte with an empty one behind each.
const SIZES: [&[usize]; 2] = [&[64], &[1, 0]];

#[test]
fn the_buffer_follows_what_was_received() {
    let server =
        Server::start(&format!("echo_path: /echo\nwebsocket: {{max_message_size: {}B}}", MESSAGE_BYTES + 4096));
    let held = || server.sum(|shard| &shard.inbound_bytes) as usize;
    let message = digits();
    // One after the other: the gauge is of all connections.
    for is_deflated in [false, true] {
        let mut raw = server.raw();
        raw.upgrade_with("/echo", if is_deflated { DEFLATE } else { "" });
        play(&mut raw, &message, is_deflated, SIZES[0], |received| {
            until("all of it to be in the buffer", || held() >= received);
            assert!(held() <= 2 * received + 1024, "{} bytes for {received}", held());
        });
        until("the buffer to go", || held() == 0);
    }
    server.rest();
}

#[test]
fn no_number_of_fragments_is_too_many() {
    let message = digits();
    let max = format!("{}B", MESSAGE_BYTES + 4096);
    for sizes in SIZES {
        for is_deflated in [false, true] {
            let settings = [("TIDEWHEEL_ECHO_PATH", "/echo"), ("TIDEWHEEL_WEBSOCKET_MAX_MESSAGE_SIZE", max.as_str())];
            let server = Process::start(&[&settings[..], &[("TIDEWHEEL_OUTBOUND_MAX_BYTES", "16MiB")]].concat());
            let mut raw = Raw::connect(server.address);
            raw.upgrade_with("/echo", if is_deflated { DEFLATE } else { "" });
            // What is touched once, by a message in one fragment, is no fragment's.
            play(&mut raw, &message, is_deflated, &[MESSAGE_BYTES], |_| {});
            let before = server.peak_kib();
            play(&mut raw, &message, is_deflated, sizes, |_| {});
            let grown = server.peak_kib() - before;
            let message_kib = MESSAGE_BYTES as u64 / 1024;
            assert!(grown <= message_kib, "{grown} KiB more for {sizes:?}, compressed: {is_deflated}");
        }
    }
}

//! Context takeover: what a connection costs the server in memory whose compressed messages refer to those before.
//!
//! Law: what is compared are the same connections before their first compressed message, behind it, and when they have sent
//! more than a window holds; each message is answered before the next look.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use tidewheel::ws::deflate::INFLATER_BYTES;

use super::child::Server;
use super::json;
use super::server::{ECHO_PATH, Kind};
use super::table::Table;
use super::websocket;

/// Prints what a connection costs beyond what it costs without.
///
/// # Errors
/// The server failed.
pub fn report(connections: usize) -> io::Result<()> {
    let server = Server::start(Kind::TidewheelTakeover)?;
    let mut clients = Vec::new();
    for _ in 0..connections {
        let mut socket = server.connect()?;
        websocket::shake_hands_offering(&mut socket, ECHO_PATH, Kind::TidewheelTakeover.offer())?;
        clients.push(Client { socket, compress: Compress::new(Compression::default(), false) });
    }
    let before = settled(&server)?;
    let mut each_behind = |messages: std::ops::Range<u64>| -> io::Result<f64> {
        for client in &mut clients {
            messages.clone().try_for_each(|number| client.echo(number))?;
        }
        Ok((settled(&server)? as f64 - before as f64) / connections as f64)
    };
    let name = format!("bytes for each of {connections} connections with context takeover, beyond one without (PSS)");
    let mut table = Table::new(&name, &["bytes"]);
    table.row("behind its first message, 1 KB of JSON", &[each_behind(0..1)?], 0);
    table.row("when its window is full", &[each_behind(1..WINDOW_MESSAGES)?], 0);
    table.row("what `tidewheel_inflater_bytes` says", &[INFLATER_BYTES as f64], 0);
    table.print()
}

struct Client {
    socket: TcpStream,
    compress: Compress,
}

impl Client {
    /// Sends message `number` compressed and waits for it to come back, in whatever form.
    fn echo(&mut self, number: u64) -> io::Result<()> {
        let text = json::trades(number);
        let mut payload = Vec::with_capacity(text.len() + 100);
        self.compress.compress_vec(text.as_bytes(), &mut payload, FlushCompress::Sync).map_err(io::Error::other)?;
        payload.truncate(payload.len() - TAIL_BYTES);
        let mut frame = Vec::new();
        websocket::text_frame(&mut frame, &payload, [5, 6, 7, 8]);
        frame[0] |= RSV1;
        self.socket.write_all(&frame)?;
        let mut header = [0; 4];
        self.socket.read_exact(&mut header)?;
        let [first, 126, high, low] = header else {
            return Err(io::Error::other(format!("not the message: {header:x?}")));
        };
        let mut echo = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        self.socket.read_exact(&mut echo)?;
        let is_text = first & !RSV1 == 0x81;
        if is_text { Ok(()) } else { Err(io::Error::other(format!("not a text: {first:x}"))) }
    }
}

fn settled(server: &Server) -> io::Result<u64> {
    thread::sleep(Duration::from_secs(2));
    server.pss_bytes()
}

/// More than 32 KiB.
const WINDOW_MESSAGES: u64 = 64;
const RSV1: u8 = 0x40;
/// The end of a flushed stream, which is not sent (RFC 7692 §7.2.1).
const TAIL_BYTES: usize = 4;

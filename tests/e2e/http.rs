//! A client of the internal port that says what it likes and keeps what comes back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use super::server::tcp;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The body, which must be JSON and say so.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        serde_json::from_str(&self.body).expect("a JSON body")
    }
}

/// Sends one request, `METHOD target`, with header lines of the caller's choice, on a connection of its own.
#[track_caller]
pub fn request(address: SocketAddr, request: &str, headers: &str, body: &[u8]) -> Answer {
    say(tcp(address), request, headers, body, |_| {})
}

/// The same; the client ends its side of the connection before the answer comes.
#[track_caller]
pub fn last_request(address: SocketAddr, request: &str, headers: &str, body: &[u8]) -> Answer {
    say(tcp(address), request, headers, body, |stream| stream.shutdown(Shutdown::Write).unwrap())
}

#[track_caller]
fn say(mut stream: TcpStream, request: &str, headers: &str, body: &[u8], then: impl FnOnce(&TcpStream)) -> Answer {
    let address = stream.peer_addr().unwrap();
    let is_framed = headers.contains("Content-Length") || headers.contains("Transfer-Encoding");
    let length = match is_framed || request.starts_with("GET") {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    let head = format!("{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}{length}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // A server that has refused the head need not read the body.
    let _ = stream.write_all(body);
    then(&stream);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {request}: {text}"));
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

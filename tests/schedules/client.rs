//! One client: connected to one shard, on a thread of its own, and asleep while nothing arrives.

use std::net::IpAddr;

use serde_json::Value;
use tidewheel::id::ShardId;
use tidewheel::io::sim::{ClientId, ClientState, Dice};

use crate::stage::{deliver, sleep, wake, world};
use crate::wire::{self, CLOSE, Reader, TEXT};

pub struct Client {
    id: ClientId,
    /// Its thread and its shard's.
    who: usize,
    shard: usize,
    reader: Reader,
    dice: Dice,
    asked: u64,
    /// The code of the server's close frame, or 0 if the connection ended without one.
    pub closed: Option<u16>,
    /// `[publisher, number]` of every message, and of broadcasts `[u64::MAX, number]`, in the order in which they came.
    pub received: Vec<[u64; 2]>,
}

impl Client {
    /// Connects and asks for an upgrade; `None` if the server did not let it in.
    pub fn connect(who: usize, shard: usize, address: IpAddr) -> Option<Self> {
        let id = world().connect_from(address, ShardId(shard as u16));
        let (reader, dice) = (Reader::default(), Dice::new(who as u64));
        let mut client = Self { id, who, shard, reader, dice, asked: 0, closed: None, received: Vec::new() };
        client.send(wire::request("/ws").as_bytes());
        loop {
            match client.reader.response() {
                Some(101) => return Some(client),
                Some(_) => return None,
                None if client.wait() => {}
                None => return None,
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        world().client_send(self.id, bytes);
        deliver();
        wake(self.shard);
    }

    /// Waits for bytes and takes them, which makes room for more; false if there will be none.
    fn wait(&mut self) -> bool {
        loop {
            // Between these looks and the sleep nobody else runs.
            let bytes = world().client_take(self.id);
            if !bytes.is_empty() {
                self.reader.feed(&bytes);
                deliver();
                wake(self.shard);
                return true;
            }
            if world().client_state(self.id) != ClientState::Open {
                return false;
            }
            sleep(self.who, None);
        }
    }

    /// Asks for something and waits for the answer; `None` if the connection ends first.
    pub fn ask(&mut self, kind: &str, payload: &str) -> Option<Value> {
        let id = self.asked;
        self.asked += 1;
        let mut out = Vec::new();
        let text = format!("{{\"id\":{id},\"type\":\"{kind}\",\"payload\":{payload}}}");
        wire::frame(&mut out, 0x80 | TEXT, text.as_bytes(), &mut self.dice);
        self.send(&out);
        loop {
            let answer = self.next()?;
            if answer["reply_to"] == id {
                return Some(answer["payload"].clone());
            }
        }
    }

    /// Reads until the connection ends.
    pub fn finish(&mut self) {
        while self.next().is_some() {}
    }

    /// The next message that is no publish or broadcast; `None` if the connection has ended.
    fn next(&mut self) -> Option<Value> {
        loop {
            while let Some(frame) = self.reader.frame() {
                if frame.opcode == CLOSE {
                    self.closed = Some(u16::from_be_bytes(*frame.payload.first_chunk().expect("a code")));
                    let mut out = Vec::new();
                    wire::frame(&mut out, 0x80 | CLOSE, &frame.payload[..2], &mut self.dice);
                    self.send(&out);
                    continue;
                }
                assert!(self.closed.is_none(), "something after the close frame");
                let message: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                let data = &message["payload"]["data"];
                match message["type"].as_str().expect("a type") {
                    "message" | "broadcast" => {
                        self.received.push([0, 1].map(|at| data[at].as_u64().expect("two numbers")));
                    }
                    "disconnect" => {}
                    _ => return Some(message),
                }
            }
            if !self.wait() {
                self.closed.get_or_insert(0);
                return None;
            }
        }
    }
}

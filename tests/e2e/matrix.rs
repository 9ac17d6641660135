//! The matrix: four shards, 2,000 subscribers, 200 topics, 20 publishers that publish to all of them at once.
//! Law: every subscriber of a topic gets every message of it exactly once and in each publisher's order, and the
//! receipts add up to what arrived.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidewheel::metrics::Drop;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::raw::{self, FIN, TEXT, request};
use super::server::Server;

const TOPICS: usize = 200;
const SUBSCRIBERS: usize = 10 * TOPICS;
const PUBLISHERS: usize = 20;
/// Messages that each publisher sends to each topic.
const ROUNDS: usize = 5;
/// How long the whole may take on a machine that does something else beside it.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn every_subscriber_gets_every_message_once_and_in_order() {
    run_with("io: {wait: recv}");
}

#[test]
fn also_when_polled() {
    run_with("io: {wait: poll}");
}

fn run_with(yaml: &str) {
    let server = Server::build(4, yaml, |builder| builder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let totals = runtime
        .block_on(async { tokio::time::timeout(DEADLINE, run(server.address)).await.expect("all to arrive in time") });
    let published = (PUBLISHERS * TOPICS * ROUNDS) as u64;
    assert_eq!(totals, Totals { published, queued: 10 * published, received: 10 * published });
    assert_eq!(server.sum(|shard| &shard.published), published);
    for shard in server.handle.metrics() {
        assert!(shard.opened.get() > 100, "the kernel spreads connections over all shards");
        assert_eq!(shard.dropped[Drop::Disconnect as usize].get(), 0);
    }
    server.rest();
}

#[derive(Debug, PartialEq)]
struct Totals {
    published: u64,
    queued: u64,
    received: u64,
}

async fn run(address: SocketAddr) -> Totals {
    let subscribed = Arc::new(AtomicU64::new(0));
    let mut subscribers = JoinSet::new();
    for index in 0..SUBSCRIBERS {
        let peer = Peer::connect(address).await;
        subscribers.spawn(subscribe(peer, index % TOPICS, subscribed.clone()));
    }
    while subscribed.load(Ordering::Relaxed) < SUBSCRIBERS as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut publishers = JoinSet::new();
    for index in 0..PUBLISHERS {
        let peer = Peer::connect(address).await;
        publishers.spawn(publish(peer, index));
    }
    let queued = publishers.join_all().await.into_iter().sum();
    let received = subscribers.join_all().await.into_iter().sum();
    Totals { published: (PUBLISHERS * TOPICS * ROUNDS) as u64, queued, received }
}

/// Subscribes to one topic, and checks message by message that the next of each publisher comes next.
async fn subscribe(mut peer: Peer, topic: usize, subscribed: Arc<AtomicU64>) -> u64 {
    let name = format!("topic.{topic}");
    peer.send(&raw::text(&format!(r#"{{"type":"subscribe","payload":{{"topic":"{name}"}}}}"#))).await;
    let ack: Reply = peer.next().await;
    assert_eq!(ack.kind, "ack");
    subscribed.fetch_add(1, Ordering::Relaxed);
    let mut next = [0; PUBLISHERS];
    for _ in 0..PUBLISHERS * ROUNDS {
        let message: Message = peer.next().await;
        assert_eq!(message.payload.topic, name);
        let (publisher, number) = message.payload.data;
        assert_eq!(number, next[publisher], "publisher {publisher} on topic {topic}");
        next[publisher] += 1;
    }
    peer.send(&raw::text(r#"{"type":"ping"}"#)).await;
    let pong: Reply = peer.next().await;
    assert_eq!(pong.kind, "pong", "nothing comes twice");
    next.iter().sum::<usize>() as u64
}

/// Publishes to all topics in turn, without waiting, and adds up the receipts.
async fn publish(mut peer: Peer, publisher: usize) -> u64 {
    let mut requests = Vec::new();
    for number in 0..ROUNDS {
        for step in 0..TOPICS {
            // Each begins somewhere else, so that all topics are written to at once.
            let topic = (step + publisher * TOPICS / PUBLISHERS) % TOPICS;
            let rest = format!(r#""payload":{{"topic":"topic.{topic}","data":[{publisher},{number}]}}"#);
            requests.extend(raw::text(&format!(r#"{{"id":{step},"type":"publish",{rest}}}"#)));
        }
    }
    let stream = peer.stream.clone();
    let write = async { send(&stream, &requests).await };
    let read = async {
        let mut queued = 0;
        for index in 0..ROUNDS * TOPICS {
            let receipt: Receipt = peer.next().await;
            assert_eq!(receipt.reply_to, index % TOPICS, "receipts come in order");
            assert_eq!((receipt.payload.matched, receipt.payload.dropped), (10, 0));
            queued += receipt.payload.queued;
        }
        queued
    };
    tokio::join!(write, read).1
}

/// A connection that is one of thousands on one thread.
struct Peer {
    stream: Arc<TcpStream>,
    received: Vec<u8>,
    taken: usize,
}

impl Peer {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut peer = Self { stream: Arc::new(stream), received: Vec::new(), taken: 0 };
        peer.send(request("/ws").as_bytes()).await;
        while !peer.received.ends_with(b"\r\n\r\n") {
            peer.more().await;
        }
        assert!(peer.received.starts_with(b"HTTP/1.1 101 "));
        peer.received.clear();
        peer
    }

    async fn send(&self, bytes: &[u8]) {
        send(&self.stream, bytes).await;
    }

    async fn next<T: DeserializeOwned>(&mut self) -> T {
        loop {
            if let Some((frame, bytes)) = raw::split(&self.received[self.taken..]) {
                self.taken += bytes;
                assert_eq!(frame.first, FIN | TEXT, "{frame:?}");
                let message = serde_json::from_slice(&frame.payload);
                return message.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&frame.payload)));
            }
            self.more().await;
        }
    }

    async fn more(&mut self) {
        self.received.drain(..std::mem::take(&mut self.taken));
        let mut bytes = [0; 16 * 1024];
        loop {
            self.stream.readable().await.unwrap();
            match self.stream.try_read(&mut bytes) {
                Ok(0) => panic!("the server has closed"),
                Ok(count) => return self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn send(stream: &TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        stream.writable().await.unwrap();
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Message {
    payload: MessagePayload,
}

#[derive(Deserialize)]
struct MessagePayload {
    topic: String,
    data: (usize, usize),
}

#[derive(Deserialize)]
struct Receipt {
    reply_to: usize,
    payload: ReceiptPayload,
}

#[derive(Deserialize)]
struct ReceiptPayload {
    matched: u64,
    queued: u64,
    dropped: u64,
}

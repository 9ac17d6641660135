//! A client that behaves: tungstenite, and the envelope of the native protocol.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::Response;
use tungstenite::http::HeaderValue;
use tungstenite::{Error, Message, WebSocket};

use super::server::tcp;

/// How a connection ended, as its client saw it.
#[derive(Debug, PartialEq)]
pub struct Ended {
    /// Payload of `disconnect`, if there was one.
    pub disconnect: Option<Value>,
    /// Code and reason of the close frame, if there was one.
    pub close: Option<(u16, String)>,
}

/// A connected client.
pub struct Client<S = TcpStream> {
    pub socket: WebSocket<S>,
    /// Messages that came while something else was awaited.
    early: Vec<Value>,
    requests: u64,
}

impl Client {
    /// Connects to `/ws` and asks for nothing special.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_to(address, "/ws", &[]).0
    }

    /// Connects with headers of the caller's choice.
    #[track_caller]
    pub fn connect_to(address: SocketAddr, path: &str, headers: &[(&'static str, &str)]) -> (Self, Response) {
        Self::try_connect_to(address, path, headers).unwrap()
    }

    /// Connects, or says why not.
    pub fn try_connect_to(
        address: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Response), Box<dyn std::error::Error>> {
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        for &(name, value) in headers {
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        let (socket, response) = tungstenite::client(request, tcp(address))?;
        Ok((Self { socket, early: Vec::new(), requests: 0 }, response))
    }
}

impl<S: Read + Write> Client<S> {
    /// Upgrades a connection that was made elsewhere, or says why not.
    pub fn over(stream: S, url: &str) -> Result<(Self, Response), Box<dyn std::error::Error + 'static>>
    where
        S: 'static,
    {
        let (socket, response) = tungstenite::client(url, stream)?;
        Ok((Self { socket, early: Vec::new(), requests: 0 }, response))
    }

    /// Sends text as it is.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Sends a message without an id.
    #[track_caller]
    pub fn tell(&mut self, kind: &str, payload: Value) {
        self.send(&json!({"type": kind, "payload": payload}).to_string());
    }

    /// Sends a request and waits for its reply; what comes before is kept for [`Client::next`].
    #[track_caller]
    pub fn ask(&mut self, kind: &str, payload: Value) -> Value {
        self.requests += 1;
        let id = format!("request-{}", self.requests);
        self.send(&json!({"id": id, "type": kind, "payload": payload}).to_string());
        loop {
            let message = self.receive();
            if message["reply_to"] == id.as_str() {
                return message;
            }
            self.early.push(message);
        }
    }

    /// Asks and expects an `ack`; returns its payload.
    #[track_caller]
    pub fn ack(&mut self, kind: &str, payload: Value) -> Value {
        let reply = self.ask(kind, payload);
        assert_eq!(reply["type"], "ack", "{reply}");
        assert_eq!(reply["payload"]["success"], true, "{reply}");
        reply["payload"].clone()
    }

    /// Asks and expects an `error` with this code; returns its text.
    #[track_caller]
    pub fn refused(&mut self, kind: &str, payload: Value, code: &str) -> String {
        let reply = self.ask(kind, payload);
        assert_eq!((&reply["type"], &reply["payload"]["code"]), (&json!("error"), &json!(code)), "{reply}");
        reply["payload"]["message"].as_str().expect("a text for people").to_owned()
    }

    /// Subscribes.
    #[track_caller]
    pub fn subscribe(&mut self, topic: &str) {
        self.ack("subscribe", json!({"topic": topic}));
    }

    /// Publishes and returns the receipt as `(matched, queued, dropped)`.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, data: Value) -> (u64, u64, u64) {
        let receipt = self.ack("publish", json!({"topic": topic, "data": data}));
        let count = |name: &str| receipt[name].as_u64().expect("a count");
        (count("matched"), count("queued"), count("dropped"))
    }

    /// The next message.
    #[track_caller]
    pub fn next(&mut self) -> Value {
        if self.early.is_empty() { self.receive() } else { self.early.remove(0) }
    }

    /// What came while something else was awaited.
    pub fn take_early(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.early)
    }

    /// The next message, which must be of this type; returns its payload.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        let message = self.next();
        assert_eq!(message["type"], kind, "{message}");
        message["payload"].clone()
    }

    /// The next message, which must be one of a topic; returns its data.
    #[track_caller]
    pub fn data(&mut self, topic: &str) -> Value {
        let payload = self.expect("message");
        assert_eq!(payload["topic"], topic, "{payload}");
        payload["data"].clone()
    }

    /// The text of the next message as it came.
    #[track_caller]
    pub fn text(&mut self) -> String {
        loop {
            match self.socket.read().unwrap() {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} instead of a text message"),
            }
        }
    }

    /// Checks that nothing is on its way: the next message is the reply to a ping sent now.
    #[track_caller]
    pub fn quiet(&mut self) {
        let reply = self.ask("ping", json!({}));
        assert_eq!((&reply["type"], &self.early), (&json!("pong"), &Vec::new()), "{reply}");
    }

    /// Reads until the connection ends. Messages other than `disconnect` are passed over.
    #[track_caller]
    pub fn ended(&mut self) -> Ended {
        let mut ended = Ended { disconnect: None, close: None };
        for message in self.take_early() {
            if message["type"] == "disconnect" {
                ended.disconnect = Some(message["payload"].clone());
            }
        }
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    assert!(ended.disconnect.is_none(), "{message} after `disconnect`");
                    if message["type"] == "disconnect" {
                        ended.disconnect = Some(message["payload"].clone());
                    }
                }
                Ok(Message::Close(frame)) => {
                    ended.close = frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                }
                Ok(_) => {}
                Err(Error::ConnectionClosed) => return ended,
                Err(error) => panic!("{error} instead of a clean end; so far {ended:?}"),
            }
        }
    }

    /// Reads until the connection ends, which must be with this close code and a `disconnect` that says the same.
    #[track_caller]
    pub fn parted(&mut self, code: u16, reconnect: bool) -> Ended {
        let ended = self.ended();
        let disconnect = ended.disconnect.as_ref().expect("told before it is closed");
        assert_eq!((&disconnect["code"], &disconnect["reconnect"]), (&json!(code), &json!(reconnect)), "{ended:?}");
        assert!(disconnect["reason"].is_string() && disconnect["retry_after_ms"].is_u64(), "{ended:?}");
        assert_eq!(ended.close.as_ref().map(|close| close.0), Some(code), "{ended:?}");
        ended
    }

    /// Closes and waits for the server's answer.
    #[track_caller]
    pub fn close(mut self) {
        self.socket.close(None).unwrap();
        self.ended();
    }

    /// The next message that arrives, whatever was kept.
    #[track_caller]
    fn receive(&mut self) -> Value {
        let message: Value = serde_json::from_str(&self.text()).unwrap();
        let members = message.as_object().expect("an object");
        let known = ["type", "payload", "reply_to", "timestamp"];
        assert!(members.keys().all(|name| known.contains(&name.as_str())), "{message}");
        assert!(message["timestamp"].as_u64().is_some_and(|unix_ms| unix_ms > 1_700_000_000_000), "{message}");
        message
    }
}

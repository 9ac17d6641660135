//! From a TCP connection to a WebSocket, or to an HTTP error that says why not.
//! Law: the head's memory follows its bytes up to `max_header_bytes`, and as many again of a PROXY header in front of it;
//! bytes after the head are frames.

use std::borrow::Cow;

use crate::app::auth::Claims;
use crate::app::clients::TooMany;
use crate::app::{forwarded, origin};
use crate::conn::{Endpoint, Greeting, Phase};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, Refusal};
use crate::ws::deflate::{Agreement, Terms, negotiate};
use crate::ws::{self, Preamble, Progress, Upgrade};

use super::Shard;
use super::accept::Accepting;
use super::settings::SUBPROTOCOL;

/// What a finished request leads to.
enum Verdict {
    Open { endpoint: Endpoint, claims: Option<Claims> },
    Refuse { status: u16, why: Cow<'static, str>, cause: Refusal },
}

impl<I: Io> Shard<I> {
    /// What is known of a connection whose handshake is in flight.
    pub(super) fn greeting(&mut self, key: ConnKey) -> Option<&mut Greeting> {
        match &mut self.conns.get_mut(key)?.phase {
            Phase::Handshake(greeting) => Some(greeting),
            _ => None,
        }
    }

    /// Takes bytes of the request; frames that follow it go on to the decoder.
    pub(super) fn shake_hands(&mut self, key: ConnKey, bytes: &mut [u8]) {
        let Some(greeting) = self.greeting(key) else { return };
        let mut head = std::mem::take(&mut greeting.head);
        if head.is_empty() {
            match self.try_upgrade(key, bytes, 0) {
                Some(head_bytes) => self.on_frames(key, &mut bytes[head_bytes..]),
                None => self.keep_head(key, bytes.to_vec()),
            }
        } else {
            let seen = head.len();
            head.extend_from_slice(bytes);
            match self.try_upgrade(key, &head, seen) {
                Some(head_bytes) => self.on_frames(key, &mut head[head_bytes..]),
                None => self.keep_head(key, head),
            }
        }
    }

    fn keep_head(&mut self, key: ConnKey, unfinished: Vec<u8>) {
        if let Some(greeting) = self.greeting(key) {
            greeting.head = unfinished;
        }
    }

    /// Answers the request if it is complete or wrong. Returns where frames begin, if it was upgraded.
    fn try_upgrade(&mut self, key: ConnKey, bytes: &[u8], seen: usize) -> Option<usize> {
        let request_at = self.pass_preamble(key, bytes)?;
        let (request, seen) = (&bytes[request_at..], seen.saturating_sub(request_at));
        match self.contain_in(key, |shard| ws::parse_request(request, seen, &shard.settings.handshake))? {
            Ok(Progress::NeedMore) => None,
            Ok(Progress::Complete { request, head_bytes }) => {
                self.answer(key, &request).map(|()| request_at + head_bytes)
            }
            Err(error) => {
                self.metrics.refused[Refusal::BadRequest as usize].add(1);
                tracing::debug!(shard = self.id.0, slot = key.slot, %error, "handshake refused");
                self.refuse(key, |out| error.refuse(out), CloseReason::BadHandshake);
                None
            }
        }
    }

    /// Takes the PROXY header in front of the request, if there has to be one. Returns where the request begins.
    fn pass_preamble(&mut self, key: ConnKey, bytes: &[u8]) -> Option<usize> {
        if let Some(request_at) = self.greeting(key)?.request_at {
            return Some(request_at);
        }
        let parse = |shard: &Self| ws::parse_preamble(bytes, shard.settings.handshake.header_bytes_max);
        match self.contain_in(key, parse)? {
            Ok(Preamble::NeedMore) => None,
            Ok(Preamble::Complete { client, bytes }) => {
                let greeting = self.greeting(key)?;
                greeting.peer = client.or(greeting.peer);
                greeting.request_at = Some(bytes);
                Some(bytes)
            }
            Err(error) => {
                tracing::debug!(shard = self.id.0, slot = key.slot, %error, "handshake refused");
                self.turn_down(key, 400, &error.to_string(), Refusal::BadRequest);
                None
            }
        }
    }

    /// Answers a complete request; `None` if it was not upgraded.
    fn answer(&mut self, key: ConnKey, request: &Upgrade<'_>) -> Option<()> {
        let &mut Greeting { peer, is_proxied, unwelcome, .. } = self.greeting(key)?;
        let (client, deflate, verdict) = self.contain_in(key, |shard| {
            // Whose connection it is: its peer's, unless that is a trusted proxy and says otherwise.
            let client = peer.map(|peer| forwarded::client_of(peer, request, &shard.settings.proxy.trusted));
            let is_flood = is_proxied && client.is_some_and(|client| shard.is_flood(client));
            let compression = &shard.settings.compression;
            let terms = Terms { client_context_takeover: compression.client_context_takeover };
            let deflate = compression.enabled.then(|| negotiate(request.extensions(), &terms)).flatten();
            (client, deflate, shard.judge(request, unwelcome.or(is_flood.then_some(Refusal::RateLimited))))
        })?;
        match verdict {
            Verdict::Open { endpoint, claims: Some(claims) } => {
                self.upgrade(key, request, endpoint, deflate);
                self.begin_session(key, client.map(|client| client.ip()));
                self.enter(key, claims, None);
                Some(())
            }
            Verdict::Open { endpoint, claims: None } => match self.list_anonymous(key, endpoint, client) {
                Ok(evicted) => {
                    evicted.into_iter().for_each(|place| self.send_away(place));
                    self.upgrade(key, request, endpoint, deflate);
                    self.begin_session(key, client.map(|client| client.ip()));
                    Some(())
                }
                Err(TooMany(_)) => {
                    let why = "as many connections from this address as there may be; connect again later";
                    self.turn_down(key, 429, why, Refusal::Address);
                    None
                }
            },
            Verdict::Refuse { status, why, cause } => {
                let (shard, slot) = (self.id.0, key.slot);
                tracing::debug!(shard, slot, status, %why, ?client, request.origin, "handshake refused");
                self.turn_down(key, status, &why, cause);
                None
            }
        }
    }

    /// Answers a request, or what should have been one, with a status and a reason.
    pub(super) fn turn_down(&mut self, key: ConnKey, status: u16, why: &str, cause: Refusal) {
        self.metrics.refused[cause as usize].add(1);
        let after = (self.io.random() % 4 + 1).to_string();
        let headers: &[_] = match status {
            401 => &[("WWW-Authenticate", "Bearer error=\"invalid_token\"")],
            429 | 503 => &[("Retry-After", &after)],
            _ => &[],
        };
        self.refuse(key, |out| ws::refuse(out, status, why, headers), CloseReason::BadHandshake);
    }

    fn judge(&self, request: &Upgrade<'_>, unwelcome: Option<Refusal>) -> Verdict {
        let refuse = |status, why: &'static str, cause| Verdict::Refuse { status, why: why.into(), cause };
        if self.accepting == Accepting::Stopped {
            return refuse(503, "the server is draining; connect again later", Refusal::Draining);
        }
        match unwelcome {
            None => {}
            Some(cause @ Refusal::RateLimited) => {
                return refuse(429, "too many connections from this address; connect again later", cause);
            }
            Some(cause) => {
                return refuse(503, "the server holds as many connections as it may; connect again later", cause);
            }
        }
        let endpoint = if request.path == self.settings.path {
            Endpoint::Native
        } else if Some(request.path) == self.settings.echo_path.as_deref() {
            Endpoint::Echo
        } else {
            return refuse(404, "no WebSocket endpoint at this path", Refusal::BadRequest);
        };
        if !origin::is_allowed(&self.settings.origins, request.origin, request.host) {
            let why = match request.origin {
                Some(_) => "pages of this Origin may not connect; origins.allow lists those that may",
                None => "Origin header missing: only pages may connect",
            };
            return refuse(403, why, Refusal::Origin);
        }
        match endpoint {
            Endpoint::Native => self.judge_credential(request),
            Endpoint::Echo => Verdict::Open { endpoint, claims: None },
        }
    }

    /// A token in the request must be good; there need not be one, since `authenticate` may come later.
    fn judge_credential(&self, request: &Upgrade<'_>) -> Verdict {
        if self.settings.authenticator.is_none() {
            return Verdict::Open { endpoint: Endpoint::Native, claims: None };
        }
        let verified = match self.settings.credentials.token(request) {
            Ok(token) => token.map(|token| self.verify(token)).transpose(),
            Err(two) => {
                return Verdict::Refuse { status: 400, why: two.to_string().into(), cause: Refusal::BadRequest };
            }
        };
        match verified {
            Ok(claims) => Verdict::Open { endpoint: Endpoint::Native, claims },
            Err(why) => Verdict::Refuse { status: 401, why: why.into(), cause: Refusal::Unauthorized },
        }
    }

    fn upgrade(&mut self, key: ConnKey, request: &Upgrade<'_>, endpoint: Endpoint, deflate: Option<Agreement>) {
        let subprotocol = request.protocols().any(|offered| offered == SUBPROTOCOL).then_some(SUBPROTOCOL);
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.metrics.handshake.observe(u64::from(now.wrapping_sub(conn.since)) * 1_000_000);
        conn.phase = Phase::Open;
        conn.endpoint = endpoint;
        conn.deflate = deflate;
        self.shared.windows.join(conn.window_bits());
        conn.since = now;
        conn.active = now;
        conn.outbound.reply(self.io.palette(), now, |out| ws::accept(out, request, subprotocol, deflate));
        self.metrics.upgraded.add(1);
        self.mark_dirty(key);
        self.reschedule(key);
    }
}

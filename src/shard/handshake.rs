//! From a TCP connection to a WebSocket, or to an HTTP error that says why not.
//! Law: the head's memory follows its bytes up to `max_header_bytes`; bytes after the head are frames.

use std::borrow::Cow;

use crate::app::auth::Claims;
use crate::app::origin;
use crate::conn::{Endpoint, Phase};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, Refusal};
use crate::ws::{self, Progress, Upgrade};

use super::Shard;
use super::accept::Accepting;
use super::settings::SUBPROTOCOL;

/// What a finished request leads to.
enum Verdict {
    Open { endpoint: Endpoint, claims: Option<Claims> },
    Refuse { status: u16, why: Cow<'static, str>, cause: Refusal },
}

impl<I: Io> Shard<I> {
    /// Takes bytes of the request; frames that follow it go on to the decoder.
    pub(super) fn shake_hands(&mut self, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Handshake { head, .. } = &mut conn.phase else { return };
        let Some(mut head) = head.take() else {
            return match self.try_upgrade(key, bytes, 0) {
                Some(head_bytes) => self.on_frames(key, &mut bytes[head_bytes..]),
                None => self.keep_head(key, Box::new(bytes.to_vec())),
            };
        };
        let seen = head.len();
        head.extend_from_slice(bytes);
        match self.try_upgrade(key, &head, seen) {
            Some(head_bytes) => self.on_frames(key, &mut head[head_bytes..]),
            None => self.keep_head(key, head),
        }
    }

    #[expect(clippy::box_collection, reason = "8 bytes in every connection instead of 24 for the few that need it")]
    fn keep_head(&mut self, key: ConnKey, unfinished: Box<Vec<u8>>) {
        if let Some(conn) = self.conns.get_mut(key)
            && let Phase::Handshake { head, .. } = &mut conn.phase
        {
            *head = Some(unfinished);
        }
    }

    /// Answers the request if it is complete or wrong. Returns where frames begin, if it was upgraded.
    fn try_upgrade(&mut self, key: ConnKey, bytes: &[u8], seen: usize) -> Option<usize> {
        match self.contain_in(key, |shard| ws::parse_request(bytes, seen, &shard.settings.handshake))? {
            Ok(Progress::NeedMore) => None,
            Ok(Progress::Complete { request, head_bytes }) => {
                match self.contain_in(key, |shard| shard.judge(key, &request))? {
                    Verdict::Open { endpoint, claims } => {
                        self.upgrade(key, &request, endpoint);
                        if let Some(claims) = claims {
                            self.enter(key, claims, None);
                        }
                        Some(head_bytes)
                    }
                    Verdict::Refuse { status, why, cause } => {
                        self.metrics.refused[cause as usize].add(1);
                        tracing::debug!(shard = self.id.0, slot = key.slot, status, %why, request.origin, "handshake refused");
                        let after = (self.io.random() % 4 + 1).to_string();
                        let headers: &[_] = match status {
                            401 => &[("WWW-Authenticate", "Bearer error=\"invalid_token\"")],
                            429 | 503 => &[("Retry-After", &after)],
                            _ => &[],
                        };
                        self.refuse(key, |out| ws::refuse(out, status, &why, headers), CloseReason::BadHandshake);
                        None
                    }
                }
            }
            Err(error) => {
                self.metrics.refused[Refusal::BadRequest as usize].add(1);
                tracing::debug!(shard = self.id.0, slot = key.slot, %error, "handshake refused");
                self.refuse(key, |out| error.refuse(out), CloseReason::BadHandshake);
                None
            }
        }
    }

    fn judge(&self, key: ConnKey, request: &Upgrade<'_>) -> Verdict {
        let refuse = |status, why: &'static str, cause| Verdict::Refuse { status, why: why.into(), cause };
        if self.accepting == Accepting::Stopped {
            return refuse(503, "the server is draining; connect again later", Refusal::Draining);
        }
        match self.conns.get(key).map(|conn| &conn.phase) {
            Some(&Phase::Handshake { unwelcome: Some(cause @ Refusal::RateLimited), .. }) => {
                return refuse(429, "too many connections from this address; connect again later", cause);
            }
            Some(&Phase::Handshake { unwelcome: Some(cause), .. }) => {
                return refuse(503, "the server holds as many connections as it may; connect again later", cause);
            }
            _ => {}
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
        if self.shared.authenticator.is_none() {
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

    fn upgrade(&mut self, key: ConnKey, request: &Upgrade<'_>, endpoint: Endpoint) {
        let subprotocol = request.protocols().any(|offered| offered == SUBPROTOCOL).then_some(SUBPROTOCOL);
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.phase = Phase::Open;
        conn.endpoint = endpoint;
        conn.since = now;
        conn.active = now;
        conn.outbound.reply(self.io.palette(), now, |out| ws::accept(out, request, subprotocol));
        self.metrics.upgraded.add(1);
        self.mark_dirty(key);
        self.reschedule(key);
    }
}

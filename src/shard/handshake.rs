//! From a TCP connection to a WebSocket, or to an HTTP error that says why not.
//! Law: the head's memory follows its bytes up to `max_header_bytes`, and as many again of a PROXY header in front of it;
//! bytes after the head are frames.

use std::borrow::Cow;
use std::num::NonZeroU64;

use rustls::pki_types::CertificateDer;

use crate::app::auth::Claims;
use crate::app::clients::TooMany;
use crate::app::{forwarded, origin};
use crate::conn::{Endpoint, FlushLine, Greeting, Identity, Phase};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, Refusal};
use crate::tls::ClientCertificate;
use crate::ws::deflate::{Agreement, Terms, negotiate};
use crate::ws::{self, Preamble, Progress, Upgrade};

use super::Shard;
use super::accept::Accepting;
use super::settings::SUBPROTOCOL;

/// What became of bytes of a request.
enum Step {
    /// It was upgraded; frames begin here.
    Frames(usize),
    /// It is not complete.
    NeedMore,
    /// Nothing is left of them: it was refused, or they were no request yet.
    Over,
}

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
                Step::Frames(from) => self.on_frames(key, &mut bytes[from..]),
                Step::NeedMore => self.keep_head(key, bytes.to_vec()),
                Step::Over => {}
            }
        } else {
            let seen = head.len();
            head.extend_from_slice(bytes);
            match self.try_upgrade(key, &head, seen) {
                Step::Frames(from) => self.on_frames(key, &mut head[from..]),
                Step::NeedMore => self.keep_head(key, head),
                Step::Over => {}
            }
        }
    }

    fn keep_head(&mut self, key: ConnKey, unfinished: Vec<u8>) {
        if let Some(greeting) = self.greeting(key) {
            greeting.head = unfinished;
        }
    }

    /// Answers the request if it is complete or wrong.
    fn try_upgrade(&mut self, key: ConnKey, bytes: &[u8], seen: usize) -> Step {
        let request_at = match self.pass_preamble(key, bytes) {
            Ok(request_at) => request_at,
            Err(step) => return step,
        };
        let (request, seen) = (&bytes[request_at..], seen.saturating_sub(request_at));
        match self.contain_in(key, |shard| ws::parse_request(request, seen, &shard.settings.handshake)) {
            Some(Ok(Progress::NeedMore)) => Step::NeedMore,
            Some(Ok(Progress::Complete { request, head_bytes })) => match self.answer(key, &request) {
                Some(()) => Step::Frames(request_at + head_bytes),
                None => Step::Over,
            },
            Some(Err(error)) => {
                self.metrics.refused[Refusal::BadRequest as usize].add(1);
                tracing::debug!(shard = self.id.0, slot = key.slot, %error, "handshake refused");
                self.refuse(key, |out| error.refuse(out), CloseReason::BadHandshake);
                Step::Over
            }
            None => Step::Over,
        }
    }

    /// Takes the PROXY header in front of the request, if there has to be one. Returns where the request begins; on a port
    /// with TLS, that does, and the request is in it.
    fn pass_preamble(&mut self, key: ConnKey, bytes: &[u8]) -> Result<usize, Step> {
        if let Some(request_at) = self.greeting(key).ok_or(Step::Over)?.request_at {
            return Ok(request_at);
        }
        let parse = |shard: &Self| ws::parse_preamble(bytes, shard.settings.handshake.header_bytes_max);
        match self.contain_in(key, parse).ok_or(Step::Over)? {
            Ok(Preamble::NeedMore) => Err(Step::NeedMore),
            Ok(Preamble::Complete { client, bytes: from }) => {
                let greeting = self.greeting(key).ok_or(Step::Over)?;
                greeting.peer = client.or(greeting.peer);
                greeting.request_at = Some(if greeting.is_secure { 0 } else { from });
                if greeting.is_secure {
                    self.begin_tls(key, &bytes[from..]);
                    return Err(Step::Over);
                }
                Ok(from)
            }
            Err(error) => {
                tracing::debug!(shard = self.id.0, slot = key.slot, %error, "handshake refused");
                self.turn_down(key, 400, &error.to_string(), Refusal::BadRequest);
                Err(Step::Over)
            }
        }
    }

    /// Answers a complete request; `None` if it was not upgraded.
    fn answer(&mut self, key: ConnKey, request: &Upgrade<'_>) -> Option<()> {
        let &mut Greeting { peer, is_proxied, unwelcome, .. } = self.greeting(key)?;
        let certificate = self.io.take_certificate(key);
        let (client, deflate, verdict) = self.contain_in(key, |shard| {
            // Whose connection it is: its peer's, unless that is a trusted proxy and says otherwise.
            let client = peer.map(|peer| forwarded::client_of(peer, request, &shard.settings.proxy.trusted));
            let is_flood = is_proxied && client.is_some_and(|client| shard.is_flood(client));
            let compression = &shard.settings.compression;
            let terms = Terms { client_context_takeover: compression.client_context_takeover };
            let deflate = compression.enabled.then(|| negotiate(request.extensions(), &terms)).flatten();
            let unwelcome = unwelcome.or(is_flood.then_some(Refusal::RateLimited));
            (client, deflate, shard.judge(request, unwelcome, certificate.as_ref()))
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

    fn judge(
        &self,
        request: &Upgrade<'_>,
        unwelcome: Option<Refusal>,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Verdict {
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
        let certificate = match certificate.map(|der| self.read_certificate(der)).transpose() {
            Ok(certificate) => certificate,
            Err(why) => return Verdict::Refuse { status: 401, why: why.into(), cause: Refusal::Unauthorized },
        };
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
            Endpoint::Native => self.judge_credential(request, certificate),
            Endpoint::Echo => Verdict::Open { endpoint, claims: None },
        }
    }

    /// A token in the request must be good; there need not be one, since `authenticate` may come later, or a certificate
    /// says who it is.
    fn judge_credential(&self, request: &Upgrade<'_>, certificate: Option<ClientCertificate>) -> Verdict {
        let token = match self.settings.authenticator {
            None => Ok(None),
            Some(_) => self.settings.credentials.token(request),
        };
        let verified = match token {
            Ok(Some(token)) => self.verify(token).map(Some),
            Ok(None) => self.named_by(certificate),
            Err(two) => {
                return Verdict::Refuse { status: 400, why: two.to_string().into(), cause: Refusal::BadRequest };
            }
        };
        match verified {
            Ok(claims) => Verdict::Open { endpoint: Endpoint::Native, claims },
            Err(why) => Verdict::Refuse { status: 401, why: why.into(), cause: Refusal::Unauthorized },
        }
    }

    /// A certificate that was shown, unless it lets nobody in. The handshake has verified it; but a ticket may bring back one
    /// that has ended since, and each ticket brings another.
    fn read_certificate(&self, der: &[u8]) -> Result<ClientCertificate, String> {
        let certificate = ClientCertificate::read(der)
            .map_err(|error| format!("the client's certificate cannot be read: {error}"))?;
        if certificate.not_after_s().saturating_mul(1000) <= self.now.unix_ms {
            return Err("the client's certificate has ended".into());
        }
        Ok(certificate)
    }

    /// Whom a certificate names, where that counts.
    fn named_by(&self, certificate: Option<ClientCertificate>) -> Result<Option<Claims>, String> {
        let (Some(terms), Some(certificate)) = (&self.settings.tls, certificate) else { return Ok(None) };
        let expires_at = NonZeroU64::new(certificate.not_after_s());
        let client_id = certificate.client_id(terms.client_id).map_err(|error| error.to_string())?;
        let Some(client_id) = client_id else { return Ok(None) };
        let identity = Identity { user_id: (&*client_id).into(), expires_at, permissions: None };
        Ok(Some(Claims { identity, max_connections: None }))
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
        self.list(key, FlushLine::Own);
        self.reschedule(key);
    }
}

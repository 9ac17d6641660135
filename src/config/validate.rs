//! What values are possible, alone and together.
//! Law: all problems are told at once, each with the key, its value and what to write instead.

use std::time::Duration;

use super::keys::SECRET_BYTES_MIN;
use super::node::Node;
use super::origin::OriginPattern;
use super::units::show_duration;
use super::{Algorithm, Auto, Config, Drain, Place, Problem, Problems, RECEIVE_BUFFERS_MAX};
use crate::topic::{PATTERN_LENGTH_MAX, check_pattern};

impl Config {
    /// Checks every value and how they go together.
    ///
    /// # Errors
    /// All problems.
    pub fn validate(&self) -> Result<(), Problems> {
        let all = self.out_of_range().into_iter().chain(self.contradictions());
        let problems: Vec<_> = all.map(|(key, message)| Problem { place: Place::Unwritten, key, message }).collect();
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// What is legal and probably not meant.
    pub fn warnings(&self) -> Vec<Problem> {
        let unwritten = |(key, message)| Problem { place: Place::Unwritten, key, message };
        self.oddities().into_iter().map(unwritten).collect()
    }

    /// Keys and what is wrong with their values.
    pub(super) fn out_of_range(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        self.check("", &mut |key, message| wrong.push((key, message)));
        wrong
    }

    /// What does not go together, each with the key that should change.
    pub(super) fn contradictions(&self) -> Vec<(String, String)> {
        let mut problems = Found(Vec::new());
        self.check_endpoints(&mut problems);
        self.check_tls(&mut |key, what| problems.add(key, what));
        self.check_key(&mut problems);
        self.auth.check_keys(&mut |key, what| problems.add(key, what));
        self.check_cookie(&mut problems);
        self.check_admin_key(&mut problems);
        self.check_proxy(&mut problems);
        self.check_topics(&mut problems);
        self.check_ring(&mut problems);
        self.check_drain(&mut problems);
        problems.0
    }

    /// What is legal and probably not meant.
    pub(super) fn oddities(&self) -> Vec<(String, String)> {
        let mut odd = Found(Vec::new());
        let public = self.public_addresses().find(|address| !address.ip().is_loopback());
        if let Some(public) = public
            && !self.auth.required
        {
            odd.add("auth.required", format!("false: whoever reaches {public} may connect, publish and subscribe"));
        }
        if !self.admin.listen.ip().is_loopback() {
            let address = self.admin.listen;
            odd.add("admin.listen", format!("{address} can be reached from outside; keep it behind a firewall"));
        }
        if let Some(secret) = &self.auth.secret
            && secret.expose().len() < SECRET_BYTES_MIN
        {
            odd.add("auth.secret", format!("is shorter than {SECRET_BYTES_MIN} bytes and could be guessed"));
        }
        self.auth.odd_keys(&mut |key, what| odd.add(key, what));
        self.odd_tls(&mut |key, what| odd.add(key, what));
        if self.auth.query {
            odd.add("auth.query", "true: tokens in URLs end up in logs of proxies and in histories".to_owned());
        }
        if self.auth.cookie.is_some() && self.origins.allow.contains(&OriginPattern::Any) {
            odd.add("origins.allow", "*: every page can use the cookie of whoever visits it".to_owned());
        }
        let websocket = &self.websocket;
        if websocket.ping_interval_seconds == 0 && websocket.idle_timeout_seconds == 0 {
            let what = "0: without pings and without an idle timeout a peer that vanished is never noticed";
            odd.add("websocket.ping_interval_seconds", what.to_owned());
        }
        if let Some(bytes) = &self.limits.bytes
            && bytes.burst < websocket.max_message_size
        {
            let what = "is less than websocket.max_message_size: such a message needs a pause before it";
            odd.add("limits.bytes.burst", what.to_owned());
        }
        if self.drain.deadline > SYSTEMD_STOP {
            let what = "is longer than systemd waits by default (90s); set TimeoutStopSec= in the unit";
            odd.add("drain.deadline", what.to_owned());
        }
        odd.0
    }

    fn check_endpoints(&self, problems: &mut Found) {
        if self.listen.is_empty() && self.tls.addresses().is_empty() {
            problems.add("listen", "[] has no address; write one, such as 127.0.0.1:8080".to_owned());
        }
        for (index, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen[..index].contains(address) {
                problems.add("listen", format!("{address} is there twice; remove one"));
            }
        }
        if self.admin.listen.port() != 0 && self.public_addresses().any(|address| address == self.admin.listen) {
            let (address, plain) = (self.admin.listen, self.listen.contains(&self.admin.listen));
            let key = if plain { "listen" } else { "tls.listen" };
            problems.add("admin.listen", format!("{address} is public, as it is in {key} too; write another port"));
        }
        path(problems, "path", &self.path);
        if let Some(echo_path) = &self.echo_path {
            path(problems, "echo_path", echo_path);
            if *echo_path == self.path {
                problems.add("echo_path", format!("`{echo_path}` is also `path`; write another one, such as /echo"));
            }
        }
    }

    fn check_key(&self, problems: &mut Found) {
        let auth = &self.auth;
        let is_symmetric = match auth.algorithm {
            Some(Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) => Some(true),
            Some(_) => Some(false),
            None => None,
        };
        match (&auth.secret, &auth.public_key_file) {
            (None, None) if auth.required && !auth.has_keys() && !self.tls.names_clients() => problems.add(
                "auth.required",
                "true, but there is no key to check a token with; set auth.secret (or the variable \
                 TIDEWHEEL_AUTH_SECRET) to 32 random bytes or more, or auth.public_key_file or auth.jwks, or auth.required to \
                 false"
                    .to_owned(),
            ),
            (Some(_), Some(file)) => problems.add(
                "auth.public_key_file",
                format!("{} is there beside auth.secret; remove one of them", file.display()),
            ),
            (Some(secret), None) if secret.expose().is_empty() => {
                problems.add("auth.secret", "is empty; write 32 random bytes or more, or null".to_owned());
            }
            (Some(_), None) if is_symmetric == Some(false) => problems.add(
                "auth.algorithm",
                format!(
                    "{:?} does not work with auth.secret; write HS256, HS384 or HS512, or set \
                 auth.public_key_file instead",
                    auth.algorithm.unwrap_or_default()
                ),
            ),
            (None, Some(_)) if is_symmetric == Some(true) => problems.add(
                "auth.algorithm",
                format!(
                    "{:?} does not work with auth.public_key_file; write the algorithm of that key, such \
                 as RS256, ES256 or EdDSA",
                    auth.algorithm.unwrap_or_default()
                ),
            ),
            _ => {}
        }
    }

    fn check_proxy(&self, problems: &mut Found) {
        if self.proxy.proxy_protocol && self.proxy.trusted.is_empty() {
            let what = "true, but nobody is trusted to send it; list the proxies in proxy.trusted, or write false";
            problems.add("proxy.proxy_protocol", what.to_owned());
        }
    }

    fn check_cookie(&self, problems: &mut Found) {
        // A token as in RFC 6265 §4.1.1.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
        if let Some(cookie) = &self.auth.cookie
            && (cookie.is_empty() || !cookie.bytes().all(is_plain))
        {
            let what = "is not the name of a cookie; write letters, digits, `-` and `_`, such as session, or null";
            problems.add("auth.cookie", format!("`{cookie}` {what}"));
        }
    }

    fn check_topics(&self, problems: &mut Found) {
        for (index, rule) in self.topics.iter().enumerate() {
            if let Err(error) = check_pattern(&rule.pattern, PATTERN_LENGTH_MAX) {
                let what = format!("`{}` is no pattern: {error}; write one such as prices.>", rule.pattern);
                problems.add(&format!("topics[{index}].pattern"), what);
            }
        }
    }

    fn check_ring(&self, problems: &mut Found) {
        let buffers = self.io.receive_buffers;
        if !buffers.is_power_of_two() && buffers <= RECEIVE_BUFFERS_MAX {
            let nearest = buffers.next_power_of_two();
            problems.add("io.receive_buffers", format!("{buffers} is no power of two; write {nearest}"));
        }
    }

    fn check_admin_key(&self, problems: &mut Found) {
        if let Some(key) = &self.admin.key
            && !((16..=512).contains(&key.expose().len()) && key.expose().bytes().all(|byte| byte.is_ascii_graphic()))
        {
            let what =
                "is no key; write 16 to 512 random letters and digits, such as `openssl rand -hex 32` prints, or null";
            problems.add("admin.key", what.to_owned());
        }
    }

    /// Who has not been told by the deadline is cut without a word.
    fn check_drain(&self, problems: &mut Found) {
        let Drain { wait, spread, deadline, .. } = self.drain;
        let left = deadline.saturating_sub(wait);
        let [shown_wait, shown_deadline, shown_left] = [wait, deadline, left].map(show_duration);
        if wait > deadline {
            let what = "when everyone is cut; raise the deadline or wait less";
            problems.add("drain.wait", format!("{shown_wait} is longer than drain.deadline: {shown_deadline}, {what}"));
        } else if let Auto::Value(spread) = spread
            && spread > left
        {
            let leaves =
                if wait.is_zero() { String::new() } else { format!("what drain.wait: {shown_wait} leaves of ") };
            let what = format!("when everyone is cut; write auto, or {shown_left} at most");
            let spread = show_duration(spread);
            problems.add(
                "drain.spread",
                format!("{spread} is longer than {leaves}drain.deadline: {shown_deadline}, {what}"),
            );
        }
    }
}

/// Keys, each with what is to be said of it.
struct Found(Vec<(String, String)>);

impl Found {
    fn add(&mut self, key: &str, message: String) {
        self.0.push((key.to_owned(), message));
    }
}

fn path(problems: &mut Found, key: &str, path: &str) {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
    if !path.starts_with('/') || !is_plain {
        let what = "is not a path; write `/` and printable ASCII without spaces, `?` and `#`, such as /ws";
        problems.add(key, format!("`{path}` {what}"));
    }
}

const SYSTEMD_STOP: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` beside what a valid configuration needs; each of `expected` must begin one problem, in order.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let text = if text.contains("auth:") { text.to_owned() } else { format!("{text}\nauth: {{required: false}}") };
        let problems = match Config::parse(&text).unwrap().validate() {
            Ok(()) => Vec::new(),
            Err(Problems(problems)) => problems,
        };
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.to_string().starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn defaults_lack_only_a_key() {
        let problems = Config::default().validate().unwrap_err().0;
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().starts_with("auth.required: true, but there is no key"), "{problems:?}");
        check("", &[]);
        check("auth: {secret: s}", &[]);
    }

    #[test]
    fn ranges() {
        check("shards: 0", &["shards: 0 is out of range; write 1 to 255"]);
        check("shards: 256", &["shards: 256 "]);
        check("shards: 255", &[]);
        check("websocket: {max_total_connections: 0}", &["websocket.max_total_connections: 0 "]);
        check("websocket: {max_connections_per_client: 0}", &["websocket.max_connections_per_client: 0 "]);
        check("websocket: {max_connections_per_client: 1}", &[]);
        check("websocket: {max_connections_per_client: null}", &[]);
        check("websocket: {max_connections_per_address: 0}", &["websocket.max_connections_per_address: 0 "]);
        check("websocket: {max_connections_per_address: 1}", &[]);
        check("websocket: {idle_timeout_seconds: 0, ping_interval_seconds: 0}", &[]);
        check("websocket: {idle_timeout_seconds: 31536001}", &["websocket.idle_timeout_seconds: 31536001 "]);
        check("websocket: {pong_timeout: 99ms}", &["websocket.pong_timeout: 99ms is out of range; write 100ms to 1h"]);
        check(
            "websocket: {close_timeout: 2h, handshake_timeout: 0s}",
            &["websocket.handshake_timeout: 0s ", "websocket.close_timeout: 2h "],
        );
        check("websocket: {max_message_size: 0}", &["websocket.max_message_size: 0 is out of range; write 1B to 1GiB"]);
        check("websocket: {max_message_size: 1GiB}", &[]);
        check("websocket: {max_header_bytes: 255}", &["websocket.max_header_bytes: 255B "]);
        check(
            "outbound: {max_bytes: 2GiB, max_frames: 0, max_age: 0s}",
            &["outbound.max_bytes: 2GiB ", "outbound.max_frames: 0 ", "outbound.max_age: 0s "],
        );
        check(
            "limits: {errors: 0, subscriptions_per_connection: 0, topic_length: 0, parked_handlers: 0}",
            &[
                "limits.errors: 0 ",
                "limits.subscriptions_per_connection: 0 ",
                "limits.topic_length: 0 ",
                "limits.parked_handlers: 0 ",
            ],
        );
        check("limits: {handler_timeout: 99ms}", &["limits.handler_timeout: 99ms is out of range; write 100ms to 1d"]);
        check("limits: {handler_timeout: 25h}", &["limits.handler_timeout: 25h "]);
        check("limits: {handler_timeout: null}", &[]);
        check("limits: {messages: {per_second: 1, burst: 1}, bytes: {per_second: 1B, burst: 1B}}", &[]);
        check("limits: {messages: {per_second: 1000000, burst: 1000000}, bytes: {per_second: 1GiB, burst: 1GiB}}", &[]);
        check("limits: {messages: null, bytes: null, connection_attempts: null}", &[]);
        check("limits: {connection_attempts: {ipv4_prefix: 32, ipv6_prefix: 128}}", &[]);
        check("limits: {handshakes_in_flight: 0}", &["limits.handshakes_in_flight: 0 is out of range"]);
        check("limits: {handshakes_in_flight: 1}", &[]);
        check(
            "limits: {connection_attempts: {per_second: 0, burst: 0, ipv4_prefix: 33, ipv6_prefix: 0}}",
            &[
                "limits.connection_attempts.per_second: 0 ",
                "limits.connection_attempts.burst: 0 ",
                "limits.connection_attempts.ipv4_prefix: 33 is out of range; write 1 to 32",
                "limits.connection_attempts.ipv6_prefix: 0 ",
            ],
        );
        check(
            "limits: {messages: {per_second: 0, burst: 1000001}, bytes: {per_second: 0, burst: 2GiB}}",
            &[
                "limits.messages.per_second: 0 is out of range; write 1 to 1000000",
                "limits.messages.burst: 1000001 ",
                "limits.bytes.per_second: 0 ",
                "limits.bytes.burst: 2GiB ",
            ],
        );
        check("drain: {deadline: 0s}", &[]);
        check("drain: {deadline: 61m}", &["drain.deadline: 61m "]);
        check("drain: {reconnects_per_second: 0}", &["drain.reconnects_per_second: 0 "]);
        check("drain: {reconnects_per_second: 1000001}", &["drain.reconnects_per_second: 1000001 "]);
        check("drain: {wait: 30s}", &[]);
        check("drain: {wait: 31s}", &["drain.wait: 31s is longer than drain.deadline: 30s"]);
        check("drain: {spread: 30s}", &[]);
        check("drain: {spread: 31s}", &["drain.spread: 31s is longer than drain.deadline: 30s"]);
        check("drain: {wait: 5s, spread: 25s}", &[]);
        check("drain: {wait: 5s, spread: 26s}", &["drain.spread: 26s is longer than what drain.wait: 5s leaves of"]);
        check("drain: {wait: 5s, deadline: 6s}", &[]);
        check("io: {receive_buffers: 1000}", &["io.receive_buffers: 1000 is no power of two; write 1024"]);
        check("io: {receive_buffers: 65536}", &["io.receive_buffers: 65536 is out of range; write 1 to 32768"]);
        check("io: {receive_buffer_size: 1}", &["io.receive_buffer_size: 1B "]);
    }

    #[test]
    fn endpoints() {
        check("listen: []", &["listen: [] "]);
        check("listen: [1.1.1.1:1, 1.1.1.1:1]", &["listen: 1.1.1.1:1 is there twice"]);
        check("listen: [1.1.1.1:0, 1.1.1.1:0]\nadmin: {listen: 1.1.1.1:0}", &[]);
        check("admin: {listen: 127.0.0.1:8080}", &["admin.listen: 127.0.0.1:8080 is public, as it is in listen too"]);
        let tls = "tls: {listen: 127.0.0.1:9090, cert_file: a, key_file: b}";
        check(tls, &["admin.listen: 127.0.0.1:9090 is public, as it is in tls.listen too"]);
        check(&format!("{tls}\nlisten: []\nadmin: {{listen: 127.0.0.1:1}}"), &[]);
        check("path: ws\necho_path: '/e?'", &["path: `ws` is not a path", "echo_path: `/e?` is not a path"]);
        check("echo_path: /ws", &["echo_path: `/ws` is also `path`"]);
        check("path: ''", &["path: `` is not a path"]);
    }

    #[test]
    fn topics() {
        check("topics: [{pattern: a.*.>, policy: drop_newest}, {pattern: a}]", &[]);
        check(
            "topics: [{pattern: a}, {policy: drop_oldest}, {pattern: 'a.>.b'}]",
            &["topics[1].pattern: `` is no pattern: a topic must not be empty", "topics[2].pattern: `a.>.b` "],
        );
    }

    #[test]
    fn keys_and_algorithms() {
        check("auth: {required: true}", &["auth.required: true"]);
        let named = "{cert_file: a, key_file: b, client_ca_file: c, client_auth: required, client_id: uri";
        check(&format!("auth: {{required: true}}\ntls: {named}}}"), &["auth.required: true"]);
        check(&format!("auth: {{required: true}}\ntls: {named}, listen: 127.0.0.1:1}}"), &[]);
        check("auth: {secret: ''}", &["auth.secret: is empty"]);
        check("auth: {secret: a, public_key_file: b}", &["auth.public_key_file: b is there beside auth.secret"]);
        check("auth: {secret: a, algorithm: RS256}", &["auth.algorithm: RS256 does not work with auth.secret"]);
        check("auth: {public_key_file: b, algorithm: HS256}", &["auth.algorithm: HS256 does not work with auth.pub"]);
        check("auth: {public_key_file: b, algorithm: EdDSA}", &[]);
        check("auth: {public_key_file: b}", &[]);
        check("auth: {secret: a, cookie: __Host-sid}", &[]);
        check("auth: {secret: a, cookie: ''}", &["auth.cookie: `` is not the name of a cookie"]);
        check("auth: {secret: a, cookie: a=b}", &["auth.cookie: `a=b` is not the name of a cookie"]);
        check("auth: {secret: a, cookie: é}", &["auth.cookie: `é` is not the name of a cookie"]);
    }

    #[test]
    fn admin_keys() {
        let check_key = |key: &str, expected: &[&str]| check(&format!("admin: {{key: '{key}'}}"), expected);
        check("admin: {key: null}", &[]);
        check_key("0123456789abcdef", &[]);
        check_key(&"k".repeat(512), &[]);
        check_key("0123456789abcde", &["admin.key: is no key"]);
        check_key(&"k".repeat(513), &["admin.key: is no key"]);
        check_key("", &["admin.key: is no key"]);
        check_key("0123456789 abcdef", &["admin.key: is no key"]);
        check_key("0123456789abcdefé", &["admin.key: is no key"]);
    }

    #[test]
    fn proxies() {
        check("proxy: {trusted: [10.0.0.0/8, '::1'], proxy_protocol: true}", &[]);
        check("proxy: {trusted: 10.0.0.1}", &[]);
        check("proxy: {proxy_protocol: true}", &["proxy.proxy_protocol: true, but nobody is trusted"]);
        let wrong = Config::parse("proxy: {trusted: [10.0.0.0/8, 10.0.0.1/8]}").unwrap_err().to_string();
        assert!(wrong.contains("write 10.0.0.0/8"), "{wrong}");
    }

    #[test]
    fn all_at_once() {
        check(
            "shards: 0\npath: x\nauth: {leeway: 2h}",
            &["shards: 0", "auth.leeway: 2h is out of range; write 0s to 1h", "path: `x`", "auth.required: true"],
        );
    }

    #[test]
    fn what_is_odd() {
        let check = |text: &str, key: &str| {
            let odd = Config::parse(text).unwrap().oddities();
            assert!(odd.iter().map(|(key, _)| key.as_str()).eq((!key.is_empty()).then_some(key)), "{text}: {odd:?}");
        };
        check("", "");
        check("auth: {required: false}", "");
        check("listen: 0.0.0.0:80\nauth: {required: false}", "auth.required");
        check("listen: 0.0.0.0:80", "");
        check("admin: {listen: '[::]:9090'}", "admin.listen");
        check("auth: {secret: 0123456789abcdef0123456789abcde}", "auth.secret");
        check("auth: {secret: 0123456789abcdef0123456789abcdef}", "");
        check("auth: {query: true}", "auth.query");
        check("auth: {cookie: c}\norigins: {allow: [same_host, '*']}", "origins.allow");
        check("auth: {cookie: c}", "");
        check("websocket: {ping_interval_seconds: 0, idle_timeout_seconds: 0}", "websocket.ping_interval_seconds");
        check("websocket: {ping_interval_seconds: 0}", "");
        check("websocket: {max_message_size: 5MB}", "limits.bytes.burst");
        check("drain: {deadline: 90s}", "");
        check("drain: {deadline: 91s}", "drain.deadline");
    }
}

//! What values are possible, alone and together.
//! Law: all problems are told at once, each with the key, its value and what to write instead.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::{show_duration, show_size};
use super::{Algorithm, Auto, Config, Problems};
use crate::id::SLOT_MAX;

const MONTH_SECONDS: u64 = 30 * 24 * 60 * 60;
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest time that means anything at the resolution of a shard's timers.
const SHORTEST: Duration = Duration::from_millis(100);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Frames are counted in 32 bits; 1 GiB leaves room for headers and several of them in one buffer.
const MESSAGE_SIZE_MAX: usize = 1 << 30;
/// The kernel's bound on a ring of provided buffers.
const RECEIVE_BUFFERS_MAX: usize = 1 << 15;

impl Config {
    /// Checks every value and how they go together.
    ///
    /// # Errors
    /// All problems.
    pub fn validate(&self) -> Result<(), Problems> {
        let mut problems = Vec::new();
        self.check_ranges(&mut problems);
        self.check_endpoints(&mut problems);
        self.check_key(&mut problems);
        self.check_cookie(&mut problems);
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    fn check_ranges(&self, problems: &mut Vec<String>) {
        let Self { websocket, outbound, auth, limits, drain, io, .. } = self;
        if let Auto::Value(shards) = self.shards {
            number(problems, "shards", shards, 1..=255);
        }
        if let Auto::Value(connections) = websocket.max_total_connections {
            number(problems, "websocket.max_total_connections", connections, 1..=SLOT_MAX + 1);
        }
        number(problems, "websocket.idle_timeout_seconds", websocket.idle_timeout_seconds, 0..=MONTH_SECONDS);
        number(problems, "websocket.ping_interval_seconds", websocket.ping_interval_seconds, 0..=MONTH_SECONDS);
        duration(problems, "websocket.pong_timeout", websocket.pong_timeout, SHORTEST..=HOUR);
        duration(problems, "websocket.handshake_timeout", websocket.handshake_timeout, SHORTEST..=HOUR);
        duration(problems, "websocket.close_timeout", websocket.close_timeout, SHORTEST..=HOUR);
        size(problems, "websocket.max_message_size", websocket.max_message_size, 1..=MESSAGE_SIZE_MAX);
        size(problems, "websocket.max_header_bytes", websocket.max_header_bytes, 256..=MIB);
        size(problems, "outbound.max_bytes", outbound.max_bytes, 1..=MESSAGE_SIZE_MAX);
        number(problems, "outbound.max_frames", outbound.max_frames, 1..=MIB / 2);
        duration(problems, "outbound.max_age", outbound.max_age, SHORTEST..=HOUR);
        duration(problems, "auth.timeout", auth.timeout, SHORTEST..=HOUR);
        duration(problems, "auth.leeway", auth.leeway, Duration::ZERO..=HOUR);
        duration(problems, "auth.expiry_grace", auth.expiry_grace, Duration::ZERO..=DAY);
        number(problems, "limits.errors", limits.errors, 1..=65_535);
        let subscriptions = limits.subscriptions_per_connection;
        number(problems, "limits.subscriptions_per_connection", subscriptions, 1..=65_535);
        number(problems, "limits.topic_length", limits.topic_length, 1..=4 * KIB);
        number(problems, "limits.parked_handlers", limits.parked_handlers, 1..=MIB);
        duration(problems, "drain.deadline", drain.deadline, Duration::ZERO..=HOUR);
        number(problems, "io.receive_buffers", io.receive_buffers, 1..=RECEIVE_BUFFERS_MAX);
        if !io.receive_buffers.is_power_of_two() && io.receive_buffers <= RECEIVE_BUFFERS_MAX {
            let nearest = io.receive_buffers.next_power_of_two();
            problems.push(format!("io.receive_buffers: {} is no power of two; write {nearest}", io.receive_buffers));
        }
        size(problems, "io.receive_buffer_size", io.receive_buffer_size, 256..=MIB);
    }

    fn check_endpoints(&self, problems: &mut Vec<String>) {
        if self.listen.is_empty() {
            problems.push("listen: [] has no address; write one, such as 127.0.0.1:8080".to_owned());
        }
        for (index, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen[..index].contains(address) {
                problems.push(format!("listen: {address} is there twice; remove one"));
            }
        }
        if self.admin.listen.port() != 0 && self.listen.contains(&self.admin.listen) {
            let address = self.admin.listen;
            problems.push(format!("admin.listen: {address} is public, as it is in listen too; write another port"));
        }
        path(problems, "path", &self.path);
        if let Some(echo_path) = &self.echo_path {
            path(problems, "echo_path", echo_path);
            if *echo_path == self.path {
                problems.push(format!("echo_path: `{echo_path}` is also `path`; write another one, such as /echo"));
            }
        }
    }

    fn check_key(&self, problems: &mut Vec<String>) {
        let auth = &self.auth;
        let is_symmetric = match auth.algorithm {
            Some(Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) => Some(true),
            Some(_) => Some(false),
            None => None,
        };
        match (&auth.secret, &auth.public_key_file) {
            (None, None) if auth.required => problems.push(
                "auth.required: true, but there is no key to check a token with; set auth.secret or \
                 auth.public_key_file, or auth.required to false"
                    .to_owned(),
            ),
            (Some(_), Some(file)) => problems.push(format!(
                "auth.public_key_file: {} is there beside auth.secret; remove one of them",
                file.display()
            )),
            (Some(secret), None) if secret.expose().is_empty() => {
                problems.push("auth.secret: is empty; write 32 random bytes or more, or null".to_owned());
            }
            (Some(_), None) if is_symmetric == Some(false) => problems.push(format!(
                "auth.algorithm: {:?} does not work with auth.secret; write HS256, HS384 or HS512, or set \
                 auth.public_key_file instead",
                auth.algorithm.unwrap_or_default()
            )),
            (None, Some(_)) if is_symmetric == Some(true) => problems.push(format!(
                "auth.algorithm: {:?} does not work with auth.public_key_file; write the algorithm of that key, such \
                 as RS256, ES256 or EdDSA",
                auth.algorithm.unwrap_or_default()
            )),
            _ => {}
        }
    }

    fn check_cookie(&self, problems: &mut Vec<String>) {
        // A token as in RFC 6265 §4.1.1.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
        if let Some(cookie) = &self.auth.cookie
            && (cookie.is_empty() || !cookie.bytes().all(is_plain))
        {
            let what = "is not the name of a cookie; write letters, digits, `-` and `_`, such as session, or null";
            problems.push(format!("auth.cookie: `{cookie}` {what}"));
        }
    }
}

fn number<T: PartialOrd + Display>(problems: &mut Vec<String>, key: &str, value: T, range: RangeInclusive<T>) {
    in_range(problems, key, value, range, |value| value.to_string());
}

fn duration(problems: &mut Vec<String>, key: &str, value: Duration, range: RangeInclusive<Duration>) {
    in_range(problems, key, value, range, |value| show_duration(*value));
}

fn size(problems: &mut Vec<String>, key: &str, value: usize, range: RangeInclusive<usize>) {
    in_range(problems, key, value, range, |value| show_size(*value));
}

fn in_range<T: PartialOrd>(
    problems: &mut Vec<String>,
    key: &str,
    value: T,
    range: RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) {
    if !range.contains(&value) {
        let (value, least, most) = (show(&value), show(range.start()), show(range.end()));
        problems.push(format!("{key}: {value} is out of range; write {least} to {most}"));
    }
}

fn path(problems: &mut Vec<String>, key: &str, path: &str) {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
    if !path.starts_with('/') || !is_plain {
        let what = "is not a path; write `/` and printable ASCII without spaces, `?` and `#`, such as /ws";
        problems.push(format!("{key}: `{path}` {what}"));
    }
}

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
            assert!(problem.starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn defaults_lack_only_a_key() {
        let problems = Config::default().validate().unwrap_err().0;
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("auth.required: true, but there is no key"), "{problems:?}");
        check("", &[]);
        check("auth: {secret: s}", &[]);
    }

    #[test]
    fn ranges() {
        check("shards: 0", &["shards: 0 is out of range; write 1 to 255"]);
        check("shards: 256", &["shards: 256 "]);
        check("shards: 255", &[]);
        check("websocket: {max_total_connections: 0}", &["websocket.max_total_connections: 0 "]);
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
        check("drain: {deadline: 0s}", &[]);
        check("drain: {deadline: 61m}", &["drain.deadline: 61m "]);
        check("io: {receive_buffers: 1000}", &["io.receive_buffers: 1000 is no power of two; write 1024"]);
        check("io: {receive_buffers: 65536}", &["io.receive_buffers: 65536 is out of range; write 1 to 32768"]);
        check("io: {receive_buffer_size: 1}", &["io.receive_buffer_size: 1B "]);
    }

    #[test]
    fn endpoints() {
        check("listen: []", &["listen: [] "]);
        check("listen: [1.1.1.1:1, 1.1.1.1:1]", &["listen: 1.1.1.1:1 is there twice"]);
        check("listen: [1.1.1.1:0, 1.1.1.1:0]\nadmin: {listen: 1.1.1.1:0}", &[]);
        check("admin: {listen: 127.0.0.1:8080}", &["admin.listen: 127.0.0.1:8080 is public"]);
        check("path: ws\necho_path: '/e?'", &["path: `ws` is not a path", "echo_path: `/e?` is not a path"]);
        check("echo_path: /ws", &["echo_path: `/ws` is also `path`"]);
        check("path: ''", &["path: `` is not a path"]);
    }

    #[test]
    fn keys_and_algorithms() {
        check("auth: {required: true}", &["auth.required: true"]);
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
    fn all_at_once() {
        check(
            "shards: 0\npath: x\nauth: {leeway: 2h}",
            &["shards: 0", "auth.leeway: 2h is out of range; write 0s to 1h", "path: `x`", "auth.required: true"],
        );
    }
}

//! From a file, the environment and flags to a [`Config`].
//! Law: nothing is ignored. What cannot be used is a problem that says where it is and what was probably meant, all
//! problems of all sources are told together, and none ever quotes a secret.

use std::path::PathBuf;
use std::sync::Arc;

use super::node::{Key, Node, Reader, plain};
use super::problem::nearest;
use super::tree::{Content, Tree, Unreadable};
use super::{Apply, Changes, Config, Place, Problem, Problems};

const ENV_PREFIX: &str = "TIDEWHEEL_";
/// Kubernetes puts `<NAME>_SERVICE_…` and `<NAME>_PORT…` of every service into the environment of every pod. A service
/// called `tidewheel` must not keep the server from starting, and no key begins like this.
const INJECTED: [&str; 2] = ["SERVICE_", "PORT"];

/// Where a configuration comes from. Kept, so that a reload asks the same sources again.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The YAML file, if there is one.
    pub file: Option<PathBuf>,
    /// Variables, usually [`environment`]; those without the prefix are passed over. They go before the file.
    pub env: Vec<(String, String)>,
    /// Flags go before everything else, and later ones before earlier ones.
    pub flags: Vec<Flag>,
}

/// A key that was set on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The flag as it was typed, such as `--listen`; for problems.
    pub typed: String,
    /// The path of the key.
    pub key: String,
    /// Its value, as it is written in a variable.
    pub value: String,
}

/// A configuration that has been read and not yet been judged as a whole: whoever holds it may add to it.
#[derive(Debug)]
pub struct Draft {
    /// What was read; a key that could not be read has its default.
    pub config: Config,
    reader: Reader,
    /// A source could not be read at all, so nothing can be said of what is missing.
    blind: bool,
}

impl Sources {
    /// Reads them all.
    pub fn read(&self) -> Draft {
        let mut draft = Draft::new(Config::default());
        if let Some(path) = &self.file {
            let name: Arc<str> = path.display().to_string().into();
            match super::file::read_text(path) {
                Ok(text) => draft.read_text(&text, Some(&name)),
                Err(error) => {
                    draft.blind = true;
                    draft.reader.wrong(&Place::Unwritten, &name, error.to_string());
                }
            }
        }
        let keys = Config::keys();
        for (name, value) in &self.env {
            let Some(suffix) = name.strip_prefix(ENV_PREFIX) else { continue };
            if INJECTED.iter().any(|injected| suffix.starts_with(injected)) {
                continue;
            }
            let place = Place::Variable(name.clone());
            match keys.iter().find(|key| env_name(key) == *name) {
                Some(key) => draft.read_word(key, value, place),
                None => draft.reader.wrong(
                    &place,
                    "",
                    match nearest(&suffix.to_lowercase(), &keys) {
                        Some(key) => format!("no such variable; did you mean {}?", env_name(key)),
                        None => "no such variable".to_owned(),
                    },
                ),
            }
        }
        for Flag { typed, key, value } in &self.flags {
            draft.read_word(key, value, Place::Flag(typed.clone()));
        }
        draft
    }
}

impl Draft {
    fn new(config: Config) -> Self {
        Self { config, reader: Reader::default(), blind: false }
    }

    fn read_text(&mut self, text: &str, file: Option<&Arc<str>>) {
        match Tree::parse(text, |line| Place::Line { file: file.cloned(), line }) {
            Ok(Some(tree)) => self.read_tree(&tree),
            Ok(None) => {}
            Err(Unreadable { place, message }) => {
                self.blind = true;
                self.reader.wrong(&place, "", message);
            }
        }
    }

    /// Sets one key by its path.
    fn read_word(&mut self, key: &str, text: &str, place: Place) {
        let value = Tree::word(place.clone(), text);
        let tree = key.rsplit('.').fold(value, |inner, segment| Tree {
            place: place.clone(),
            content: Content::Section(vec![(Some(segment.to_owned()), place.clone(), inner)]),
        });
        self.read_tree(&tree);
    }

    fn read_tree(&mut self, tree: &Tree) {
        self.config = Node::read(Some(&self.config), "", tree, &mut self.reader).unwrap_or_default();
    }

    /// Adds a problem that somebody else has with the value of a key.
    pub fn wrong(&mut self, key: &str, message: impl Into<String>) {
        let place = self.place(key);
        self.reader.wrong(&place, key, message);
    }

    /// Judges the whole.
    ///
    /// # Errors
    /// Everything that is wrong in any of the sources, in the order of lines, variables and flags.
    pub fn finish(mut self) -> Result<Config, Problems> {
        let told: Vec<String> = self.reader.problems.iter().map(|problem| problem.key.clone()).collect();
        for (key, message) in self.config.out_of_range() {
            self.wrong(&key, message);
        }
        let section = |key: &str| plain(key).split('.').next().unwrap_or_default().to_owned();
        for (key, message) in self.config.contradictions() {
            // What could not be read may be what is missing here.
            if !self.blind && !told.iter().any(|other| section(other) == section(&key)) {
                self.wrong(&key, message);
            }
        }
        let mut problems = self.reader.problems;
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        if problems.is_empty() { Ok(self.config) } else { Err(Problems(problems)) }
    }

    /// What is legal and odd.
    pub fn warnings(&self) -> Vec<Problem> {
        let place = |(key, message): (String, String)| Problem { place: self.place(&key), key, message };
        let mut warnings: Vec<_> = self.config.oddities().into_iter().map(place).collect();
        warnings.sort_by(|a, b| a.place.cmp(&b.place));
        warnings
    }

    fn place(&self, key: &str) -> Place {
        self.reader.places.get(key).cloned().unwrap_or(Place::Unwritten)
    }

    /// What could not be read, without looking at the whole.
    fn read_only(self) -> Result<Config, Problems> {
        let Reader { mut problems, .. } = self.reader;
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        if problems.is_empty() { Ok(self.config) } else { Err(Problems(problems)) }
    }
}

impl Config {
    /// Reads a YAML text over the defaults. Not yet validated.
    ///
    /// # Errors
    /// Everything that cannot be read, with its line.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let mut draft = Draft::new(Self::default());
        draft.read_text(text, None);
        draft.read_only()
    }

    /// Sets one key by its path, such as `websocket.pong_timeout`, from text. An empty text or `null` means none.
    ///
    /// # Errors
    /// An unknown key, named with the nearest known one, or a text that is no value of it.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), Problems> {
        let mut draft = Draft::new(self.clone());
        draft.read_word(key, text, Place::Unwritten);
        *self = draft.read_only()?;
        Ok(())
    }

    /// Takes over from the configuration that is `running` whatever only a restart changes, and tells what differs.
    pub fn settle(&mut self, running: &Self) -> Changes {
        let mut changes = Changes::default();
        Node::settle(self, running, "", Apply::Section, &mut changes);
        changes
    }

    /// The paths of all keys, in order of declaration.
    pub fn keys() -> Vec<&'static str> {
        let is_settable = |key: &&Key| key.apply != Apply::Section && !key.path.contains("[]");
        Self::reference().iter().filter(is_settable).map(|key| &*key.path).collect()
    }
}

/// The variables of the process. Unlike [`std::env::vars`] it does not panic over one that is not UTF-8, which may be
/// somebody else's; in one of ours the marks in place of the wrong bytes are a problem of its value.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// The variable that overrides `key`.
pub(super) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::origin::OriginPattern::{Any, Opaque, SameHost};
    use crate::config::{
        Algorithm, Auto, ByteRate, ClientLimitPolicy, LogFormat, MessageRate, OutboundPolicy, ReceiveWait, Secret,
        Size, TopicRule,
    };

    #[track_caller]
    fn check(text: &str, change: impl FnOnce(&mut Config)) {
        let mut expected = Config::default();
        change(&mut expected);
        assert_eq!(Config::parse(text), Ok(expected));
    }

    #[track_caller]
    fn check_problem(text: &str, expected: &str) {
        assert_eq!(Config::parse(text).unwrap_err().to_string(), expected);
    }

    #[track_caller]
    fn check_env(name: &str, value: &str, expected: Result<fn(&mut Config), &str>) {
        let mut config = Config::default();
        let expected = expected.map(|change| {
            change(&mut config);
            config
        });
        let env = vec![(name.to_owned(), value.to_owned())];
        let loaded = Sources { env, ..Sources::default() }.read().read_only();
        assert_eq!(loaded.map_err(|problems| problems.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn files() {
        check("", |_| {});
        check("# only a comment\n", |_| {});
        check("websocket:\n  # idle_timeout_seconds: 5\nshards: 2", |c| c.shards = Auto::Value(2));
        check("shards: auto", |_| {});
        check("listen: [0.0.0.0:80, '[::]:81']", |c| {
            c.listen = vec![SocketAddr::from(([0; 4], 80)), SocketAddr::from(([0_u16; 8], 81))];
        });
        check("listen: 0.0.0.0:80", |c| c.listen = vec![SocketAddr::from(([0; 4], 80))]);
        check("websocket: {max_message_size: 64KiB}", |c| c.websocket.max_message_size = Size(65_536));
        check("websocket: {max_message_size: 70000}", |c| c.websocket.max_message_size = Size(70_000));
        check("auth: {secret: 0123}", |c| c.auth.secret = Some(Secret::new("0123")));
        check("auth: {algorithm: ES256}", |c| c.auth.algorithm = Some(Algorithm::ES256));
        check("auth: {secret: null}", |_| {});
        check("limits: {messages: null}", |c| c.limits.messages = None);
        check("limits: {messages: {burst: 5}}", |c| c.limits.messages.as_mut().unwrap().burst = 5);
        check("limits: {bytes: {per_second: 5KB}}", |c| c.limits.bytes.as_mut().unwrap().per_second = Size(5000));
        check("websocket: {max_connections_per_client: 7, client_limit_policy: evict_idle}", |c| {
            c.websocket.max_connections_per_client = Some(7);
            c.websocket.client_limit_policy = ClientLimitPolicy::EvictIdle;
        });
        check("origins: {allow: same_host}", |_| {});
        check("origins: {allow: []}", |c| c.origins.allow = vec![]);
        check("origins: {allow: [same_host, null, '*']}", |c| c.origins.allow = vec![SameHost, Opaque, Any]);
        check("origins: {allow: ['null']}", |c| c.origins.allow = vec![Opaque]);
        check("origins: {allow: 'null'}", |c| c.origins.allow = vec![Opaque]);
        check("origins:\n  allow:\n    - https://*.example.com\n    - 'http://[::1]:3000'", |c| {
            c.origins.allow = ["https://*.example.com", "http://[::1]:3000"].map(|one| one.parse().unwrap()).into();
        });
        check("io: {wait: poll}\nlog: {format: json}", |c| {
            c.io.wait = ReceiveWait::Poll;
            c.log.format = LogFormat::Json;
        });
    }

    #[test]
    fn an_entry_has_a_line_although_what_is_wrong_is_not_there() {
        let mut draft = Draft::new(Config::default());
        draft.read_text(
            "auth:\n  jwks:\n    - {source: a, issuer: a}\n    - b\n  keys:\n    - {id: a, issuer: k}\n",
            None,
        );
        let odd: Vec<_> = draft.warnings().iter().map(ToString::to_string).collect();
        assert!(odd.len() == 1 && odd[0].starts_with("line 4: auth.jwks[1]: "), "{odd:?}");
        let wrong = draft.finish().unwrap_err().to_string();
        assert!(wrong.starts_with("line 6: auth.keys[0]: has no key"), "{wrong}");
    }

    /// The block of the README is the defaults, and has every key.
    #[test]
    fn the_block_of_the_readme() {
        let readme = include_str!("../../README.md");
        let (_, block) = readme.split_once("\nThe defaults:\n\n```yaml\n").unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let mut draft = Draft::new(Config::default());
        draft.read_text(block, None);
        for key in Config::keys() {
            let below = format!("{key}.");
            let is_there = |written: &String| *written == key || written.starts_with(&below);
            assert!(draft.reader.places.keys().any(is_there), "{key} is not there");
        }
        assert_eq!(draft.read_only(), Ok(Config::default()));
        // What `auto` stands for, as it says.
        assert_eq!(Config::default().drain.closes_within(), Duration::from_secs(20));
        assert!(block.contains("auto: 20s"));
    }

    #[test]
    fn the_block_that_others_have() {
        check(
            "websocket: {max_connections_per_client: 5, max_total_connections: 1000, idle_timeout_seconds: 300, \
             ping_interval_seconds: 30, max_message_size: 1MB, max_session_history: 100}",
            |c| c.websocket.max_total_connections = Auto::Value(1000),
        );
    }

    #[test]
    fn problems_of_files() {
        check_problem(
            "path: /\nwebsocket:\n  idel_timeout_seconds: 4",
            "line 3: websocket.idel_timeout_seconds: no such key; did you mean `websocket.idle_timeout_seconds`?",
        );
        check_problem("admin: {lisen: x}", "line 1: admin.lisen: no such key; did you mean `admin.listen`?");
        check_problem("pong_timeout: 1s", "line 1: pong_timeout: no such key; did you mean `websocket.pong_timeout`?");
        check_problem("limits: {eror: 5}", "line 1: limits.eror: no such key; did you mean `limits.errors`?");
        check_problem(
            "limits: {bytes: {per_secon: 5}}",
            "line 1: limits.bytes.per_secon: no such key; did you mean `limits.bytes.per_second`?",
        );
        check_problem(
            "topics: [{pattern: a, polcy: drop_oldest}]",
            "line 1: topics[0].polcy: no such key; did you mean `topics[].policy`?",
        );
        check_problem(
            "topics: [{pattern: a, policy: drop}]",
            "line 1: topics[0].policy: `drop` is none of disconnect, drop_oldest, drop_newest, latest_per_key",
        );
        check_problem("auht: {}", "line 1: auht: no such key; did you mean `auth`?");
        check_problem("log: {colour: x}", "line 1: log.colour: no such key; remove it");
        check_problem(
            "\nwebsocket: {pong_timeout: 10}",
            "line 2: websocket.pong_timeout: `10` is not a duration: write a whole number and ms, s, m, h or d, such as 25s",
        );
        check_problem(
            "outbound: {max_bytes: 1.5MB}",
            "line 1: outbound.max_bytes: `1.5MB` is not a size: write a whole number and B, KB, MB, GB, KiB, MiB or GiB",
        );
        check_problem(
            "limits: {errors: -1}",
            "line 1: limits.errors: `-1` is not a whole number in range: write digits alone, without a unit",
        );
        check_problem(
            "auth: {required: maybe}",
            "line 1: auth.required: `maybe` is neither true nor false: write one of them",
        );
        check_problem(
            "shards: 70000",
            "line 1: shards: `70000` is not possible: write auto or a whole number in range",
        );
        check_problem("io: {wait: pol}", "line 1: io.wait: `pol` is none of recv, poll");
        check_problem(
            "listen: localhost",
            "line 1: listen[0]: `localhost` is not an address: write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080",
        );
        check_problem(
            "\norigins: {allow: [same_host, https://example.com/app]}",
            "line 2: origins.allow[1]: `https://example.com/app` is no origin: write same_host, null, '*', or scheme://host with a port if \
             it has one and no path, such as https://example.com, https://*.example.com or http://localhost:3000",
        );
        check_problem(
            "origins: {allow: null}",
            "line 1: origins.allow: this key cannot be null; write [] for none, or remove it for its default",
        );
        check_problem("path: /a\npath: /b", "line 2: path: is there twice; remove one");
        check_problem("path: /a\n---\npath: /b", "line 2: a second document begins here; remove `---`");
        check_problem("path: null", "line 1: path: this key cannot be null; remove it for its default");
        check_problem(
            "limits: {messages: 100}",
            "line 1: limits.messages: keys are expected here, each as `key: value`: per_second, burst",
        );
        assert!(Config::parse("- 1").unwrap_err().to_string().starts_with(
            "line 1: keys are expected here, each as `key: value`: listen, path, echo_path, shards, tls, websocket, "
        ));
    }

    #[test]
    fn environment() {
        check_env("HOME", "/", Ok(|_| {}));
        check_env("TIDEWHEEL_PATH", "/a b: #c", Ok(|c| c.path = "/a b: #c".to_owned()));
        check_env(
            "TIDEWHEEL_WEBSOCKET_MAX_MESSAGE_SIZE",
            "2MB",
            Ok(|c| c.websocket.max_message_size = Size(2_000_000)),
        );
        check_env("TIDEWHEEL_WEBSOCKET_IDLE_TIMEOUT_SECONDS", "0", Ok(|c| c.websocket.idle_timeout_seconds = 0));
        check_env("TIDEWHEEL_AUTH_REQUIRED", "false", Ok(|c| c.auth.required = false));
        check_env("TIDEWHEEL_AUTH_SECRET", "\"\\ {1}", Ok(|c| c.auth.secret = Some(Secret::new("\"\\ {1}"))));
        check_env("TIDEWHEEL_AUTH_ISSUER", "", Ok(|_| {}));
        check_env("TIDEWHEEL_LIMITS_MESSAGES", "null", Ok(|c| c.limits.messages = None));
        check_env(
            "TIDEWHEEL_LIMITS_BYTES_BURST",
            "5MB",
            Ok(|c| c.limits.bytes.as_mut().unwrap().burst = Size(5_000_000)),
        );
        check_env("TIDEWHEEL_AUTH_COOKIE", "session", Ok(|c| c.auth.cookie = Some("session".to_owned())));
        check_env("TIDEWHEEL_ORIGINS_ALLOW", "same_host, null", Ok(|c| c.origins.allow = vec![SameHost, Opaque]));
        check_env("TIDEWHEEL_ORIGINS_ALLOW_MISSING", "false", Ok(|c| c.origins.allow_missing = false));
        check_env("TIDEWHEEL_AUTH_QUERY", "true", Ok(|c| c.auth.query = true));
        check_env(
            "TIDEWHEEL_TOPICS",
            "[{pattern: a.>, policy: drop_oldest}, {pattern: '*'}]",
            Ok(|c| {
                let rules = [("a.>", Some(OutboundPolicy::DropOldest)), ("*", None)];
                c.topics = rules.map(|(pattern, policy)| TopicRule { pattern: pattern.to_owned(), policy }).into();
            }),
        );
        check_env("TIDEWHEEL_SHARDS", "3", Ok(|c| c.shards = Auto::Value(3)));
        check_env(
            "TIDEWHEEL_LISTEN",
            "0.0.0.0:1, 0.0.0.0:2",
            Ok(|c| {
                c.listen = vec![SocketAddr::from(([0; 4], 1)), SocketAddr::from(([0; 4], 2))];
            }),
        );
        check_env("TIDEWHEEL_SERVICE_HOST", "10.0.0.1", Ok(|_| {}));
        check_env("TIDEWHEEL_PORT_8080_TCP", "tcp://10.0.0.1:8080", Ok(|_| {}));
        check_env(
            "TIDEWHEEL_LIMITS_ERRORS",
            "many",
            Err("TIDEWHEEL_LIMITS_ERRORS: `many` is not a whole number in range: write digits alone, without a unit"),
        );
        check_env(
            "TIDEWHEEL_OUTBOUND_MAX_FRAME",
            "1",
            Err("TIDEWHEEL_OUTBOUND_MAX_FRAME: no such variable; did you mean TIDEWHEEL_OUTBOUND_MAX_FRAMES?"),
        );
        check_env("TIDEWHEEL_COLOUR", "1", Err("TIDEWHEEL_COLOUR: no such variable"));
    }

    #[test]
    fn the_environment_overrides_the_file_key_by_key() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "websocket: {pong_timeout: 1s, close_timeout: 2s}").unwrap();
        let env = [("TIDEWHEEL_WEBSOCKET_CLOSE_TIMEOUT".to_owned(), "3s".to_owned())];
        let sources =
            |env: &[(String, String)]| Sources { file: Some(file.path().into()), env: env.into(), flags: vec![] };
        let config = sources(&env).read().config;
        assert_eq!(config.websocket.pong_timeout, Duration::from_secs(1));
        assert_eq!(config.websocket.close_timeout, Duration::from_secs(3));
        assert_eq!(config.websocket.handshake_timeout, Duration::from_secs(10));

        std::fs::write(file.path(), "limits: {messages: null, bytes: {burst: 1MB}}").unwrap();
        let env = [("LIMITS_MESSAGES_PER_SECOND", "7"), ("LIMITS_BYTES_PER_SECOND", "7")];
        let env = env.map(|(name, value)| (format!("{ENV_PREFIX}{name}"), value.to_owned()));
        let limits = sources(&env).read().read_only().unwrap().limits;
        assert_eq!(limits.messages, Some(MessageRate { per_second: 7, ..MessageRate::default() }));
        assert_eq!(limits.bytes, Some(ByteRate { per_second: Size(7), burst: Size(1_000_000) }));
    }

    #[test]
    fn flags_before_environment_before_file_before_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Of four keys the first is in all sources, each further one in one less.
        std::fs::write(file.path(), "outbound: {max_frames: 1}\nlimits: {errors: 1, topic_length: 1}").unwrap();
        let flag = |typed: &str, key: &str, value: &str| Flag {
            typed: typed.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let sources = Sources {
            file: Some(file.path().into()),
            env: [("OUTBOUND_MAX_FRAMES", "2"), ("LIMITS_ERRORS", "2"), ("LIMITS_PARKED_HANDLERS", "2")]
                .map(|(name, value)| (format!("{ENV_PREFIX}{name}"), value.to_owned()))
                .into(),
            flags: vec![
                flag("--set", "outbound.max_frames", "3"),
                flag("--set", "limits.subscriptions_per_connection", "3"),
                flag("--set", "shards", "3"),
                flag("--set", "shards", "4"),
            ],
        };
        let config = sources.read().read_only().unwrap();
        assert_eq!(config.outbound.max_frames, 3, "flag before environment and file");
        assert_eq!(config.limits.errors, 2, "environment before file");
        assert_eq!(config.limits.topic_length, 1, "file before default");
        assert_eq!(config.limits.parked_handlers, 2, "environment before default");
        assert_eq!(config.limits.subscriptions_per_connection, 3, "flag before default");
        assert_eq!(config.shards, Auto::Value(4), "the last flag counts");
        assert_eq!(config.websocket, Config::default().websocket);

        std::fs::write(file.path(), "limits: {subscriptions_per_connection: 1}").unwrap();
        assert_eq!(sources.read().config.limits.subscriptions_per_connection, 3, "flag before file");
        let problem =
            Sources { flags: vec![flag("--set", "limits.eror", "1")], ..Sources::default() }.read().read_only();
        assert_eq!(problem.unwrap_err().to_string(), "--set: limits.eror: no such key; did you mean `limits.errors`?");
    }

    #[test]
    fn all_problems_are_told_at_once_with_where_they_are() {
        let env = [("TIDEWHEEL_SHARD", "1"), ("TIDEWHEEL_LOG_LEVEL", "loud")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let told = |file: &Path, env: &[(String, String)]| {
            let flags = vec![Flag { typed: "--shards".into(), key: "shards".into(), value: "999".into() }];
            let sources = Sources { file: Some(file.into()), env: env.into(), flags };
            sources.read().finish().unwrap_err().to_string()
        };
        let problems = told(Path::new("/nowhere/t.yaml"), &env);
        let lines: Vec<_> = problems.lines().collect();
        assert_eq!(lines.len(), 4, "{problems}");
        assert!(lines[1].ends_with("did you mean TIDEWHEEL_SHARDS?"), "{problems}");
        assert!(lines[0].starts_with("TIDEWHEEL_LOG_LEVEL: `loud` is none of off,"), "{problems}");
        assert_eq!(lines[2], "--shards: shards: 999 is out of range; write 1 to 255");
        assert!(lines[3].starts_with("/nowhere/t.yaml: No such file"), "{problems}");

        let file = tempfile::NamedTempFile::new().unwrap();
        let name = file.path().display().to_string();
        let text = "path: ws\nwebsocket:\n  idle_timeout_seconds: 99999999\n  pong_timeout: 5\n  pong: 5s\n\
                    auth: {secret: hunter2, public_key_file: a.pem}\nlimits: {errors: many, bytes: {burst: 0}}\n\
                    log: 5\norigins: {allow: [same_host, here]}\nio:\n  receive_buffers: 1000\n";
        std::fs::write(file.path(), text).unwrap();
        let problems = told(file.path(), &[]);
        let expected = [
            "1: path: `ws` is not a path",
            "3: websocket.idle_timeout_seconds: 99999999 is out of range; write 0 to 2592000",
            "4: websocket.pong_timeout: `5` is not a duration",
            "5: websocket.pong: no such key; did you mean `websocket.pong_timeout`?",
            "6: auth.public_key_file: a.pem is there beside auth.secret",
            "7: limits.errors: `many` is not a whole number in range",
            "7: limits.bytes.burst: 0 is out of range; write 1B to 1GiB",
            "8: log: keys are expected here, each as `key: value`: level, format",
            "9: origins.allow[1]: `here` is no origin",
            "11: io.receive_buffers: 1000 is no power of two; write 1024",
        ];
        for (line, expected) in problems.lines().zip(expected) {
            assert!(line.starts_with(&format!("{name}:{expected}")), "{line}\nis not\n{expected}");
        }
        assert_eq!(problems.lines().count(), expected.len() + 1, "{problems}");
    }

    /// What could not be read may be what is missing.
    #[test]
    fn what_follows_from_another_problem_is_not_told() {
        let told = |text: &str| {
            let mut draft = Draft::new(Config::default());
            draft.read_text(text, None);
            draft.finish().unwrap_err().0.len()
        };
        assert_eq!(told(""), 1, "no key");
        assert_eq!(told("auth: {secret: [1]}"), 1);
        assert_eq!(told("auth: {secrt: a}"), 1);
        assert_eq!(told("auth: {secret: a"), 1);
        assert_eq!(told("limits: {eror: 5}"), 2);
    }

    #[test]
    fn texts_that_are_no_configuration() {
        check_problem("a: *b", "line 1: while parsing node, found unknown anchor");
        let bomb = (1..12).fold("a0: &a0 [1]\n".to_owned(), |text, n| {
            let m = n - 1;
            text + &format!("a{n}: &a{n} [*a{m},*a{m},*a{m},*a{m},*a{m},*a{m},*a{m},*a{m}]\n")
        });
        assert!(Config::parse(&bomb).unwrap_err().to_string().ends_with("far too much; this is no configuration"));
        let deep = "[".repeat(100_000);
        assert_eq!(Config::parse(&deep).unwrap_err().0.len(), 1);
        check_problem("[a]: b", "line 1: this is no key; write `key: value`");
        // An alias is what it stands for.
        check("websocket: {pong_timeout: &t 7s, close_timeout: *t}", |c| {
            c.websocket.pong_timeout = Duration::from_secs(7);
            c.websocket.close_timeout = Duration::from_secs(7);
        });
    }

    #[test]
    fn every_key_can_be_set_by_its_path_and_variable_names_are_distinct() {
        let keys = Config::keys();
        let mut names: Vec<_> = keys.iter().map(|key| env_name(key)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), keys.len());
        assert!(names.iter().all(|name| INJECTED.iter().all(|bad| !name.starts_with(&format!("{ENV_PREFIX}{bad}")))));
        for key in keys {
            let values = [
                "null",
                "7",
                "7s",
                "drop_newest",
                "[{pattern: a}]",
                "false",
                "true",
                "poll",
                "reject",
                "json",
                "debug",
                "HS512",
                "127.0.0.1:7",
                "*",
                "::1",
                "[{secret: s}]",
                "[{cert_file: c}]",
                "optional",
                "uri",
                "1.3",
            ];
            let accepted = values.iter().any(|value| {
                let mut config = Config::default();
                config.set(key, value).is_ok() && config != Config::default()
            });
            assert!(accepted, "{key}");
        }
    }

    #[test]
    fn no_message_shows_a_secret() {
        let config = Config::parse("auth: {secret: hunter2}").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        for text in [
            "auth: {secret: hunter2, secret: hunter2}",
            "auth:\n  secret: hunter2\n  leeway: x",
            "auth:\n  secret: {hunter2: x}",
            "auth:\n  secret hunter2: x",
            "auth:\n  secret: [hunter2]",
            "auth:\n  secret: \"hunter2\n",
            "auth: {secret: &hunter2}: x",
        ] {
            let problems = Config::parse(text).unwrap_err();
            assert!(!format!("{problems} {problems:?}").contains("hunter2"), "{problems}");
        }
    }
}

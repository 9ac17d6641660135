//! From a file and the environment to a [`Config`].
//! Law: nothing is ignored. What cannot be used is a problem that says where it is and what was probably meant, and no
//! problem ever quotes a secret.

use std::fmt;
use std::path::Path;

use serde_saphyr::Error as YamlError;

use super::{Config, Node};

const ENV_PREFIX: &str = "TIDEWHEEL_";
/// Kubernetes puts `<NAME>_SERVICE_…` and `<NAME>_PORT…` of every service into the environment of every pod. A service
/// called `tidewheel` must not keep the server from starting, and no key begins like this.
const INJECTED: [&str; 2] = ["SERVICE_", "PORT"];

/// Everything that is wrong with a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// The defaults, overridden by `file`, overridden by `env` (usually [`environment`]; variables without the prefix
    /// are passed over). Not yet validated: flags come after.
    ///
    /// # Errors
    /// The first problem of the file and all of the environment.
    pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let mut config = Self::default();
        if let Some(path) = file {
            let in_file = |problem| format!("{}: {problem}", path.display());
            match std::fs::read_to_string(path).map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
                Ok(parsed) => config = parsed,
                Err(problem) => problems.push(in_file(problem)),
            }
        }
        let keys = Self::keys();
        for (name, value) in env {
            let Some(suffix) = name.strip_prefix(ENV_PREFIX) else { continue };
            if INJECTED.iter().any(|injected| suffix.starts_with(injected)) {
                continue;
            }
            let known = keys.iter().find(|key| env_name(key) == name);
            let result = match known {
                Some(key) => config.set_known(key, &value),
                None => Err(match nearest(&suffix.to_lowercase(), &keys) {
                    Some(key) => format!("no such variable; did you mean {}?", env_name(key)),
                    None => "no such variable".to_owned(),
                }),
            };
            if let Err(problem) = result {
                problems.push(format!("{name}: {problem}"));
            }
        }
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    /// Reads a YAML text over the defaults. Not yet validated.
    ///
    /// # Errors
    /// The first problem of the text, with its line.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        parse(text).map_err(|problem| Problems(vec![problem]))
    }

    /// Sets one key by its path, such as `websocket.pong_timeout`, from text. An empty text or `null` means none.
    ///
    /// # Errors
    /// An unknown key, named with the nearest known one, or a text that is no value of it.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), Problems> {
        let keys = Self::keys();
        let result = match keys.iter().any(|known| known == key) {
            true => self.set_known(key, text).map_err(|problem| format!("{key}: {problem}")),
            false => Err(unknown_key(key, &keys)),
        };
        result.map_err(|problem| Problems(vec![problem]))
    }

    /// The paths of all keys, in order of declaration.
    pub fn keys() -> Vec<String> {
        let mut keys = Vec::new();
        <Self as Node>::keys("", &mut keys);
        keys
    }

    fn set_known(&mut self, key: &str, text: &str) -> Result<(), String> {
        let path: Vec<&str> = key.split('.').collect();
        // Quoted, because YAML reads a quoted scalar as the type it is wanted as, and nothing in it as syntax.
        let quoted = if matches!(text, "" | "null") { Ok("null".to_owned()) } else { serde_json::to_string(text) };
        let value = quoted.map_err(|error| error.to_string())?;
        let document = path.iter().rev().fold(value, |inner, segment| format!("{{{segment}: {inner}}}"));
        let from: Self = serde_saphyr::from_str(&document).map_err(|error| problem(&error))?;
        self.replace_key(&path, from);
        Ok(())
    }
}

/// The variables of the process. Unlike [`std::env::vars`] it does not panic over one that is not UTF-8, which may be
/// somebody else's; in one of ours the marks in place of the wrong bytes are a problem of its value.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// The variable that overrides `key`.
fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

fn parse(text: &str) -> Result<Config, String> {
    serde_saphyr::from_str(text).map_err(|error| match error.location() {
        Some(location) => format!("line {}: {}", location.line(), problem(&error)),
        None => problem(&error),
    })
}

/// What is wrong, in the words of whoever writes the file, without the lines around it: one of them may be a secret.
fn problem(error: &YamlError) -> String {
    match error.without_snippet() {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let keys = Config::keys();
            let section = section_of(expected, &keys);
            unknown_key(&format!("{section}{field}"), &keys)
        }
        YamlError::InvalidScalar { ty, .. } if ty.starts_with(['u', 'i']) => {
            "expected a whole number in range".to_owned()
        }
        YamlError::InvalidScalar { ty: "boolean", .. } => "expected true or false".to_owned(),
        YamlError::DuplicateMappingKey { key, .. } => match key {
            Some(key) => format!("`{key}` is there twice; remove one"),
            None => "a key is there twice; remove one".to_owned(),
        },
        YamlError::MultipleDocuments { .. } => "a second document begins here; remove `---`".to_owned(),
        YamlError::NullIntoString { .. } => "this key cannot be null; remove it for its default".to_owned(),
        other => {
            let text = other.to_string();
            // The location is said once, by the caller, and means nothing for a variable.
            text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
        }
    }
}

fn unknown_key(key: &str, keys: &[String]) -> String {
    match nearest(key, keys) {
        Some(nearest) => format!("no key `{key}`; did you mean `{nearest}`?"),
        None => format!("no key `{key}`; remove it"),
    }
}

/// The prefix of the section that has exactly the keys `expected`: an error names these, but not their section.
fn section_of(expected: &[&str], keys: &[String]) -> String {
    let prefixes = keys.iter().filter_map(|key| key.rfind('.').map(|dot| &key[..=dot]));
    prefixes
        .filter(|prefix| {
            let in_section = keys.iter().filter_map(|key| key.strip_prefix(prefix));
            in_section.eq(expected.iter().copied())
        })
        .map(str::to_owned)
        .next()
        .unwrap_or_default()
}

/// The key most like `wrong`, as a whole path or as its last part in whatever section, if any is like it at all.
fn nearest<'a>(wrong: &str, keys: &'a [String]) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let distances = keys.iter().map(|key| {
        let whole = edit_distance(&wrong.replace('.', "_"), &key.replace('.', "_"));
        (edit_distance(&last(wrong), &last(key)).min(whole), whole, key)
    });
    let (distance, _, key) = distances.min()?;
    (distance <= last(wrong).len() / 2).then_some(key)
}

/// Insertions, deletions and replacements that make `b` of `a` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::config::origin::OriginPattern::{Any, Opaque, SameHost};
    use crate::config::{Algorithm, Auto, LogFormat, ReceiveWait, Secret};

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
        let loaded = Config::load(None, [(name.to_owned(), value.to_owned())].into_iter());
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
        check("websocket: {max_message_size: 64KiB}", |c| c.websocket.max_message_size = 65_536);
        check("websocket: {max_message_size: 70000}", |c| c.websocket.max_message_size = 70_000);
        check("auth: {secret: 0123}", |c| c.auth.secret = Some(Secret::new("0123")));
        check("auth: {algorithm: ES256}", |c| c.auth.algorithm = Some(Algorithm::ES256));
        check("auth: {secret: null}", |_| {});
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
    fn the_block_that_others_have() {
        check(
            "websocket: {max_total_connections: 1000, idle_timeout_seconds: 300, ping_interval_seconds: 30, max_message_size: 1MB}",
            |c| {
                c.websocket.max_total_connections = Auto::Value(1000);
            },
        );
    }

    #[test]
    fn problems_of_files() {
        check_problem(
            "path: /\nwebsocket:\n  idel_timeout_seconds: 4",
            "line 3: no key `websocket.idel_timeout_seconds`; did you mean `websocket.idle_timeout_seconds`?",
        );
        check_problem("admin: {lisen: x}", "line 1: no key `admin.lisen`; did you mean `admin.listen`?");
        check_problem("pong_timeout: 1s", "line 1: no key `pong_timeout`; did you mean `websocket.pong_timeout`?");
        check_problem("log: {colour: x}", "line 1: no key `log.colour`; remove it");
        check_problem(
            "\nwebsocket: {pong_timeout: 10}",
            "line 2: `10` is not a duration: write a whole number and ms, s, m, h or d, such as 25s",
        );
        check_problem(
            "outbound: {max_bytes: 1.5MB}",
            "line 1: `1.5MB` is not a size: write a whole number and B, KB, MB, GB, KiB, MiB or GiB",
        );
        check_problem("limits: {errors: -1}", "line 1: expected a whole number in range");
        check_problem("auth: {required: maybe}", "line 1: expected true or false");
        check_problem("shards: 70000", "line 1: `70000` is not possible: write auto or a whole number in range");
        check_problem("io: {wait: pol}", "line 1: unknown variant `pol`, expected one of recv, poll");
        check_problem(
            "listen: localhost",
            "line 1: `localhost` is not an address: write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080",
        );
        check_problem(
            "\norigins: {allow: [same_host, https://example.com/app]}",
            "line 2: `https://example.com/app` is no origin: write same_host, null, '*', or scheme://host with a port if \
             it has one and no path, such as https://example.com, https://*.example.com or http://localhost:3000",
        );
        check_problem(
            "origins: {allow: null}",
            "line 1: no value is there: write an origin such as https://example.com, or a list such as [same_host, null]",
        );
        check_problem("path: /a\npath: /b", "line 2: `path` is there twice; remove one");
        check_problem("path: /a\n---\npath: /b", "line 3: a second document begins here; remove `---`");
        check_problem("path: null", "line 1: this key cannot be null; remove it for its default");
        check_problem("- 1", "line 1: expected mapping start");
    }

    #[test]
    fn environment() {
        check_env("HOME", "/", Ok(|_| {}));
        check_env("TIDEWHEEL_PATH", "/a b: #c", Ok(|c| c.path = "/a b: #c".to_owned()));
        check_env("TIDEWHEEL_WEBSOCKET_MAX_MESSAGE_SIZE", "2MB", Ok(|c| c.websocket.max_message_size = 2_000_000));
        check_env("TIDEWHEEL_WEBSOCKET_IDLE_TIMEOUT_SECONDS", "0", Ok(|c| c.websocket.idle_timeout_seconds = 0));
        check_env("TIDEWHEEL_AUTH_REQUIRED", "false", Ok(|c| c.auth.required = false));
        check_env("TIDEWHEEL_AUTH_SECRET", "\"\\ {1}", Ok(|c| c.auth.secret = Some(Secret::new("\"\\ {1}"))));
        check_env("TIDEWHEEL_AUTH_ISSUER", "", Ok(|_| {}));
        check_env("TIDEWHEEL_AUTH_COOKIE", "session", Ok(|c| c.auth.cookie = Some("session".to_owned())));
        check_env("TIDEWHEEL_ORIGINS_ALLOW", "same_host, null", Ok(|c| c.origins.allow = vec![SameHost, Opaque]));
        check_env("TIDEWHEEL_ORIGINS_ALLOW_MISSING", "false", Ok(|c| c.origins.allow_missing = false));
        check_env("TIDEWHEEL_AUTH_QUERY", "true", Ok(|c| c.auth.query = true));
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
        check_env("TIDEWHEEL_LIMITS_ERRORS", "many", Err("TIDEWHEEL_LIMITS_ERRORS: expected a whole number in range"));
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
        let config = Config::load(Some(file.path()), env.into_iter()).unwrap();
        assert_eq!(config.websocket.pong_timeout, Duration::from_secs(1));
        assert_eq!(config.websocket.close_timeout, Duration::from_secs(3));
        assert_eq!(config.websocket.handshake_timeout, Duration::from_secs(10));
    }

    #[test]
    fn all_problems_are_told_at_once_with_where_they_are() {
        let env = [("TIDEWHEEL_SHARD", "1"), ("TIDEWHEEL_LOG_LEVEL", "loud")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let Problems(problems) = Config::load(Some(Path::new("/nowhere/t.yaml")), env.into_iter()).unwrap_err();
        assert_eq!(problems.len(), 3);
        assert!(problems[0].starts_with("/nowhere/t.yaml: No such file"), "{problems:?}");
        assert!(problems[1].ends_with("did you mean TIDEWHEEL_SHARDS?"), "{problems:?}");
        assert!(problems[2].starts_with("TIDEWHEEL_LOG_LEVEL: unknown variant `loud`"), "{problems:?}");
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
            let values = ["7", "7s", "false", "true", "poll", "json", "debug", "HS512", "127.0.0.1:7", "*"];
            let accepted = values.iter().any(|value| {
                let mut config = Config::default();
                config.set(&key, value).is_ok() && config != Config::default()
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
        ] {
            let problems = Config::parse(text).unwrap_err();
            assert!(!format!("{problems} {problems:?}").contains("hunter2"), "{problems}");
        }
    }
}

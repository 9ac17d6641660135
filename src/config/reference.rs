//! The configuration as it is written: for the admin API, and for `tidewheel config`.
//! Law: everything here comes out of the definition; a secret is masked.

use std::fmt::Write;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::load::env_name;
use super::node::{Node, Written};
use super::{Apply, Config, Key};

impl Config {
    /// Every key and section, in order of declaration.
    pub fn reference() -> &'static [Key] {
        // The definition does not change, and everything that is read is held against it.
        static REFERENCE: LazyLock<Vec<Key>> = LazyLock::new(|| {
            let root = Key {
                path: String::new(),
                form: String::new(),
                default: String::new(),
                range: None,
                apply: Apply::Section,
                meaning: String::new(),
            };
            let mut keys = Vec::new();
            Config::describe(root, &mut keys);
            keys.remove(0);
            keys
        });
        &REFERENCE
    }

    /// The whole configuration as JSON, as it is written in a file; secrets are masked.
    pub fn to_value(&self) -> Value {
        self.written().value()
    }

    /// The whole configuration as a YAML file with a comment on every key; secrets are masked. Reading it gives the same
    /// configuration, if there is no secret.
    pub fn to_yaml(&self) -> String {
        let mut yaml = String::new();
        if let Written::Section(entries) = self.written() {
            write_yaml(&mut yaml, &entries, "", Self::reference());
        }
        yaml
    }

    /// Every variable with its default and meaning, as lines of a shell.
    pub fn env_reference() -> String {
        let mut text = String::new();
        for key in Self::reference().iter().filter(|key| is_settable(key)) {
            let meaning = key.meaning.split_inclusive(". ").next().unwrap_or_default().trim_end();
            let _ = writeln!(text, "# {meaning}\n#{}={}", env_name(&key.path), key.default); // a String takes it all
        }
        text
    }

    /// A reference in Markdown.
    pub fn doc() -> String {
        let mut text = String::from(DOC_HEAD);
        let cell = |text: &str| text.replace('|', "\\|");
        for key in Self::reference() {
            let applies = match key.apply {
                Apply::Live => "reload",
                Apply::Restart => "restart",
                Apply::Section => {
                    let _ = write!(text, "\n## `{}`\n\n{}\n\n{DOC_TABLE}", key.path, key.meaning);
                    continue;
                }
            };
            let range = key.range.as_ref().map(|(least, most)| format!("{least} to {most}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "| `{}` | {} | `{}` | {range} | {applies} | {} |",
                key.path,
                cell(&key.form),
                cell(&key.default),
                cell(&key.meaning)
            );
        }
        text
    }
}

fn is_settable(key: &Key) -> bool {
    key.apply != Apply::Section && !key.path.contains("[]")
}

fn write_yaml(yaml: &mut String, entries: &[(&str, Written)], path: &str, keys: &[Key]) {
    let indent = "  ".repeat(path.split('.').filter(|segment| !segment.is_empty()).count());
    for (name, written) in entries {
        let path = super::node::join(path, name);
        let key = keys.iter().find(|key| key.path == path);
        if indent.is_empty() && !yaml.is_empty() {
            yaml.push('\n');
        }
        if let Some(key) = key {
            let mut meaning = key.meaning.clone();
            if let Some((least, most)) = &key.range {
                let _ = write!(meaning, " From {least} to {most}.");
            }
            for line in wrapped(&meaning, COMMENT_COLUMNS - indent.len()) {
                let _ = writeln!(yaml, "{indent}# {line}");
            }
        }
        match written {
            Written::Section(entries) => {
                let _ = writeln!(yaml, "{indent}{name}:");
                write_yaml(yaml, entries, &path, keys);
            }
            other => {
                let _ = writeln!(yaml, "{indent}{name}: {}", other.in_line());
            }
        }
    }
}

/// Lines of at most so many characters, if the words allow.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("it begins with one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

impl Written {
    fn value(&self) -> Value {
        match self {
            Self::Word(value) => value.clone(),
            Self::List(items) => items.iter().map(Self::value).collect(),
            Self::Section(entries) => Value::Object(
                entries.iter().map(|(name, entry)| ((*name).to_owned(), entry.value())).collect::<Map<_, _>>(),
            ),
        }
    }

    /// As YAML in one line.
    pub(super) fn in_line(&self) -> String {
        match self {
            Self::Word(Value::String(text)) if is_plain(text) => text.clone(),
            Self::Word(value) => escaped(&value.to_string()),
            Self::List(items) => format!("[{}]", items.iter().map(Self::in_line).collect::<Vec<_>>().join(", ")),
            Self::Section(entries) => {
                let entries: Vec<_> =
                    entries.iter().map(|(name, entry)| format!("{name}: {}", entry.in_line())).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }
}

/// JSON as YAML takes it: some characters that stand for themselves in JSON must not be there at all.
fn escaped(json: &str) -> String {
    let mut yaml = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{fffe}'..='\u{ffff}' => drop(write!(yaml, "\\u{:04x}", u32::from(c))),
            _ => yaml.push(c),
        }
    }
    yaml
}

/// Whether YAML takes the text for itself without quotes. (With them it is JSON, which YAML understands.)
fn is_plain(text: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "_./:+-".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(is_safe)
        && !text.ends_with(':')
        && !matches!(text, "null" | "Null" | "NULL")
}

const COMMENT_COLUMNS: usize = 100;
const DOC_TABLE: &str =
    "| key | what may be written | default | range | a change needs | meaning |\n|---|---|---|---|---|---|\n";
const DOC_HEAD: &str = "# Configuration

One YAML file. A variable of the environment goes before the file, and a flag of `tidewheel serve` before that. The
variable of a key is its path in upper case: `TIDEWHEEL_WEBSOCKET_PONG_TIMEOUT` for `websocket.pong_timeout`. A change
needs a reload (SIGHUP, `POST /api/reload`) or a restart.

| key | what may be written | default | range | a change needs | meaning |
|---|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    /// Of these every key takes one that is not its default.
    const VALUES: [&str; 22] = [
        "null",
        "7",
        "7s",
        "7KiB",
        "false",
        "true",
        "poll",
        "reject",
        "json",
        "debug",
        "drop_newest",
        "[{pattern: a.*, policy: drop_oldest}, {pattern: '*'}]",
        "HS512",
        "127.0.0.1:7",
        "10.0.0.0/8",
        "*",
        "/a: #b",
        "[{id: k, public_key_file: f}]",
        "[{cert_file: c, key_file: k}]",
        "optional",
        "uri",
        "1.3",
    ];

    #[test]
    fn the_defaults_as_a_file_are_the_defaults() {
        let yaml = Config::default().to_yaml();
        assert_eq!(Config::parse(&yaml), Ok(Config::default()), "{yaml}");
        for key in Config::keys() {
            let line = format!("{}:", key.rsplit('.').next().unwrap());
            assert!(yaml.lines().any(|written| written.trim_start().starts_with(&line)), "{key} is not in it");
        }
        assert!(yaml.lines().all(|line| line.chars().count() <= COMMENT_COLUMNS + 2));
    }

    #[test]
    fn every_value_is_written_as_it_is_read() {
        for key in Config::keys() {
            let mut tried = 0;
            for value in VALUES {
                let mut config = Config::default();
                if config.set(key, value).is_err() || config == Config::default() {
                    continue;
                }
                tried += 1;
                // A secret does not come back.
                if config.auth.secret.is_some() || config.admin.key.is_some() {
                    let (section, name) = key.split_once('.').expect("no secret is at the top");
                    assert_eq!(config.to_value()[section][name], "***");
                    assert!(config.to_yaml().contains(&format!("{name}: \"***\"\n")), "{key}");
                    continue;
                }
                let yaml = config.to_yaml();
                assert_eq!(Config::parse(&yaml), Ok(config.clone()), "{key} = {value}:\n{yaml}");
                let json = config.to_value().to_string();
                assert_eq!(Config::parse(&json), Ok(config), "{key} = {value}:\n{json}");
            }
            assert!(tried > 0, "{key} takes none of the values");
        }
    }

    #[test]
    fn texts_are_quoted_where_they_must_be() {
        let rare = ["\u{7f}", "a\u{9b}\u{85}\u{ffff}", "\u{feff}\u{2028}", "\0"];
        let texts = [
            "null", "~", "true", "12", "a: b", "#", "a #b", "'", "\"", "[a", "{", "*", "&a", "!", " a ", "\u{e9}\n",
            "-", ":",
        ];
        for text in texts.into_iter().chain(rare) {
            let mut config = Config::default();
            config.auth.issuer = Some(text.to_owned());
            let yaml = config.to_yaml();
            assert_eq!(Config::parse(&yaml).map(|config| config.auth.issuer), Ok(Some(text.to_owned())), "{yaml}");
        }
    }

    #[test]
    fn the_variables_are_all_there_and_can_be_read() {
        let text = Config::env_reference();
        let set: Vec<_> = text.lines().filter_map(|line| line.strip_prefix('#')?.split_once('=')).collect();
        let set: Vec<_> = set.into_iter().filter(|(name, _)| name.starts_with("TIDEWHEEL_")).collect();
        assert_eq!(set.len(), Config::keys().len());
        for (name, value) in set {
            // The value of a section is not one a variable can have, unless it is null.
            if value.starts_with('{') {
                continue;
            }
            let env = vec![(name.to_owned(), value.to_owned())];
            let draft = Sources { env, ..Sources::default() }.read();
            assert_eq!(draft.config, Config::default(), "{name}={value}");
            assert!(draft.finish().is_err_and(|problems| problems.0.iter().all(|one| one.key == "auth.required")));
        }
    }

    #[test]
    fn the_reference_has_every_key_once() {
        let doc = Config::doc();
        for Key { path, meaning, form, .. } in Config::reference() {
            assert!(!meaning.is_empty() && !form.is_empty(), "{path}");
            let row = doc.matches(&format!("| `{path}` |")).count() + doc.matches(&format!("## `{path}`\n")).count();
            assert_eq!(row, 1, "{path}");
        }
        let row = doc.lines().find(|line| line.starts_with("| `websocket.pong_timeout` |")).unwrap();
        for part in ["250ms", "`10s`", "100ms to 1h", "reload", "4002"] {
            assert!(row.contains(part), "{row}");
        }
    }
}

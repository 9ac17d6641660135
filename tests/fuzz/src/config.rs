//! The configuration: any text is a list of problems or a configuration, and what was read is written as it is read.

use tidewheel::Config;
use tidewheel::config::Sources;

use crate::script::Script;

/// A key to be set, by number, to a short text; then a YAML file.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let keys = Config::keys();
    let key = keys[usize::from(script.word()) % keys.len()];
    let value = script.piece();
    let (Ok(value), Ok(file)) = (std::str::from_utf8(value), std::str::from_utf8(script.0)) else { return };
    let mut config = Config::default();
    match config.set(key, value) {
        Ok(()) => check(&config),
        Err(problems) => assert!(!problems.0.is_empty() && config == Config::default(), "{key}: {value}"),
    }
    match Config::parse(file) {
        Ok(config) => check(&config),
        Err(problems) => assert!(!problems.0.is_empty() && !problems.to_string().is_empty()),
    }
    let name = format!("TIDEWHEEL_{}", key.to_uppercase().replace('.', "_"));
    let draft = Sources { env: vec![(name, value.to_owned())], ..Sources::default() }.read();
    let _ = draft.warnings(); // any, without a panic
    if let Err(problems) = draft.finish() {
        assert!(!problems.0.is_empty());
    }
}

fn check(config: &Config) {
    if let Err(problems) = config.validate() {
        assert!(!problems.0.is_empty());
    }
    let (yaml, json) = (config.to_yaml(), config.to_value().to_string());
    if let Some(secret) = config.auth.secret.as_ref().or(config.admin.key.as_ref()) {
        let secret = secret.expose();
        let is_telling = secret.len() > 12 && !Config::default().to_yaml().contains(secret);
        assert!(!is_telling || !format!("{config:?}").contains(secret), "a secret is shown");
        return;
    }
    // The query of a key set's URL may hold what is secret, so it is not written.
    let mut sources = config.auth.jwks.iter().map(|set| &set.source);
    if sources.any(|source| source.shown() != **source) {
        return;
    }
    assert_eq!(Config::parse(&yaml).as_ref(), Ok(config), "{yaml}");
    // Of what JSON does not escape, some must not be in YAML at all.
    if !json.contains(['\u{7f}', '\u{fffe}', '\u{ffff}']) && !json.contains(|c| matches!(c, '\u{80}'..='\u{9f}')) {
        assert_eq!(Config::parse(&json).as_ref(), Ok(config), "{json}");
    }
}

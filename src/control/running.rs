//! The configuration that is in force, and how another one takes its place.
//! Law: everything that can be wrong with a new one is found, and everything it needs is built, before the first shard is
//! told; from then on nothing can fail, and each shard swaps all of it at once, between two turns.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::certificates::Certificates;
use super::keys::{Keys, Source};
use super::{Shards, logging};
use crate::app::ConnectionAttempts;
use crate::config::{Auto, Changes, Config, Problem, Problems};
use crate::pubsub::Policies;
use crate::shard::settings::Settings;

/// Reads the sources of the configuration again, and says what is odd in them.
pub type Reread = Box<dyn Fn() -> Result<(Config, Vec<Problem>), Problems> + Send + Sync>;

/// Why a configuration was not taken up. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The engine was not told where its configuration comes from.
    #[error("the engine's configuration came from a program, and only that can reload it")]
    NoSource,
    /// The configuration is not valid, or a key or a file of it cannot be used.
    #[error(transparent)]
    Config(#[from] Problems),
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// The paths of keys that have new values. Every shard works by them from its next turn on.
    pub applied: Vec<String>,
    /// The paths of keys that were changed and wait for a restart.
    pub restart: Vec<String>,
    /// What is legal and odd.
    pub warnings: Vec<String>,
}

/// How much room the shards were started with.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Connections of the whole engine.
    pub connections: u32,
    /// Places in each shard's tables.
    pub slots: u32,
}

/// The configuration of a running engine.
pub struct Running {
    state: Mutex<State>,
    room: Room,
    /// The room for connections is what the machine allows.
    is_computed: bool,
    shards: Shards,
    reread: Option<Reread>,
    /// Told when the sources of key sets may be others. For one task.
    resourced: Notify,
    /// What became of reloads so far.
    pub counts: Reloads,
}

/// Reloads so far.
#[derive(Debug, Default)]
pub struct Reloads {
    /// Those that were taken up.
    pub applied: AtomicU64,
    /// Those that were not.
    pub refused: AtomicU64,
    /// When one was last taken up, in Unix seconds; at first the start of the engine.
    pub last_success_s: AtomicU64,
}

struct State {
    config: Arc<Config>,
    settings: Arc<Settings>,
    /// What tokens are checked with, which may change although the configuration does not.
    keys: Keys,
    /// What the TLS ports show, of which the same is true.
    certificates: Certificates,
}

impl State {
    /// Builds all else that a configuration needs, with what it shares with the one `before`.
    fn new(config: Config, certificates: Certificates, keys: Keys, room: Room, before: Option<&Self>) -> Self {
        let connections_max = match config.websocket.max_total_connections {
            Auto::Auto => room.connections,
            Auto::Value(connections) => connections.min(room.connections),
        };
        let mut settings = Settings::new(&config, connections_max, room.slots);
        settings.authenticator = keys.authenticator(&config.auth).map(Arc::new);
        settings.tls = certificates.terms();
        // Who has spent what is forgotten only where it is counted in another way.
        let limits = &config.limits;
        settings.attempts = match before {
            Some(before) if before.config.limits.connection_attempts == limits.connection_attempts => {
                before.settings.attempts.clone()
            }
            _ => limits.connection_attempts.as_ref().map(|rate| Arc::new(ConnectionAttempts::new(rate))),
        };
        if let Some(before) = before {
            let is_same =
                before.config.limits.messages == limits.messages && before.config.limits.bytes == limits.bytes;
            settings.rates.edition = before.settings.rates.edition.wrapping_add(u16::from(!is_same));
            let policies = &before.settings.policies;
            let is_same =
                before.config.topics == config.topics && before.config.outbound.policy == config.outbound.policy;
            settings.policies = match is_same {
                true => policies.clone(),
                false => Arc::new(Policies::new(&config, policies.edition().wrapping_add(1))),
            };
            settings.edition = before.settings.edition.wrapping_add(1);
        }
        Self { config: Arc::new(config), settings: Arc::new(settings), keys, certificates }
    }
}

impl Running {
    /// The configuration that an engine starts with.
    ///
    /// # Errors
    /// All that is wrong with the keys for tokens and the files of `tls`.
    pub fn new(config: Config, room: Room, shards: Shards, reread: Option<Reread>) -> Result<Self, Problems> {
        let (certificates, keys, odd) = read_files(&config)?;
        odd.iter().for_each(|odd| tracing::warn!("configuration: {odd}"));
        let state = State::new(config, certificates, keys, room, None);
        let counts = Reloads::default();
        counts.last_success_s.store(unix_s(), Relaxed);
        let is_computed = state.config.websocket.max_total_connections == Auto::Auto;
        let (state, resourced) = (Mutex::new(state), Notify::new());
        Ok(Self { state, room, is_computed, shards, reread, resourced, counts })
    }

    /// What is in force.
    pub fn config(&self) -> Arc<Config> {
        self.state.lock().config.clone()
    }

    /// The shards that work by it.
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// What a shard that starts now works by.
    pub fn settings(&self) -> Arc<Settings> {
        self.state.lock().settings.clone()
    }

    /// Reads the sources again and takes up what they say. Logs what came of it.
    ///
    /// # Errors
    /// All that is wrong; nothing has changed.
    pub fn reload_from_sources(&self) -> Result<Reloaded, ReloadError> {
        let read = self.reread.as_ref().ok_or(ReloadError::NoSource).and_then(|reread| Ok(reread()?));
        let warnings = |all: Vec<Problem>| all.iter().map(ToString::to_string).collect();
        self.count(read.and_then(|(config, odd)| self.replace(config, warnings(odd))))
    }

    /// Takes up another configuration. Logs what came of it.
    ///
    /// # Errors
    /// All that is wrong; nothing has changed.
    pub fn reload(&self, config: Config) -> Result<Reloaded, ReloadError> {
        let warnings = config.warnings().iter().map(ToString::to_string).collect();
        self.count(self.replace(config, warnings))
    }

    fn replace(&self, mut config: Config, mut warnings: Vec<String>) -> Result<Reloaded, ReloadError> {
        config.validate()?;
        let mut state = self.state.lock();
        let (wanted, wanted_tls) = (config.websocket.max_total_connections, config.tls.clone());
        let Changes { mut applied, mut restart } = config.settle(&state.config);
        if wanted_tls.addresses().is_empty() && !state.config.tls.addresses().is_empty() {
            // The ports are there until a restart, and so is what they need.
            config.tls = state.config.tls.clone();
            let (waiting, others) = applied.into_iter().partition(|key| key.starts_with("tls."));
            (restart, applied) = ([restart, waiting].concat(), others);
        }
        // Of what waits and what does not.
        config.validate()?;
        if wanted != state.config.websocket.max_total_connections
            && let Some(why) = self.too_many(wanted)
        {
            let key = "websocket.max_total_connections";
            warnings.push(format!("{key}: {why}"));
            config.websocket.max_total_connections = state.config.websocket.max_total_connections;
            applied.retain(|other| other != key);
            restart.push(key.to_owned());
        }
        let certificates = state.certificates.next(&wanted_tls, &config.tls, unix_s());
        let (certificates, keys, odd) = together(certificates, Keys::read(&config.auth, Some(&state.keys)))?;
        warnings.extend(odd);
        let next = State::new(config, certificates, keys, self.room, Some(&state));
        let of_keys = next.keys.changed_files(&state.keys).into_iter().map(str::to_owned);
        for key in of_keys.chain(next.certificates.changed_files(&state.certificates)) {
            if !applied.contains(&key) {
                applied.push(key);
            }
        }
        if applied.iter().any(|key| key == "log.level")
            && let Err(why) = logging::set_level(next.config.log.level.as_str())
        {
            warnings.push(format!("log.level: {why}"));
        }
        // From here on nothing can fail.
        *state = next;
        for inbox in self.shards.inboxes() {
            inbox.reload(state.settings.clone());
        }
        self.resourced.notify_one();
        Ok(Reloaded { applied, restart, warnings })
    }

    /// Why so many connections need a restart, if they do.
    fn too_many(&self, wanted: Auto<u32>) -> Option<String> {
        let room = self.room.connections;
        match wanted {
            Auto::Value(connections) if connections > room => {
                Some(format!("{connections} is more than the {room} that the server was started for"))
            }
            Auto::Auto if !self.is_computed => {
                Some(format!("auto is computed at the start, and the server was started for {room}"))
            }
            Auto::Value(_) | Auto::Auto => None,
        }
    }

    /// When each certificate of the TLS ports ends, in Unix seconds, in their order.
    pub(super) fn certificate_ends_s(&self) -> Vec<u64> {
        self.state.lock().certificates.ends_s().to_vec()
    }

    /// Where key sets come from, in the order of `auth.jwks`.
    pub(super) fn key_sources(&self) -> Vec<Arc<Source>> {
        self.state.lock().keys.sources().to_vec()
    }

    /// Waits until [`Running::key_sources`] may be others.
    pub(super) async fn key_sources_changed(&self) {
        self.resourced.notified().await;
    }

    /// Sources without which there is no key at all to check tokens with.
    pub(super) fn awaited_keys(&self) -> Vec<String> {
        self.state.lock().keys.awaited()
    }

    /// Hands each shard the keys that are there now. Nothing else changes.
    pub(super) fn take_up_keys(&self) {
        let mut state = self.state.lock();
        let mut settings = (*state.settings).clone();
        settings.authenticator = state.keys.authenticator(&state.config.auth).map(Arc::new);
        state.settings = Arc::new(settings);
        for inbox in self.shards.inboxes() {
            inbox.reload(state.settings.clone());
        }
    }

    fn count(&self, outcome: Result<Reloaded, ReloadError>) -> Result<Reloaded, ReloadError> {
        match &outcome {
            Ok(Reloaded { applied, restart, warnings }) => {
                self.counts.applied.fetch_add(1, Relaxed);
                self.counts.last_success_s.store(unix_s(), Relaxed);
                let (applied, waiting) = (applied.join(" "), restart.join(" "));
                tracing::info!(applied, restart = waiting, "configuration reloaded");
                for warning in warnings {
                    tracing::warn!("configuration: {warning}");
                }
            }
            Err(error) => {
                self.counts.refused.fetch_add(1, Relaxed);
                for problem in error.to_string().lines() {
                    tracing::error!("configuration not reloaded: {problem}");
                }
            }
        }
        outcome
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("room", &self.room).field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// Reads the files that a valid configuration names, for keys and certificates, and tells what is odd.
///
/// # Errors
/// All that is wrong with them.
pub fn check_files(config: &Config) -> Result<Vec<String>, Problems> {
    read_files(config).map(|(_, _, odd)| odd)
}

fn read_files(config: &Config) -> Result<(Certificates, Keys, Vec<String>), Problems> {
    together(Certificates::read(&config.tls, None, unix_s()), Keys::read(&config.auth, None))
}

/// Both and what is odd in them, or all that is wrong with either.
fn together(
    certificates: Result<(Certificates, Vec<String>), Problems>,
    keys: Result<(Keys, Vec<String>), Problems>,
) -> Result<(Certificates, Keys, Vec<String>), Problems> {
    match (certificates, keys) {
        (Ok((certificates, odd)), Ok((keys, more))) => Ok((certificates, keys, [odd, more].concat())),
        (Err(Problems(wrong)), Err(Problems(more))) => Err(Problems([wrong, more].concat())),
        (Err(wrong), Ok(_)) | (Ok(_), Err(wrong)) => Err(wrong),
    }
}

pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

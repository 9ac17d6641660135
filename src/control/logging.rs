//! The process's log: tracing, written to stderr by a thread of its own.
//! Law: whoever logs never waits for stderr and never fails because of it; lines that find no room are counted.

use std::env;
use std::io::{self, IsTerminal};
use std::panic;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is neither a level nor a list of directives.
    #[error("{place}: `{directives}` is no log level: {reason}")]
    Level {
        /// Where it was written: the variable or the key.
        place: &'static str,
        /// What was asked for.
        directives: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something in the process logs through tracing already.
    #[error("the process has a logger already")]
    Taken,
}

/// Keeps the log's writer alive. Dropping it waits at most [`FLUSH_TIMEOUT`] for the last lines.
#[must_use = "the log ends when this is dropped"]
#[derive(Debug)]
pub struct Logging(Option<WorkerGuard>);

/// Starts the log of this process. `RUST_LOG` goes before `level` (`info`, `tidewheel=debug,warn` …).
///
/// Panics are logged instead of printed, because printing would block a shard on a stderr that nobody reads.
///
/// # Errors
/// The level cannot be read, or a logger is there already.
pub fn start(level: &str, format: Format) -> Result<Logging, LoggingError> {
    let variable = env_directives();
    let (place, directives) = variable.as_deref().map_or(("log.level", level), |directives| (VARIABLE, directives));
    let filter = EnvFilter::try_new(directives).map_err(|error| LoggingError::Level {
        place,
        directives: directives.into(),
        reason: error.to_string(),
    })?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .thread_name("log")
        .finish(io::stderr());
    let lost = writer.error_counter();
    // An internal error (a field that fails to format) would be printed to stderr by the thread that logs.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => registry.with(lines.with_ansi(io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(lines.with_ansi(false).json().flatten_event(true)).try_init(),
    }
    .map_err(|_| LoggingError::Taken)?;
    // Cannot be set already: a second `try_init` fails.
    let _ = LOST.set(lost);
    let _ = FILTER.set(handle);
    panic::set_hook(Box::new(log_panic));
    Ok(Logging(Some(guard)))
}

/// Writes from now on what is at least as severe as `level`.
///
/// # Errors
/// The log is not this module's, or `RUST_LOG` says what is written.
pub fn set_level(level: &str) -> Result<(), String> {
    let filter = FILTER.get().ok_or("the process has a logger of its own")?;
    if env_directives().is_some() {
        return Err("RUST_LOG goes before it".to_owned());
    }
    let wanted = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
    filter.reload(wanted).map_err(|error| error.to_string())
}

fn env_directives() -> Option<String> {
    env::var(VARIABLE).ok().filter(|directives| !directives.is_empty())
}

/// Lines dropped since the start because stderr took no more.
pub fn lost_lines() -> u64 {
    LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("(no message)");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(thread = thread::current().name().unwrap_or(""), place, "panic: {message}");
}

impl Drop for Logging {
    fn drop(&mut self) {
        // The guard waits for its writer, and prints when that takes too long, which may wait for good: let another
        // thread do it, and wait for that thread only so long.
        let guard = self.0.take();
        let (flushed, wait_flushed) = mpsc::channel();
        let flush = move || {
            drop(guard);
            let _ = flushed.send(());
        };
        if thread::Builder::new().name("log-flush".into()).spawn(flush).is_ok() {
            let _ = wait_flushed.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// The longest wait for stderr at the end of the process.
pub const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Goes before the configured level.
const VARIABLE: &str = "RUST_LOG";
/// Lines that wait for stderr; further ones are lost and counted.
const LINES_MAX: usize = 8 * 1024;

static LOST: OnceLock<ErrorCounter> = OnceLock::new();
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

//! `tidewheel serve`: from flags and file to a running engine, and what a person needs to know about it.
//! Law: it ends with 0 after a drain, whatever clients, stdout and stderr do meanwhile.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use clap::Args;
use tidewheel::config::{Flag, LogFormat};
use tidewheel::control::logging::{self, Format};
use tidewheel::server::{Cost, Part};
use tidewheel::{Config, Engine};

use super::development::Access;
use super::{Failure, Settings, output, parse_address, sources};

#[derive(Args)]
pub(super) struct Serve {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where WebSocket connections are accepted; may be given more than once.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    listen: Vec<SocketAddr>,
    /// Where health, metrics and the page are served.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    admin_listen: Option<SocketAddr>,
    /// Threads that serve connections, 1 to 255. One a core unless given.
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Serve a raw endpoint that returns every message, for conformance suites and benchmarks. At /echo unless a path
    /// is given.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true, default_missing_value = "/echo")]
    echo: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let file = self.config.clone();
        let sources = sources(file, self.flags()?);
        let mut draft = sources.read();
        let access = Arc::new(Access::decide(&mut draft)?);
        let warnings = draft.warnings();
        let config = draft.finish()?;
        let format = match config.log.format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        };
        // Ends last, so that the last lines of everything else are written.
        let _log =
            logging::start(config.log.level.as_str(), format).map_err(|error| Failure::Usage(error.to_string()))?;
        for warning in warnings {
            tracing::warn!("configuration: {warning}");
        }

        let for_later = access.clone();
        let reread = move || {
            let mut draft = sources.read();
            for_later.complete(&mut draft);
            let warnings = draft.warnings();
            Ok((draft.finish()?, warnings))
        };
        let engine = Engine::builder(config.clone()).reread(reread).signals(true).start()?;
        log_start(&config, &engine);
        // From a thread of its own, because a server whose banner nobody reads is still a server, and has to end.
        let banner = banner(&config, &engine, &access);
        let _ = thread::Builder::new().name("banner".into()).spawn(move || output::print(&banner).is_ok());
        let summary = engine.wait();
        tracing::info!("{summary}");
        match summary.broken_shards {
            0 => Ok(()),
            broken => Err(Failure::Run(format!("{broken} shards broke; the log says why"))),
        }
    }

    /// What was given on the command line; `--set` counts more than the flag of the same key.
    fn flags(self) -> Result<Vec<Flag>, Failure> {
        let list = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let listen = (!self.listen.is_empty()).then(|| list(&self.listen));
        let given = [
            ("--listen", "listen", listen),
            ("--admin-listen", "admin.listen", self.admin_listen.map(|address| address.to_string())),
            ("--shards", "shards", self.shards.map(|shards| shards.to_string())),
            ("--echo", "echo_path", self.echo),
        ];
        let flag = |(typed, key, value): (&str, &str, Option<String>)| {
            Some(Flag { typed: typed.to_owned(), key: key.to_owned(), value: value? })
        };
        Ok(given.into_iter().filter_map(flag).chain(self.settings.flags()?).collect())
    }
}

/// What the banner says, for whoever has only the log; without the token, which is for people.
fn log_start(config: &Config, engine: &Engine) {
    let all = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let admin = engine.admin_address().map(|address| address.to_string()).unwrap_or_default();
    let capacity = engine.capacity();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        shards = engine.shards(),
        features = %engine.features(),
        listen = all(engine.addresses()),
        tls = all(engine.tls_addresses()),
        path = config.path,
        admin,
        connections_max = capacity.connections,
        computed = capacity.computed,
        "serving"
    );
}

/// Where to find what, and how much there is of it.
fn banner(config: &Config, engine: &Engine, access: &Access) -> String {
    let shards = engine.shards();
    let plural = if shards == 1 { "" } else { "s" };
    let mut lines = vec![("tidewheel", format!("{}, {shards} shard{plural}", env!("CARGO_PKG_VERSION")))];
    lines.push(("kernel", engine.features().to_string().trim_start_matches("kernel ").to_owned()));
    let plain = engine.addresses().iter().map(|address| ("ws", address));
    for (scheme, address) in plain.chain(engine.tls_addresses().iter().map(|address| ("wss", address))) {
        lines.push(("websocket", format!("{scheme}://{address}{}", config.path)));
        if let Some(path) = &config.echo_path {
            lines.push(("echo", format!("{scheme}://{address}{path}")));
        }
    }
    if let Some(address) = engine.admin_address() {
        lines.push(("page", format!("http://{address}/{}", access.fragment())));
        lines.push(("health", format!("http://{address}/readyz, metrics at /metrics")));
    }
    lines.push(("access", access.to_string()));
    let capacity = engine.capacity();
    let origin = match capacity.computed {
        true => "as many as this machine's descriptors and memory allow",
        false => "as configured",
    };
    lines.push(("capacity", format!("{} connections, {origin}", capacity.connections)));
    let buffers_bytes = shards * config.io.receive_buffers * config.io.receive_buffer_size.0;
    let (buffers_mib, idle) = (buffers_bytes as f64 / MIB, Cost::idle(config, shards));
    let memory = format!(
        "{buffers_mib:.1} MiB of receive buffers, {} bytes an idle connection and {} in the kernel",
        idle.user_bytes, idle.kernel_bytes
    );
    lines.push(("memory", memory));
    lines.push(("", format!("here: {}", listed(&Cost::idle_user_parts(config)))));
    lines.push(("", format!("in the kernel: {}", listed(&Cost::idle_kernel_parts(config, shards)))));

    let mut banner = String::new();
    for (name, value) in lines {
        let _ = writeln!(banner, "{name:<10} {value}"); // a String takes everything
    }
    banner
}

/// What something consists of, in a line.
fn listed(parts: &[Part]) -> String {
    parts.iter().map(|Part { what, bytes }| format!("{what} {bytes}")).collect::<Vec<_>>().join(", ")
}

const MIB: f64 = 1024.0 * 1024.0;

//! `tidewheel plan`: what this machine needs for a number of connections, what it has, and what fits.

use std::path::{Path, PathBuf};

use clap::Args;
use tidewheel::Config;
use tidewheel::server::Traffic;
use tidewheel::server::host::{Demand, Host, plan};

use super::{Failure, Settings, output, sources};

#[derive(Args)]
pub(super) struct Plan {
    /// Connections at the same time.
    #[arg(long, value_name = "N")]
    connections: u32,
    /// Messages a second of each of them, sent and received together; without it they lie idle. Whatever the rate, a
    /// message to all of them at once is counted.
    #[arg(long, value_name = "MSGS_PER_S", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of a message.
    #[arg(long, value_name = "B", default_value_t = MESSAGE_BYTES)]
    message_bytes: u64,
    /// Count every connection as one over TLS, also where the configuration has no port for it.
    #[arg(long)]
    tls: bool,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Plan {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut config = read_config(self.config, self.settings)?;
        if self.tls && config.tls.addresses().is_empty() {
            // Only counted with: nothing is listened on.
            config.tls.listen = Some(std::mem::take(&mut config.listen));
        }
        let traffic = self.rate.map(|rate| Traffic { rate, message_bytes: self.message_bytes });
        let demand = Demand { connections: self.connections.into(), traffic, config: &config };
        let plan = plan::plan(&Host::read(Path::new("/")), &demand);
        output::print(&if self.json { json(&plan)? } else { plan.to_string() })?;
        if plan.fits() { Ok(()) } else { Err(Failure::Bad) }
    }
}

/// The configuration that a server would have. Who only counts connections needs no key for their tokens.
pub(super) fn read_config(file: Option<PathBuf>, settings: Settings) -> Result<Config, Failure> {
    let mut draft = sources(file, settings.flags()?).read();
    draft.config.auth.required = false;
    Ok(draft.finish()?)
}

/// As programs read it.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Run(error.to_string()))?;
    Ok(text + "\n")
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.0..=RATE_MAX).contains(&rate) => Ok(rate),
        _ => Err(format!("a number from 0 to {RATE_MAX}")),
    }
}

/// A chat message, a price, a position.
const MESSAGE_BYTES: u64 = 128;
/// More than any connection carries.
const RATE_MAX: f64 = 1e6;

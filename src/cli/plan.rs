//! `tidewheel plan`: what this machine needs for a number of connections, what it has, and what fits.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
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
    #[command(flatten)]
    inquiry: Inquiry,
}

impl Plan {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut config = self.inquiry.config()?;
        if self.tls && config.tls.addresses().is_empty() {
            // Only counted with: nothing is listened on.
            config.tls.listen = Some(std::mem::take(&mut config.listen));
        }
        let traffic = self.rate.map(|rate| Traffic { rate, message_bytes: self.message_bytes });
        let demand = Demand { connections: self.connections.into(), traffic, config: &config };
        let plan = plan::plan(&Host::read(Path::new("/")), &demand);
        self.inquiry.answer(&plan)?;
        if plan.fits() { Ok(()) } else { Err(Failure::Bad) }
    }
}

/// For which configuration a machine is asked about, and how the answer is to be written.
#[derive(Args)]
pub(super) struct Inquiry {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Inquiry {
    /// The configuration that a server would have. Who only counts connections needs no key for their tokens.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let mut draft = sources(self.config.clone(), self.settings.flags()?).read();
        draft.config.auth.required = false;
        Ok(draft.finish()?)
    }

    /// Prints the answer, for people or for programs.
    pub(super) fn answer(&self, answer: &(impl Display + Serialize)) -> Result<(), Failure> {
        if !self.json {
            return output::print(&answer.to_string());
        }
        let text = serde_json::to_string_pretty(answer).map_err(|error| Failure::Run(error.to_string()))?;
        output::print(&(text + "\n"))
    }
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

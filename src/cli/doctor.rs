//! `tidewheel doctor`: what of this machine will break, at how many connections, and the command that mends it.

use std::path::{Path, PathBuf};

use clap::Args;
use tidewheel::io::probe;
use tidewheel::server::Traffic;
use tidewheel::server::host::{Demand, Host, Verdict, doctor};

use super::plan::{json, read_config};
use super::{Failure, Settings, output};

#[derive(Args)]
pub(super) struct Doctor {
    /// Connections at the same time; as many as the server would admit here unless given.
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Doctor {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = read_config(self.config, self.settings)?;
        let host = Host::read(Path::new("/"));
        let connections = self.connections.map_or_else(|| doctor::admitted(&host, &config), u64::from);
        let demand = Demand { connections, traffic: Some(TO_EVERYBODY), config: &config };
        let diagnosis = doctor::examine(&host, &demand, &probe::check(), self.connections.is_none());
        output::print(&if self.json { json(&diagnosis)? } else { diagnosis.to_string() })?;
        match diagnosis.verdict {
            Verdict::Ok | Verdict::Note => Ok(()),
            Verdict::Warning | Verdict::Unknown => Err(Failure::Doubtful),
            Verdict::Bad => Err(Failure::Bad),
        }
    }
}

/// One message to all at once: the least that is asked of a machine.
const TO_EVERYBODY: Traffic = Traffic { rate: 0.0, message_bytes: 128 };

//! `tidewheel doctor`: what of this machine will break, at how many connections, and the command that mends it.

use std::path::Path;

use clap::Args;
use tidewheel::io::probe;
use tidewheel::server::Traffic;
use tidewheel::server::host::{Demand, Host, Verdict, doctor};

use super::Failure;
use super::plan::Inquiry;

#[derive(Args)]
pub(super) struct Doctor {
    /// Connections at the same time; as many as the server would admit here unless given.
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    #[command(flatten)]
    inquiry: Inquiry,
}

impl Doctor {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.inquiry.config()?;
        let host = Host::read(Path::new("/"));
        let connections = self.connections.map_or_else(|| doctor::admitted(&host, &config), u64::from);
        let demand = Demand { connections, traffic: Some(TO_EVERYBODY), config: &config };
        let diagnosis = doctor::examine(&host, &demand, &probe::check(), self.connections.is_none());
        self.inquiry.answer(&diagnosis)?;
        match diagnosis.verdict {
            Verdict::Ok | Verdict::Note => Ok(()),
            Verdict::Warning | Verdict::Unknown => Err(Failure::Doubtful),
            Verdict::Bad => Err(Failure::Bad),
        }
    }
}

/// One message to all at once: the least that is asked of a machine.
const TO_EVERYBODY: Traffic = Traffic { rate: 0.0, message_bytes: 128 };

//! `tidewheel check`: a configuration, read as `serve` would read it, without serving.

use std::path::PathBuf;

use clap::Args;

use super::development::Access;
use super::{Failure, output};

#[derive(Args)]
pub(super) struct Check {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut config = super::load(Some(&self.config))?;
        let access = Access::decide(&mut config)?;
        tidewheel::Engine::check(&config)?;
        output::print(&format!("{}: valid\n{access}\n", self.config.display()))
    }
}

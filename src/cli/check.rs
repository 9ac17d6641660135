//! `tidewheel check`: a configuration, read as `serve` would read it, without serving.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use tidewheel::Engine;

use super::development::Access;
use super::{Failure, Settings, output, sources};

#[derive(Args)]
pub(super) struct Check {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let file = self.config.display().to_string();
        let mut draft = sources(Some(self.config), self.settings.flags()?).read();
        let access = Access::decide(&mut draft)?;
        let warnings = draft.warnings();
        let odd = Engine::check(&draft.finish()?)?;
        let mut said = format!("{file}: valid\n{access}\n");
        let warnings = warnings.iter().map(ToString::to_string);
        for warning in warnings.chain(odd) {
            let _ = writeln!(said, "warning: {warning}"); // a String takes everything
        }
        output::print(&said)
    }
}

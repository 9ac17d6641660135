//! `tidewheel config`: every key, as a file, as variables, as a reference.
//! Law: it prints what the definition says and reads nothing, so that it tells the same everywhere.

use clap::Subcommand;
use tidewheel::Config;

use super::{Failure, output};

#[derive(Subcommand)]
pub(super) enum Print {
    /// Print a file with every key, its default and its meaning. Serving with it is the same as serving without a file.
    Defaults,
    /// Print every environment variable with its default and its meaning.
    Env,
    /// Print a reference of all keys in Markdown.
    Doc,
}

impl Print {
    pub(super) fn run(self) -> Result<(), Failure> {
        output::print(&match self {
            Self::Defaults => Config::default().to_yaml(),
            Self::Env => Config::env_reference(),
            Self::Doc => Config::doc(),
        })
    }
}

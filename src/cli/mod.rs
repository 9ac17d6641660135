//! The command line: one file a subcommand.
//! Law: a subcommand returns what went wrong; only this file turns that into an exit code.

mod check;
mod development;
mod output;
mod serve;
mod token;
mod version;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidewheel::config::{self, Problems};
use tidewheel::{Config, StartError};

/// A WebSocket connection engine for Linux on io_uring.
#[derive(Parser)]
#[command(name = "tidewheel", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve WebSocket connections until SIGTERM or SIGINT.
    ///
    /// Without a file, everything is as it is by default. Flags go before the environment
    /// (TIDEWHEEL_WEBSOCKET_MAX_MESSAGE_SIZE=64KiB), and that before the file.
    Serve(serve::Serve),
    /// Say what is wrong with a configuration file, if anything.
    ///
    /// The file and the environment are read as `serve` reads them; every problem is named with its line and remedy.
    Check(check::Check),
    /// Make tokens for clients.
    #[command(subcommand)]
    Token(token::Token),
    /// Print the version and what the kernel offers.
    Version,
}

/// Why a subcommand ended without success. The text names the culprit and what to do about it.
enum Failure {
    /// The command line or the configuration is wrong.
    Usage(String),
    /// Everything was understood and something failed.
    Run(String),
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Usage(format!("the configuration is not valid\n{problems}"))
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(problems) => problems.into(),
            StartError::Auth(_) | StartError::Route(_) => Self::Usage(error.to_string()),
            StartError::Kernel(_) | StartError::System(_) => Self::Run(error.to_string()),
        }
    }
}

/// The configuration of file and environment, not yet validated: flags may mend it.
fn load(file: Option<&Path>) -> Result<Config, Failure> {
    Ok(Config::load(file, config::environment())?)
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, to stdout and with 0. A stream that is closed wants no text.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { SUCCESS });
        }
    };
    let outcome = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Check(check) => check.run(),
        Command::Token(token) => token.run(),
        Command::Version => version::run(),
    };
    let (text, code) = match outcome {
        Ok(()) => return ExitCode::from(SUCCESS),
        Err(Failure::Usage(text)) => (text, USAGE),
        Err(Failure::Run(text)) => (text, RUN),
    };
    output::complain(&text);
    ExitCode::from(code)
}

const SUCCESS: u8 = 0;
const RUN: u8 = 1;
const USAGE: u8 = 2;

//! The command line: one file a subcommand.
//! Law: a subcommand returns what went wrong; only this file turns that into an exit code.

mod bench;
mod check;
mod config;
mod development;
mod doctor;
mod drain;
mod output;
mod plan;
mod serve;
mod token;
mod version;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tidewheel::config::{Flag, Problems, Sources, environment};
use tidewheel::{CheckTokenError, StartError};

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
    /// Drain a running server: everyone is told when to come back, and it ends.
    ///
    /// Asks the admin API, whose address and key are read as `serve` reads them.
    Drain(drain::Drain),
    /// Say what is wrong with a configuration file, if anything.
    ///
    /// The file and the environment are read as `serve` reads them; every problem is named with its line and remedy.
    Check(check::Check),
    /// Say what this machine needs for a number of connections, what it has, and what fits.
    ///
    /// Counts with the same figures as the server, which reads them at its start: descriptors, memory and processor time of
    /// idle and busy connections. Memory is what can still be had now, so a server that runs counts as used. Nothing is
    /// changed on the machine.
    ///
    /// Exit code: 0 it fits, 1 it does not or something is not known, 2 wrong usage or configuration.
    Plan(plan::Plan),
    /// Say what of this machine will break, at how many connections, and the command that mends it.
    ///
    /// Looks at io_uring, limits, memory, the kernel's network settings, clocks and cores. Nothing is changed on the
    /// machine, and a value that cannot be read is unknown, not good. Run it as the server runs: in its container, as its
    /// user.
    ///
    /// Exit code: 0 all is well, 1 something will break, 2 wrong usage or configuration, 3 nothing will break, but there
    /// are warnings or something is not known.
    Doctor(doctor::Doctor),
    /// Print every key of the configuration.
    #[command(subcommand)]
    Config(config::Print),
    /// Make tokens for clients.
    #[command(subcommand)]
    Token(token::Token),
    /// Put load on a WebSocket server, verify what comes back, and report what it cost.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Print the version and what the kernel offers.
    Version,
}

/// Why a subcommand ended without success. The text names the culprit and what to do about it.
enum Failure {
    /// The command line or the configuration is wrong.
    Usage(String),
    /// Everything was understood and something failed.
    Run(String),
    /// What was asked about is bad. The result has said so.
    Bad,
    /// What was asked about may be bad. The result has said so.
    Doubtful,
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
            StartError::Route(_) => Self::Usage(error.to_string()),
            StartError::Kernel(_) | StartError::System(_) => Self::Run(error.to_string()),
        }
    }
}

impl From<CheckTokenError> for Failure {
    fn from(error: CheckTokenError) -> Self {
        match error {
            CheckTokenError::Config(problems) => problems.into(),
            CheckTokenError::System(_) | CheckTokenError::Refused(_) => Self::Run(error.to_string()),
        }
    }
}

/// Keys on the command line.
#[derive(Args)]
struct Settings {
    /// Set any key, such as `--set websocket.pong_timeout=5s`; may be given more than once. It goes before the
    /// environment and the file. `tidewheel config doc` lists the keys.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    fn flags(&self) -> Result<Vec<Flag>, Failure> {
        let flag = |set: &String| {
            let (key, value) = set.split_once('=')?;
            Some(Flag { typed: "--set".to_owned(), key: key.trim().to_owned(), value: value.to_owned() })
        };
        let flags: Option<Vec<_>> = self.set.iter().map(flag).collect();
        // Not repeated: without the key nobody knows whether it is a secret.
        flags.ok_or_else(|| Failure::Usage("--set: write KEY=VALUE, such as websocket.pong_timeout=5s".to_owned()))
    }
}

/// An address on the command line.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
}

/// The file, the environment of this process, and flags.
fn sources(file: Option<PathBuf>, flags: Vec<Flag>) -> Sources {
    Sources { file, env: environment().collect(), flags }
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
        Command::Drain(drain) => drain.run(),
        Command::Check(check) => check.run(),
        Command::Plan(plan) => plan.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Config(print) => print.run(),
        Command::Token(token) => token.run(),
        Command::Bench(bench) => bench.run(),
        Command::Version => version::run(),
    };
    let (text, code) = match outcome {
        Ok(()) => return ExitCode::from(SUCCESS),
        Err(Failure::Usage(text)) => (text, USAGE),
        Err(Failure::Run(text)) => (text, RUN),
        Err(Failure::Bad) => return ExitCode::from(RUN),
        Err(Failure::Doubtful) => return ExitCode::from(DOUBT),
    };
    output::complain(&text);
    ExitCode::from(code)
}

const SUCCESS: u8 = 0;
const RUN: u8 = 1;
const USAGE: u8 = 2;
const DOUBT: u8 = 3;

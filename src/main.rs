//! The `tidewheel` command.
//! Law: 0 is success, 1 a failure at run time, 2 wrong usage or configuration, 3 doubts of the doctor; nothing here panics on a closed stdout.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}

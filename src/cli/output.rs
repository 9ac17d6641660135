//! What a person reads: results on stdout, complaints on stderr.
//! Law: a reader that has gone (`tidewheel … | head -1`) is no failure, and never a panic.

use std::io::{self, ErrorKind, Write};

use super::Failure;

/// Writes a result, with the line feed it has.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("writing to stdout failed: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes why the command ends without success. Nobody is left to tell if this fails.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "tidewheel: {text}");
}

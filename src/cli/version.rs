//! `tidewheel version`: what was built, and what it finds here.

use tidewheel::io::probe;

use super::{Failure, output};

pub(super) fn run() -> Result<(), Failure> {
    let kernel = match probe::check() {
        Ok(features) => features.to_string(),
        Err(unavailable) => unavailable.to_string(),
    };
    output::print(&format!("tidewheel {}\n{kernel}\n", env!("CARGO_PKG_VERSION")))
}

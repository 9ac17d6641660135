//! The `tidewheel` command.
fn main() {}

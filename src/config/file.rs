//! The files that are the configuration, or that it names.
//! Law: whoever reads them waits for nobody and holds a bounded part: they are read again by a running server at every
//! reload, so only what can be read again counts.

use std::fs;
use std::io::{Error, Read, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Reads a regular file.
///
/// # Errors
/// It cannot be read, is something else (a pipe may never have an end, and has nothing the second time), or has more than
/// 4 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    // Looked at before it is opened: to open a pipe waits for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(Error::other("is no regular file, which it must be, since every reload reads it again"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 <= BYTES_MAX {
        true => Ok(bytes),
        false => Err(Error::other("has more than 4 MiB")),
    }
}

/// As [`read`], of text.
///
/// # Errors
/// As there; or it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|error| Error::other(format!("is not UTF-8: {}", error.utf8_error())))
}

/// Whether everyone on this machine may read the file.
pub fn is_open_to_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

const BYTES_MAX: u64 = 4 << 20;

//! The certificates that the TLS ports show, and those that clients' are signed with, out of the files of `tls`.
//! Law: what is there before stays as it is unless all that is read is good, and all that is wrong is told at once.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::RootCertStore;

use crate::config::tls::{Pair, Tls};
use crate::config::{Place, Problem, Problems, file};
use crate::tls::{Certificate, CertificateError, Terms, client_roots};

/// What the files of `tls` hold.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    terms: Option<Arc<Terms>>,
    /// What each file holds, by the key of the configuration. Not the text: of private keys nobody keeps copies.
    files: Vec<(String, [u8; 32])>,
    /// When each certificate ends, in Unix seconds, in their order.
    ends_s: Vec<u64>,
}

impl Certificates {
    /// Those of a configuration that somebody wants, of which this is what would be in force: addresses stay as they are
    /// until a restart. Tells what is odd.
    ///
    /// # Errors
    /// All that is wrong with the files, those that only the next start needs too.
    pub(super) fn next(&self, wanted: &Tls, settled: &Tls, now_s: u64) -> Result<(Self, Vec<String>), Problems> {
        match (wanted.addresses().is_empty(), settled.addresses().is_empty()) {
            (false, false) => Self::read(settled, Some(self), now_s),
            // They will be served after a restart, which would fail if they were not good.
            (false, true) => Self::read(wanted, None, now_s).map(|(_, odd)| (Self::default(), odd)),
            // Who does not want them any more may have removed the files, and they are served until a restart.
            (true, false) => Ok((self.clone(), Vec::new())),
            (true, true) => Ok((Self::default(), Vec::new())),
        }
    }

    /// Reads the files of a configuration that serves over TLS. Tells what is odd.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(super) fn read(tls: &Tls, before: Option<&Self>, now_s: u64) -> Result<(Self, Vec<String>), Problems> {
        let mut reading = Reading::default();
        if tls.addresses().is_empty() {
            return Ok((Self::default(), Vec::new()));
        }
        let pairs = tls.pairs();
        let certificates: Vec<_> = pairs.iter().filter_map(|pair| reading.certificate(pair, now_s)).collect();
        let roots = tls.client_ca_file.as_deref().and_then(|path| reading.roots(path));
        let Reading { files, wrong, odd } = reading;
        let terms = match wrong.is_empty() {
            false => return Err(Problems(wrong)),
            true => Terms::new(tls, &certificates, roots, before.and_then(|before| before.terms.as_deref())),
        };
        let terms = terms.map_err(|error| Problems(vec![problem("tls", &error)]))?;
        let ends_s = certificates.iter().map(Certificate::not_after_s).collect();
        Ok((Self { terms: Some(Arc::new(terms)), files, ends_s }, odd))
    }

    /// What newcomers of the TLS ports are offered, if there are such ports.
    pub(super) fn terms(&self) -> Option<Arc<Terms>> {
        self.terms.clone()
    }

    /// When each certificate ends, in Unix seconds, in their order.
    pub(super) fn ends_s(&self) -> &[u64] {
        &self.ends_s
    }

    /// The keys of the configuration whose files hold something else than `before`.
    pub(super) fn changed_files(&self, before: &Self) -> Vec<String> {
        let of = |all: &Self, key: &str| -> Vec<[u8; 32]> {
            all.files.iter().filter(|(of, _)| of == key).map(|(_, hash)| *hash).collect()
        };
        let mut changed: Vec<String> = Vec::new();
        for (key, _) in &self.files {
            if of(self, key) != of(before, key) && !changed.contains(key) {
                changed.push(key.clone());
            }
        }
        changed
    }
}

/// What is found while files are read.
#[derive(Default)]
struct Reading {
    files: Vec<(String, [u8; 32])>,
    wrong: Vec<Problem>,
    odd: Vec<String>,
}

impl Reading {
    fn certificate(&mut self, pair: &Pair<'_>, now_s: u64) -> Option<Certificate> {
        let [cert_key, key_key] = ["cert_file", "key_file"].map(|name| format!("{}.{name}", pair.section));
        let (chain, private) = (self.file(&cert_key, pair.cert_file), self.file(&key_key, pair.key_file));
        if file::is_open_to_all(pair.key_file) {
            let what = "can be read by everyone on this machine; `chmod 600` it";
            self.odd.push(format!("{key_key}: {} {what}", pair.key_file.display()));
        }
        let certificate = match Certificate::read(&chain?, &private?) {
            Ok(certificate) => certificate,
            Err(CertificateError::Mismatch) => {
                let chain = pair.cert_file.display();
                let why = format!(
                    "holds a key that does not fit the first certificate of {chain}, which must be the server's own"
                );
                return self.refuse(&key_key, pair.key_file, &why);
            }
            Err(error) if error.is_of_key() => return self.refuse(&key_key, pair.key_file, &error),
            Err(error) => return self.refuse(&cert_key, pair.cert_file, &error),
        };
        let mut odd = |what: String| self.odd.push(format!("{cert_key}: {} {what}", pair.cert_file.display()));
        let (begins_s, ends_s) = (certificate.not_before_s(), certificate.not_after_s());
        if ends_s <= now_s {
            odd(format!("holds a certificate that ended {} ago; clients refuse it", span(now_s - ends_s)));
        } else if begins_s > now_s {
            odd(format!("holds a certificate that begins in {}; clients refuse it until then", span(begins_s - now_s)));
        }
        if !certificate.is_named() {
            odd("holds a certificate without a subjectAltName, which clients of today refuse".to_owned());
        }
        Some(certificate)
    }

    fn roots(&mut self, path: &Path) -> Option<RootCertStore> {
        let pem = self.file(CLIENT_CA_FILE, path)?;
        client_roots(&pem).map_err(|error| self.refuse::<()>(CLIENT_CA_FILE, path, &error)).ok()
    }

    fn file(&mut self, key: &str, path: &Path) -> Option<Vec<u8>> {
        let text = match file::read(path) {
            Ok(text) => text,
            Err(error) => return self.refuse(key, path, &format!("cannot be read: {error}")),
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &text).as_ref());
        // Of the entries of a list the list is the key.
        let key = key.split('[').next().unwrap_or_default();
        self.files.push((key.to_owned(), hash));
        Some(text)
    }

    fn refuse<T>(&mut self, key: &str, path: &Path, why: &dyn Display) -> Option<T> {
        self.wrong.push(problem(key, &format_args!("{} {why}", path.display())));
        None
    }
}

fn problem(key: &str, why: &dyn Display) -> Problem {
    Problem { place: Place::Unwritten, key: key.to_owned(), message: why.to_string() }
}

/// In the unit that people would say it in.
fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

const CLIENT_CA_FILE: &str = "tls.client_ca_file";

#[cfg(test)]
mod tests;

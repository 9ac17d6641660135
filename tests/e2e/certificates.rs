//! Certificates that are made for one test, as files that a server reads.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// Who signs, and a directory for what was signed: the signer's own certificate is `ca.pem` there.
pub struct Authority {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    /// One that nobody knows yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a root of these tests");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// A certificate for these names of machines, or for none, and its key.
    pub fn sign(&self, common_name: &str, names: &[&str]) -> (Certificate, KeyPair) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes `file`.pem and `file`.key, new ones each time.
    pub fn issue(&self, file: &str, names: &[&str]) {
        let (certificate, key) = self.sign(file, names);
        fs::write(self.path().join(format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(self.path().join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

//! What TLS needs to know: addresses, certificates, and who must show one.
//! Law: certificates are in one order, the pair of the section first; the first is the one for names that none has.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Config;
use super::node::{section, words};

section! {
    /// TLS without a proxy in front: `wss` on ports of its own.
    Tls {
        /// Addresses that accept WebSocket connections over TLS, one or a list, beside those of `listen`, which may then be
        /// `[]`. Port 0: the kernel chooses. `null`: none.
        restart listen: Option<Vec<SocketAddr>> = None,
        /// PEM file with the server's certificate first, and then those that sign it up to the root's; a relative path starts
        /// at the working directory. Every reload reads it again.
        live cert_file: Option<PathBuf> = None,
        /// PEM file with the private key of `cert_file`, without a passphrase: PKCS#8, PKCS#1 or SEC1.
        live key_file: Option<PathBuf> = None,
        /// More certificates, chosen by the name that the client asks for (SNI). Their names are those of their own
        /// subjectAltName. The first of all is for clients that ask for no name or for one that none has.
        live certificates: Vec<CertificateFiles> = Vec::new(),
        /// PEM file with the certificates that sign those of clients. Every reload reads it again.
        live client_ca_file: Option<PathBuf> = None,
        /// Whether clients are asked for a certificate.
        live client_auth: ClientAuth = ClientAuth::None,
        /// What of its certificate is a client's id, as the claim `sub` is of a token. It must be there exactly once.
        live client_id: ClientIdSource = ClientIdSource::None,
        /// The oldest version that is spoken; the newest is 1.3.
        live min_version: TlsVersion = TlsVersion::Tls12,
        /// Tickets given to each newcomer, with which it comes back without a whole handshake within 12 hours. One is
        /// used once in TLS 1.3; 1.2 gives one, however many. 0: none.
        live session_tickets: u32 = 2 => 0..=8,
    }
}

section! {
    /// A certificate and its key.
    CertificateFiles {
        /// As `tls.cert_file`.
        live cert_file: PathBuf = PathBuf::new(),
        /// As `tls.key_file`.
        live key_file: PathBuf = PathBuf::new(),
    }
}

words! {
    /// Whether clients are asked for a certificate.
    ClientAuth {
        /// They are not.
        None = "none",
        /// They are; who has one must have a good one.
        Optional = "optional",
        /// They are; who has none gets no connection.
        Required = "required",
    }
}

words! {
    /// What of a client's certificate is the client's id.
    ClientIdSource {
        /// Nothing: clients authenticate as they do without TLS.
        None = "none",
        /// The common name (CN) of its subject.
        CommonName = "common_name",
        /// The URI of its subjectAltName, such as a SPIFFE id.
        Uri = "uri",
        /// The DNS name of its subjectAltName, in lower case.
        Dns = "dns",
    }
}

words! {
    /// A version of TLS.
    TlsVersion {
        /// RFC 5246.
        Tls12 = "1.2",
        /// RFC 8446.
        Tls13 = "1.3",
    }
}

/// The files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The path of the section that names them, such as `tls` or `tls.certificates[0]`.
    pub section: String,
    /// PEM, the server's certificate first.
    pub cert_file: &'a Path,
    /// PEM.
    pub key_file: &'a Path,
}

impl Tls {
    /// Where connections are accepted.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.listen.as_deref().unwrap_or_default()
    }

    /// Whether certificates say who a client is.
    pub fn names_clients(&self) -> bool {
        self.client_id != ClientIdSource::None && !self.addresses().is_empty()
    }

    /// The files of all certificates. The first is the one for names that none has.
    pub fn pairs(&self) -> Vec<Pair<'_>> {
        let own = self.cert_file.as_deref().zip(self.key_file.as_deref());
        let own = own.map(|(cert_file, key_file)| Pair { section: "tls".to_owned(), cert_file, key_file });
        let more = self.certificates.iter().enumerate().map(|(index, CertificateFiles { cert_file, key_file })| Pair {
            section: format!("tls.certificates[{index}]"),
            cert_file,
            key_file,
        });
        own.into_iter().chain(more).collect()
    }
}

impl Config {
    /// All addresses that clients connect to, those with TLS last.
    pub fn public_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listen.iter().chain(self.tls.addresses()).copied()
    }

    /// Tells what is wrong with `tls`.
    pub(super) fn check_tls(&self, wrong: &mut dyn FnMut(&str, String)) {
        let tls = &self.tls;
        match (&tls.cert_file, &tls.key_file) {
            (Some(_), None) => {
                wrong("tls.key_file", "is missing beside tls.cert_file; write the file of its private key".to_owned());
            }
            (None, Some(_)) => {
                wrong("tls.cert_file", "is missing beside tls.key_file; write the file of its certificate".to_owned());
            }
            _ => {}
        }
        for (index, CertificateFiles { cert_file, key_file }) in tls.certificates.iter().enumerate() {
            for (name, file, what) in
                [("cert_file", cert_file, "of the certificate"), ("key_file", key_file, "of its private key")]
            {
                if file.as_os_str().is_empty() {
                    wrong(&format!("tls.certificates[{index}].{name}"), format!("is missing; write the file {what}"));
                }
            }
        }
        if tls.certificates.len() > CERTIFICATES_MAX {
            wrong("tls.certificates", format!("has more than {CERTIFICATES_MAX} entries; put names together"));
        }
        if let (Some(address), None, None, []) =
            (tls.addresses().first(), &tls.cert_file, &tls.key_file, &*tls.certificates)
        {
            let what = "but there is no certificate; write tls.cert_file and tls.key_file";
            wrong("tls.listen", format!("{address}, {what}"));
        }
        if tls.client_auth != ClientAuth::None && tls.client_ca_file.is_none() {
            let what = "needs to know who signs the certificates of clients; write tls.client_ca_file";
            wrong("tls.client_auth", format!("{} {what}", tls.client_auth.as_str()));
        }
        if tls.client_id != ClientIdSource::None && tls.client_auth == ClientAuth::None {
            let what = "but clients are asked for no certificate; write tls.client_auth: optional or required";
            wrong("tls.client_id", format!("{}, {what}", tls.client_id.as_str()));
        }
        for (index, address) in tls.addresses().iter().enumerate().filter(|(_, address)| address.port() != 0) {
            if tls.addresses()[..index].contains(address) {
                wrong("tls.listen", format!("{address} is there twice; remove one"));
            }
            if self.listen.contains(address) {
                let what = "is in listen too, which is without TLS; write another port, or remove it there";
                wrong("tls.listen", format!("{address} {what}"));
            }
        }
    }

    /// Tells what of `tls` is legal and probably not meant.
    pub(super) fn odd_tls(&self, odd: &mut dyn FnMut(&str, String)) {
        let tls = &self.tls;
        let named = if tls.cert_file.is_some() { "tls.cert_file" } else { "tls.certificates" };
        if tls.addresses().is_empty() && !tls.pairs().is_empty() {
            odd(named, "is there, and tls.listen is null: nobody is served over TLS".to_owned());
        }
        if tls.client_ca_file.is_some() && tls.client_auth == ClientAuth::None {
            let what = "is there, and tls.client_auth is none: clients are asked for no certificate";
            odd("tls.client_ca_file", what.to_owned());
        }
    }
}

/// Certificates beside the pair of the section.
const CERTIFICATES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let config = Config::parse(text).unwrap();
        let mut wrong = Vec::new();
        config.check_tls(&mut |key, message| wrong.push(format!("{key} {message}")));
        assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
        for (wrong, expected) in wrong.iter().zip(expected) {
            assert!(wrong.starts_with(expected), "{wrong:?} instead of {expected:?}");
        }
    }

    #[test]
    fn certificates_have_keys() {
        check("", &[]);
        check("tls: {cert_file: a, key_file: b}", &[]);
        check("tls: {listen: 127.0.0.1:1, cert_file: a, key_file: b, certificates: {cert_file: c, key_file: d}}", &[]);
        check("tls: {listen: 127.0.0.1:1, certificates: [{cert_file: c, key_file: d}]}", &[]);
        check("tls: {cert_file: a}", &["tls.key_file is missing"]);
        check("tls: {key_file: a}", &["tls.cert_file is missing"]);
        check("tls: {certificates: [{key_file: d}]}", &["tls.certificates[0].cert_file is missing"]);
        check("tls: {certificates: [{cert_file: c}]}", &["tls.certificates[0].key_file is missing"]);
        check("tls: {listen: 127.0.0.1:1}", &["tls.listen 127.0.0.1:1, but there is no certificate"]);
        let many = |count| format!("tls: {{certificates: [{}]}}", vec!["{cert_file: a, key_file: b}"; count].join(","));
        check(&many(255), &[]);
        check(&many(256), &["tls.certificates has more than 255"]);
    }

    #[test]
    fn clients_are_asked_before_they_are_believed() {
        check("tls: {client_auth: optional}", &["tls.client_auth optional needs to know"]);
        check("tls: {client_auth: required, client_ca_file: a, client_id: uri}", &[]);
        check("tls: {client_ca_file: a, client_id: dns}", &["tls.client_id dns, but clients are asked"]);
    }

    #[test]
    fn addresses() {
        let tls = |listen: &str| format!("tls: {{listen: {listen}, cert_file: a, key_file: b}}");
        check(&tls("'[::1]:1, 127.0.0.1:1'"), &[]);
        check(&tls("[127.0.0.1:1, 127.0.0.1:1]"), &["tls.listen 127.0.0.1:1 is there twice"]);
        check(&tls("127.0.0.1:8080"), &["tls.listen 127.0.0.1:8080 is in listen too"]);
        let all = Config::parse(&tls("127.0.0.1:1")).unwrap();
        assert!(all.public_addresses().map(|address| address.port()).eq([8080, 1]));
    }

    #[test]
    fn order() {
        let config =
            Config::parse("tls: {cert_file: a, key_file: b, certificates: {cert_file: c, key_file: d}}").unwrap();
        let pairs: Vec<_> = config
            .tls
            .pairs()
            .into_iter()
            .map(|pair| format!("{} {}", pair.section, pair.cert_file.display()))
            .collect();
        assert_eq!(pairs, ["tls a", "tls.certificates[0] c"]);
    }

    #[test]
    fn what_is_odd() {
        let check = |text: &str, expected: &str| {
            let odd = Config::parse(text).unwrap().warnings();
            assert_eq!(odd.iter().map(|problem| &*problem.key).collect::<Vec<_>>().join(" "), expected, "{text}");
        };
        check("tls: {listen: 127.0.0.1:1, cert_file: a, key_file: b}", "");
        check("tls: {cert_file: a, key_file: b}", "tls.cert_file");
        check("tls: {certificates: [{cert_file: a, key_file: b}]}", "tls.certificates");
        check("tls: {client_ca_file: a}", "tls.client_ca_file");
    }
}

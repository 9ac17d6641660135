//! Files of certificates at the start, at a reload and in `tidewheel check`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::super::running::{ReloadError, Reloaded, Room, check_files};
use super::super::{Running, Shards};
use super::*;
use crate::Config;

/// 1 January 2026.
const NOW_S: u64 = 1_767_225_600;

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.renew("a");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes `NAME.pem` and `NAME.key`, a certificate for these years and its key.
    fn issue(&self, name: &str, dns_names: &[&str], from_year: i32, to_year: i32) {
        let names: Vec<_> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from_year, 1, 1), date_time_ymd(to_year, 1, 1));
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn renew(&self, name: &str) {
        self.issue(name, &[&format!("{name}.example")], 2020, 4000);
    }

    /// A configuration whose section `tls` has these keys; `DIR` is where the files are.
    fn config(&self, tls: &str) -> Config {
        let tls = tls.replace("DIR", self.0.path().to_str().unwrap());
        Config::parse(&format!("auth: {{required: false}}\ntls: {{{tls}}}")).unwrap()
    }

    fn start(&self, tls: &str) -> Running {
        Running::new(self.config(tls), ROOM, Shards::new(1, Arc::default()), None).unwrap()
    }
}

const ROOM: Room = Room { connections: 1, slots: 1 };
const ONE: &str = "listen: 127.0.0.1:0, cert_file: DIR/a.pem, key_file: DIR/a.key";

/// The keys and beginnings of all that is wrong with files.
#[track_caller]
fn check(files: &Files, tls: &str, expected: &[&str]) {
    let config = files.config(tls);
    config.validate().unwrap();
    let wrong = match Certificates::read(&config.tls, None, NOW_S) {
        Ok(_) => Vec::new(),
        Err(Problems(wrong)) => wrong,
    };
    let place = format!("{}/", files.0.path().display());
    let said: Vec<_> = wrong.iter().map(|problem| problem.to_string().replace(&place, "")).collect();
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said} instead of {expected}");
    }
    let checked = check_files(&config).map(drop).map_err(|error| error.to_string());
    assert_eq!(checked, if wrong.is_empty() { Ok(()) } else { Err(Problems(wrong).to_string()) });
}

#[test]
fn all_that_is_wrong_is_told_with_its_file() {
    let files = Files::new();
    files.renew("b");
    files.write("empty", "");
    check(&files, "", &[]);
    check(&files, ONE, &[]);
    check(&files, "cert_file: DIR/none, key_file: DIR/none", &[]); // nobody is served
    check(
        &files,
        "listen: 127.0.0.1:0, cert_file: DIR/none, key_file: DIR/empty, client_ca_file: DIR/a.key, client_auth: optional, \
         certificates: [{cert_file: DIR/a.pem, key_file: DIR/b.key}, {cert_file: DIR/b.key, key_file: DIR/b.pem}]",
        &[
            "tls.cert_file: none cannot be read: No such file",
            "tls.certificates[0].key_file: b.key holds a key that does not fit",
            "tls.certificates[1].cert_file: b.key holds a private key and no certificate",
            "tls.client_ca_file: a.key holds no certificate",
        ],
    );
    let second = format!("{ONE}, certificates: {{cert_file: DIR/a.pem, key_file: DIR/empty}}");
    check(&files, &second, &["tls.certificates[0].key_file: empty holds no private key"]);
}

/// Who mends the files of one section should not have to start again to hear of those of another.
#[test]
fn what_is_wrong_with_certificates_and_keys_is_told_together() {
    let files = Files::new();
    let wanted = |tls: &str, file: &str| {
        let mut config = files.config(tls);
        config.auth.public_key_file = Some(files.path(file));
        config
    };
    let check = |wrong: String| {
        let keys: Vec<_> = wrong.lines().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(keys, ["tls.key_file", "auth.public_key_file"], "{wrong}");
    };
    let bad = wanted(&ONE.replace("a.key", "none"), "none");
    check(check_files(&bad).unwrap_err().to_string());
    check(Running::new(bad.clone(), ROOM, Shards::new(1, Arc::default()), None).unwrap_err().to_string());
    check(files.start(ONE).reload(bad).unwrap_err().to_string());
}

#[test]
fn what_is_odd() {
    let files = Files::new();
    let check = |expected: &[&str]| {
        let (_, odd) = Certificates::read(&files.config(ONE).tls, None, NOW_S).unwrap();
        assert_eq!(odd.len(), expected.len(), "{odd:?}");
        for (odd, (key, what)) in odd.iter().zip(expected.iter().map(|one| one.split_once(' ').unwrap())) {
            assert!(odd.starts_with(&format!("{key}: ")) && odd.contains(what), "{odd} instead of {what}");
        }
    };
    check(&[]);
    files.issue("a", &["a.example"], 2020, 2026);
    check(&["tls.cert_file ended 0 minutes ago"]);
    files.issue("a", &["a.example"], 2020, 2025);
    check(&["tls.cert_file ended 365 days ago"]);
    files.issue("a", &["a.example"], 2027, 2028);
    check(&["tls.cert_file begins in 365 days"]);
    files.issue("a", &[], 2020, 2030);
    check(&["tls.cert_file without a subjectAltName"]);
    fs::set_permissions(files.path("a.key"), fs::Permissions::from_mode(0o644)).unwrap();
    check(&["tls.key_file can be read by everyone", "tls.cert_file without a subjectAltName"]);
}

#[test]
fn spans() {
    let check = |seconds, expected: &str| assert_eq!(span(seconds), expected);
    check(59, "0 minutes");
    check(60, "1 minute");
    check(3_599, "59 minutes");
    check(7_199, "1 hour");
    check(86_400, "1 day");
    check(20 * 86_400, "20 days");
}

#[track_caller]
fn reloaded(running: &Running, config: Config, applied: &[&str], restart: &[&str]) -> Reloaded {
    let reloaded = running.reload(config).unwrap();
    assert_eq!((&*reloaded.applied, &*reloaded.restart), (&*texts(applied), &*texts(restart)));
    reloaded
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_renewal_is_taken_up_and_a_broken_one_is_not() {
    let files = Files::new();
    files.renew("b");
    let yaml = format!("{ONE}, certificates: {{cert_file: DIR/b.pem, key_file: DIR/b.key}}");
    let running = files.start(&yaml);
    let shown = || running.settings().tls.clone().unwrap();
    let before = shown();
    let ends_s = running.certificate_ends_s();
    assert_eq!(ends_s.len(), 2);
    reloaded(&running, files.config(&yaml), &[], &[]);

    let old_key = fs::read_to_string(files.path("a.key")).unwrap();
    files.issue("a", &["a.example"], 2020, 3000);
    let new_key = fs::read_to_string(files.path("a.key")).unwrap();
    files.write("a.key", &old_key); // whoever renews is half way
    let standing = shown();
    let Err(ReloadError::Config(problems)) = running.reload(files.config(&yaml)) else { panic!("it was taken up") };
    assert!(problems.to_string().starts_with("tls.key_file: "), "{problems}");
    assert!(Arc::ptr_eq(&standing, &shown()));
    assert_eq!(running.certificate_ends_s(), ends_s);

    files.write("a.key", &new_key);
    reloaded(&running, files.config(&yaml), &["tls.cert_file", "tls.key_file"], &[]);
    assert!(running.certificate_ends_s()[0] < ends_s[0] && running.certificate_ends_s()[1] == ends_s[1]);
    let after = shown();
    assert!(!Arc::ptr_eq(&before.server, &after.server));
    assert!(Arc::ptr_eq(&before.server.ticketer, &after.server.ticketer), "who has a ticket comes back with it");

    files.renew("b");
    reloaded(&running, files.config(&yaml), &["tls.certificates"], &[]);
}

#[test]
fn other_signers_of_clients_end_tickets() {
    let files = Files::new();
    files.renew("ca");
    let yaml = format!("{ONE}, client_auth: optional, client_ca_file: DIR/ca.pem");
    let running = files.start(&yaml);
    let ticketer = || running.settings().tls.as_ref().unwrap().server.ticketer.clone();
    let before = ticketer();
    reloaded(&running, files.config(&format!("{yaml}, client_id: uri")), &["tls.client_id"], &[]);
    assert!(Arc::ptr_eq(&before, &ticketer()));
    files.renew("ca");
    reloaded(&running, files.config(&format!("{yaml}, client_id: uri")), &["tls.client_ca_file"], &[]);
    assert!(!Arc::ptr_eq(&before, &ticketer()));
}

/// Ports come and go with a restart; until then they need what they need.
#[test]
fn what_ports_need_stays_as_long_as_they() {
    let files = Files::new();
    let running = files.start(ONE);
    for file in ["a.pem", "a.key"] {
        fs::remove_file(files.path(file)).unwrap();
    }
    reloaded(&running, files.config(""), &[], &["tls.listen", "tls.cert_file", "tls.key_file"]);
    assert!(running.settings().tls.is_some() && running.config().tls == files.config(ONE).tls);

    let running = files.start("");
    let Err(ReloadError::Config(problems)) = running.reload(files.config(ONE)) else { panic!("it was taken up") };
    assert_eq!(problems.0.len(), 2, "{problems}"); // of both files
    files.renew("a");
    reloaded(&running, files.config(ONE), &["tls.cert_file", "tls.key_file"], &["tls.listen"]);
    assert!(running.settings().tls.is_none() && running.certificate_ends_s().is_empty());
}

/// Where certificates are all that clients have, a configuration that would be half of one and half of the other is
/// refused: nobody could authenticate.
#[test]
fn nobody_is_locked_out_by_half_a_change() {
    let files = Files::new();
    files.renew("ca");
    let running = files.start("");
    let mut wanted =
        files.config(&format!("{ONE}, client_auth: required, client_ca_file: DIR/ca.pem, client_id: common_name"));
    wanted.auth.required = true;
    wanted.validate().unwrap();
    let Err(ReloadError::Config(problems)) = running.reload(wanted.clone()) else { panic!("it was taken up") };
    assert!(problems.to_string().starts_with("auth.required: true, but there is no key"), "{problems}");
    assert!(Running::new(wanted, ROOM, Shards::new(1, Arc::default()), None).is_ok());
}

//! Records against those of rustls, and against damage.

use std::io::Write;

use proptest::prelude::*;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConnection, SupportedProtocolVersion};

use super::super::tests::{client, configs, give_tls, shake_hands, take_tls};
use super::*;

const SUITES: &[(&SupportedProtocolVersion, CipherSuite)] = &[
    (&TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256),
    (&TLS13, CipherSuite::TLS13_AES_256_GCM_SHA384),
    (&TLS13, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// A client and the server's records after a handshake.
fn pair(version: &'static SupportedProtocolVersion, suite: CipherSuite) -> (ClientConnection, Records) {
    let (server, client_config) = configs(&[version], Some(suite));
    let mut client = client(&client_config);
    let finished = shake_hands(&server, &mut client, b"", 1 << 20).map_err(|(failed, _)| failed).unwrap();
    (client, finished.records)
}

fn pair13() -> (ClientConnection, Records) {
    pair(&TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256)
}

fn say(client: &mut ClientConnection, plain: &[u8]) -> Vec<u8> {
    client.writer().write_all(plain).unwrap();
    take_tls(client)
}

#[test]
fn both_directions_with_every_suite() {
    for &(version, suite) in SUITES {
        let (mut client, mut records) = pair(version, suite);
        for len in [1, 2, 100, PLAIN_MAX - 1, PLAIN_MAX, PLAIN_MAX + 1, 60_000] {
            let text: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let mut bytes = say(&mut client, &text);
            let batch = records.open_all(&mut bytes);
            assert_eq!((batch.taken, batch.end), (bytes.len(), None), "{suite:?} {len}");
            assert_eq!(&bytes[..batch.plain], &text, "{suite:?} {len}");
            let mut out = Vec::new();
            for piece in text.chunks(PLAIN_MAX) {
                let before = out.len();
                records.seal_data(piece, &mut out).unwrap();
                assert!(out.len() - before <= piece.len() + OVERHEAD_MAX);
            }
            assert_eq!(give_tls(&mut client, &out).unwrap(), text, "{suite:?} {len}");
        }
    }
}

#[test]
fn records_wait_for_their_last_byte() {
    let (mut client, mut records) = pair13();
    let whole = [say(&mut client, b"one"), say(&mut client, b"two")].concat();
    let first = HEADER + 3 + 1 + TAG;
    let mut cut = whole[..whole.len() - 1].to_vec();
    let batch = records.open_all(&mut cut);
    assert_eq!((batch.taken, &cut[..batch.plain]), (first, &b"one"[..]));
    let mut rest = whole[first..].to_vec();
    let batch = records.open_all(&mut rest);
    assert_eq!(&rest[..batch.plain], b"two");
    for held in 0..first {
        for given in 0..whole.len() - held {
            let rest = rest_of_record(&whole[..held], &whole[held..held + given]);
            let expected = if held + given < HEADER { given } else { given.min(first - held) };
            assert_eq!(rest, expected, "{held} {given}");
        }
    }
}

#[test]
fn the_peer_changes_its_keys() {
    let (mut client, mut records) = pair13();
    for round in 0..3 {
        client.refresh_traffic_keys().unwrap();
        let mut bytes = say(&mut client, b"new");
        let batch = records.open_all(&mut bytes);
        assert_eq!((&bytes[..batch.plain], batch.end, records.owes_update()), (&b"new"[..], None, true), "{round}");
        let mut out = Vec::new();
        records.seal_key_update(&mut out).unwrap();
        records.seal_data(b"newer", &mut out).unwrap();
        assert_eq!(give_tls(&mut client, &out).unwrap(), b"newer");
        assert!(!records.owes_update());
    }
}

/// Each is work that no rate sees.
#[test]
fn key_updates_without_a_word_in_between_are_bounded() {
    let (mut client, mut records) = pair13();
    let mut update = |words: &[u8]| {
        client.refresh_traffic_keys().unwrap();
        records.open_all(&mut say(&mut client, words)).end
    };
    (0..IDLE_UPDATES_MAX).for_each(|number| assert_eq!(update(b""), None, "{number}"));
    assert_eq!(update(b""), Some(End::Misbehaved(Alert::UNEXPECTED_MESSAGE)));
    let (mut client, mut records) = pair13();
    for _ in 0..3 * IDLE_UPDATES_MAX {
        client.refresh_traffic_keys().unwrap();
        assert_eq!(records.open_all(&mut say(&mut client, b"a word")).end, None);
    }
}

#[test]
fn this_side_changes_its_keys_in_time() {
    let (mut client, mut records) = pair13();
    for round in 0..3 * RECORDS_PER_KEY {
        let mut out = Vec::new();
        records.seal_data(b"again", &mut out).unwrap();
        assert!(records.tx.sequence <= RECORDS_PER_KEY);
        assert_eq!(give_tls(&mut client, &out).unwrap(), b"again", "{round}");
    }
    let (_, mut records) = pair(&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256);
    let mut out = Vec::new();
    let sealed = (0..).take_while(|_| records.seal_data(b"a", &mut out).is_ok()).count() as u64;
    assert!(sealed < RECORDS_PER_KEY, "the handshake had one: {sealed}");
    let before = out.len();
    assert_eq!(records.seal_data(b"a", &mut out), Err(Exhausted));
    assert_eq!(out.len(), before);
}

#[test]
fn last_words() {
    for &(version, suite) in SUITES {
        let (mut client, mut records) = pair(version, suite);
        let mut out = Vec::new();
        records.seal_data(b"bye", &mut out).unwrap();
        records.seal_alert(Alert::CLOSE_NOTIFY, &mut out);
        let mut bytes = out.as_slice();
        client.read_tls(&mut bytes).unwrap();
        assert!(client.process_new_packets().unwrap().peer_has_closed(), "{suite:?}");
        client.send_close_notify();
        let mut bytes = [say(&mut client, b""), vec![1, 2, 3]].concat();
        let batch = records.open_all(&mut bytes);
        assert_eq!((batch.plain, batch.end), (0, Some(End::CloseNotify)), "{suite:?}");
    }
}

/// One record of `kind` with this content, sealed by the server's own keys, turned around; of a length that this side would
/// not send, too.
#[track_caller]
fn check(version: &'static SupportedProtocolVersion, kind: u8, content: &[u8], expected: Option<End>) {
    let suite = SUITES.iter().find(|(known, _)| *known == version).unwrap().1;
    let (_, mut records) = pair(version, suite);
    let key = || Key { suite: Suite::Aes256Gcm, secret: AeadKey::from([7; 32]), iv: Iv::from([7; 12]), sequence: 0 };
    (records.tx, records.rx) = (key(), key());
    let mut out = Vec::new();
    match records.version {
        Version::Tls13 => records.tx.seal13(kind, content, &mut out),
        Version::Tls12 => records.tx.seal12(kind, content, &mut out),
    }
    let batch = records.open_all(&mut out);
    assert_eq!(batch.end, expected);
    assert_eq!(batch.plain, 0);
}

#[test]
fn what_may_not_come() {
    let misbehaved = |alert| Some(End::Misbehaved(alert));
    check(&TLS13, APPLICATION_DATA, b"", None);
    check(&TLS13, 0, b"", misbehaved(Alert::UNEXPECTED_MESSAGE)); // nothing but padding
    check(&TLS13, ALERT, &[1, CLOSE_NOTIFY], Some(End::CloseNotify));
    check(&TLS13, ALERT, &[1, USER_CANCELED], None);
    check(&TLS13, ALERT, &[2, 40], Some(End::Fatal));
    check(&TLS13, ALERT, &[1, 40], Some(End::Fatal)); // TLS 1.3 has no warnings
    check(&TLS13, ALERT, &[1], misbehaved(Alert::DECODE_ERROR));
    check(&TLS13, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2], misbehaved(Alert::ILLEGAL_PARAMETER));
    check(&TLS13, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0, 1], misbehaved(Alert::UNEXPECTED_MESSAGE));
    check(&TLS13, HANDSHAKE, &[1, 0, 0, 0], misbehaved(Alert::UNEXPECTED_MESSAGE));
    check(&TLS13, CHANGE_CIPHER_SPEC, &[1], misbehaved(Alert::UNEXPECTED_MESSAGE));
    check(&TLS13, APPLICATION_DATA, &[1; PLAIN_MAX + 1], misbehaved(Alert::RECORD_OVERFLOW));
    check(&TLS12, APPLICATION_DATA, &[1; PLAIN_MAX + 1], misbehaved(Alert::RECORD_OVERFLOW));
    check(&TLS12, ALERT, &[1, 40], None);
    check(&TLS12, ALERT, &[2, 40], Some(End::Fatal));
    check(&TLS12, HANDSHAKE, &[1, 0, 0, 0], misbehaved(Alert::UNEXPECTED_MESSAGE)); // a renegotiation
    check(&TLS12, CHANGE_CIPHER_SPEC, &[1], misbehaved(Alert::UNEXPECTED_MESSAGE));
}

#[test]
fn headers_that_may_not_come() {
    let end = |bytes: &[u8]| pair13().1.open_all(&mut bytes.to_vec()).end;
    assert_eq!(end(&[20, 3, 3, 0, 1, 1]), Some(End::Misbehaved(Alert::UNEXPECTED_MESSAGE)));
    assert_eq!(end(&[22, 3, 3, 0, 4, 1, 0, 0, 0]), Some(End::Misbehaved(Alert::UNEXPECTED_MESSAGE)));
    assert_eq!(end(&[24, 3, 3, 0, 1]), Some(End::Misbehaved(Alert::UNEXPECTED_MESSAGE)));
    assert_eq!(end(b"GET / HTTP/1.1"), Some(End::Misbehaved(Alert::UNEXPECTED_MESSAGE)));
    assert_eq!(end(&[23, 3, 3, 0x41, 1]), Some(End::Misbehaved(Alert::RECORD_OVERFLOW)));
    assert_eq!(end(&[23, 3, 3, 0x41, 0]), None);
    assert_eq!(end(&[23, 3, 3, 0, 0]), Some(End::Misbehaved(Alert::BAD_RECORD_MAC)));
    assert_eq!(end(&[23, 3, 3, 0, 3, 1, 2, 3]), Some(End::Misbehaved(Alert::BAD_RECORD_MAC)));
    let (_, mut records) = pair(&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256);
    let end = records.open_all(&mut [23, 3, 3, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]).end;
    assert_eq!(end, Some(End::Misbehaved(Alert::BAD_RECORD_MAC)));
}

#[test]
fn any_byte_that_is_not_as_it_was_sealed_is_found() {
    for &(version, suite) in SUITES {
        for at in 0.. {
            let (mut client, mut records) = pair(version, suite);
            let mut bytes = say(&mut client, b"text");
            let Some(byte) = bytes.get_mut(at) else { break };
            *byte ^= 1 << (at % 8);
            let batch = records.open_all(&mut bytes);
            assert_eq!(batch.plain, 0, "{suite:?} byte {at}");
            assert!(batch.end.is_some() || batch.taken == 0, "{suite:?} byte {at}");
        }
    }
}

proptest! {
    #[test]
    fn whatever_comes_is_an_end_or_waits(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), first in 19u8..26) {
        let (_, mut records) = pair13();
        if bytes.len() > 5 {
            (bytes[0], bytes[1], bytes[3]) = (first, 3, 0);
        }
        let batch = records.open_all(&mut bytes);
        prop_assert_eq!(batch.plain, 0);
    }
}

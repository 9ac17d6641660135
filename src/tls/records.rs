//! Protection of a connection's records once its handshake is done: TLS 1.3 (RFC 8446 §5) and TLS 1.2 with AEAD suites
//! (RFC 5246 §6.2.3, RFC 5288, RFC 7905).
//!
//! Law: a sequence number is used once; a record that does not open ends the connection, and nothing after it is looked at.
//!
//! rustls negotiates and derives the keys, which are taken from it (`dangerous_into_kernel_connection`, made for kernel TLS):
//! its own record layer would copy each message twice more and hold three times as much of an idle connection. Where the
//! kernel does TLS one day, these keys go there instead.

use std::ops::Range;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

use super::alert::Alert;

/// Both directions of one connection.
pub struct Records {
    tx: Key,
    rx: Key,
    version: Version,
    /// A key update of the peer is not answered yet.
    owes_update: bool,
    /// Key updates of the peer that nobody has counted.
    updates: u32,
    /// Those since it last said anything.
    idle_updates: u8,
    /// Derives the keys after these; TLS 1.3 only.
    next: Option<Box<KernelConnection<ServerConnectionData>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Tls12,
    Tls13,
}

/// The key of one direction. The cipher's own form of it, half a kilobyte, is made anew for each record that is sealed and each
/// run of records that is opened: an idle connection keeps what cannot be made again, and nothing else.
struct Key {
    suite: Suite,
    secret: AeadKey,
    iv: Iv,
    sequence: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suite {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

/// What a run of received records came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Bytes of whole records, which are done with.
    pub taken: usize,
    /// Bytes of plaintext, which stand at the front now.
    pub plain: usize,
    /// Nothing after this is looked at.
    pub end: Option<End>,
}

/// Why no more records are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has said that it sends no more.
    CloseNotify,
    /// The peer gave up.
    Fatal,
    /// It broke the protocol, and is told so.
    Misbehaved(Alert),
}

/// What a record was for.
enum Opened {
    Data(Range<usize>),
    Nothing,
}

impl Records {
    /// Takes over from rustls. `None` if what was negotiated has no keys that can be used here.
    pub fn new(secrets: ExtractedSecrets, kernel: KernelConnection<ServerConnectionData>) -> Option<Self> {
        let version = match kernel.protocol_version() {
            ProtocolVersion::TLSv1_2 => Version::Tls12,
            ProtocolVersion::TLSv1_3 => Version::Tls13,
            _ => return None,
        };
        let (tx, rx) = (Key::new(secrets.tx)?, Key::new(secrets.rx)?);
        // TLS 1.2 never changes its keys.
        let next = (version == Version::Tls13).then(|| Box::new(kernel));
        Some(Self { tx, rx, version, owes_update: false, updates: 0, idle_updates: 0, next })
    }

    /// Opens every whole record at the front of `bytes`, in place, and moves their plaintext together at the front.
    pub fn open_all(&mut self, bytes: &mut [u8]) -> Batch {
        let mut batch = Batch::default();
        let mut cipher = None;
        loop {
            let from = batch.taken;
            let record = match whole_record(&bytes[from..], self.version) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(alert) => {
                    batch.end = Some(End::Misbehaved(alert));
                    break;
                }
            };
            batch.taken += record;
            match self.open(&mut cipher, &mut bytes[from..from + record]) {
                Ok(Opened::Data(plain)) => {
                    if !plain.is_empty() {
                        self.idle_updates = 0;
                    }
                    bytes.copy_within(from + plain.start..from + plain.end, batch.plain);
                    batch.plain += plain.len();
                }
                Ok(Opened::Nothing) => {}
                Err(end) => {
                    batch.end = Some(end);
                    break;
                }
            }
        }
        batch
    }

    /// Opens one record. What it says about the connection is done; what it carries is said where it is. The cipher is made
    /// when there is none, for this record and those behind it that have the same key.
    fn open(&mut self, cipher: &mut Option<LessSafeKey>, record: &mut [u8]) -> Result<Opened, End> {
        let made = cipher.get_or_insert_with(|| self.rx.cipher());
        let (kind, plain) = match self.version {
            Version::Tls13 => self.rx.open13(made, record),
            Version::Tls12 => self.rx.open12(made, record),
        }
        .map_err(End::Misbehaved)?;
        let content = &record[plain.clone()];
        match kind {
            APPLICATION_DATA => Ok(Opened::Data(plain)),
            ALERT => match *content {
                [_, CLOSE_NOTIFY] => Err(End::CloseNotify),
                [_, USER_CANCELED] => Ok(Opened::Nothing), // a close_notify follows (RFC 8446 §6.1)
                [WARNING, _] if self.version == Version::Tls12 => Ok(Opened::Nothing),
                [_, _] => Err(End::Fatal),
                _ => Err(End::Misbehaved(Alert::DECODE_ERROR)),
            },
            // All of it: a key changes at the end of a record (RFC 8446 §5.1), and no client splits five bytes.
            HANDSHAKE if self.version == Version::Tls13 => match *content {
                [KEY_UPDATE, 0, 0, 1, request @ 0..=1] => {
                    *cipher = None;
                    self.on_key_update(request == 1).map(|()| Opened::Nothing)
                }
                [KEY_UPDATE, 0, 0, 1, _] => Err(End::Misbehaved(Alert::ILLEGAL_PARAMETER)),
                _ => Err(End::Misbehaved(Alert::UNEXPECTED_MESSAGE)),
            },
            // With TLS 1.2 this would be a renegotiation, which there is none of here.
            _ => Err(End::Misbehaved(Alert::UNEXPECTED_MESSAGE)),
        }
    }

    fn on_key_update(&mut self, wants_answer: bool) -> Result<(), End> {
        let next = self.next.as_mut().ok_or(End::Misbehaved(Alert::UNEXPECTED_MESSAGE))?;
        self.idle_updates += 1;
        if self.idle_updates > IDLE_UPDATES_MAX {
            return Err(End::Misbehaved(Alert::UNEXPECTED_MESSAGE));
        }
        let secret = next.update_rx_secret().ok().and_then(Key::new);
        self.rx = secret.ok_or(End::Misbehaved(Alert::INTERNAL_ERROR))?;
        self.owes_update |= wants_answer;
        self.updates += 1;
        Ok(())
    }

    /// How often the peer has changed its key since the last call.
    pub fn take_updates(&mut self) -> u32 {
        std::mem::take(&mut self.updates)
    }

    /// Whether a key update of the peer is to be answered. Many that came meanwhile have one answer (RFC 8446 §4.6.3).
    pub fn owes_update(&self) -> bool {
        self.owes_update
    }

    /// Adds the answer to the peer's key update, or one of this side's own, and changes this side's key.
    ///
    /// # Errors
    /// [`Exhausted`]: TLS 1.2 has no other key.
    pub fn seal_key_update(&mut self, out: &mut Vec<u8>) -> Result<(), Exhausted> {
        let next = self.next.as_mut().ok_or(Exhausted)?;
        let key = next.update_tx_secret().ok().and_then(Key::new).ok_or(Exhausted)?;
        self.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out);
        self.tx = key;
        self.owes_update = false;
        Ok(())
    }

    /// Adds a record of application data, at most [`PLAIN_MAX`] bytes of it.
    ///
    /// # Errors
    /// [`Exhausted`]: the key has sealed as many records as it safely may, and there is no other.
    pub fn seal_data(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Exhausted> {
        if self.tx.sequence >= RECORDS_PER_KEY {
            self.seal_key_update(out)?;
        }
        self.seal(APPLICATION_DATA, plain, out);
        Ok(())
    }

    /// Adds the peer's last word: nothing may be sealed after it.
    pub fn seal_alert(&mut self, alert: Alert, out: &mut Vec<u8>) {
        self.seal(ALERT, &alert.bytes(), out);
    }

    fn seal(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        debug_assert!(plain.len() <= PLAIN_MAX);
        match self.version {
            Version::Tls13 => self.tx.seal13(kind, plain, out),
            Version::Tls12 => self.tx.seal12(kind, plain, out),
        }
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (version, suite) = (self.version, self.tx.suite);
        f.debug_struct("Records").field("version", &version).field("suite", &suite).finish_non_exhaustive()
    }
}

/// Key updates in a row without anything said in between. Each costs as much as a hundred empty records, and no rate sees it.
const IDLE_UPDATES_MAX: u8 = 32;

/// The key may seal no more, and there is none after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Key {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Option<Self> {
        let (suite, secret, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Suite::Chacha20Poly1305, key, iv),
            _ => return None,
        };
        Some(Self { suite, secret, iv, sequence })
    }

    fn cipher(&self) -> LessSafeKey {
        let algorithm = match self.suite {
            Suite::Aes128Gcm => &aead::AES_128_GCM,
            Suite::Aes256Gcm => &aead::AES_256_GCM,
            Suite::Chacha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        LessSafeKey::new(
            UnboundKey::new(algorithm, self.secret.as_ref()).expect("rustls derives keys of the right size"),
        )
    }

    /// The initialization vector with the sequence number in it (RFC 8446 §5.3; RFC 7905 §2), which is used up.
    fn nonce(&mut self) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(self.iv.as_ref());
        for (byte, of_sequence) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        self.sequence += 1;
        nonce
    }

    /// RFC 8446 §5.2: what a record is for stands inside, in front of any padding.
    fn open13(&mut self, cipher: &LessSafeKey, record: &mut [u8]) -> Result<(u8, Range<usize>), Alert> {
        let (header, sealed) = record.split_at_mut(HEADER);
        let aad = Aad::from(<[u8; HEADER]>::try_from(&*header).expect("so long"));
        if header[0] != APPLICATION_DATA {
            return Err(Alert::UNEXPECTED_MESSAGE); // change_cipher_spec is for handshakes
        }
        let nonce = Nonce::assume_unique_for_key(self.nonce());
        let inner = cipher.open_in_place(nonce, aad, sealed).map_err(|_| Alert::BAD_RECORD_MAC)?;
        let end = inner.iter().rposition(|&byte| byte != 0).ok_or(Alert::UNEXPECTED_MESSAGE)?;
        if end > PLAIN_MAX {
            return Err(Alert::RECORD_OVERFLOW);
        }
        Ok((inner[end], HEADER..HEADER + end))
    }

    /// RFC 5246 §6.2.3.3. With GCM half of the nonce comes with the record (RFC 5288 §3).
    fn open12(&mut self, cipher: &LessSafeKey, record: &mut [u8]) -> Result<(u8, Range<usize>), Alert> {
        let kind = record[0];
        let explicit = self.explicit();
        let from = HEADER + explicit;
        let length = record.len().checked_sub(from + TAG).ok_or(Alert::BAD_RECORD_MAC)?;
        if length > PLAIN_MAX {
            return Err(Alert::RECORD_OVERFLOW);
        }
        // With the version as it came: it is authenticated, too.
        let mut aad = aad12(self.sequence, kind, length);
        aad[9..11].copy_from_slice(&record[1..3]);
        let aad = Aad::from(aad);
        let mut nonce = self.nonce();
        if explicit > 0 {
            nonce[..SALT].copy_from_slice(&self.iv.as_ref()[..SALT]);
            nonce[SALT..].copy_from_slice(&record[HEADER..from]);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        cipher.open_in_place(nonce, aad, &mut record[from..]).map_err(|_| Alert::BAD_RECORD_MAC)?;
        Ok((kind, from..from + length))
    }

    fn seal13(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        let length = plain.len() + 1 + TAG;
        let header = header(APPLICATION_DATA, length);
        out.reserve(HEADER + length);
        out.extend_from_slice(&header);
        let from = out.len();
        out.extend_from_slice(plain);
        out.push(kind);
        self.seal_in(Aad::from(header), from, out);
    }

    fn seal12(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        let explicit = self.explicit();
        let length = explicit + plain.len() + TAG;
        out.reserve(HEADER + length);
        out.extend_from_slice(&header(kind, length));
        if explicit > 0 {
            // As rustls does: the sequence number masked, which never repeats under one key either.
            let masked = u64::from_be_bytes(self.iv.as_ref()[SALT..].try_into().expect("eight bytes")) ^ self.sequence;
            out.extend_from_slice(&masked.to_be_bytes());
        }
        let from = out.len();
        out.extend_from_slice(plain);
        self.seal_in(Aad::from(aad12(self.sequence, kind, plain.len())), from, out);
    }

    fn seal_in<A: AsRef<[u8]>>(&mut self, aad: Aad<A>, from: usize, out: &mut Vec<u8>) {
        let cipher = self.cipher();
        let nonce = Nonce::assume_unique_for_key(self.nonce());
        let tag = cipher.seal_in_place_separate_tag(nonce, aad, &mut out[from..]);
        out.extend_from_slice(tag.expect("a record is far shorter than the cipher can take").as_ref());
    }

    /// Bytes of the nonce that stand in each record of TLS 1.2.
    fn explicit(&self) -> usize {
        match self.suite {
            Suite::Aes128Gcm | Suite::Aes256Gcm => NONCE_LEN - SALT,
            Suite::Chacha20Poly1305 => 0,
        }
    }
}

/// The length of the record that `bytes` begin with, if all of it is there.
fn whole_record(bytes: &[u8], version: Version) -> Result<Option<usize>, Alert> {
    let Some(&[kind, major, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) || major != 3 {
        return Err(Alert::UNEXPECTED_MESSAGE);
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    let expansion = match version {
        Version::Tls13 => 256,
        Version::Tls12 => 2048,
    };
    if length > PLAIN_MAX + expansion {
        return Err(Alert::RECORD_OVERFLOW);
    }
    Ok((bytes.len() >= HEADER + length).then_some(HEADER + length))
}

/// How many bytes of `bytes` belong to the record that `held` begins with: all, or up to its end.
pub(super) fn rest_of_record(held: &[u8], bytes: &[u8]) -> usize {
    let at = |index: usize| held.get(index).or_else(|| bytes.get(index - held.len())).copied();
    match (at(3), at(4)) {
        (Some(high), Some(low)) => {
            let record = HEADER + usize::from(u16::from_be_bytes([high, low]));
            record.saturating_sub(held.len()).min(bytes.len())
        }
        _ => bytes.len(),
    }
}

fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    [kind, 3, 3, high, low]
}

/// RFC 5246 §6.2.3.3.
fn aad12(sequence: u64, kind: u8, length: usize) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&sequence.to_be_bytes());
    aad[8..].copy_from_slice(&header(kind, length));
    aad
}

/// Plaintext in one record at most (RFC 8446 §5.1).
pub const PLAIN_MAX: usize = 1 << 14;
/// Most that sealing adds to a record, header included.
pub const OVERHEAD_MAX: usize = HEADER + 8 + TAG;
pub(super) const HEADER: usize = 5;
const TAG: usize = 16;
/// The part of a GCM nonce that TLS 1.2 derives.
const SALT: usize = 4;
/// Records that one key may seal. AES-GCM is good for 2^24.5 full ones (RFC 8446 §5.5); ChaCha20 for more, which is not needed.
const RECORDS_PER_KEY: u64 = if cfg!(test) { 50 } else { 1 << 24 };

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;
const WARNING: u8 = 1;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

#[cfg(test)]
mod tests;

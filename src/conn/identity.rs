//! Who a connection is and what it may do.
//! Law: an identity comes from a verified token and does not change; a refreshed token brings a new one.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Deref;
use std::rc::Rc;

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::permissions::Permissions;

/// Who a connection belongs to: 40 bytes, and on the heap the permissions and a user id that is neither short nor a UUID.
/// Cloned for each message that a handler gets, without an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The claim `sub`: 1 to 255 bytes.
    pub user_id: UserId,
    /// The claim `exp` in Unix seconds; `None` is a token without end.
    pub expires_at: Option<NonZeroU64>,
    /// The claim `topics`; `None` allows every topic.
    pub permissions: Option<Rc<Permissions>>,
}

impl Identity {
    /// Whether `topic` may be subscribed to.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.permissions.as_ref().is_none_or(|permissions| permissions.may_subscribe(topic))
    }

    /// Whether `topic` may be published to.
    pub fn may_publish(&self, topic: &str) -> bool {
        self.permissions.as_ref().is_none_or(|permissions| permissions.may_publish(topic))
    }

    /// When the token expires, in Unix milliseconds.
    pub fn expires_ms(&self) -> Option<u64> {
        self.expires_at.map(|seconds| seconds.get().saturating_mul(1000))
    }
}

/// A user id. A short one and a UUID, as most are, lie in place: one allocation less for each idle connection.
#[derive(Clone, PartialEq, Eq)]
pub struct UserId(Held);

#[derive(Clone, PartialEq, Eq)]
enum Held {
    /// The first `len` bytes of `bytes`; zeros behind.
    Short {
        len: u8,
        bytes: [u8; SHORT_MAX],
    },
    /// One whose text is as RFC 9562 §4 has it: lower case, with hyphens. A UUID written otherwise is a long text.
    Uuid([u8; 16]),
    Long(Rc<str>),
}

const _: () = assert!(size_of::<UserId>() == 24 && size_of::<Option<Identity>>() == 40);

impl UserId {
    /// As the token has it.
    pub fn text(&self) -> UserText<'_> {
        match &self.0 {
            Held::Short { len, bytes } => UserText::Held(utf8(&bytes[..usize::from(*len)])),
            Held::Uuid(bytes) => UserText::Made(UuidText::of(*bytes)),
            Held::Long(text) => UserText::Held(text),
        }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Held::Short { .. } | Held::Uuid(_) => 0,
            Held::Long(text) => text.len(),
        }
    }
}

impl From<&str> for UserId {
    fn from(text: &str) -> Self {
        if text.len() <= SHORT_MAX {
            let mut bytes = [0; SHORT_MAX];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            return Self(Held::Short { len: text.len() as u8, bytes });
        }
        match Uuid::try_parse(text) {
            Ok(uuid) if *UuidText::of(uuid.into_bytes()) == *text => Self(Held::Uuid(uuid.into_bytes())),
            _ => Self(Held::Long(text.into())),
        }
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text(), f)
    }
}

/// The text of a user id.
#[derive(Clone, Debug)]
pub enum UserText<'a> {
    /// The id has it.
    Held(&'a str),
    /// It was made from a UUID.
    Made(UuidText),
}

impl Deref for UserText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Held(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl fmt::Display for UserText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// A UUID in lower case, with hyphens.
#[derive(Clone)]
pub struct UuidText([u8; Hyphenated::LENGTH]);

impl UuidText {
    fn of(uuid: [u8; 16]) -> Self {
        let mut text = [0; Hyphenated::LENGTH];
        Uuid::from_bytes(uuid).hyphenated().encode_lower(&mut text);
        Self(text)
    }
}

impl Deref for UuidText {
    type Target = str;

    fn deref(&self) -> &str {
        utf8(&self.0)
    }
}

impl fmt::Debug for UuidText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

fn utf8(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("made from a str")
}

/// Bytes of a user id that have room in place.
const SHORT_MAX: usize = 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, heap_bytes: usize) {
        let id = UserId::from(text);
        assert_eq!((&*id.text(), id.heap_bytes()), (text, heap_bytes));
        assert_eq!(format!("{id:?}"), format!("{text:?}"));
        assert!(id == UserId::from(text) && id != UserId::from(&*format!("{text}\0")));
    }

    #[test]
    fn every_id_reads_as_it_was_written() {
        check("", 0);
        check("user-12345", 0);
        check("ééééééééééé", 0);
        check("0123456789012345678901", 0);
        check("01234567890123456789012", 23);
        check("fd3c9a52-7d9e-4a5e-9a3f-0a6bb2b6a6d1", 0);
        check("00000000-0000-0000-0000-000000000000", 0);
        // As nobody writes a UUID who reads it back.
        check("FD3C9A52-7D9E-4A5E-9A3F-0A6BB2B6A6D1", 36);
        check("fd3c9a527d9e4a5e9a3f0a6bb2b6a6d1", 32);
        check("{fd3c9a52-7d9e-4a5e-9a3f-0a6bb2b6a6d1}", 38);
        check("urn:uuid:fd3c9a52-7d9e-4a5e-9a3f-0a6bb2b6a6d1", 45);
        check("fd3c9a52-7d9e-4a5e-9a3f-0a6bb2b6a6dg", 36);
    }
}

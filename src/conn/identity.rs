//! Who a connection is and what it may do.
//! Law: an identity comes from a verified token and does not change; a refreshed token brings a new one.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Deref;
use std::rc::Rc;

use super::permissions::Permissions;

/// Who a connection belongs to: 40 bytes, and on the heap the permissions and a user id that is long. Cloned for each message
/// that a handler gets, without an allocation.
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

/// A user id. A short one, as most are, lies in place: one allocation less for each idle connection.
#[derive(Clone, PartialEq, Eq)]
pub struct UserId(Text);

#[derive(Clone, PartialEq, Eq)]
enum Text {
    /// The first `len` bytes of `bytes`; zeros behind.
    Short {
        len: u8,
        bytes: [u8; SHORT_MAX],
    },
    Long(Rc<str>),
}

const _: () = assert!(size_of::<UserId>() == 24 && size_of::<Option<Identity>>() == 40);

impl UserId {
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Text::Short { .. } => 0,
            Text::Long(text) => text.len(),
        }
    }
}

impl From<&str> for UserId {
    fn from(text: &str) -> Self {
        if text.len() > SHORT_MAX {
            return Self(Text::Long(text.into()));
        }
        let mut bytes = [0; SHORT_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self(Text::Short { len: text.len() as u8, bytes })
    }
}

impl Deref for UserId {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Text::Short { len, bytes } => str::from_utf8(&bytes[..usize::from(*len)]).expect("made from a str"),
            Text::Long(text) => text,
        }
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Bytes of a user id that have room in place.
const SHORT_MAX: usize = 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, is_short: bool) {
        let id = UserId::from(text);
        assert_eq!((&*id, matches!(id.0, Text::Short { .. })), (text, is_short));
        assert!(id == UserId::from(text) && id != UserId::from(&*format!("{text}\0")));
    }

    #[test]
    fn short_and_long_ids_read_the_same() {
        check("", true);
        check("user-12345", true);
        check("ééééééééééé", true);
        check("0123456789012345678901", true);
        check("01234567890123456789012", false);
        check("fd3c9a52-7d9e-4a5e-9a3f-0a6bb2b6a6d1", false);
    }
}

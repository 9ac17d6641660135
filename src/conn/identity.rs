//! Who a connection is and what it may do.
//! Law: an identity comes from a verified token and does not change; a refreshed token brings a new one.

use std::num::NonZeroU64;

use super::permissions::Permissions;

/// Who a connection belongs to: 32 bytes, and on the heap the user id's and the permissions'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The claim `sub`: 1 to 255 bytes.
    pub user_id: Box<str>,
    /// The claim `exp` in Unix seconds; `None` is a token without end.
    pub expires_at: Option<NonZeroU64>,
    /// The claim `topics`; `None` allows every topic.
    pub permissions: Option<Box<Permissions>>,
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

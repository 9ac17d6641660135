//! Who a connection is and what it may do.

use super::permissions::Permissions;

/// An authenticated user. An idle connection carries one of these on the heap.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The token's `sub`.
    pub user_id: Box<str>,
    /// The token's `exp` in Unix seconds.
    pub expires_at: Option<u64>,
    /// The token's `topics`; everything is allowed without.
    pub permissions: Option<Box<Permissions>>,
}

impl Identity {
    /// Whether the token lets its bearer subscribe to `topic`.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.permissions.as_deref().is_none_or(|permissions| permissions.may_subscribe(topic))
    }

    /// Whether the token lets its bearer publish to `topic`.
    pub fn may_publish(&self, topic: &str) -> bool {
        self.permissions.as_deref().is_none_or(|permissions| permissions.may_publish(topic))
    }
}

//! A token that names a key nobody has: perhaps its issuer has a new one, and whoever fetches key sets should look.
//! Law: however many tokens ask, it is told once until somebody looks; who asks never waits.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::sync::Notify;

/// The wish for a newer key set, from whoever verifies tokens to the one task that fetches.
#[derive(Debug, Default)]
pub struct Wish {
    raised: AtomicBool,
    told: Notify,
}

impl Wish {
    /// Wishes. Costs one read while it is wished already.
    pub fn raise(&self) {
        if !self.raised.load(SeqCst) && !self.raised.swap(true, SeqCst) {
            self.told.notify_one();
        }
    }

    /// What is wished from now on is a new wish. Whether there was one.
    pub fn lower(&self) -> bool {
        self.raised.swap(false, SeqCst)
    }

    /// Waits for a wish. For one task.
    pub async fn wished(&self) {
        while !self.raised.load(SeqCst) {
            self.told.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wish_until_it_is_lowered() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let wish = Wish::default();
        let is_wished = || {
            let poll = async {
                tokio::select! { biased; () = wish.wished() => true, () = async {} => false }
            };
            runtime.block_on(poll)
        };
        assert!(!is_wished() && !wish.lower());
        wish.raise();
        wish.raise();
        assert!(is_wished() && is_wished());
        assert!(wish.lower() && !wish.lower());
        assert!(!is_wished()); // what was told before counts no more
        wish.raise();
        assert!(is_wished());
    }
}

//! The hot loop: one frame onto the queues of a topic's members.
//! Law: the frame is referenced by a 4-byte key and counted once for all members; a member over its bound is named to
//! the caller and costs its neighbours nothing.

use std::sync::Arc;

use crate::conn::{ConnPool, Enqueued, Ms, OutboundLimits};
use crate::io::{Palette, SharedFrame};

/// What became of one published frame; adds up: `matched = queued + dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Delivery {
    /// Connections that were subscribed.
    pub matched: u64,
    /// Queues the frame was put on.
    pub queued: u64,
    /// Connections that did not get it, each by a stated and counted policy.
    pub dropped: u64,
}

impl std::ops::AddAssign for Delivery {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.queued += other.queued;
        self.dropped += other.dropped;
    }
}

/// Puts `frame` on the queue of every member but `except`. Slots whose queue has now something to flush go onto
/// `dirty` (once a flush), those over a bound onto `over`.
#[expect(clippy::too_many_arguments, reason = "the hot loop names everything it touches")]
pub fn fan_out(
    frame: Arc<SharedFrame>,
    members: &[u32],
    except: Option<u32>,
    conns: &mut ConnPool,
    palette: &mut Palette,
    limits: &OutboundLimits,
    now: Ms,
    dirty: &mut Vec<u32>,
    over: &mut Vec<u32>,
) -> Delivery {
    if members.is_empty() {
        return Delivery::default();
    }
    let len = frame.plain().len() as u32;
    let owners = members.len() as u32;
    let key = palette.share(frame, owners);
    let mut delivery = Delivery::default();
    for &slot in members {
        if Some(slot) == except {
            continue;
        }
        delivery.matched += 1;
        let conn = conns.slot_mut(slot).expect("members are live");
        match conn.outbound.enqueue(key, len, limits, now) {
            Enqueued::Queued => {
                delivery.queued += 1;
                if !conn.dirty {
                    conn.dirty = true;
                    dirty.push(slot);
                }
            }
            Enqueued::Over => {
                delivery.dropped += 1;
                over.push(slot);
            }
        }
    }
    palette.release_many(key, owners - delivery.queued as u32);
    delivery
}

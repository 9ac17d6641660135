//! The hot loop: one frame onto the queues of a topic's members.
//! Law: the frame is referenced by a 4-byte key and counted once for all members; a member over its bound is named to
//! the caller and costs its neighbours nothing. One that was refused a frame is refused all that follow: what it has
//! seen is a prefix, though a later frame might be small enough or come after a send has made room.

use std::sync::Arc;

use crate::conn::{ConnPool, Enqueued, Ms, OutboundLimits};
use crate::io::{Palette, SharedFrame};

/// What became of one published frame; what a publish receipt says; adds up: `matched = queued + dropped`.
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
/// `dirty` (once a flush), those over a bound onto `over` (once).
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
        let enqueued = if conn.slow { Enqueued::Over } else { conn.outbound.enqueue(key, len, limits, now) };
        match enqueued {
            Enqueued::Queued => {
                delivery.queued += 1;
                conn.active = now;
                if !conn.dirty {
                    conn.dirty = true;
                    dirty.push(slot);
                }
            }
            Enqueued::Over => {
                delivery.dropped += 1;
                if !conn.slow {
                    conn.slow = true;
                    over.push(slot);
                }
            }
        }
    }
    palette.release_many(key, owners - delivery.queued as u32);
    delivery
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Conn, Gather, Greeting};

    #[test]
    fn a_refused_frame_is_the_last_that_is_tried() {
        let (mut conns, mut palette) = (ConnPool::new(1), Palette::default());
        let key = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
        let limits = OutboundLimits { bytes_max: 10, frames_max: 8, age_max_ms: 1_000 };
        let (mut dirty, mut over) = (Vec::new(), Vec::new());
        let mut publish = |bytes: usize, conns: &mut ConnPool, palette: &mut Palette| {
            let frame = SharedFrame::new(vec![0; bytes]);
            fan_out(frame, &[key.slot], None, conns, palette, &limits, 0, &mut dirty, &mut over).queued
        };
        assert_eq!(publish(6, &mut conns, &mut palette), 1);
        assert_eq!(publish(6, &mut conns, &mut palette), 0, "over the bound");
        assert_eq!(publish(1, &mut conns, &mut palette), 0, "small enough, but behind a gap");
        let outbound = &mut conns.get_mut(key).unwrap().outbound;
        let mut gather = Gather::default();
        assert!(outbound.next_send(&mut palette, &mut gather).is_some());
        assert!(outbound.on_sent(&mut palette, 6).is_none());
        assert_eq!(publish(6, &mut conns, &mut palette), 0, "there is room again, but behind a gap");
        assert_eq!((over, palette.live()), (vec![key.slot], 0));
    }
}

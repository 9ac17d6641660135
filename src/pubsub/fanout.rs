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
        if conn.over {
            delivery.dropped += 1;
            continue;
        }
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
                conn.over = true;
                over.push(slot);
            }
        }
    }
    palette.release_many(key, owners - delivery.queued as u32);
    delivery
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Conn, Phase};

    const LIMITS: OutboundLimits = OutboundLimits { bytes_max: 10, frames_max: 8, age_max_ms: 1_000 };

    #[test]
    fn a_queue_that_refused_one_frame_takes_no_later_one() {
        let mut conns = ConnPool::new(2);
        let keys = [0, 1].map(|_| conns.insert_with(|_| Conn { phase: Phase::Open, ..Conn::new(0, 0) }).unwrap());
        let members = keys.map(|key| key.slot);
        let (mut palette, mut dirty, mut over) = (Palette::default(), Vec::new(), Vec::new());
        let mut publish = |text: &str, members: &[u32], except| {
            let frame = SharedFrame::new(text.as_bytes().to_vec());
            fan_out(frame, members, except, &mut conns, &mut palette, &LIMITS, 0, &mut dirty, &mut over)
        };
        let delivery = |matched, queued, dropped| Delivery { matched, queued, dropped };
        assert_eq!(publish("12345678", &members[..1], None), delivery(1, 1, 0));
        assert_eq!(publish("too long", &members, None), delivery(2, 1, 1), "the first has no room, the second has");
        assert_eq!(publish("x", &members, None), delivery(2, 1, 1), "it would fit, but there would be a gap");
        assert_eq!(publish("x", &members, Some(members[1])), delivery(1, 0, 1));
        assert_eq!((over, dirty), (vec![members[0]], members.to_vec()), "each named once");
        for key in keys {
            conns.get_mut(key).unwrap().outbound.clear(&mut palette);
        }
        assert_eq!(palette.live(), 0);
    }
}

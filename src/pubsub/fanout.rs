//! The hot loop: one frame onto the queues of a topic's members.
//! Law: the frame is referenced by a 4-byte key and counted once for all members; the policy is decided before the loop, and
//! what it does at one member's bound costs its neighbours nothing. A member that was refused a frame that may not be
//! dropped is named to the caller and refused all that follow: what it has seen is a prefix, though a later frame might be
//! small enough or come after a send has made room.

use std::sync::Arc;

use crate::conn::{Conn, ConnPool, Enqueued, Ms, OutboundLimits};
use crate::io::{Palette, SharedFrame};
use crate::metrics::{Drop, Drops};

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

/// What became of one published frame, and what was dropped for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FanOut {
    /// What became of the frame itself.
    pub delivery: Delivery,
    /// Deliveries that were dropped: of this frame, and of older ones that had to go for it.
    pub drops: Drops,
}

/// The queues of a shard, and what they work with.
#[expect(missing_debug_implementations, reason = "it holds a closure")]
pub struct Queues<'a> {
    /// The connections that have them.
    pub conns: &'a mut ConnPool,
    /// The frames that are on them.
    pub palette: &'a mut Palette,
    /// The bounds of each.
    pub limits: &'a OutboundLimits,
    /// The time.
    pub now: Ms,
    /// Slots whose queue has something to flush, each once a flush.
    pub dirty: &'a mut Vec<u32>,
    /// Slots whose queue refused a frame that may not be dropped, each once.
    pub over: &'a mut Vec<u32>,
    /// Told which slot's queue dropped how much, where one did.
    pub on_drop: OnDrop<'a>,
}

/// Hears of a slot whose queue dropped something, and what.
pub type OnDrop<'a> = &'a mut dyn FnMut(u32, &Drops);

/// Puts `frame` on the queue of every member but `except`.
pub fn fan_out(frame: Arc<SharedFrame>, members: &[u32], except: Option<u32>, queues: Queues<'_>) -> FanOut {
    if members.is_empty() {
        return FanOut::default();
    }
    let Queues { conns, palette, limits, now, dirty, over, on_drop } = queues;
    let len = frame.plain().len() as u32;
    let stream = frame.stream().copied();
    let owners = members.len() as u32;
    let key = palette.share(frame, owners);
    let mut drops = Drops::default();
    let mut tell = |slot, own: Drops| {
        if own != Drops::default() {
            drops.iter_mut().zip(own).for_each(|(all, own)| *all += own);
            on_drop(slot, &own);
        }
    };
    let members = members.iter().copied().filter(|&slot| Some(slot) != except);
    let delivery = match stream {
        None => put_on_each(members, conns, now, dirty, |slot, conn| {
            if !conn.slow && conn.outbound.enqueue(key, len, limits, now) == Enqueued::Queued {
                return Enqueued::Queued;
            }
            let mut own = Drops::default();
            let has_room = !conn.slow && conn.outbound.make_room(len, limits, now, palette, &mut own);
            if !has_room {
                own[Drop::Disconnect as usize] += 1;
                if !conn.slow {
                    conn.slow = true;
                    over.push(slot);
                }
            }
            tell(slot, own);
            if has_room { conn.outbound.enqueue(key, len, limits, now) } else { Enqueued::Over }
        }),
        Some(stream) => put_on_each(members, conns, now, dirty, |slot, conn| {
            let mut own = Drops::default();
            let enqueued = if conn.slow {
                own[Drop::Disconnect as usize] += 1;
                Enqueued::Over
            } else {
                let enqueued = conn.outbound.enqueue_lossy(key, len, &stream, limits, now, palette, &mut own);
                own[Drop::from(stream.policy) as usize] += u64::from(enqueued == Enqueued::Over);
                enqueued
            };
            tell(slot, own);
            enqueued
        }),
    };
    palette.release_many(key, owners - delivery.queued as u32);
    FanOut { delivery, drops }
}

/// The loop itself; `put` is made for the policy of the topic.
fn put_on_each(
    members: impl Iterator<Item = u32>,
    conns: &mut ConnPool,
    now: Ms,
    dirty: &mut Vec<u32>,
    mut put: impl FnMut(u32, &mut Conn) -> Enqueued,
) -> Delivery {
    let mut delivery = Delivery::default();
    for slot in members {
        let conn = conns.slot_mut(slot).expect("members are live");
        match put(slot, conn) {
            Enqueued::Queued => {
                delivery.queued += 1;
                conn.active = now;
                if !conn.dirty {
                    conn.dirty = true;
                    dirty.push(slot);
                }
            }
            Enqueued::Over => delivery.dropped += 1,
        }
    }
    delivery.matched = delivery.queued + delivery.dropped;
    delivery
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Gather, Greeting};

    #[test]
    fn a_refused_frame_is_the_last_that_is_tried() {
        let (mut conns, mut palette) = (ConnPool::new(1), Palette::default());
        let key = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
        let limits = OutboundLimits { bytes_max: 10, frames_max: 8, age_max_ms: 1_000 };
        let (mut dirty, mut over) = (Vec::new(), Vec::new());
        let mut publish = |bytes: usize, conns: &mut ConnPool, palette: &mut Palette| {
            let (dirty, over) = (&mut dirty, &mut over);
            let queues = Queues { conns, palette, limits: &limits, now: 0, dirty, over, on_drop: &mut |_, _| {} };
            fan_out(SharedFrame::new(vec![0; bytes]), &[key.slot], None, queues).delivery.queued
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

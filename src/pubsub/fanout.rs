//! The hot loop: one frame onto the queues of a topic's members.
//! Law: the frame is referenced by a 4-byte key and counted once for all members; the policy is decided before the loop, and
//! what it does at one member's bound costs its neighbours nothing. A member that was refused a frame that may not be
//! dropped is named to the caller and refused all that follow: what it has seen is a prefix, though a later frame might be
//! small enough or come after a send has made room.

use std::sync::Arc;

use crate::conn::{Conn, ConnPool, Enqueued, FlushLine, Ms, OutboundLimits, Unflushed};
use crate::io::{FrameKey, Palette, SharedFrame, Stream};
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
    /// Who has something to flush.
    pub unflushed: &'a mut Unflushed,
    /// Slots whose queue refused a frame that may not be dropped, each once.
    pub over: &'a mut Vec<u32>,
    /// Told which slot's queue dropped how much, where one did.
    pub on_drop: OnDrop<'a>,
}

/// Hears of a slot whose queue dropped something, and what.
pub type OnDrop<'a> = &'a mut dyn FnMut(u32, &Drops);

/// Puts `frame` on the queue of every member but `except`.
pub fn fan_out(
    frame: Arc<SharedFrame>,
    members: impl ExactSizeIterator<Item = u32>,
    except: Option<u32>,
    queues: Queues<'_>,
) -> FanOut {
    let owners = members.len() as u32;
    if owners == 0 {
        return FanOut::default();
    }
    if frame.forms().is_empty() {
        let (len, stream) = (frame.plain().len() as u32, frame.stream().copied());
        let key = queues.palette.share(frame, owners);
        put_all(&mut OneForm { key, len, owners }, stream, members, except, queues)
    } else {
        let stream = frame.stream().copied();
        put_all(&mut Forms::share(&frame, owners, queues.palette), stream, members, except, queues)
    }
}

/// Which form of the frame a member gets, and how many owners each form has still to find.
trait Choice {
    fn of(&self, conn: &Conn) -> (FrameKey, u32);
    fn queued(&mut self, conn: &Conn);
    /// Gives back the ownerships for which there was no queue.
    fn settle(&mut self, delivery: &Delivery, palette: &mut Palette);
}

/// There is only one.
struct OneForm {
    key: FrameKey,
    len: u32,
    owners: u32,
}

impl Choice for OneForm {
    #[inline]
    fn of(&self, _: &Conn) -> (FrameKey, u32) {
        (self.key, self.len)
    }

    #[inline]
    fn queued(&mut self, _: &Conn) {}

    fn settle(&mut self, delivery: &Delivery, palette: &mut Palette) {
        palette.release_many(self.key, self.owners - delivery.queued as u32);
    }
}

/// One for each class of members, by the bits of their window: found with one look into a table.
struct Forms {
    table: [(FrameKey, u32); CLASSES],
    queued: [u32; CLASSES],
    owners: u32,
}

/// Windows have up to 15 bits.
const CLASSES: usize = 16;

impl Forms {
    fn share(frame: &Arc<SharedFrame>, owners: u32, palette: &mut Palette) -> Self {
        let mut table = [(palette.share(frame.clone(), owners), frame.plain().len() as u32); CLASSES];
        for (place, form) in frame.forms().iter().enumerate() {
            let shared = (palette.share_form(frame.clone(), place as u8, owners), form.bytes.len() as u32);
            let classes = (0..CLASSES).filter(|class| form.classes & 1 << class != 0);
            classes.for_each(|class| table[class] = shared);
        }
        Self { table, queued: [0; CLASSES], owners }
    }

    #[inline]
    fn class(conn: &Conn) -> usize {
        usize::from(conn.window_bits()) % CLASSES
    }
}

impl Choice for Forms {
    #[inline]
    fn of(&self, conn: &Conn) -> (FrameKey, u32) {
        self.table[Self::class(conn)]
    }

    #[inline]
    fn queued(&mut self, conn: &Conn) {
        self.queued[Self::class(conn)] += 1;
    }

    fn settle(&mut self, _: &Delivery, palette: &mut Palette) {
        let mut settled = 0_u16;
        for class in 0..CLASSES {
            if settled & 1 << class != 0 {
                continue;
            }
            let key = self.table[class].0;
            let same = (class..CLASSES).filter(|&other| self.table[other].0 == key);
            let mut queued = 0;
            for other in same {
                settled |= 1 << other;
                queued += self.queued[other];
            }
            palette.release_many(key, self.owners - queued);
        }
    }
}

fn put_all(
    forms: &mut impl Choice,
    stream: Option<Stream>,
    members: impl ExactSizeIterator<Item = u32>,
    except: Option<u32>,
    queues: Queues<'_>,
) -> FanOut {
    let Queues { conns, palette, limits, now, unflushed, over, on_drop } = queues;
    let mut drops = Drops::default();
    let mut tell = |slot, own: Drops| {
        if own != Drops::default() {
            drops.iter_mut().zip(own).for_each(|(all, own)| *all += own);
            on_drop(slot, &own);
        }
    };
    let line = if members.len() <= FEW { FlushLine::Own } else { FlushLine::Crowd };
    let mut list = |slot, conn: &mut Conn| unflushed.add(slot, conn, line);
    let members = members.filter(|&slot| Some(slot) != except);
    let delivery = match stream {
        None => put_on_each(forms, members, conns, now, &mut list, |(key, len), slot, conn| {
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
        Some(stream) => put_on_each(forms, members, conns, now, &mut list, |(key, len), slot, conn| {
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
    forms.settle(&delivery, palette);
    FanOut { delivery, drops }
}

/// The loop itself; `put` is made for the policy of the topic.
#[inline]
fn put_on_each<C: Choice>(
    forms: &mut C,
    members: impl Iterator<Item = u32>,
    conns: &mut ConnPool,
    now: Ms,
    list: &mut impl FnMut(u32, &mut Conn),
    mut put: impl FnMut((FrameKey, u32), u32, &mut Conn) -> Enqueued,
) -> Delivery {
    let mut delivery = Delivery::default();
    members.for_each(|slot| {
        let conn = conns.slot_mut(slot).expect("members are live");
        match put(forms.of(conn), slot, conn) {
            Enqueued::Queued => {
                delivery.queued += 1;
                forms.queued(conn);
                conn.active = now;
                list(slot, conn);
            }
            Enqueued::Over => delivery.dropped += 1,
        }
    });
    delivery.matched = delivery.queued + delivery.dropped;
    delivery
}

/// So many members do not wait for a crowd to be flushed.
const FEW: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Gather, Greeting};
    use crate::io::{Form, Lossy};
    use crate::ws::deflate::{Terms, negotiate};

    #[test]
    fn a_refused_frame_is_the_last_that_is_tried() {
        let (mut conns, mut palette) = (ConnPool::new(1), Palette::default());
        let key = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
        let limits = OutboundLimits { bytes_max: 10, frames_max: 8, age_max_ms: 1_000 };
        let (mut unflushed, mut over) = (Unflushed::default(), Vec::new());
        let mut publish = |bytes: usize, conns: &mut ConnPool, palette: &mut Palette| {
            let (unflushed, over) = (&mut unflushed, &mut over);
            let queues = Queues { conns, palette, limits: &limits, now: 0, unflushed, over, on_drop: &mut |_, _| {} };
            fan_out(SharedFrame::new(vec![0; bytes]), [key.slot].into_iter(), None, queues).delivery.queued
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

    /// Each member gets the form of its class, whatever the policy, and no ownership is lost or left.
    #[test]
    fn everyone_gets_its_form() {
        let bits = [0_u8, 9, 10, 15, 8, 9, 12];
        let offer = |bits: u8| match bits {
            0 => String::new(),
            bits => format!("permessage-deflate; server_max_window_bits={bits}"),
        };
        for stream in [None, Some(Stream { policy: Lossy::DropOldest, topic: 1, key: 1 })] {
            let (mut conns, mut palette) = (ConnPool::new(8), Palette::default());
            let members: Vec<u32> = bits
                .map(|bits| {
                    let key = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
                    let terms = Terms { client_context_takeover: false };
                    conns.get_mut(key).unwrap().deflate = negotiate([&*offer(bits)].into_iter(), &terms);
                    key.slot
                })
                .into();
            let form = |classes, text: &[u8]| Form { classes, bytes: text.into() };
            let forms = vec![form(1 << 9, b"nine"), form(1 << 10 | 1 << 15, b"wide!!")];
            let frame = SharedFrame::with_forms(b"plain".to_vec(), stream, forms);
            // The second is over the bound of everyone.
            let limits = OutboundLimits { bytes_max: 8, frames_max: 1, age_max_ms: 1_000 };
            let (mut unflushed, mut over) = (Unflushed::default(), Vec::new());
            for frames in [6, 0] {
                let (unflushed, over) = (&mut unflushed, &mut over);
                let queues = Queues {
                    conns: &mut conns,
                    palette: &mut palette,
                    limits: &limits,
                    now: 0,
                    unflushed,
                    over,
                    on_drop: &mut |_, _| {},
                };
                let except = Some(members[1]);
                let delivery = fan_out(frame.clone(), members.iter().copied(), except, queues).delivery;
                assert_eq!(delivery.matched, 6);
                assert!(stream.is_some() || delivery.queued == frames);
            }
            let expected: [&[u8]; 7] = [b"plain", b"", b"wide!!", b"wide!!", b"plain", b"nine", b"plain"];
            for (&slot, expected) in members.iter().zip(expected) {
                let conn = conns.slot_mut(slot).unwrap();
                let mut gather = Gather::default();
                let sent = conn.outbound.next_send(&mut palette, &mut gather);
                let bytes = sent.map(|part| palette.bytes(part.frame).to_vec()).unwrap_or_default();
                gather.reset(&mut palette);
                assert_eq!(bytes, expected);
                conn.outbound.clear(&mut palette);
            }
            assert_eq!((palette.live(), palette.live_bytes()), (0, 0));
        }
    }
}

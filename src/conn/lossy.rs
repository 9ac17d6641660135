//! What waits in one connection's queue when some of it may be dropped for what follows.
//! Law: frames leave in the order in which they were queued; one that takes another's place leaves in its turn. Frames that
//! may be dropped are found by topic and by key in the same time whatever waits; the others are never touched.

use std::collections::HashMap;

use ahash::RandomState;

use crate::fixed::{LinkedQueue, Place};
use crate::io::{FrameKey, Lossy, Palette, Stream};
use crate::metrics::{Drop, Drops};

/// A queue with an index of the frames that may be dropped.
#[derive(Debug)]
pub(super) struct LossyQueue {
    queue: LinkedQueue<Waiting>,
    topics: HashMap<u64, Line, RandomState>,
    /// Where the frame of each key waits, of topics with the latest of each key.
    keys: HashMap<u64, Place, RandomState>,
    /// How many may be dropped, and their bytes.
    lossy: Line,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    frame: FrameKey,
    /// Its neighbours in the line of its topic, if it may be dropped.
    older: Option<Place>,
    newer: Option<Place>,
}

impl Waiting {
    fn firm(frame: FrameKey) -> Self {
        Self { frame, older: None, newer: None }
    }
}

/// The waiting frames of one topic that may be dropped, in order.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    oldest: Option<Place>,
    newest: Option<Place>,
    frames: u32,
    bytes: u32,
}

/// What is left up to the bounds; less than nothing where replies have gone beyond.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub bytes: i64,
    pub frames: i64,
}

impl Room {
    fn holds(self, bytes: i64, frames: i64) -> bool {
        bytes <= self.bytes && frames <= self.frames
    }
}

impl LossyQueue {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            queue: LinkedQueue::new(bound),
            topics: HashMap::default(),
            keys: HashMap::default(),
            lossy: Line::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Frames that may not be dropped.
    pub(super) fn firm_len(&self) -> usize {
        self.len() - self.lossy.frames as usize
    }

    /// Bytes of the frames that may be dropped.
    pub(super) fn lossy_bytes(&self) -> u32 {
        self.lossy.bytes
    }

    pub(super) fn front(&self) -> Option<FrameKey> {
        self.queue.front().map(|place| self.queue.get(place).frame)
    }

    pub(super) fn back(&self) -> Option<FrameKey> {
        self.queue.back().map(|place| self.queue.get(place).frame)
    }

    /// Puts a frame that may not be dropped first.
    pub(super) fn push_front(&mut self, frame: FrameKey) {
        self.queue.push_front(Waiting::firm(frame)).expect(BOUNDED);
    }

    /// Puts a frame that may not be dropped last.
    pub(super) fn push_back(&mut self, frame: FrameKey) {
        self.queue.push_back(Waiting::firm(frame)).expect(BOUNDED);
    }

    /// Puts a frame last that may be dropped.
    pub(super) fn push_back_lossy(&mut self, frame: FrameKey, len: u32, stream: &Stream) {
        let line = self.topics.entry(stream.topic).or_default();
        let place = self.queue.push_back(Waiting { frame, older: line.newest, newer: None }).expect(BOUNDED);
        match line.newest.replace(place) {
            Some(newest) => self.queue.get_mut(newest).newer = Some(place),
            None => line.oldest = Some(place),
        }
        for line in [line, &mut self.lossy] {
            line.frames += 1;
            line.bytes += len;
        }
        if stream.policy == Lossy::LatestPerKey {
            self.keys.insert(stream.key, place);
        }
    }

    pub(super) fn pop_front(&mut self, palette: &Palette) -> Option<FrameKey> {
        let front = self.queue.front()?;
        Some(self.take(front, palette))
    }

    /// Queues a frame that may be dropped, with what its policy does for that: in the place of the one with its key, else last;
    /// the oldest others of its topic go where there is no room. Returns how many bytes more wait now; `None`, and none
    /// goes, if not even all of them would have made room.
    pub(super) fn admit(
        &mut self,
        frame: FrameKey,
        len: u32,
        stream: &Stream,
        room: Room,
        palette: &mut Palette,
        drops: &mut Drops,
    ) -> Option<i64> {
        let mut left = room;
        loop {
            let place = (stream.policy == Lossy::LatestPerKey).then(|| self.keys.get(&stream.key).copied()).flatten();
            if let Some(place) = place {
                let before = self.bytes_at(place, palette);
                let more = i64::from(len) - i64::from(before);
                // What takes no more room than before has some even where replies have gone beyond the bound.
                if more <= left.bytes.max(0) {
                    self.replace(place, frame, (before, len), stream, palette);
                    drops[Drop::from(stream.policy) as usize] += 1;
                    return Some(room.bytes - left.bytes + more);
                }
            } else if left.holds(len.into(), 1) {
                self.push_back_lossy(frame, len, stream);
                return Some(room.bytes - left.bytes + i64::from(len));
            }
            let line = *self.topics.get(&stream.topic)?;
            let all = Room { bytes: left.bytes + i64::from(line.bytes), frames: left.frames + i64::from(line.frames) };
            if stream.policy == Lossy::DropNewest || !all.holds(len.into(), i64::from(place.is_none())) {
                return None;
            }
            let oldest = line.oldest.filter(|&oldest| Some(oldest) != place);
            let victim = oldest.or_else(|| self.queue.get(line.oldest?).newer)?;
            left.bytes += i64::from(self.evict(victim, palette, drops));
            left.frames += 1;
        }
    }

    /// Throws out frames that may be dropped, oldest first, until `room` holds one of `len` bytes. Returns how many bytes
    /// fewer wait now; `None`, and none is thrown out, if not even all of them would have made room.
    pub(super) fn make_room(&mut self, len: u32, room: Room, palette: &mut Palette, drops: &mut Drops) -> Option<u32> {
        let Line { frames, bytes, .. } = self.lossy;
        let all = Room { bytes: room.bytes + i64::from(bytes), frames: room.frames + i64::from(frames) };
        if !all.holds(len.into(), 1) {
            return None;
        }
        let (mut left, mut freed) = (room, 0);
        let mut at = self.queue.front();
        while let Some(place) = at
            && !left.holds(len.into(), 1)
        {
            at = self.queue.newer(place);
            if palette.stream(self.queue.get(place).frame).is_some() {
                let bytes = self.evict(place, palette, drops);
                freed += bytes;
                left.bytes += i64::from(bytes);
                left.frames += 1;
            }
        }
        Some(freed)
    }

    /// What waits of a topic keeps its place, and nothing newer takes it.
    pub(super) fn forget_keys(&mut self, topic: u64, palette: &Palette) {
        let mut at = self.topics.get(&topic).and_then(|line| line.oldest);
        while let Some(place) = at {
            let Waiting { frame, newer, .. } = *self.queue.get(place);
            self.forget_key(frame, place, palette);
            at = newer;
        }
    }

    fn forget_key(&mut self, frame: FrameKey, place: Place, palette: &Palette) {
        if let Some(stream) = palette.stream(frame)
            && stream.policy == Lossy::LatestPerKey
            && self.keys.get(&stream.key) == Some(&place)
        {
            self.keys.remove(&stream.key);
        }
    }

    fn bytes_at(&self, place: Place, palette: &Palette) -> u32 {
        palette.bytes(self.queue.get(place).frame).len() as u32
    }

    fn replace(
        &mut self,
        place: Place,
        frame: FrameKey,
        (before, after): (u32, u32),
        stream: &Stream,
        palette: &mut Palette,
    ) {
        let old = std::mem::replace(&mut self.queue.get_mut(place).frame, frame);
        palette.release(old);
        let line = self.topics.get_mut(&stream.topic).expect(IN_LINE);
        for line in [line, &mut self.lossy] {
            line.bytes = line.bytes - before + after;
        }
    }

    /// Throws a frame out, and counts it. Returns its bytes.
    fn evict(&mut self, place: Place, palette: &mut Palette, drops: &mut Drops) -> u32 {
        let bytes = self.bytes_at(place, palette);
        let frame = self.take(place, palette);
        if let Some(stream) = palette.stream(frame) {
            drops[Drop::from(stream.policy) as usize] += 1;
        }
        palette.release(frame);
        bytes
    }

    fn take(&mut self, place: Place, palette: &Palette) -> FrameKey {
        let Waiting { frame, older, newer } = self.queue.remove(place);
        let Some(stream) = palette.stream(frame) else { return frame };
        self.forget_key(frame, place, palette);
        let line = self.topics.get_mut(&stream.topic).expect(IN_LINE);
        match older {
            Some(older) => self.queue.get_mut(older).newer = newer,
            None => line.oldest = newer,
        }
        match newer {
            Some(newer) => self.queue.get_mut(newer).older = older,
            None => line.newest = older,
        }
        let is_last = line.oldest.is_none();
        for line in [line, &mut self.lossy] {
            line.frames -= 1;
            line.bytes -= palette.bytes(frame).len() as u32;
        }
        if is_last {
            self.topics.remove(&stream.topic);
        }
        frame
    }
}

impl From<Lossy> for Drop {
    fn from(policy: Lossy) -> Self {
        match policy {
            Lossy::DropOldest => Self::DropOldest,
            Lossy::DropNewest => Self::DropNewest,
            Lossy::LatestPerKey => Self::LatestPerKey,
        }
    }
}

const BOUNDED: &str = "bounded by the limits, which are below the queue's bound";
const IN_LINE: &str = "a frame that may be dropped stands in the line of its topic";

/// Single cases. Against the rules as they are written, in any order, `tests/fuzz/src/outbound.rs` tries it.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Enqueued, Gather, Ms, Outbound, OutboundLimits};
    use crate::io::SharedFrame;

    const LIMITS: OutboundLimits = OutboundLimits { bytes_max: 40, frames_max: 5, age_max_ms: 1_000 };

    /// A queue, its frames, and what it has dropped.
    struct Bench {
        palette: Palette,
        gather: Gather,
        queue: Outbound,
        limits: OutboundLimits,
        drops: Drops,
    }

    impl Bench {
        fn new(limits: OutboundLimits) -> Self {
            let (palette, gather) = (Palette::default(), Gather::default());
            Self { palette, gather, queue: Outbound::default(), limits, drops: Drops::default() }
        }

        /// A queue behind a send in flight.
        fn busy() -> Self {
            let mut bench = Self::new(LIMITS);
            bench.firm("-");
            bench.flush();
            bench
        }

        fn lossy(&mut self, policy: Lossy, topic: u64, key: u64, text: &str) -> Enqueued {
            self.lossy_at(policy, topic, key, text, 0)
        }

        fn lossy_at(&mut self, policy: Lossy, topic: u64, key: u64, text: &str, now: Ms) -> Enqueued {
            let stream = Stream { policy, topic, key: topic << 32 | key };
            let frame = self.palette.share(SharedFrame::lossy(text.as_bytes().to_vec(), stream), 1);
            let (len, Self { palette, queue, limits, drops, .. }) = (text.len() as u32, &mut *self);
            let enqueued = queue.enqueue_lossy(frame, len, &stream, limits, now, palette, drops);
            if enqueued == Enqueued::Over {
                palette.release(frame);
            }
            enqueued
        }

        fn firm(&mut self, text: &str) -> Enqueued {
            let frame = self.palette.share(SharedFrame::new(text.as_bytes().to_vec()), 1);
            let (len, Self { palette, queue, limits, drops, .. }) = (text.len() as u32, &mut *self);
            let mut enqueued = queue.enqueue(frame, len, limits, 0);
            if enqueued == Enqueued::Over && queue.make_room(len, limits, 0, palette, drops) {
                enqueued = queue.enqueue(frame, len, limits, 0);
                assert_eq!(enqueued, Enqueued::Queued, "room was made");
            }
            if enqueued == Enqueued::Over {
                palette.release(frame);
            }
            enqueued
        }

        fn flush(&mut self) -> Option<String> {
            let part = self.queue.next_send(&mut self.palette, &mut self.gather)?;
            self.gather.reset(&mut self.palette);
            Some(String::from_utf8(self.palette.bytes(part.frame).to_vec()).unwrap())
        }

        fn sent(&mut self, text: &str) {
            assert!(self.queue.on_sent(&mut self.palette, text.len() as u32).is_none());
        }

        /// Ends the send in flight and returns what comes after it.
        fn rest(&mut self) -> String {
            let (mut all, mut in_flight) = (String::new(), "-".to_owned());
            loop {
                self.sent(&in_flight);
                let Some(text) = self.flush() else { break };
                all.push_str(&text);
                in_flight = text;
            }
            assert_eq!((self.queue.bytes(), self.queue.frames(), self.palette.live()), (0, 0, 0));
            assert!(self.queue.is_empty());
            all
        }

        fn dropped(&self) -> [u64; 3] {
            [Drop::DropOldest, Drop::DropNewest, Drop::LatestPerKey].map(|policy| self.drops[policy as usize])
        }
    }

    use Lossy::{DropNewest, DropOldest, LatestPerKey};

    #[test]
    fn the_oldest_of_the_same_topic_goes() {
        let mut b = Bench::busy();
        b.firm("f ");
        for text in ["a1 ", "a2 ", "a3 "] {
            b.lossy(DropOldest, 1, 0, text);
        }
        b.lossy(DropOldest, 2, 0, "b1 ");
        assert_eq!(b.lossy(DropOldest, 1, 0, "a4 "), Enqueued::Queued);
        assert_eq!(b.lossy(DropOldest, 2, 0, "b2 "), Enqueued::Queued);
        assert_eq!(b.lossy(DropOldest, 3, 0, "c1 "), Enqueued::Over, "none of its own waits");
        assert_eq!(b.lossy(DropOldest, 1, 0, &"x".repeat(41)), Enqueued::Over, "none goes where that would not do");
        assert_eq!(b.dropped(), [2, 0, 0], "what is not taken is counted by the caller");
        assert_eq!(b.rest(), "f a2 a3 a4 b2 ");
    }

    #[test]
    fn the_newest_goes_and_later_ones_find_room_again() {
        let mut b = Bench::busy();
        for text in ["1 ", "2 ", "3 ", "4 ", "5 "] {
            assert_eq!(b.lossy(DropNewest, 1, 0, text), Enqueued::Queued);
        }
        assert_eq!(b.lossy(DropNewest, 1, 0, "6 "), Enqueued::Over);
        b.sent("-");
        let first = b.flush().unwrap();
        assert_eq!(b.lossy(DropNewest, 1, 0, "7 "), Enqueued::Queued);
        b.sent(&first);
        assert_eq!((first.as_str(), b.flush().as_deref(), b.dropped()), ("1 2 3 4 5 ", Some("7 "), [0; 3]));
    }

    #[test]
    fn a_newer_one_takes_the_place_of_its_key() {
        let mut b = Bench::busy();
        b.lossy(LatestPerKey, 1, 1, "a1 ");
        b.lossy(LatestPerKey, 1, 2, "b1 ");
        b.lossy(LatestPerKey, 2, 1, "c1 ");
        b.lossy(LatestPerKey, 1, 2, "b2, longer ");
        b.lossy(LatestPerKey, 1, 1, "a2 ");
        assert_eq!(b.dropped(), [0, 0, 2]);
        // At the bound as `drop_oldest`, but its own place it keeps.
        b.firm("f ");
        b.firm("g ");
        assert_eq!(b.lossy(LatestPerKey, 1, 3, "d1 "), Enqueued::Queued);
        let long = format!("b3, {:26}", "longer");
        assert_eq!(b.lossy(LatestPerKey, 1, 2, &long), Enqueued::Queued);
        assert_eq!(b.dropped(), [0, 0, 5]);
        assert_eq!(b.lossy(LatestPerKey, 1, 2, &"x".repeat(45)), Enqueued::Over);
        assert_eq!(b.rest(), format!("{long}c1 f g "));
    }

    #[test]
    fn a_new_subscription_takes_no_place_from_before_its_ack() {
        for alone in [true, false] {
            let mut b = Bench::busy();
            b.lossy(LatestPerKey, 1, 1, "a1 ");
            if !alone {
                b.lossy(LatestPerKey, 1, 2, "b1 ");
            }
            b.queue.forget_keys(1, &b.palette, 0);
            b.queue.reply(&mut b.palette, 0, |out| out.extend_from_slice(b"acks "));
            b.lossy(LatestPerKey, 1, 1, "a2 ");
            b.lossy(LatestPerKey, 1, 1, "a3 ");
            assert_eq!(b.dropped(), [0, 0, 1], "a place of its own");
            assert_eq!(b.rest(), if alone { "a1 acks a3 " } else { "a1 b1 acks a3 " });
        }
    }

    #[test]
    fn what_may_not_be_dropped_throws_out_what_may() {
        let mut b = Bench::busy();
        b.firm("f ");
        b.lossy(DropOldest, 1, 0, "a1 ");
        b.lossy(DropNewest, 2, 0, "b1 ");
        b.lossy(LatestPerKey, 3, 0, "c1 ");
        b.lossy(DropOldest, 1, 0, "a2 ");
        assert_eq!(b.firm("g "), Enqueued::Queued);
        assert_eq!(b.firm(&"h".repeat(25)), Enqueued::Queued);
        assert_eq!(b.dropped(), [1, 1, 0], "oldest first, as many as needed");
        assert_eq!(b.firm(&"i".repeat(25)), Enqueued::Over, "nothing goes where that would not do");
        assert_eq!(b.queue.firm_bytes(), b.queue.bytes() - 6);
        assert_eq!(b.rest(), format!("f c1 a2 g {}", "h".repeat(25)));
    }

    #[test]
    fn what_may_be_dropped_is_not_judged_by_its_age_while_others_leave() {
        let mut b = Bench::busy();
        b.lossy_at(DropOldest, 1, 0, "a1 ", 100);
        b.lossy_at(DropOldest, 1, 0, "a2 ", 100);
        assert_eq!(b.queue.watch(&LIMITS), Some(1_100));
        assert!(b.queue.over_age(&LIMITS, 1_100).is_err(), "nothing has left at all");
        b.sent("-");
        let first = b.flush().unwrap();
        for text in ["a3 ", "a4 "] {
            b.lossy_at(DropOldest, 1, 0, text, 200);
        }
        assert_eq!(b.queue.over_age(&LIMITS, 900), Ok(Some(1_200)));
        b.sent(&first);
        assert_eq!(first, "a1 a2 ");
        b.flush();
        b.lossy_at(DropOldest, 1, 0, "a5 ", 1_000);
        b.lossy_at(DropOldest, 1, 0, "a6 ", 1_000);
        assert_eq!(b.queue.over_age(&LIMITS, 1_999), Ok(Some(2_000)));
        assert!(b.queue.over_age(&LIMITS, 2_000).is_err());
    }
}

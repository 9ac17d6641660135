//! Outbound queue of one connection.
//!
//! Law: frames leave in the order in which they were queued, except that pings and pongs overtake what waits;
//! at most one send is in flight, and everything that queued up meanwhile leaves in the next one;
//! published frames are admitted within the bounds only, replies always (a connection whose replies cannot leave is
//! not read from, which bounds them); only frames that their topic allows to be dropped are, and none that is in flight;
//! an empty queue holds no memory.

use crate::fixed::RingQueue;
use crate::io::{FrameKey, Palette, Stream};
use crate::metrics::Drops;

use super::Ms;
use super::lossy::{LossyQueue, Room};

/// Bounds of one queue.
#[derive(Clone, Copy, Debug)]
pub struct OutboundLimits {
    /// Bytes that may wait, those in flight included. One frame is admitted into an empty queue whatever its size.
    pub bytes_max: u32,
    /// Frames that may wait behind the one in flight.
    pub frames_max: u32,
    /// How long a frame may wait behind a send in flight, in milliseconds.
    pub age_max_ms: u32,
}

/// What became of a published frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It will be sent; the queue needs a flush.
    Queued,
    /// A bound is reached; the frame was not taken.
    Over,
}

/// What a flush hands to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendPart {
    /// The frame to send.
    pub frame: FrameKey,
    /// From which byte on.
    pub from: u32,
}

/// What waits behind a send or behind the first frame, and for how long.
#[derive(Debug)]
struct Backlog {
    waiting: Waiting,
    /// Frames that may not be dropped, taken out so far.
    taken: u32,
    /// When `taken` reaches this, every such frame that waited at `marked` has left.
    mark: u32,
    marked: Ms,
    /// Any frame has left since.
    moved: bool,
    /// The wheel will look at the age.
    watched: bool,
}

#[derive(Debug)]
enum Waiting {
    /// What waits behind the front, nothing of which may be dropped.
    Ring(RingQueue<FrameKey>),
    /// All that waits, the front, which is repeated in the queue, too.
    Lossy(Box<LossyQueue>),
}

/// The queue. 24 bytes in every connection; a backlog is on the heap and only while there is one.
#[derive(Debug, Default)]
pub struct Outbound {
    in_flight: Option<FrameKey>,
    /// Bytes of the frame in flight that earlier sends have taken.
    sent: u32,
    front: Option<FrameKey>,
    bytes: u32,
    backlog: Option<Box<Backlog>>,
}

const _: () = assert!(size_of::<Outbound>() == 24);

/// What waiting behind a send costs beside the frames, whose keys are four bytes each.
pub const BACKLOG_BYTES: usize = size_of::<Backlog>();

/// A frame at least this long is sent from where it lies; shorter ones that wait together are copied into one send.
const GATHER_FRAME_MAX: usize = 64 * 1024;
/// Bytes copied into one send at most.
const GATHER_BYTES_MAX: usize = 128 * 1024;
/// A private frame takes no more replies beyond this, so that a large reply does not grow by copying.
const BATCH_BYTES_MAX: usize = 64 * 1024;

impl Outbound {
    /// Bytes that wait or are in flight.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Frames that wait behind the one in flight.
    pub fn frames(&self) -> usize {
        usize::from(self.front.is_some()) + self.backlog.as_ref().map_or(0, |b| b.waiting.behind_front())
    }

    /// Bytes that wait or are in flight, without those that may be dropped.
    pub fn firm_bytes(&self) -> usize {
        match self.backlog.as_deref() {
            Some(Backlog { waiting: Waiting::Lossy(queue), .. }) => (self.bytes - queue.lossy_bytes()) as usize,
            _ => self.bytes(),
        }
    }

    /// Frames that wait or are in flight.
    pub fn depth(&self) -> usize {
        usize::from(self.in_flight.is_some()) + self.frames()
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_none() && self.front.is_none()
    }

    /// Queues a published frame, which this queue then owns one reference of.
    pub fn enqueue(&mut self, frame: FrameKey, len: u32, limits: &OutboundLimits, now: Ms) -> Enqueued {
        if self.front.is_none() && self.in_flight.is_none() {
            self.front = Some(frame);
            self.bytes = len;
            return Enqueued::Queued;
        }
        if self.bytes.saturating_add(len) > limits.bytes_max || self.frames() >= limits.frames_max as usize {
            return Enqueued::Over;
        }
        self.push(frame, now);
        self.bytes += len;
        Enqueued::Queued
    }

    /// Queues a published frame that may be dropped, with what its policy does at a bound; what it throws out is added to
    /// `drops`. The queue then owns one reference of the frame.
    #[expect(clippy::too_many_arguments, reason = "a queue is small and owns nothing that it works with")]
    pub fn enqueue_lossy(
        &mut self,
        frame: FrameKey,
        len: u32,
        stream: &Stream,
        limits: &OutboundLimits,
        now: Ms,
        palette: &mut Palette,
        drops: &mut Drops,
    ) -> Enqueued {
        if self.front.is_none() {
            return self.enqueue(frame, len, limits, now); // nothing waits that could go for it
        }
        let room = self.room(limits);
        let more = self.lossy(palette, now).admit(frame, len, stream, room, palette, drops);
        self.mirror();
        let Some(more) = more else { return Enqueued::Over };
        self.bytes = (i64::from(self.bytes) + more) as u32;
        Enqueued::Queued
    }

    /// A frame of `len` bytes that may not be dropped was refused: throws out waiting ones that may, oldest first, until it
    /// fits. `false`, and none is thrown out, if it would not fit without all of them.
    pub fn make_room(
        &mut self,
        len: u32,
        limits: &OutboundLimits,
        now: Ms,
        palette: &mut Palette,
        drops: &mut Drops,
    ) -> bool {
        if !self.has_lossy(palette) {
            return false;
        }
        let room = self.room(limits);
        let Some(freed) = self.lossy(palette, now).make_room(len, room, palette, drops) else { return false };
        self.bytes -= freed;
        self.mirror();
        true
    }

    /// The connection leaves a topic. What comes when it joins again must not take the place of what waits now, which is
    /// before the acks in between.
    pub fn forget_keys(&mut self, topic: u64, palette: &Palette, now: Ms) {
        if self.has_lossy(palette) {
            self.lossy(palette, now).forget_keys(topic, palette);
        }
    }

    /// Appends a reply: `write` adds one or more complete wire frames to the batch that leaves next.
    pub fn reply(&mut self, palette: &mut Palette, now: Ms, write: impl FnOnce(&mut Vec<u8>)) {
        self.reply_of(palette, now, 0, write);
    }

    /// As [`Outbound::reply`], of which it is known that it takes about `bytes`.
    pub fn reply_of(&mut self, palette: &mut Palette, now: Ms, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let open = self.back().filter(|&back| palette.open_len(back).is_some_and(|len| len < BATCH_BYTES_MAX));
        let frame = open.unwrap_or_else(|| {
            let frame = palette.open();
            self.push(frame, now);
            frame
        });
        palette.make_room(frame, bytes);
        self.append(palette, frame, write);
    }

    /// Adds a ping or pong: it leaves before everything that waits.
    pub fn control(&mut self, palette: &mut Palette, now: Ms, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(front) = self.front else { return self.reply(palette, now, write) };
        if palette.open_len(front).is_some() {
            return self.append(palette, front, write);
        }
        if palette.stream(front).is_some() {
            self.lossy(palette, now); // a ring holds none that may be dropped
        }
        let frame = palette.open();
        match &mut self.backlog(now).waiting {
            Waiting::Ring(ring) => {
                ring.push_front(front).expect("the ring has room beyond the bound for control frames")
            }
            Waiting::Lossy(queue) => queue.push_front(frame),
        }
        self.front = Some(frame);
        self.append(palette, frame, write);
    }

    /// What to send now, if nothing is in flight and something waits.
    pub fn next_send(&mut self, palette: &mut Palette, gather: &mut Gather) -> Option<SendPart> {
        if self.in_flight.is_some() {
            return None;
        }
        let front = self.front?;
        let frame = if self.backlog.is_none() || palette.bytes(front).len() >= GATHER_FRAME_MAX {
            gather.published = u32::from(!palette.is_private(front));
            self.take_front(palette);
            front
        } else {
            self.gather(palette, gather)
        };
        self.in_flight = Some(frame);
        self.sent = 0;
        Some(SendPart { frame, from: 0 })
    }

    /// The send in flight took `sent` bytes; returns the rest to send, if it was short.
    pub fn on_sent(&mut self, palette: &mut Palette, sent: u32) -> Option<SendPart> {
        let frame = self.in_flight?;
        self.sent += sent;
        self.bytes = self.bytes.saturating_sub(sent);
        if (self.sent as usize) < palette.bytes(frame).len() {
            return Some(SendPart { frame, from: self.sent });
        }
        self.in_flight = None;
        palette.release(frame);
        None
    }

    /// When the wheel must look at the age of what still waits after a flush; `None` if it need not or already will.
    pub fn watch(&mut self, limits: &OutboundLimits) -> Option<Ms> {
        let backlog = self.backlog.as_mut().filter(|b| !b.watched)?;
        backlog.watched = true;
        Some(backlog.marked.wrapping_add(limits.age_max_ms))
    }

    /// Whether a frame has waited behind a send for longer than allowed; else when to look again.
    ///
    /// A queue that makes no progress is found after `age_max_ms`, one that trickles within twice that. Frames that may be
    /// dropped are not judged while others leave: there are so many and no more, and the latest of a key must not go.
    pub fn over_age(&mut self, limits: &OutboundLimits, now: Ms) -> Result<Option<Ms>, Aged> {
        let Some(backlog) = &mut self.backlog else { return Ok(None) };
        if backlog.moved && backlog.taken.wrapping_sub(backlog.mark) as i32 >= 0 {
            backlog.mark = backlog.taken.wrapping_add(backlog.waiting.firm_len() as u32);
            backlog.marked = now;
            backlog.moved = false;
        } else if now.wrapping_sub(backlog.marked) >= limits.age_max_ms {
            return Err(Aged);
        }
        Ok(Some(backlog.marked.wrapping_add(limits.age_max_ms)))
    }

    /// Drops everything that waits and gives up the frame in flight (the kernel's own reference keeps its memory).
    /// Returns how many published messages did not leave; all of a send that has not ended, since it cannot be told
    /// which of them the peer will get.
    pub fn clear(&mut self, palette: &mut Palette) -> u64 {
        let mut unsent = 0;
        while let Some(frame) = self.in_flight.take().or_else(|| self.take_front(palette)) {
            unsent += u64::from(palette.messages(frame));
            palette.release(frame);
        }
        self.bytes = 0;
        unsent
    }

    /// Drops everything that waits; what is in flight goes on. Returns how many published frames did not leave.
    pub fn forget_waiting(&mut self, palette: &mut Palette) -> u64 {
        let in_flight = self.in_flight.take();
        let unsent = self.clear(palette);
        self.in_flight = in_flight;
        self.bytes = in_flight.map_or(0, |frame| palette.bytes(frame).len() as u32 - self.sent);
        unsent
    }

    /// Appends to a private frame of this queue and counts the bytes.
    fn append(&mut self, palette: &mut Palette, frame: FrameKey, write: impl FnOnce(&mut Vec<u8>)) {
        let added = palette.append(frame, write).expect("a private frame of this queue that is not in flight");
        self.bytes += added as u32;
    }

    fn back(&self) -> Option<FrameKey> {
        let behind = self.backlog.as_ref().and_then(|backlog| match &backlog.waiting {
            Waiting::Ring(ring) => ring.back(),
            Waiting::Lossy(queue) => queue.back(),
        });
        behind.or(self.front)
    }

    /// What is left up to the bounds.
    fn room(&self, limits: &OutboundLimits) -> Room {
        Room {
            bytes: i64::from(limits.bytes_max) - i64::from(self.bytes),
            frames: i64::from(limits.frames_max) - self.frames() as i64,
        }
    }

    /// Puts a frame last that may not be dropped, or behind nothing that waits.
    fn push(&mut self, frame: FrameKey, now: Ms) {
        if self.front.is_none() {
            self.front = Some(frame);
            if self.in_flight.is_some() {
                self.backlog(now);
            }
            return;
        }
        match &mut self.backlog(now).waiting {
            Waiting::Ring(ring) => {
                ring.push_back(frame).expect("bounded by the limits, which are below the ring's bound")
            }
            Waiting::Lossy(queue) => queue.push_back(frame),
        }
    }

    fn backlog(&mut self, now: Ms) -> &mut Backlog {
        self.backlog.get_or_insert_with(|| {
            let waiting = Waiting::Ring(RingQueue::new(RING_BOUND));
            Box::new(Backlog { waiting, taken: 0, mark: 1, marked: now, moved: false, watched: false })
        })
    }

    /// Whether anything that waits may be dropped, or was about to be.
    fn has_lossy(&self, palette: &Palette) -> bool {
        let is_known = matches!(self.backlog.as_deref(), Some(Backlog { waiting: Waiting::Lossy(_), .. }));
        is_known || self.front.is_some_and(|front| palette.stream(front).is_some())
    }

    /// What waits, as a queue that knows what of it may be dropped.
    fn lossy(&mut self, palette: &Palette, now: Ms) -> &mut LossyQueue {
        let front = self.front;
        let backlog = self.backlog(now);
        if let Waiting::Ring(ring) = &backlog.waiting {
            let mut queue = Box::new(LossyQueue::new(RING_BOUND));
            for frame in front.into_iter().chain(ring.iter()) {
                match palette.stream(frame) {
                    Some(stream) => queue.push_back_lossy(frame, palette.bytes(frame).len() as u32, stream),
                    None => queue.push_back(frame),
                }
            }
            backlog.mark = backlog.taken.wrapping_add(queue.firm_len() as u32);
            backlog.waiting = Waiting::Lossy(queue);
        }
        match &mut backlog.waiting {
            Waiting::Lossy(queue) => queue,
            Waiting::Ring(_) => unreachable!("replaced above"),
        }
    }

    /// After the queue has changed other than at its end.
    fn mirror(&mut self) {
        if let Some(Backlog { waiting: Waiting::Lossy(queue), .. }) = self.backlog.as_deref() {
            self.front = queue.front();
            if self.front.is_none() {
                self.backlog = None;
            }
        }
    }

    fn take_front(&mut self, palette: &Palette) -> Option<FrameKey> {
        let front = self.front.take()?;
        let Some(backlog) = &mut self.backlog else { return Some(front) };
        backlog.moved = true;
        match &mut backlog.waiting {
            Waiting::Ring(ring) => {
                backlog.taken = backlog.taken.wrapping_add(1);
                self.front = ring.pop_front();
            }
            Waiting::Lossy(queue) => {
                backlog.taken = backlog.taken.wrapping_add(u32::from(palette.stream(front).is_none()));
                queue.pop_front(palette);
                self.front = queue.front();
            }
        }
        // The last one that waits has an age too, and may have forgotten its key.
        if self.front.is_none() {
            self.backlog = None;
        }
        Some(front)
    }

    /// Copies what waits, up to a bound, into one frame; a run of shared frames that another connection has just been
    /// sent is not copied again.
    fn gather(&mut self, palette: &mut Palette, gather: &mut Gather) -> FrameKey {
        gather.run.clear();
        gather.published = 0;
        let mut bytes = 0;
        let mut shared = true;
        while let Some(front) = self.front {
            let len = palette.bytes(front).len();
            if bytes > 0 && (bytes + len > GATHER_BYTES_MAX || len >= GATHER_FRAME_MAX) {
                break;
            }
            bytes += len;
            let is_shared = !palette.is_private(front);
            gather.published += u32::from(is_shared);
            shared &= is_shared;
            gather.run.push(front);
            self.take_front(palette);
        }
        let frame = match gather.batch {
            Some(batch) if shared && gather.run == gather.last => {
                palette.retain(batch, 1);
                batch
            }
            _ => {
                let batch = palette.open();
                palette.fill(batch, &gather.run);
                if shared {
                    gather.keep(palette, batch);
                }
                batch
            }
        };
        for &gathered in &gather.run {
            palette.release(gathered);
        }
        frame
    }
}

impl Waiting {
    fn behind_front(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.len(),
            Self::Lossy(queue) => queue.len() - 1, // never left empty
        }
    }

    /// Frames that may not be dropped, of a ring without the front.
    fn firm_len(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.len(),
            Self::Lossy(queue) => queue.firm_len(),
        }
    }
}

/// A frame has waited longer than `max_age`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged;

/// Frames a ring may hold whatever the limits: room for control frames and replies beyond the published ones.
const RING_BOUND: usize = 1 << 20;

/// The last run of shared frames that was copied into one send during this flush: subscribers of the same topics
/// have the same run waiting, so it is copied once for all of them.
#[derive(Debug, Default)]
pub struct Gather {
    /// Published messages in the send that was made last.
    pub published: u32,
    run: Vec<FrameKey>,
    last: Vec<FrameKey>,
    batch: Option<FrameKey>,
}

impl Gather {
    /// Forgets the run. Must be called at the end of each flush, before a frame key can be reused.
    pub fn reset(&mut self, palette: &mut Palette) {
        if let Some(batch) = self.batch.take() {
            for &frame in &self.last {
                palette.release(frame);
            }
            palette.release(batch);
            self.last.clear();
        }
    }

    /// Remembers the present run and its copy. Both are owned meanwhile, so that no key of the run can be freed and
    /// name another frame while it is compared with.
    fn keep(&mut self, palette: &mut Palette, batch: FrameKey) {
        self.reset(palette);
        std::mem::swap(&mut self.run, &mut self.last);
        self.run.clone_from(&self.last);
        for &frame in &self.last {
            palette.retain(frame, 1);
        }
        palette.retain(batch, 1);
        self.batch = Some(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Lossy, SharedFrame};

    const LIMITS: OutboundLimits = OutboundLimits { bytes_max: 100, frames_max: 4, age_max_ms: 1_000 };

    struct Bench {
        palette: Palette,
        gather: Gather,
        queue: Outbound,
    }

    impl Bench {
        fn new() -> Self {
            Self { palette: Palette::default(), gather: Gather::default(), queue: Outbound::default() }
        }

        fn publish(&mut self, text: &str, now: Ms) -> Enqueued {
            let frame = self.palette.share(SharedFrame::new(text.as_bytes().to_vec()), 1);
            let enqueued = self.queue.enqueue(frame, text.len() as u32, &LIMITS, now);
            if enqueued == Enqueued::Over {
                self.palette.release(frame);
            }
            enqueued
        }

        fn reply(&mut self, text: &str) {
            self.queue.reply(&mut self.palette, 0, |out| out.extend_from_slice(text.as_bytes()));
        }

        fn control(&mut self, text: &str) {
            self.queue.control(&mut self.palette, 0, |out| out.extend_from_slice(text.as_bytes()));
        }

        /// Sends once, taking `take` bytes, and returns them.
        fn send(&mut self, take: usize) -> String {
            let part = self.queue.next_send(&mut self.palette, &mut self.gather);
            self.gather.reset(&mut self.palette);
            let Some(mut part) = part else { return String::new() };
            let mut text = String::new();
            loop {
                let rest = &self.palette.bytes(part.frame)[part.from as usize..];
                let taken = rest.len().min(take);
                text.push_str(std::str::from_utf8(&rest[..taken]).unwrap());
                match self.queue.on_sent(&mut self.palette, taken as u32) {
                    Some(next) => part = next,
                    None => return text,
                }
            }
        }

        fn drain(&mut self) -> String {
            let mut text = String::new();
            while !self.queue.is_empty() {
                text.push_str(&self.send(3));
            }
            assert_eq!((self.queue.bytes(), self.queue.frames(), self.palette.live()), (0, 0, 0));
            assert!(self.queue.backlog.is_none());
            text
        }
    }

    #[test]
    fn frames_leave_in_order_and_together() {
        let mut b = Bench::new();
        assert_eq!(b.publish("one ", 0), Enqueued::Queued);
        b.reply("ack ");
        b.reply("ack2 ");
        assert_eq!(b.publish("two ", 0), Enqueued::Queued);
        assert_eq!(b.send(2), "one ack ack2 two ");
        assert_eq!(b.drain(), "");
    }

    #[test]
    fn control_frames_overtake_what_waits_but_not_what_is_in_flight() {
        let mut b = Bench::new();
        b.publish("one ", 0);
        assert!(b.queue.next_send(&mut b.palette, &mut b.gather).is_some());
        b.publish("two ", 0);
        b.publish("three ", 0);
        b.control("pong ");
        b.control("pong2 ");
        assert!(b.queue.on_sent(&mut b.palette, 4).is_none());
        assert_eq!(b.drain(), "pong pong2 two three ");
    }

    #[test]
    fn published_frames_stop_at_the_bounds_and_replies_do_not() {
        let mut b = Bench::new();
        assert_eq!(b.publish(&"x".repeat(200), 0), Enqueued::Queued, "one frame is admitted whatever its size");
        assert_eq!(b.publish("y", 0), Enqueued::Over, "bytes");
        b.reply(&"r".repeat(200));
        assert_eq!(b.drain().len(), 400);
        for _ in 0..4 {
            assert_eq!(b.publish("z", 0), Enqueued::Queued);
        }
        assert_eq!(b.publish("z", 0), Enqueued::Over, "frames");
        assert_eq!(b.drain(), "zzzz");
    }

    #[test]
    fn the_age_is_that_of_frames_behind_a_send() {
        let mut b = Bench::new();
        b.publish("a", 0);
        assert!(b.queue.next_send(&mut b.palette, &mut b.gather).is_some());
        assert_eq!(b.queue.over_age(&LIMITS, 5_000), Ok(None), "nothing waits behind it");
        assert_eq!(b.queue.watch(&LIMITS), None);
        b.publish("b", 5_000);
        b.publish("c", 5_001);
        assert_eq!((b.queue.watch(&LIMITS), b.queue.watch(&LIMITS)), (Some(6_000), None), "watched once");
        assert_eq!(b.queue.over_age(&LIMITS, 5_999), Ok(Some(6_000)));
        assert_eq!(b.queue.over_age(&LIMITS, 6_000), Err(Aged));
        b.queue.on_sent(&mut b.palette, 1);
        assert_eq!(b.drain(), "bc");
    }

    #[test]
    fn the_last_behind_a_send_has_an_age() {
        let mut b = Bench::new();
        b.reply(&"x".repeat(GATHER_FRAME_MAX));
        b.reply("last");
        assert!(b.queue.next_send(&mut b.palette, &mut b.gather).is_some());
        assert_eq!((b.queue.frames(), b.queue.watch(&LIMITS)), (1, Some(1_000)));
        assert_eq!(b.queue.over_age(&LIMITS, 1_000), Ok(Some(2_000)), "the one before it has only just left");
        assert_eq!(b.queue.over_age(&LIMITS, 2_000), Err(Aged));
        b.queue.on_sent(&mut b.palette, GATHER_FRAME_MAX as u32);
        assert_eq!(b.drain(), "last");
    }

    /// A peer takes one frame every `every_ms`, and there are always as many waiting as `droppable` names, in turns of that kind.
    /// When that is found to be too slow; `None`: not in a long time.
    fn aged_at_ms(droppable: &[bool], every_ms: usize) -> Option<Ms> {
        let limits = OutboundLimits { bytes_max: u32::MAX, frames_max: 100, age_max_ms: 1_000 };
        let Bench { mut palette, mut gather, mut queue } = Bench::new();
        let bytes = GATHER_FRAME_MAX; // each leaves by itself
        let put = |queue: &mut Outbound, palette: &mut Palette, droppable: bool, now| {
            let stream = Stream { policy: Lossy::DropOldest, topic: 1, key: 0 };
            let frame =
                if droppable { SharedFrame::lossy(vec![0; bytes], stream) } else { SharedFrame::new(vec![0; bytes]) };
            let frame = palette.share(frame, 1);
            let enqueued = match droppable {
                true => queue.enqueue_lossy(frame, bytes as u32, &stream, &limits, now, palette, &mut Drops::default()),
                false => queue.enqueue(frame, bytes as u32, &limits, now),
            };
            assert_eq!(enqueued, Enqueued::Queued);
        };
        put(&mut queue, &mut palette, false, 0);
        assert!(queue.next_send(&mut palette, &mut gather).is_some());
        let mut kinds = droppable.iter().copied().cycle();
        kinds.by_ref().take(droppable.len()).for_each(|kind| put(&mut queue, &mut palette, kind, 0));
        (1..=200).map(|tick| tick * 100).find(|&now| {
            if (now as usize).is_multiple_of(every_ms) {
                assert!(queue.on_sent(&mut palette, bytes as u32).is_none());
                assert!(queue.next_send(&mut palette, &mut gather).is_some());
                put(&mut queue, &mut palette, kinds.next().unwrap(), now);
            }
            queue.over_age(&limits, now).is_err()
        })
    }

    #[test]
    fn who_takes_too_little_is_found_as_who_takes_nothing() {
        let (firm, droppable) = ([false; 4], [true; 4]);
        let (mixed, rare) = ([false, true, false, true], [false, true, true, true]);
        for kinds in [firm, mixed, rare, droppable] {
            assert_eq!(aged_at_ms(&kinds, 1_000_000), Some(1_000), "{kinds:?}: takes nothing");
            assert_eq!(aged_at_ms(&kinds, 200), None, "{kinds:?}: each waits for 800 ms");
        }
        for kinds in [firm, mixed, rare] {
            let found_ms = aged_at_ms(&kinds, 600).expect("each waits for 2400 ms");
            // The first that waits for too long may have been queued when one had left.
            assert!((1_000..=2_600).contains(&found_ms), "{kinds:?}: {found_ms}");
        }
        assert_eq!(aged_at_ms(&droppable, 600), None, "there are so many and no more, and they leave");
    }

    #[test]
    fn the_same_run_is_copied_once_for_all() {
        let mut palette = Palette::default();
        let mut gather = Gather::default();
        let keys: Vec<_> =
            ["a", "b", "c"].iter().map(|t| palette.share(SharedFrame::new(t.as_bytes().to_vec()), 2)).collect();
        let mut queues = [Outbound::default(), Outbound::default()];
        let frames = queues.each_mut().map(|queue| {
            for &key in &keys {
                queue.enqueue(key, 1, &LIMITS, 0);
            }
            queue.next_send(&mut palette, &mut gather).unwrap().frame
        });
        gather.reset(&mut palette);
        assert_eq!((frames[0], palette.bytes(frames[0])), (frames[1], &b"abc"[..]));
        for queue in &mut queues {
            assert!(queue.on_sent(&mut palette, 3).is_none());
        }
        assert_eq!(palette.live(), 0);
    }

    #[test]
    fn the_last_words_follow_what_is_in_flight() {
        let mut b = Bench::new();
        b.publish("in flight", 0);
        let part = b.queue.next_send(&mut b.palette, &mut b.gather).unwrap();
        assert!(b.queue.on_sent(&mut b.palette, 3).is_some());
        b.publish("waits", 0);
        b.reply("waits");
        assert_eq!((b.queue.forget_waiting(&mut b.palette), b.queue.bytes()), (1, 6));
        b.reply("bye");
        assert!(b.queue.next_send(&mut b.palette, &mut b.gather).is_none() && part.from == 0);
        assert!(b.queue.on_sent(&mut b.palette, 6).is_none());
        assert_eq!(b.drain(), "bye");
    }

    #[test]
    fn clearing_counts_what_was_published_and_did_not_leave() {
        let mut b = Bench::new();
        b.publish("a", 0);
        assert!(b.queue.next_send(&mut b.palette, &mut b.gather).is_some());
        b.publish("b", 0);
        b.reply("r");
        assert_eq!(b.queue.clear(&mut b.palette), 2);
        assert_eq!(b.drain(), "");
    }

    #[test]
    fn clearing_counts_each_message_of_a_send_that_has_not_ended() {
        let mut b = Bench::new();
        ["a", "b"].iter().for_each(|text| assert_eq!(b.publish(text, 0), Enqueued::Queued));
        b.reply("r");
        b.publish("c", 0);
        let part = b.queue.next_send(&mut b.palette, &mut b.gather).unwrap();
        b.gather.reset(&mut b.palette);
        assert_eq!((b.palette.bytes(part.frame), b.gather.published), (&b"abrc"[..], 3));
        b.publish("d", 0);
        assert_eq!(b.queue.clear(&mut b.palette), 4);
        assert_eq!(b.palette.live(), 0);
    }
}

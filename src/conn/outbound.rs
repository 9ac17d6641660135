//! Outbound queue of one connection.
//!
//! Law: frames leave in the order in which they were queued, except that pings and pongs overtake what waits;
//! at most one send is in flight, and everything that queued up meanwhile leaves in the next one;
//! published frames are admitted within the bounds only, replies always (a connection whose replies cannot leave is
//! not read from, which bounds them); an empty queue holds no memory.

use crate::fixed::RingQueue;
use crate::io::{FrameKey, Palette};

use super::Ms;

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
    ring: RingQueue<FrameKey>,
    /// Frames taken out so far.
    taken: u32,
    /// When `taken` reaches this, every frame that waited at `marked` has left.
    mark: u32,
    marked: Ms,
    /// The wheel will look at the age.
    watched: bool,
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
        usize::from(self.front.is_some()) + self.backlog.as_ref().map_or(0, |b| b.ring.len())
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

    /// Appends a reply: `write` adds one or more complete wire frames to the batch that leaves next.
    pub fn reply(&mut self, palette: &mut Palette, now: Ms, write: impl FnOnce(&mut Vec<u8>)) {
        let has_room = |batch: &mut Vec<u8>| batch.len() < BATCH_BYTES_MAX;
        let open = self.back().filter(|&back| palette.append(back).is_some_and(has_room));
        let frame = open.unwrap_or_else(|| {
            let frame = palette.open();
            self.push(frame, now);
            frame
        });
        self.append(palette, frame, write);
    }

    /// Adds a ping or pong: it leaves before everything that waits.
    pub fn control(&mut self, palette: &mut Palette, now: Ms, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(front) = self.front else { return self.reply(palette, now, write) };
        if palette.is_private(front) && palette.append(front).is_some() {
            return self.append(palette, front, write);
        }
        let frame = palette.open();
        self.backlog(now).ring.push_front(front).expect("the ring has room beyond the bound for control frames");
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
            self.take_front();
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
    /// A queue that makes no progress is found after `age_max_ms`, one that trickles within twice that.
    pub fn over_age(&mut self, limits: &OutboundLimits, now: Ms) -> Result<Option<Ms>, Aged> {
        let Some(backlog) = &mut self.backlog else { return Ok(None) };
        if backlog.taken.wrapping_sub(backlog.mark) as i32 >= 0 {
            backlog.mark = backlog.taken.wrapping_add(backlog.ring.len() as u32);
            backlog.marked = now;
        } else if now.wrapping_sub(backlog.marked) >= limits.age_max_ms {
            return Err(Aged);
        }
        Ok(Some(backlog.marked.wrapping_add(limits.age_max_ms)))
    }

    /// Drops everything that waits and gives up the frame in flight (the kernel's own reference keeps its memory).
    /// Returns how many published frames did not leave.
    pub fn clear(&mut self, palette: &mut Palette) -> u64 {
        let mut unsent = 0;
        let in_flight = self.in_flight.take();
        let mut drop_frame = |frame| {
            unsent += u64::from(!palette.is_private(frame));
            palette.release(frame);
        };
        in_flight.into_iter().for_each(&mut drop_frame);
        while let Some(frame) = self.take_front() {
            drop_frame(frame);
        }
        self.bytes = 0;
        unsent
    }

    /// Appends to a private frame of this queue and counts the bytes.
    fn append(&mut self, palette: &mut Palette, frame: FrameKey, write: impl FnOnce(&mut Vec<u8>)) {
        let batch = palette.append(frame).expect("a private frame of this queue that is not in flight");
        let before = batch.len();
        write(batch);
        self.bytes += (batch.len() - before) as u32;
    }

    fn back(&self) -> Option<FrameKey> {
        self.backlog.as_ref().and_then(|b| b.ring.back()).or(self.front)
    }

    fn push(&mut self, frame: FrameKey, now: Ms) {
        if self.front.is_none() {
            self.front = Some(frame);
            if self.in_flight.is_some() {
                self.backlog(now);
            }
            return;
        }
        self.backlog(now).ring.push_back(frame).expect("bounded by the limits, which are below the ring's bound");
    }

    fn backlog(&mut self, now: Ms) -> &mut Backlog {
        self.backlog.get_or_insert_with(|| {
            Box::new(Backlog { ring: RingQueue::new(RING_BOUND), taken: 0, mark: 1, marked: now, watched: false })
        })
    }

    fn take_front(&mut self) -> Option<FrameKey> {
        let front = self.front.take()?;
        if let Some(backlog) = &mut self.backlog {
            self.front = backlog.ring.pop_front();
            backlog.taken = backlog.taken.wrapping_add(1);
            if backlog.ring.is_empty() {
                self.backlog = None;
            }
        }
        Some(front)
    }

    /// Copies what waits, up to a bound, into one frame; a run of shared frames that another connection has just been
    /// sent is not copied again.
    fn gather(&mut self, palette: &mut Palette, gather: &mut Gather) -> FrameKey {
        gather.run.clear();
        let mut bytes = 0;
        let mut shared = true;
        while let Some(front) = self.front {
            let len = palette.bytes(front).len();
            if bytes > 0 && (bytes + len > GATHER_BYTES_MAX || len >= GATHER_FRAME_MAX) {
                break;
            }
            bytes += len;
            shared &= !palette.is_private(front);
            gather.run.push(front);
            self.take_front();
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

/// A frame has waited longer than `max_age`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged;

/// Frames a ring may hold whatever the limits: room for control frames and replies beyond the published ones.
const RING_BOUND: usize = 1 << 20;

/// The last run of shared frames that was copied into one send during this flush: subscribers of the same topics
/// have the same run waiting, so it is copied once for all of them.
#[derive(Debug, Default)]
pub struct Gather {
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
    use crate::io::SharedFrame;

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
    fn clearing_counts_what_was_published_and_did_not_leave() {
        let mut b = Bench::new();
        b.publish("a", 0);
        assert!(b.queue.next_send(&mut b.palette, &mut b.gather).is_some());
        b.publish("b", 0);
        b.reply("r");
        assert_eq!(b.queue.clear(&mut b.palette), 2);
        assert_eq!(b.drain(), "");
    }
}

//! The outbound queue of a connection, against the rules as they are written.

use std::rc::Rc;

use tidewheel::conn::{Enqueued, Gather, Outbound, OutboundLimits};
use tidewheel::io::{Lossy, Palette, SharedFrame, Stream};
use tidewheel::metrics::{Drop, Drops};

use crate::script::Script;

/// The bounds, and what is done with the queue.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let limits = OutboundLimits {
        bytes_max: [40, 60, 300, 150_000][script.below(4)],
        frames_max: 1 + script.below(8) as u32,
        age_max_ms: 1_000,
    };
    let mut bench = Bench {
        palette: Palette::default(),
        gather: Gather::default(),
        queue: Outbound::default(),
        limits,
        drops: Drops::default(),
        expected: Drops::default(),
        waiting: Vec::new(),
        in_flight: None,
        now: 0,
        number: 0,
    };
    while !script.is_over() {
        bench.step(&mut script);
        bench.check();
    }
    bench.queue.clear(&mut bench.palette);
    assert_eq!((bench.palette.live(), bench.palette.live_bytes()), (0, 0), "a frame is left");
}

/// A queue, its frames, and the same as lists.
struct Bench {
    palette: Palette,
    gather: Gather,
    queue: Outbound,
    limits: OutboundLimits,
    drops: Drops,
    expected: Drops,
    waiting: Vec<Slow>,
    in_flight: Option<Flight>,
    now: u32,
    number: u32,
}

/// A waiting frame as the slow way sees it; of a reply the topic is none.
#[derive(Clone)]
struct Slow {
    topic: Option<usize>,
    /// None of a subscription that has ended since.
    key: Option<u64>,
    /// Shared, for the list is copied with every frame.
    text: Rc<String>,
}

struct Flight {
    text: String,
    sent: usize,
    /// Messages in it that are no replies.
    published: u64,
}

impl Slow {
    fn policy(&self) -> Option<Lossy> {
        self.topic.and_then(|topic| POLICIES[topic])
    }
}

impl Bench {
    fn step(&mut self, script: &mut Script<'_>) {
        self.number += 1;
        match script.below(32) {
            0 => self.reply(),
            1 => self.control(),
            2..5 => self.flush(),
            5..7 => self.sent(usize::MAX),
            7 => self.sent(1 + script.below(40)),
            8 => self.clear(),
            9 => self.forget_waiting(),
            10 => self.forget_keys(script.below(POLICIES.len())),
            11 => {
                self.now += u32::from(script.byte());
                let _ = (self.queue.watch(&self.limits), self.queue.over_age(&self.limits, self.now)); // any verdict
            }
            12 => self.publish(script.below(POLICIES.len()), 0, 70_000),
            _ => {
                let [topic, key] = [script.below(POLICIES.len()), script.below(3)];
                self.publish(topic, key as u64, 1 + script.below(40));
            }
        }
    }

    fn publish(&mut self, topic: usize, key: u64, bytes: usize) {
        let text = Rc::new(format!("{}.{}", self.number, "x".repeat(bytes)));
        let (gone, is_taken) = self.admit(Slow { topic: Some(topic), key: Some(key), text: text.clone() });
        gone.iter().filter_map(Slow::policy).for_each(|policy| self.expected[Drop::from(policy) as usize] += 1);
        let (len, plain) = (text.len() as u32, text.as_bytes().to_vec());
        let Self { palette, queue, limits, drops, now, .. } = self;
        let (frame, enqueued) = match POLICIES[topic] {
            None => {
                let frame = palette.share(SharedFrame::new(plain), 1);
                let mut enqueued = queue.enqueue(frame, len, limits, *now);
                if enqueued == Enqueued::Over && queue.make_room(len, limits, *now, palette, drops) {
                    enqueued = queue.enqueue(frame, len, limits, *now);
                    assert_eq!(enqueued, Enqueued::Queued, "room was made");
                }
                (frame, enqueued)
            }
            Some(policy) => {
                let stream = Stream { policy, topic: topic as u64, key: (topic as u64) << 32 | key };
                let frame = palette.share(SharedFrame::lossy(plain, stream), 1);
                (frame, queue.enqueue_lossy(frame, len, &stream, limits, *now, palette, drops))
            }
        };
        if enqueued == Enqueued::Over {
            palette.release(frame);
        }
        assert_eq!(enqueued == Enqueued::Queued, is_taken, "frame {}", self.number);
    }

    /// The slow way: puts a frame on the list by the rules as they are written. Returns what it threw out, and whether
    /// the frame was taken.
    fn admit(&mut self, frame: Slow) -> (Vec<Slow>, bool) {
        let flying = self.flying();
        let bytes = |waiting: &[Slow]| flying + waiting.iter().map(|slow| slow.text.len()).sum::<usize>();
        let (bytes_max, frames_max) = (self.limits.bytes_max as usize, self.limits.frames_max as usize);
        let was_empty = self.waiting.is_empty() && self.in_flight.is_none();
        let fits = |waiting: &[Slow]| {
            was_empty || (bytes(waiting) + frame.text.len() <= bytes_max && waiting.len() < frames_max)
        };
        let keeps_latest = frame.policy() == Some(Lossy::LatestPerKey);
        let same = |slow: &Slow| keeps_latest && slow.topic == frame.topic && slow.key == frame.key;
        let may_go = |slow: &Slow| match frame.policy() {
            None => slow.policy().is_some(),
            Some(Lossy::DropNewest) => false,
            Some(_) => slow.topic == frame.topic && !same(slow),
        };
        let (mut after, mut gone) = (self.waiting.clone(), Vec::new());
        loop {
            if let Some(place) = after.iter().position(same) {
                let (before, now) = (after[place].text.len(), frame.text.len());
                if now <= before || bytes(&after) - before + now <= bytes_max {
                    gone.push(std::mem::replace(&mut after[place], frame));
                    self.waiting = after;
                    return (gone, true);
                }
            } else if fits(&after) {
                after.push(frame);
                self.waiting = after;
                return (gone, true);
            }
            match after.iter().position(may_go) {
                Some(oldest) => gone.push(after.remove(oldest)),
                None => return (Vec::new(), false),
            }
        }
    }

    fn reply(&mut self) {
        let text = format!("r{}.", self.number);
        self.queue.reply(&mut self.palette, self.now, |out| out.extend_from_slice(text.as_bytes()));
        match self.waiting.last_mut().filter(|last| last.topic.is_none()) {
            Some(last) => Rc::make_mut(&mut last.text).push_str(&text),
            None => self.waiting.push(Slow { topic: None, key: None, text: Rc::new(text) }),
        }
    }

    fn control(&mut self) {
        let text = format!("c{}.", self.number);
        self.queue.control(&mut self.palette, self.now, |out| out.extend_from_slice(text.as_bytes()));
        match self.waiting.first_mut().filter(|first| first.topic.is_none()) {
            Some(first) => Rc::make_mut(&mut first.text).push_str(&text),
            None => self.waiting.insert(0, Slow { topic: None, key: None, text: Rc::new(text) }),
        }
    }

    fn flush(&mut self) {
        let part = self.queue.next_send(&mut self.palette, &mut self.gather);
        self.gather.reset(&mut self.palette);
        let sent = part.map(|part| String::from_utf8(self.palette.bytes(part.frame).to_vec()).expect("texts"));
        if self.in_flight.is_some() {
            return assert_eq!(sent, None, "one send at a time");
        }
        let (mut count, mut text) = (0, String::new());
        while let Some(slow) = self.waiting.get(count)
            && (count == 0 || (text.len() + slow.text.len() <= GATHER_BYTES_MAX && slow.text.len() < GATHER_FRAME_MAX))
            && text.len() < GATHER_FRAME_MAX
        {
            text.push_str(&slow.text);
            count += 1;
        }
        let published = self.waiting.drain(..count).filter(|slow| slow.topic.is_some()).count() as u64;
        assert_eq!(sent.as_deref(), Some(&*text).filter(|_| count > 0));
        self.in_flight = (count > 0).then_some(Flight { text, sent: 0, published });
    }

    /// The send in flight has taken so many more bytes, or all.
    fn sent(&mut self, bytes: usize) {
        let Some(flight) = &mut self.in_flight else { return };
        let taken = bytes.min(flight.text.len() - flight.sent);
        flight.sent += taken;
        let rest = self.queue.on_sent(&mut self.palette, taken as u32);
        if flight.sent == flight.text.len() {
            self.in_flight = None;
        }
        let from = self.in_flight.as_ref().map(|flight| flight.sent as u32);
        assert_eq!(rest.map(|part| part.from), from);
    }

    fn clear(&mut self) {
        let unsent = self.queue.clear(&mut self.palette);
        let flying = self.in_flight.as_ref().map_or(0, |flight| flight.published);
        assert_eq!(unsent, self.published() + flying, "which of a send the peer will get cannot be told");
        (self.waiting, self.in_flight) = (Vec::new(), None);
        assert_eq!(self.palette.live(), 0);
    }

    fn forget_waiting(&mut self) {
        assert_eq!(self.queue.forget_waiting(&mut self.palette), self.published());
        self.waiting.clear();
    }

    fn forget_keys(&mut self, topic: usize) {
        self.queue.forget_keys(topic as u64, &self.palette, self.now);
        self.waiting.iter_mut().filter(|slow| slow.topic == Some(topic)).for_each(|slow| slow.key = None);
    }

    fn published(&self) -> u64 {
        self.waiting.iter().filter(|slow| slow.topic.is_some()).count() as u64
    }

    /// Bytes in flight that were not taken.
    fn flying(&self) -> usize {
        self.in_flight.as_ref().map_or(0, |flight| flight.text.len() - flight.sent)
    }

    fn check(&self) {
        let sum = |keep: &dyn Fn(&Slow) -> bool| {
            self.waiting.iter().filter(|slow| keep(slow)).map(|slow| slow.text.len()).sum::<usize>() + self.flying()
        };
        let (bytes, firm) = (sum(&|_| true), sum(&|slow| slow.policy().is_none()));
        assert_eq!((self.queue.bytes(), self.queue.frames()), (bytes, self.waiting.len()));
        assert!((firm..=bytes).contains(&self.queue.firm_bytes()));
        assert_eq!(self.queue.is_empty(), self.waiting.is_empty() && self.in_flight.is_none());
        assert_eq!(self.drops, self.expected);
    }
}

/// Topic 0 is firm, the others have a policy each.
const POLICIES: [Option<Lossy>; 5] =
    [None, Some(Lossy::DropOldest), Some(Lossy::DropNewest), Some(Lossy::LatestPerKey), Some(Lossy::LatestPerKey)];
/// As in the queue: a frame at least this long is sent from where it lies.
const GATHER_FRAME_MAX: usize = 64 * 1024;
const GATHER_BYTES_MAX: usize = 128 * 1024;

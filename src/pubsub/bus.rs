//! The bus: what shards tell each other.
//!
//! Law: one bounded FIFO queue for each pair of shards, with one pushing and one popping thread, so a publisher knows
//! exactly how much room it has and nothing is ever pushed in part; nobody blocks. At the bound the publisher's
//! connection is not read from until there is room. Counts travel back in a queue of their own that has room for every
//! publish that may be waiting, so a receipt never waits for a publish.
//!
//! Evictions have a queue of their own for each shard, which is never full: it holds a connection at most once, since
//! who is evicted is on nobody's list any more.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::id::{ConnKey, ReceiptIndex, ShardId};
use crate::io::SharedFrame;
use crate::sync::{ArrayQueue, AtomicU64, Ordering, SegQueue};

use super::{Delivery, Period, SHARDS_MAX, ShardSet, Topic};

/// A publish for another shard: put the frame on the queues of your members and say how many.
#[derive(Debug)]
pub struct Publish {
    /// The topic; `None` for a broadcast to every connection.
    pub topic: Option<Arc<Topic>>,
    /// Which of your members it is for: those of this period.
    pub period: Period,
    /// The frame.
    pub frame: Arc<SharedFrame>,
    /// The sender's entry that awaits the counts.
    pub receipt: ReceiptIndex,
}

#[derive(Debug)]
struct Pair {
    publishes: ArrayQueue<Publish>,
    counts: ArrayQueue<(ReceiptIndex, Delivery)>,
}

/// All queues between the shards of an engine.
#[derive(Debug)]
pub struct Bus {
    /// `pairs[from * shards + to]`; none from a shard to itself.
    pairs: Box<[Option<Pair>]>,
    /// For each shard, which shards have pushed something for it.
    waiting: Box<[CachePadded<[AtomicU64; SHARDS_MAX / 64]>]>,
    /// For each shard, which of its connections have to go for newer ones.
    evictions: Box<[CachePadded<SegQueue<ConnKey>>]>,
    shards: usize,
    publishes_max: usize,
}

/// Publishes under way to one shard, from all others together, about: divided among the pairs.
const PUBLISHES_MAX: usize = 16 * 1024;

impl Bus {
    /// The bus of `shards` shards.
    pub fn new(shards: usize) -> Arc<Self> {
        Self::with_bound(shards, (PUBLISHES_MAX / shards.max(1)).clamp(64, 4096))
    }

    /// A bus on which each shard may have `publishes_max` (≥ 1) publishes under way.
    pub fn with_bound(shards: usize, publishes_max: usize) -> Arc<Self> {
        let pair = |from, to| {
            (from != to)
                .then(|| Pair { publishes: ArrayQueue::new(publishes_max), counts: ArrayQueue::new(publishes_max) })
        };
        let pairs = (0..shards * shards).map(|at| pair(at / shards, at % shards)).collect();
        let waiting = (0..shards).map(|_| CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0)))).collect();
        let evictions = (0..shards).map(|_| CachePadded::default()).collect();
        Arc::new(Self { pairs, waiting, evictions, shards, publishes_max })
    }

    /// How many shards it joins.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// Publishes that may be under way from one shard to another, and also those of one shard that may await counts.
    pub fn publishes_max(&self) -> usize {
        self.publishes_max
    }

    /// Publishes of others that wait for `shard`, about: they come and go meanwhile.
    pub fn depth(&self, shard: ShardId) -> usize {
        let others = (0..self.shards).filter(|&from| from != shard.index());
        others.map(|from| self.pair(ShardId(from as u16), shard).publishes.len()).sum()
    }

    /// The end of the bus that belongs to one shard.
    pub fn port(self: &Arc<Self>, shard: ShardId) -> BusPort {
        let none = vec![0; self.shards].into_boxed_slice();
        let (awaited, strays) = (none.clone(), none);
        BusPort { bus: self.clone(), shard, room: 0, rung: ShardSet::default(), unanswered: None, awaited, strays }
    }

    fn pair(&self, from: ShardId, to: ShardId) -> &Pair {
        self.pairs[from.index() * self.shards + to.index()].as_ref().expect("a shard has no queue to itself")
    }
}

/// One shard's end of the bus.
#[derive(Debug)]
pub struct BusPort {
    bus: Arc<Bus>,
    shard: ShardId,
    /// Publishes that certainly have room in every queue from here.
    room: usize,
    /// Shards that have mail from this turn and whose doorbell must be rung.
    rung: ShardSet,
    /// The publish that was received last, and whose; until it is answered.
    unanswered: Option<(ShardId, ReceiptIndex)>,
    /// For each shard, publishes that it has not answered; changed in the same breath as the queues.
    awaited: Box<[u32]>,
    /// For each shard, how many of its next answers are for nobody.
    strays: Box<[u32]>,
}

impl BusPort {
    /// All shards but this one.
    pub fn others(&self) -> ShardSet {
        let mut others = ShardSet::default();
        (0..self.bus.shards as u16).map(ShardId).filter(|&s| s != self.shard).for_each(|s| others.insert(s));
        others
    }

    /// Whether one publish has room on the way to every shard.
    pub fn has_room(&mut self) -> bool {
        if self.room == 0 {
            let room = |to| {
                let Pair { publishes, counts } = self.bus.pair(self.shard, to);
                let uncounted = self.awaited[to.index()] as usize;
                (publishes.capacity() - publishes.len()).min(counts.capacity().saturating_sub(uncounted))
            };
            self.room = self.others().iter().map(room).min().unwrap_or(usize::MAX);
        }
        self.room > 0
    }

    /// Sends a publish to each shard of `to`. The caller has asked [`BusPort::has_room`] since its last publish.
    pub fn publish(
        &mut self,
        to: ShardSet,
        topic: Option<&Arc<Topic>>,
        frame: &Arc<SharedFrame>,
        receipt: ReceiptIndex,
    ) {
        debug_assert!(self.room > 0);
        self.room = self.room.saturating_sub(1);
        for shard in to.iter() {
            let period = topic.map(|topic| topic.period(shard)).unwrap_or_default();
            let publish = Publish { topic: topic.cloned(), period, frame: frame.clone(), receipt };
            let full = self.bus.pair(self.shard, shard).publishes.push(publish).is_err();
            assert!(!full, "only this shard pushes here, and it has looked for room");
            self.awaited[shard.index()] += 1;
            self.posted(shard);
        }
    }

    /// Answers a publish of another shard.
    pub fn answer(&mut self, to: ShardId, receipt: ReceiptIndex, delivery: Delivery) {
        let full = self.bus.pair(self.shard, to).counts.push((receipt, delivery)).is_err();
        self.unanswered = None;
        assert!(!full, "there is room for the counts of every publish that may be waiting");
        self.posted(to);
    }

    /// Tells another shard to part from one of its connections. The caller names each connection once.
    pub fn evict(&mut self, to: ShardId, conn: ConnKey) {
        self.bus.evictions[to.index()].push(conn);
        self.posted(to);
    }

    /// The next of this shard's connections that have to go. To be emptied after [`BusPort::take_senders`], which takes
    /// the notice that there are some.
    pub fn next_evicted(&mut self) -> Option<ConnKey> {
        self.bus.evictions[self.shard.index()].pop()
    }

    /// Whether another shard has pushed something. With the doorbell's sleep announced before, a `false` means that
    /// whoever pushes from now on will ring.
    pub fn has_mail(&self) -> bool {
        self.bus.waiting[self.shard.index()].iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// The shards that have pushed something since the last call.
    pub fn take_senders(&mut self) -> ShardSet {
        let mut senders = ShardSet::default();
        for (at, word) in self.bus.waiting[self.shard.index()].iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let bits = word.swap(0, Ordering::SeqCst);
            (0..64).filter(|bit| bits & (1 << bit) != 0).for_each(|bit| senders.insert(ShardId(at as u16 * 64 + bit)));
        }
        senders
    }

    /// The next counts from `sender`, in its order.
    pub fn receive_count(&mut self, sender: ShardId) -> Option<(ReceiptIndex, Delivery)> {
        loop {
            let count = self.bus.pair(sender, self.shard).counts.pop()?;
            self.awaited[sender.index()] -= 1;
            match &mut self.strays[sender.index()] {
                0 => return Some(count),
                strays => *strays -= 1,
            }
        }
    }

    /// The next publish from `sender`, in its order.
    pub fn receive_publish(&mut self, sender: ShardId) -> Option<Publish> {
        debug_assert!(self.unanswered.is_none(), "one is answered before the next");
        let publish = self.bus.pair(sender, self.shard).publishes.pop()?;
        self.unanswered = Some((sender, publish.receipt));
        Some(publish)
    }

    /// Its shard broke in the middle of anything and starts again with this port. A publish that was received and not
    /// answered is answered with nothing. Answers to the old shard's own are still to come, and as each shard answers in
    /// order they are the next ones of it: as many are passed over. Mail whose notice was taken is looked for again.
    pub fn restart(&mut self) {
        if let Some((sender, receipt)) = self.unanswered {
            self.answer(sender, receipt, Delivery::default());
        }
        self.strays.copy_from_slice(&self.awaited);
        self.others().iter().for_each(|sender| self.postpone(sender));
        self.wake_others();
    }

    /// There is mail of `sender` that this turn did not get to.
    pub fn postpone(&mut self, sender: ShardId) {
        let (word, bit) = (sender.index() / 64, sender.index() % 64);
        self.bus.waiting[self.shard.index()][word].fetch_or(1 << bit, Ordering::SeqCst);
    }

    /// Wakes all other shards with the next [`BusPort::take_rings`], mail or not.
    pub fn wake_others(&mut self) {
        self.rung = self.others();
    }

    /// The shards to wake for what was pushed since the last call.
    pub fn take_rings(&mut self) -> ShardSet {
        std::mem::take(&mut self.rung)
    }

    fn posted(&mut self, to: ShardId) {
        let (word, bit) = (self.shard.index() / 64, self.shard.index() % 64);
        self.bus.waiting[to.index()][word].fetch_or(1 << bit, Ordering::SeqCst);
        self.rung.insert(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_arrives_in_order_and_stops_at_the_bound() {
        let bus = Bus::new(3);
        let (mut a, mut b) = (bus.port(ShardId(0)), bus.port(ShardId(1)));
        let receipt = ReceiptIndex::new(0);
        let mut to = ShardSet::default();
        to.insert(ShardId(1));
        let mut pushed = 0_u32;
        while a.has_room() {
            a.publish(to, None, &SharedFrame::new(pushed.to_le_bytes().to_vec()), receipt);
            pushed += 1;
        }
        assert_eq!((pushed, a.take_rings(), a.take_rings().is_empty()), (4096, to, true));
        assert!(b.has_mail());
        assert_eq!([ShardId(0), ShardId(1), ShardId(2)].map(|shard| bus.depth(shard)), [0, 4096, 0]);
        assert_eq!(b.take_senders().iter().collect::<Vec<_>>(), [ShardId(0)]);
        for expected in 0..pushed {
            let Some(Publish { frame, .. }) = b.receive_publish(ShardId(0)) else { panic!("mail {expected}") };
            assert_eq!(frame.plain(), expected.to_le_bytes());
            b.answer(ShardId(0), receipt, Delivery::default());
        }
        assert!(b.receive_publish(ShardId(0)).is_none() && !b.has_mail());
        assert!(!a.has_room(), "there must be room for its answers too");
        assert!(a.has_mail() && a.receive_count(ShardId(1)).is_some() && a.has_room());
    }

    #[test]
    fn a_shard_that_starts_again_owes_nothing_and_gets_no_answers_of_the_old_one() {
        let bus = Bus::with_bound(2, 4);
        let (mut a, mut b) = (bus.port(ShardId(0)), bus.port(ShardId(1)));
        let (frame, b_only) = (SharedFrame::new(Vec::new()), a.others());
        let publish = |port: &mut BusPort, receipt| {
            assert!(port.has_room());
            port.publish(port.others(), None, &frame, ReceiptIndex::new(receipt));
        };
        (0..3).for_each(|receipt| publish(&mut a, receipt));
        publish(&mut b, 7);
        // One of its own is answered already, two are not, and it was about to answer one.
        b.receive_publish(ShardId(0)).unwrap();
        b.answer(ShardId(0), ReceiptIndex::new(0), Delivery::default());
        a.receive_publish(ShardId(1)).unwrap();
        a.take_senders();
        a.take_rings();
        a.restart();
        assert_eq!(b.receive_count(ShardId(0)), Some((ReceiptIndex::new(7), Delivery::default())));
        assert_eq!((b.receive_count(ShardId(0)), a.has_mail(), a.take_rings()), (None, true, b_only));
        // Three are out: there is room for one, and its answer is the first that counts.
        publish(&mut a, 9);
        assert!(!a.has_room());
        while let Some(Publish { receipt, .. }) = b.receive_publish(ShardId(0)) {
            b.answer(ShardId(0), receipt, Delivery::default());
        }
        assert_eq!(a.receive_count(ShardId(1)).unwrap().0, ReceiptIndex::new(9));
        assert!(a.receive_count(ShardId(1)).is_none() && a.has_room());
    }

    /// The old one may have pushed something, and broken before it rang.
    #[test]
    fn a_shard_that_starts_again_wakes_all_others() {
        let mut port = Bus::new(3).port(ShardId(1));
        port.restart();
        let rings = port.take_rings();
        assert_eq!(rings.iter().collect::<Vec<_>>(), [ShardId(0), ShardId(2)]);
    }

    #[test]
    fn evictions_always_have_room_and_give_notice() {
        let bus = Bus::with_bound(2, 1);
        let (mut a, mut b) = (bus.port(ShardId(0)), bus.port(ShardId(1)));
        for slot in 0..1000 {
            a.evict(ShardId(1), ConnKey { slot, generation: 1 });
        }
        assert!(b.has_mail() && a.take_rings().contains(ShardId(1)) && !a.has_mail());
        assert_eq!(b.take_senders().iter().collect::<Vec<_>>(), [ShardId(0)]);
        let evicted: Vec<u32> = std::iter::from_fn(|| b.next_evicted()).map(|conn| conn.slot).collect();
        assert!(evicted.into_iter().eq(0..1000) && b.receive_publish(ShardId(0)).is_none() && !b.has_mail());
    }
}

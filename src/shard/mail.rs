//! What other shards have published, and their counts for what this one did.
//! Law: evictions and counts are always taken, since somebody waits for them; publishes as far as the turn's budget goes, beginning
//! with another sender each turn, so that no neighbour starves its own connections or another neighbour.

use crate::id::ShardId;
use crate::io::Io;
use crate::pubsub::Publish;

use super::Shard;

impl<I: Io> Shard<I> {
    pub(super) fn take_mail(&mut self) {
        if !self.bus.has_mail() {
            return;
        }
        let senders = self.bus.take_senders();
        while let Some(key) = self.bus.next_evicted() {
            self.evict(key);
        }
        self.first_sender = (self.first_sender + 1) % self.shared.shards as u16;
        let first = self.first_sender;
        let (later, sooner): (Vec<_>, Vec<_>) = senders.iter().partition(|sender| sender.0 < first);
        for sender in sooner.into_iter().chain(later) {
            self.take_mail_of(sender);
        }
    }

    fn take_mail_of(&mut self, sender: ShardId) {
        while let Some((receipt, delivery)) = self.bus.receive_count(sender) {
            self.on_counted(receipt, delivery);
        }
        while !self.mail_budget.is_spent() {
            let Some(Publish { topic, period, frame, receipt }) = self.bus.receive_publish(sender) else { return };
            let bytes = frame.plain().len();
            let delivery = match topic {
                None => self.deliver_to_all(frame),
                Some(topic) => match topic.local_in(period, self.id) {
                    Some(index) => self.deliver(index, frame, None),
                    // The last member left while the frame was on its way: who has come since is none of those it is for.
                    None => Default::default(),
                },
            };
            self.mail_budget.spend(bytes, delivery);
            self.bus.answer(sender, receipt, delivery);
        }
        self.bus.postpone(sender);
    }
}

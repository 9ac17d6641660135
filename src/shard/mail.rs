//! What other shards have published, and their counts for what this one did.
//! Law: a shard takes a bounded number of publishes from each sender in a turn, so that no neighbour starves its own
//! connections; counts first, since somebody waits for them.

use crate::id::ShardId;
use crate::io::Io;
use crate::pubsub::Mail;

use super::Shard;

/// Publishes taken from one sender in one turn.
const TURN_MAX: usize = 1024;

impl<I: Io> Shard<I> {
    pub(super) fn take_mail(&mut self) {
        if !self.bus.has_mail() {
            return;
        }
        for sender in self.bus.take_senders().iter() {
            self.take_mail_of(sender);
        }
    }

    fn take_mail_of(&mut self, sender: ShardId) {
        for _ in 0..TURN_MAX {
            match self.bus.receive(sender) {
                Some(Mail::Counted { receipt, delivery }) => self.on_counted(receipt, delivery),
                Some(Mail::Publish { topic, frame, receipt }) => {
                    let delivery = match topic {
                        None => self.deliver_to_all(frame),
                        Some(topic) => match topic.local(self.id) {
                            Some(index) => self.deliver(index, frame, None),
                            // The last member left while the frame was on its way.
                            None => Default::default(),
                        },
                    };
                    self.bus.answer(sender, receipt, delivery);
                }
                None => return,
            }
        }
        self.bus.postpone(sender);
    }
}

//! Publishing: encode once, fan out here, hand to the interested shards, answer with exact counts.

use std::sync::Arc;

use crate::app::context::Answer;
use crate::app::envelope::{EnvelopeWriter, IncomingMessage, MessageId, MessageIdRef, Publish};
use crate::conn::{Flow, FlushLine, OutboundLimits};
use crate::id::{ConnKey, ReceiptIndex};
use crate::io::{Io, SharedFrame, Stream};
use crate::pubsub::{Delivery, FanOut, Queues, ShardSet, Topic, Topics, fan_out};
use crate::ws::Opcode;
use crate::ws::deflate::Windows;

use super::Shard;

/// What one turn may still put on queues. A turn sends each connection what one send holds, so a burst of publishes is
/// spread over turns: a subscriber that reads all the time keeps up with it, however long it is; and so is one to many
/// subscribers, so that others are served in between.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    frames: u32,
    bytes: u32,
    deliveries: u64,
    /// Frames that are taken however many their deliveries are.
    anyway: u32,
    /// Of frames and bytes, what those who have waited leave to those who have not.
    reserve: (u32, u32),
}

impl Budget {
    /// A quarter of what a queue may hold, and at most half of what one send carries: there is one budget for this
    /// shard's own publishes and one for the mail.
    pub(super) fn of_turn(limits: &OutboundLimits) -> Self {
        let frames = (limits.frames_max / 4).max(1);
        let bytes = (limits.bytes_max / 4).clamp(1, TURN_BYTES_MAX);
        Self { frames, bytes, deliveries: DELIVERIES_A_TURN, anyway: FRAMES_ANYWAY, reserve: (frames / 4, bytes / 4) }
    }

    /// Whether no more is left than the part of those who have not waited.
    pub(super) fn is_down_to_reserve(&self) -> bool {
        self.is_spent() || self.frames <= self.reserve.0 || self.bytes <= self.reserve.1
    }

    pub(super) fn is_spent(&self) -> bool {
        self.frames == 0 || self.bytes == 0 || (self.deliveries == 0 && self.anyway == 0)
    }

    /// A frame was put on the queues of so many members of this shard, or refused by them.
    pub(super) fn spend(&mut self, frame_bytes: usize, delivery: Delivery) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(frame_bytes as u32);
        self.deliveries = self.deliveries.saturating_sub(delivery.matched);
        self.anyway = self.anyway.saturating_sub(1);
    }
}

const TURN_BYTES_MAX: u32 = 64 * 1024;
/// Some milliseconds of putting keys on queues.
pub(super) const DELIVERIES_A_TURN: u64 = 256 * 1024;
/// To send to all members of a large topic costs far more than to put keys on their queues, and a send that carries eight
/// messages little more than one that carries one: fewer would make the wait for a burst longer, not shorter.
pub(super) const FRAMES_ANYWAY: u32 = 8;

/// What is owed for a publish that other shards still count.
pub(super) enum Owed {
    /// An ack to a client. The slot is its connection's for as long as the entry is not detached.
    Client { slot: u32, id: Option<MessageId>, topic: Box<str> },
    /// The answer to a handler or to the embedding program.
    Caller(Answer<Delivery>),
}

/// Where a message went, and who else has to count.
pub(super) struct Spread {
    delivery: Delivery,
    others: ShardSet,
    topic: Option<Arc<Topic>>,
    frame: Arc<SharedFrame>,
}

impl<I: Io> Shard<I> {
    pub(super) fn publish(&mut self, key: ConnKey, message: IncomingMessage<'_>) {
        let (id, payload) = (message.id, message.payload);
        let Some(request) = self.understand(key, id, || payload.publish()) else { return };
        let allowed = self.permit(key, request.topic, "publish to", |identity, topic| identity.may_publish(topic));
        if let Err((code, text)) = allowed {
            return self.fault(key, code, &text, id);
        }
        if self.must_wait() {
            return self.hold_publish(key, id, &request);
        }
        self.publish_to(key, id, &request);
    }

    /// Publishes for a client that may, with room on the way.
    pub(super) fn publish_to(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>, request: &Publish<'_>) {
        let Publish { topic, data, key: of, exclude_self } = *request;
        self.share = self.share.saturating_sub(1);
        let publisher = self.conns.get(key).and_then(|conn| conn.identity.clone());
        let publisher = publisher.as_ref().map(|identity| identity.user_id.text());
        let write = |envelope: EnvelopeWriter<'_>| envelope.message(topic, data, publisher.as_deref());
        let spread = self.spread(topic, of, exclude_self.then_some(key.slot), write);
        if spread.others.is_empty() {
            return self.acknowledge(key, id, topic, spread.delivery);
        }
        let owed = Owed::Client { slot: key.slot, id: id.map(MessageId::from), topic: topic.into() };
        let Some(conn) = self.conns.get_mut(key) else { return };
        let (awaited, counted) = (spread.others.len(), spread.delivery);
        let receipt = self.receipts.open(owed, self.now.monotonic_ns, awaited, counted, Some(&mut conn.receipts));
        self.bus.publish(spread.others, spread.topic.as_ref(), &spread.frame, receipt);
    }

    /// Publishes for a handler or the embedding program. The caller has looked for room on the bus.
    pub(super) fn publish_for(&mut self, topic: &str, data: &[u8], of: Option<&str>, answer: Answer<Delivery>) {
        let spread = self.spread(topic, of, None, |envelope| envelope.message(topic, data, None));
        self.answer_when_counted(spread, answer);
    }

    /// Sends to every connection of every shard, subscribed or not. The caller has looked for room on the bus.
    pub(super) fn broadcast_for(&mut self, data: &[u8], answer: Answer<Delivery>) {
        let frame = self.encode(None, self.shared.windows.in_use(), |envelope| envelope.broadcast(data));
        let delivery = self.deliver_to_all(frame.clone());
        self.budget.spend(frame.plain().len(), delivery);
        self.answer_when_counted(Spread { delivery, others: self.bus.others(), topic: None, frame }, answer);
    }

    fn answer_when_counted(&mut self, spread: Spread, answer: Answer<Delivery>) {
        if spread.others.is_empty() {
            let _ = answer.send(Ok(spread.delivery)); // nobody waits for it
            return;
        }
        let (owed, now_ns) = (Owed::Caller(answer), self.now.monotonic_ns);
        let receipt = self.receipts.open(owed, now_ns, spread.others.len(), spread.delivery, None);
        self.bus.publish(spread.others, spread.topic.as_ref(), &spread.frame, receipt);
    }

    /// Whether a publish has room on its way, and this turn takes more of them.
    pub(super) fn has_room_to_publish(&mut self) -> bool {
        !self.budget.is_spent() && self.has_room_on_bus()
    }

    /// Whether a publish has room on its way.
    pub(super) fn has_room_on_bus(&mut self) -> bool {
        self.bus.has_room() && self.receipts.has_room()
    }

    /// Encodes a message once for all its receivers, puts it on the queues of this shard's members and finds out which
    /// other shards have some. `of` is the key of the message.
    fn spread(
        &mut self,
        topic: &str,
        of: Option<&str>,
        except: Option<u32>,
        write: impl FnOnce(EnvelopeWriter<'_>),
    ) -> Spread {
        self.metrics.published.add(1);
        let topic = self.topics.resolve(topic);
        let stream = topic.as_deref().and_then(|topic| self.shared.registry.stream(topic, of, &self.settings.policies));
        let windows = topic.as_deref().map(Topic::windows).unwrap_or_default();
        let frame = self.encode(stream, windows, write);
        let mut others = topic.as_deref().and_then(Topic::interest).unwrap_or_default();
        others.remove(self.id);
        let local = topic.as_deref().and_then(|topic| topic.local(self.id));
        let delivery = match local {
            Some(index) => self.deliver(index, frame.clone(), except),
            None => Delivery::default(),
        };
        self.budget.spend(frame.plain().len(), delivery);
        Spread { delivery, others, topic, frame }
    }

    /// The wire frame of a message, compressed for `windows` too.
    pub(super) fn encode(
        &mut self,
        stream: Option<Stream>,
        windows: Windows,
        write: impl FnOnce(EnvelopeWriter<'_>),
    ) -> Arc<SharedFrame> {
        let unix_ms = self.now.unix_ms;
        self.codecs.shared(stream, windows, |out| write(EnvelopeWriter::push(out, unix_ms)))
    }

    /// Puts the frame on the queues of a local topic's members.
    pub(super) fn deliver(&mut self, topic: u32, frame: Arc<SharedFrame>, except: Option<u32>) -> Delivery {
        self.deliver_to_members(frame, except, |topics| topics.members(topic))
    }

    /// Puts the frame on the queue of every open connection that need not authenticate first. It is of no topic, and is not
    /// dropped for other messages.
    pub(super) fn deliver_to_all(&mut self, frame: Arc<SharedFrame>) -> Delivery {
        let required = self.settings.auth_required;
        let everyone: Vec<u32> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.is_open() && conn.endpoint == crate::conn::Endpoint::Native)
            .filter(|(_, conn)| conn.identity.is_some() || !required)
            .map(|(key, _)| key.slot)
            .collect();
        self.deliver_to(&everyone, frame)
    }

    /// Puts the frame on the queues of open connections, named by their slots.
    pub(super) fn deliver_to(&mut self, slots: &[u32], frame: Arc<SharedFrame>) -> Delivery {
        self.deliver_to_members(frame, None, |_| slots.iter().copied())
    }

    fn deliver_to_members<'a, M: ExactSizeIterator<Item = u32>>(
        &'a mut self,
        frame: Arc<SharedFrame>,
        except: Option<u32>,
        members: impl FnOnce(&'a Topics) -> M,
    ) -> Delivery {
        let now = self.ms();
        let members = members(&self.topics);
        let (sessions, unix_ms, history) = (&mut self.sessions, self.now.unix_ms, &self.settings.history);
        let queues = Queues {
            conns: &mut self.conns,
            palette: self.io.palette(),
            limits: &self.settings.outbound,
            now,
            unflushed: &mut self.unflushed,
            over: &mut self.over,
            on_drop: &mut |slot, drops| sessions.note_drops(slot, drops, unix_ms, history),
        };
        let fanned = fan_out(frame, members, except, queues);
        self.count(fanned)
    }

    fn count(&self, FanOut { delivery, drops }: FanOut) -> Delivery {
        self.metrics.messages_out.add(delivery.queued);
        self.metrics.matched.add(delivery.matched);
        self.metrics.queued.add(delivery.queued);
        self.metrics.dropped.iter().zip(drops).for_each(|(dropped, count)| dropped.add(count));
        delivery
    }

    fn acknowledge(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>, topic: &str, delivery: Delivery) {
        self.reply(key, id, |envelope| envelope.published(topic, delivery));
    }

    /// Another shard has counted.
    pub(super) fn on_counted(&mut self, receipt: ReceiptIndex, delivery: Delivery) {
        let slot = match self.receipts.count(receipt, delivery) {
            Some(&Owed::Client { slot, .. }) => slot,
            Some(Owed::Caller(_)) | None => {
                if let Some(answered) = self.receipts.take(receipt)
                    && let Some(Owed::Caller(answer)) = answered.owed
                {
                    self.metrics.receipt.observe(self.now.monotonic_ns - answered.opened_ns);
                    let _ = answer.send(Ok(answered.delivery)); // nobody waits for it
                }
                return;
            }
        };
        let Some(key) = self.conns.key_of(slot) else { return };
        while let Some(conn) = self.conns.get_mut(key)
            && let Some(answered) = self.receipts.take_oldest(&mut conn.receipts)
        {
            let Some(Owed::Client { id, topic, .. }) = answered.owed else { continue };
            self.metrics.receipt.observe(self.now.monotonic_ns - answered.opened_ns);
            self.acknowledge_in_turn(
                key,
                id.as_ref().map(MessageId::borrow),
                &topic,
                answered.delivery,
                &answered.after,
            );
        }
        self.settle(key);
        self.want_resume(key);
    }

    /// Writes an ack and the replies that waited behind it to the connection's queue, before younger publishes' acks.
    fn acknowledge_in_turn(
        &mut self,
        key: ConnKey,
        id: Option<MessageIdRef<'_>>,
        topic: &str,
        delivery: Delivery,
        after: &[u8],
    ) {
        let (now, unix_ms) = (self.ms(), self.now.unix_ms);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let (codecs, deflate) = (&mut self.codecs, conn.deflate);
        conn.outbound.reply(self.io.palette(), now, |out| {
            let write = |out: &mut Vec<u8>| EnvelopeWriter::reply(out, id, unix_ms).published(topic, delivery);
            codecs.frame_of(out, Opcode::Text, deflate, write);
            out.extend_from_slice(after);
        });
        self.metrics.messages_out.add(1);
        self.count_flow(key, Flow::MessagesOut, 1);
        self.list(key, FlushLine::Own);
    }
}

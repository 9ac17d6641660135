//! What was published, who was subscribed when, and who got what: the judge of delivery.
//!
//! Law: times are steps of the harness, and each is a bound that a client can know: a publish is processed after it was
//! sent and before its ack was read, a subscription begins after it was asked for and before its ack was read, and so on.
//! What the bounds leave open is not judged.

use std::collections::HashMap;

use tidewheel::Delivery;
use tidewheel::io::Lossy;

use crate::terms::TOPICS;

/// A step of the harness.
pub type Step = u64;
pub const NEVER: Step = Step::MAX;

/// Who publishes: its messages to one topic keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Client(usize),
    HandlerOf(usize),
    Engine,
}

#[derive(Debug)]
pub struct Publish {
    pub source: Source,
    pub topic: usize,
    /// What it is the latest of.
    pub key: Option<&'static str>,
    pub sent: Step,
    /// When its receipt was read; `NEVER` while it was not.
    pub acked: Step,
    pub receipt: Option<Delivery>,
    /// It was answered with an error, so nobody got it.
    pub refused: bool,
    /// The client whose own subscription is passed over.
    pub except: Option<usize>,
}

/// One subscription of a client: all times but `asked` are `NEVER` until then.
#[derive(Debug)]
pub struct Period {
    pub client: usize,
    pub topic: usize,
    pub asked: Step,
    pub acked: Step,
    pub leaving: Step,
    pub left: Step,
    /// The publishes it got, in order.
    pub got: Vec<usize>,
}

/// How a client's stream came to its end, as far as delivery is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// What was acked before this step has reached the client; what was acked later may be missing from the end.
    pub whole_until: Step,
    /// From this step on nothing is queued for the client.
    pub deaf_from: Step,
}

/// What each topic may lose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    pub policies: [Option<Lossy>; TOPICS.len() + 1],
    /// No queue ever reaches a bound.
    pub unbounded: bool,
}

impl Losses {
    /// Whether a subscriber that stays gets every message of the topic.
    fn are_none(&self, topic: usize) -> bool {
        match self.policies[topic] {
            None => true,
            Some(Lossy::DropOldest | Lossy::DropNewest) => self.unbounded,
            Some(Lossy::LatestPerKey) => false,
        }
    }
}

/// What the judge could hold against exact numbers.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Receipts, against the number of deliveries.
    pub receipts: u64,
    /// Deliveries that were certainly dropped by a policy, and at most.
    pub lost: (u64, u64),
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub losses: Losses,
    pub publishes: Vec<Publish>,
    pub periods: Vec<Period>,
}

impl Ledger {
    pub fn publish(&mut self, source: Source, topic: usize, sent: Step, except: Option<usize>) -> usize {
        let number = self.publishes.len();
        let key = match source {
            Source::HandlerOf(_) => None,
            Source::Client(_) | Source::Engine => [None, Some("k"), Some("l"), Some("m")][number % 4],
        };
        self.publishes.push(Publish { source, topic, key, sent, acked: NEVER, receipt: None, refused: false, except });
        number
    }

    pub fn acked(&mut self, publish: usize, step: Step, receipt: Delivery) {
        let publish = &mut self.publishes[publish];
        assert_eq!(receipt.matched, receipt.queued + receipt.dropped, "{publish:?}: a receipt that does not add up");
        assert!(publish.receipt.replace(receipt).is_none(), "{publish:?}: acked twice");
        publish.acked = step;
    }

    pub fn refused(&mut self, publish: usize) {
        self.publishes[publish].refused = true;
    }

    pub fn asked(&mut self, client: usize, topic: usize, asked: Step) -> usize {
        let (acked, leaving, left) = (NEVER, NEVER, NEVER);
        self.periods.push(Period { client, topic, asked, acked, leaving, left, got: Vec::new() });
        self.periods.len() - 1
    }

    /// A client got a message in a period of its subscription to `topic`.
    pub fn got(&mut self, period: usize, publish: usize) {
        let message = self.publishes.get(publish).expect("a message that nobody published");
        let Period { client, topic, ref mut got, .. } = self.periods[period];
        assert_eq!(message.topic, topic, "client {client} got publish {publish} of another topic");
        got.push(publish);
    }

    /// Judges everything. `tails` are the clients', by number.
    pub fn judge(&self, tails: &[Tail]) -> Verdict {
        let mut received = vec![0_u64; self.publishes.len()];
        for period in &self.periods {
            self.judge_period(period, tails[period.client]);
            period.got.iter().for_each(|&publish| received[publish] += 1);
        }
        let (mut receipts, mut lost) = (0, (0, 0));
        for (number, publish) in self.publishes.iter().enumerate() {
            let whole = self.judge_receipt(number, publish, received[number], tails);
            let is_lossy = self.losses.policies[publish.topic].is_some();
            match publish.receipt {
                Some(receipt) => {
                    let missing = if is_lossy { receipt.matched - received[number] } else { 0 };
                    receipts += u64::from(whole && received[number] > 0);
                    lost.0 += if whole { missing } else { 0 };
                    lost.1 += missing;
                }
                // Nobody was told how many it was for.
                None if is_lossy && !publish.refused => lost.1 += tails.len() as u64,
                None => {}
            }
        }
        Verdict { receipts, lost }
    }

    fn judge_period(&self, period: &Period, tail: Tail) {
        let name = |publish: usize| format!("publish {publish} {:?}; {period:?} {tail:?}", self.publishes[publish]);
        let by_key = self.losses.policies[period.topic] == Some(Lossy::LatestPerKey);
        let mut in_order: HashMap<(Source, Option<&str>), Vec<usize>> = HashMap::new();
        for &number in &period.got {
            let publish = &self.publishes[number];
            assert!(!publish.refused, "a refused message arrived: {}", name(number));
            assert!(
                publish.except != Some(period.client),
                "a message arrived in spite of exclude_self: {}",
                name(number)
            );
            assert!(publish.acked >= period.asked, "a message arrived from before the subscription: {}", name(number));
            assert!(
                period.left == NEVER || publish.sent <= period.left,
                "a message arrived after the subscription: {}",
                name(number)
            );
            let got = in_order.entry((publish.source, publish.key.filter(|_| by_key))).or_default();
            assert!(got.last().is_none_or(|&last| last < number), "twice or out of order: {}", name(number));
            got.push(number);
        }
        for (number, publish) in self.publishes.iter().enumerate() {
            if publish.topic != period.topic || publish.refused || publish.except == Some(period.client) {
                continue;
            }
            let within = period.acked < publish.sent && publish.acked < period.leaving;
            if !self.losses.are_none(period.topic) {
                let is_superseded = || {
                    let newer = |&other: &usize| other == number || self.publishes[other].acked >= publish.sent;
                    period.got.iter().any(|other| self.publishes[*other].key == publish.key && newer(other))
                };
                let must_show = by_key && self.losses.unbounded && within && publish.acked < tail.whole_until;
                assert!(!must_show || is_superseded(), "missed the latest of its key: {}", name(number));
                continue;
            }
            let got = in_order.get(&(publish.source, None)).map_or(&[][..], Vec::as_slice);
            if got.binary_search(&number).is_ok() {
                continue;
            }
            let certain = publish.acked != NEVER || matches!(publish.source, Source::Client(_));
            let between =
                got.first().is_some_and(|&first| first < number) && got.last().is_some_and(|&last| number < last);
            assert!(!(certain && between), "a gap: {}", name(number));
            assert!(!(within && publish.acked < tail.whole_until), "missed: {}", name(number));
            let before_others = got.first().is_some_and(|&first| number < first);
            assert!(!(certain && period.acked < publish.sent && before_others), "no prefix: {}", name(number));
        }
    }

    /// Returns whether everybody it was for certainly stayed to read it.
    fn judge_receipt(&self, number: usize, publish: &Publish, received: u64, tails: &[Tail]) -> bool {
        let Some(receipt) = publish.receipt else { return false };
        let (mut least, mut most, mut whole) = (0, 0, true);
        for period in self.periods.iter().filter(|period| period.topic == publish.topic) {
            let tail = tails[period.client];
            if publish.except == Some(period.client) || publish.acked < period.asked {
                continue;
            }
            if (period.left != NEVER && period.left < publish.sent) || tail.deaf_from < publish.sent {
                continue;
            }
            most += 1;
            let stayed = publish.acked < tail.whole_until;
            whole &= stayed;
            least += u64::from(period.acked < publish.sent && publish.acked < period.leaving && stayed);
        }
        let text = || format!("publish {number} {publish:?}: received {received}, subscribed {least} to {most}");
        assert!((least..=most).contains(&receipt.matched), "matched is not the number of subscribers: {}", text());
        assert!(received <= receipt.queued, "more deliveries than queued: {}", text());
        let all = whole && self.losses.are_none(publish.topic);
        assert!(!all || received == receipt.queued, "queued is not the number of deliveries: {}", text());
        whole
    }
}

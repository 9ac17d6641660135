//! What was published, who was subscribed when, and who got what: the judge of delivery.
//!
//! Law: times are steps of the harness, and each is a bound that a client can know: a publish is processed after it was
//! sent and before its ack was read, a subscription begins after it was asked for and before its ack was read, and so on.
//! What the bounds leave open is not judged.

use std::collections::HashMap;

use tidewheel::Delivery;

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

#[derive(Debug, Default)]
pub struct Ledger {
    pub publishes: Vec<Publish>,
    pub periods: Vec<Period>,
}

impl Ledger {
    pub fn publish(&mut self, source: Source, topic: usize, sent: Step, except: Option<usize>) -> usize {
        self.publishes.push(Publish { source, topic, sent, acked: NEVER, receipt: None, refused: false, except });
        self.publishes.len() - 1
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

    /// Judges everything. `tails` are the clients', by number. Returns how many receipts could be held against the exact
    /// number of deliveries.
    pub fn judge(&self, tails: &[Tail]) -> u64 {
        let mut received = vec![0_u64; self.publishes.len()];
        for period in &self.periods {
            self.judge_period(period, tails[period.client]);
            period.got.iter().for_each(|&publish| received[publish] += 1);
        }
        let judge = |(number, publish)| self.judge_receipt(number, publish, received[number], tails);
        self.publishes.iter().enumerate().map(judge).sum()
    }

    fn judge_period(&self, period: &Period, tail: Tail) {
        let name = |publish: usize| format!("publish {publish} {:?}; {period:?} {tail:?}", self.publishes[publish]);
        let mut by_source: HashMap<Source, Vec<usize>> = HashMap::new();
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
            let got = by_source.entry(publish.source).or_default();
            assert!(got.last().is_none_or(|&last| last < number), "twice or out of order: {}", name(number));
            got.push(number);
        }
        for (number, publish) in self.publishes.iter().enumerate() {
            if publish.topic != period.topic || publish.refused || publish.except == Some(period.client) {
                continue;
            }
            let got = by_source.get(&publish.source).map_or(&[][..], Vec::as_slice);
            if got.binary_search(&number).is_ok() {
                continue;
            }
            let certain = publish.acked != NEVER || matches!(publish.source, Source::Client(_));
            let between =
                got.first().is_some_and(|&first| first < number) && got.last().is_some_and(|&last| number < last);
            assert!(!(certain && between), "a gap: {}", name(number));
            let within = period.acked < publish.sent && publish.acked < period.leaving;
            assert!(!(within && publish.acked < tail.whole_until), "missed: {}", name(number));
            let before_others = got.first().is_some_and(|&first| number < first);
            assert!(!(certain && period.acked < publish.sent && before_others), "no prefix: {}", name(number));
        }
    }

    fn judge_receipt(&self, number: usize, publish: &Publish, received: u64, tails: &[Tail]) -> u64 {
        let Some(receipt) = publish.receipt else { return 0 };
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
        assert!(!whole || received == receipt.queued, "queued is not the number of deliveries: {}", text());
        u64::from(whole && received > 0)
    }
}

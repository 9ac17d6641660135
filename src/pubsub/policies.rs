//! What is done with the messages of which topics when a subscriber cannot keep up.
//! Law: the first pattern that covers a topic counts; a topic is looked up once in each edition of the policies.

use crate::config::{Config, OutboundPolicy};
use crate::io::Lossy;
use crate::topic::matches;

/// The policies that the configuration has; by default no message is ever dropped for another.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    edition: u32,
    by_pattern: Vec<(Box<str>, Option<Lossy>)>,
    otherwise: Option<Lossy>,
}

impl Policies {
    /// Those of the keys `topics` and `outbound.policy`. Of two `edition`s of a process the policies may differ.
    pub fn new(config: &Config, edition: u32) -> Self {
        let otherwise = config.outbound.policy;
        let rule =
            |rule: &crate::config::TopicRule| (rule.pattern.as_str().into(), lossy(rule.policy.unwrap_or(otherwise)));
        Self { edition, by_pattern: config.topics.iter().map(rule).collect(), otherwise: lossy(otherwise) }
    }

    /// Which of the policies that the process has had one after the other these are.
    pub fn edition(&self) -> u32 {
        self.edition
    }

    /// What may be dropped of a topic; `None`: nothing, the subscriber is disconnected.
    pub fn of(&self, topic: &str) -> Option<Lossy> {
        let first = self.by_pattern.iter().find(|(pattern, _)| matches(pattern, topic));
        first.map_or(self.otherwise, |(_, policy)| *policy)
    }
}

fn lossy(policy: OutboundPolicy) -> Option<Lossy> {
    match policy {
        OutboundPolicy::Disconnect => None,
        OutboundPolicy::DropOldest => Some(Lossy::DropOldest),
        OutboundPolicy::DropNewest => Some(Lossy::DropNewest),
        OutboundPolicy::LatestPerKey => Some(Lossy::LatestPerKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_counts_whole() {
        let text = "
            outbound: {policy: drop_newest}
            topics:
              - {pattern: a.b, policy: disconnect}
              - {pattern: a.*}
              - {pattern: a.>, policy: latest_per_key}
              - {pattern: a.c, policy: drop_oldest}";
        let policies = Policies::new(&Config::parse(text).unwrap(), 0);
        let check = |topic, expected| assert_eq!(policies.of(topic), expected, "{topic}");
        check("a.b", None);
        check("a.c", Some(Lossy::DropNewest));
        check("a.c.d", Some(Lossy::LatestPerKey));
        check("a", Some(Lossy::DropNewest));
        assert_eq!(Policies::default().of("a"), None);
    }
}

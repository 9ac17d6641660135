//! What is done with the messages of which topics when a subscriber cannot keep up.
//! Law: the first pattern that covers a topic counts; a topic is looked up once, when it gets its first subscriber anywhere.

use crate::config::{Config, OutboundPolicy};
use crate::io::Lossy;
use crate::topic::matches;

/// The policies that the configuration has; by default no message is ever dropped for another.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    by_pattern: Vec<(Box<str>, Option<Lossy>)>,
    otherwise: Option<Lossy>,
}

impl Policies {
    /// Those of the keys `topics` and `outbound.policy`.
    pub fn new(config: &Config) -> Self {
        let otherwise = config.outbound.policy;
        let rule =
            |rule: &crate::config::TopicRule| (rule.pattern.as_str().into(), lossy(rule.policy.unwrap_or(otherwise)));
        Self { by_pattern: config.topics.iter().map(rule).collect(), otherwise: lossy(otherwise) }
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
        let policies = Policies::new(&Config::parse(text).unwrap());
        let check = |topic, expected| assert_eq!(policies.of(topic), expected, "{topic}");
        check("a.b", None);
        check("a.c", Some(Lossy::DropNewest));
        check("a.c.d", Some(Lossy::LatestPerKey));
        check("a", Some(Lossy::DropNewest));
        assert_eq!(Policies::default().of("a"), None);
    }
}

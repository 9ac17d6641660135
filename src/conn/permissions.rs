//! Which topics a token allows.
//! Law: a list that the claim does not have allows nothing; checking a topic allocates nothing.

use serde_json::Value;
use thiserror::Error;

use crate::topic::{PATTERN_LENGTH_MAX, TopicError, check_pattern, matches};

/// Most patterns in one list of a token.
pub const PATTERNS_MAX: usize = 64;
/// Why the claim `topics` of a token cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PermissionsError {
    /// It is no object, or one of its lists is no list of strings.
    #[error("`topics` must be an object with lists of strings `subscribe` and `publish`")]
    Shape,
    /// A list is longer than [`PATTERNS_MAX`].
    #[error("`topics.{list}` has more than {PATTERNS_MAX} patterns")]
    TooMany {
        /// Which list: `subscribe` or `publish`.
        list: &'static str,
    },
    /// A pattern is none.
    #[error("`topics.{list}`: {error}")]
    Pattern {
        /// Which list: `subscribe` or `publish`.
        list: &'static str,
        /// What is wrong with it.
        error: TopicError,
    },
}

/// Which topics a token lets its bearer use. A list that the claim does not have allows nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    subscribe: Patterns,
    publish: Patterns,
}

impl Permissions {
    /// Reads the claim `topics`, `{subscribe: [pattern…], publish: [pattern…]}`. Other members are ignored.
    ///
    /// # Errors
    /// The claim has another shape, too many patterns, or a pattern that is none.
    pub fn from_claim(topics: &Value) -> Result<Self, PermissionsError> {
        let topics = topics.as_object().ok_or(PermissionsError::Shape)?;
        let read = |list| topics.get(list).map_or(Ok(Patterns::default()), |patterns| Patterns::read(patterns, list));
        Ok(Self { subscribe: read("subscribe")?, publish: read("publish")? })
    }

    /// Whether `topic` may be subscribed to.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.subscribe.cover(topic)
    }

    /// Whether `topic` may be published to.
    pub fn may_publish(&self, topic: &str) -> bool {
        self.publish.cover(topic)
    }
}

/// A list of patterns in one allocation, each followed by a line feed, which none can contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Patterns(Box<str>);

impl Patterns {
    fn read(patterns: &Value, list: &'static str) -> Result<Self, PermissionsError> {
        let patterns = patterns.as_array().ok_or(PermissionsError::Shape)?;
        if patterns.len() > PATTERNS_MAX {
            return Err(PermissionsError::TooMany { list });
        }
        let mut lines = String::new();
        for pattern in patterns {
            let pattern = pattern.as_str().ok_or(PermissionsError::Shape)?;
            check_pattern(pattern, PATTERN_LENGTH_MAX).map_err(|error| PermissionsError::Pattern { list, error })?;
            lines.push_str(pattern);
            lines.push('\n');
        }
        Ok(Self(lines.into()))
    }

    fn cover(&self, topic: &str) -> bool {
        self.0.split_terminator('\n').any(|pattern| matches(pattern, topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims() {
        let read = |topics| Permissions::from_claim(&topics);
        let both = read(json!({"subscribe": ["a.*", "news"], "publish": ["a.me"], "other": 1})).unwrap();
        assert!(both.may_subscribe("a.x") && both.may_subscribe("news") && !both.may_subscribe("new"));
        assert!(both.may_publish("a.me") && !both.may_publish("a.x") && !both.may_publish("news"));
        let subscribe_only = read(json!({"subscribe": [">"]})).unwrap();
        assert!(subscribe_only.may_subscribe("a.b") && !subscribe_only.may_publish("a.b"));
        let nothing = read(json!({})).unwrap();
        assert!(!nothing.may_subscribe("a") && !nothing.may_publish("a"));

        for shape in
            [json!(null), json!([]), json!({"publish": "a"}), json!({"publish": null}), json!({"publish": [1]})]
        {
            assert_eq!(read(shape), Err(PermissionsError::Shape));
        }
        let list = |length: usize| json!({"publish": vec!["a"; length]});
        assert!(read(list(PATTERNS_MAX)).is_ok());
        assert_eq!(read(list(PATTERNS_MAX + 1)), Err(PermissionsError::TooMany { list: "publish" }));
        let error = read(json!({"subscribe": ["a.b*"]})).unwrap_err();
        assert_eq!(error.to_string(), "`topics.subscribe`: `*` and `>` must be whole segments of a pattern");
        let length = |length: usize| read(json!({"subscribe": ["a".repeat(length)]}));
        assert!(length(PATTERN_LENGTH_MAX).is_ok());
        let error = TopicError::TooLong { length_max: PATTERN_LENGTH_MAX };
        assert_eq!(length(PATTERN_LENGTH_MAX + 1), Err(PermissionsError::Pattern { list: "subscribe", error }));
    }
}

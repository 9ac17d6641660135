//! Names and patterns of topics, and what a token allows with them.
//! Law: a topic is a name, a pattern covers names, and no text is both unless it covers itself alone; matching reads
//! each byte of both at most twice and allocates nothing.

use serde_json::Value;
use thiserror::Error;

/// Most patterns in one list of a token.
pub const PATTERNS_MAX: usize = 64;
/// Longest pattern of a token, in bytes.
pub const PATTERN_LENGTH_MAX: usize = 255;

/// Why a text is no topic or no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TopicError {
    /// It is empty.
    #[error("a topic must not be empty")]
    Empty,
    /// It is longer than `length_max` bytes.
    #[error("a topic must not be longer than {length_max} bytes")]
    TooLong {
        /// The bound.
        length_max: usize,
    },
    /// A control character is in it (Unicode category Cc).
    #[error("a topic must not contain control characters")]
    ControlCharacter,
    /// Nothing stands before, after or between two dots.
    #[error("a topic must not have empty segments: no dot first, last or twice in a row")]
    EmptySegment,
    /// A topic has the segment `*` or `>`.
    #[error("a topic must not have `*` or `>` as a segment: those are for patterns")]
    Wildcard,
    /// A pattern has `*` or `>` within a longer segment, where it would not do what it seems to.
    #[error("`*` and `>` must be whole segments of a pattern")]
    PartWildcard,
    /// A pattern has `>` before its last segment.
    #[error("`>` must be the last segment of a pattern")]
    RestNotLast,
}

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

/// Checks that `topic` is a name: 1 to `length_max` bytes, no control characters, dot-separated segments that are
/// neither empty nor `*` nor `>`.
///
/// # Errors
/// The first rule it breaks.
pub fn check_topic(topic: &str, length_max: usize) -> Result<(), TopicError> {
    check_text(topic, length_max)?;
    match topic.split('.').any(|segment| matches!(segment, "*" | ">")) {
        true => Err(TopicError::Wildcard),
        false => Ok(()),
    }
}

/// Checks that `pattern` is one: as a topic, but a segment may be `*`, and the last may be `>`.
///
/// # Errors
/// The first rule it breaks.
pub fn check_pattern(pattern: &str, length_max: usize) -> Result<(), TopicError> {
    check_text(pattern, length_max)?;
    let mut segments = pattern.split('.').peekable();
    while let Some(segment) = segments.next() {
        if segment.len() > 1 && segment.contains(['*', '>']) {
            return Err(TopicError::PartWildcard);
        }
        if segment == ">" && segments.peek().is_some() {
            return Err(TopicError::RestNotLast);
        }
    }
    Ok(())
}

/// Whether `pattern` covers `topic`: `*` stands for one segment, a last `>` for one or more, all else for itself. Both
/// have passed their check.
pub fn matches(pattern: &str, topic: &str) -> bool {
    let mut segments = topic.split('.');
    for wanted in pattern.split('.') {
        match segments.next() {
            None => return false,
            Some(_) if wanted == ">" => return true,
            Some(segment) if wanted == "*" || wanted == segment => {}
            Some(_) => return false,
        }
    }
    segments.next().is_none()
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

/// What topics and patterns have in common.
fn check_text(text: &str, length_max: usize) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > length_max {
        return Err(TopicError::TooLong { length_max });
    }
    if text.chars().any(char::is_control) {
        return Err(TopicError::ControlCharacter);
    }
    if text.split('.').any(str::is_empty) {
        return Err(TopicError::EmptySegment);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn topics() {
        let check = |topic: &str, expected| assert_eq!(check_topic(topic, 12), expected, "{topic:?}");
        check("a", Ok(()));
        check("chat.room-7", Ok(()));
        check("prix.€.é", Ok(()));
        check("a*.>b", Ok(()));
        check("twelve.bytes", Ok(()));
        check("thirteen.byte", Err(TopicError::TooLong { length_max: 12 }));
        check("", Err(TopicError::Empty));
        check(".", Err(TopicError::EmptySegment));
        check(".a", Err(TopicError::EmptySegment));
        check("a.", Err(TopicError::EmptySegment));
        check("a..b", Err(TopicError::EmptySegment));
        check("a\nb", Err(TopicError::ControlCharacter));
        check("a\u{7f}", Err(TopicError::ControlCharacter));
        check("a\u{85}", Err(TopicError::ControlCharacter));
        check("*", Err(TopicError::Wildcard));
        check("a.*.b", Err(TopicError::Wildcard));
        check("a.>", Err(TopicError::Wildcard));
    }

    #[test]
    fn patterns() {
        let check = |pattern: &str, expected| assert_eq!(check_pattern(pattern, 12), expected, "{pattern:?}");
        check("a.b", Ok(()));
        check("*", Ok(()));
        check(">", Ok(()));
        check("a.*.*.>", Ok(()));
        check("chat*", Err(TopicError::PartWildcard));
        check("a.>>", Err(TopicError::PartWildcard));
        check(">.a", Err(TopicError::RestNotLast));
        check("a..*", Err(TopicError::EmptySegment));
        check("a\n*", Err(TopicError::ControlCharacter));
    }

    #[test]
    fn matching() {
        let check = |pattern, topic, expected| assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        check("a.b", "a.b", true);
        check("a.b", "a", false);
        check("a.b", "a.b.c", false);
        check("a.b", "a.bc", false);
        check("*", "a", true);
        check("*", "a.b", false);
        check("a.*.c", "a.b.c", true);
        check("a.*.c", "a.c", false);
        check(">", "a", true);
        check(">", "a.b.c", true);
        check("a.>", "a", false);
        check("a.>", "a.b", true);
        check("a.>", "a.b.c", true);
        check("a.>", "ab.c", false);
        check("*.>", "a.b.c", true);
        check("*.>", "a", false);
    }

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

    /// What a pattern means, said the slow way.
    fn covers(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => covers(pattern, topic),
            ([wanted, pattern @ ..], [segment, topic @ ..]) => wanted == segment && covers(pattern, topic),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_what_the_oracle_does(
            pattern in "([ab]{1,2}|\\*)(\\.([ab]{1,2}|\\*)){0,4}(\\.>)?",
            topic in "[ab]{1,2}(\\.[ab]{1,2}){0,5}",
        ) {
            prop_assert_eq!(check_pattern(&pattern, 255), Ok(()));
            prop_assert_eq!(check_topic(&topic, 255), Ok(()));
            let segments = |text: &'static str| text.split('.').collect::<Vec<_>>();
            let (pattern, topic) = (pattern.leak(), topic.leak());
            prop_assert_eq!(matches(pattern, topic), covers(&segments(pattern), &segments(topic)));
        }

        #[test]
        fn a_topic_covers_itself_alone(topic in "\\PC{1,12}", other in "\\PC{1,12}") {
            if check_topic(&topic, 255).is_ok() && check_pattern(&topic, 255).is_ok() && topic != other {
                prop_assert!(matches(&topic, &topic) && !matches(&topic, &other));
            }
        }
    }
}

//! Names and patterns of topics.
//! Law: a topic is a name, a pattern covers names, and no text is both unless it covers itself alone; matching reads
//! each byte of both at most twice and allocates nothing.

use thiserror::Error;

/// Longest pattern, of a token or of the configuration, in bytes.
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

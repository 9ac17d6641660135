//! Names and patterns of topics, against the rules as they are written.

use tidewheel::topic::{check_pattern, check_topic, matches};

use crate::script::Script;

/// A bound, a pattern and a topic.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let length_max = usize::from(script.byte());
    let pattern = script.piece();
    let (Ok(pattern), Ok(topic)) = (std::str::from_utf8(pattern), std::str::from_utf8(script.0)) else { return };
    for text in [pattern, topic] {
        let (topic, pattern) = (check_topic(text, length_max), check_pattern(text, length_max));
        if topic.is_ok() {
            assert!(!text.is_empty() && text.len() <= length_max && !text.contains(char::is_control));
            assert!(text.split('.').all(|segment| !matches!(segment, "" | "*" | ">")));
        }
        if topic.is_ok() && pattern.is_ok() {
            assert!(matches(text, text), "a text that is both covers itself");
            assert!(!text.contains(['*', '>']), "and itself alone");
        }
    }
    if check_pattern(pattern, length_max).is_ok() && check_topic(topic, length_max).is_ok() {
        let (wanted, given): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), topic.split('.').collect());
        assert_eq!(matches(pattern, topic), covers(&wanted, &given), "{pattern} {topic}");
    }
}

/// The rules, one segment at a time.
fn covers(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        (["*", pattern @ ..], [_, topic @ ..]) => covers(pattern, topic),
        ([wanted, pattern @ ..], [segment, topic @ ..]) => wanted == segment && covers(pattern, topic),
        _ => false,
    }
}

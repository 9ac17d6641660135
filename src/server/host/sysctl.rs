//! The kernel settings that are asked for: those of `tuning/99-tidewheel.conf`, which is read here, so that what the
//! doctor asks for and what an operator installs are one.

/// Each setting and its value, in the order of the file.
pub(super) fn settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = FILE.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.trim(), value.trim()))
}

/// What the file sets `key` to; none if it does not.
pub fn wanted(key: &str) -> Option<&'static str> {
    settings().find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// The numbers that the file sets `key` to.
pub(super) fn numbers(key: &str) -> Vec<u64> {
    wanted(key).into_iter().flat_map(str::split_whitespace).filter_map(|word| word.parse().ok()).collect()
}

/// The command that sets `key` to what the file says, or to `at_least` where that is more.
pub(super) fn command(key: &str, at_least: u64) -> String {
    let value = numbers(key).first().copied().unwrap_or_default().max(at_least);
    format!("sysctl -w {key}={value}")
}

const FILE: &str = include_str!("../../../tuning/99-tidewheel.conf");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_reason_above_it_and_is_set_once() {
        let mut reason = false;
        let mut keys = Vec::new();
        for line in FILE.lines() {
            match line.split_once('=') {
                Some((key, _)) if !line.starts_with('#') => {
                    assert!(reason, "{line}");
                    keys.push(key.trim());
                    reason = false;
                }
                _ => reason = line.starts_with('#'),
            }
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
        assert!(all >= 8, "{keys:?}");
        assert_eq!(settings().count(), all);
        for key in keys {
            let words = wanted(key).unwrap().split_whitespace().count();
            assert_eq!(numbers(key).len(), words, "{key}");
        }
    }

    #[test]
    fn a_command_asks_for_no_less_than_the_file() {
        assert_eq!(command("net.core.somaxconn", 5), "sysctl -w net.core.somaxconn=65535");
        assert_eq!(command("net.core.somaxconn", 70_000), "sysctl -w net.core.somaxconn=70000");
        assert_eq!(wanted("net.core.somax"), None);
    }
}

//! How values are written: durations, sizes, `auto`, one or a list.
//! Law: a duration always names its unit, so that no number is ever taken for the wrong one.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::Auto;
use super::origin::OriginPattern;

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1000),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("", 1),
];

/// Reads `250ms`, `25s`, `5m`, `1h`, `1d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_with_unit(text, &DURATION_UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a duration: write a whole number and ms, s, m, h or d, such as 25s"))
}

/// Reads `4096`, `256B`, `1MB` (1,000,000), `64KiB` (65,536).
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    parse_with_unit(text, &SIZE_UNITS)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| format!("`{text}` is not a size: write a whole number and B, KB, MB, GB, KiB, MiB or GiB"))
}

fn parse_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Writes a duration with the largest unit that divides it.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis() as u64;
    if ms == 0 { "0s".to_owned() } else { show(ms, &DURATION_UNITS) }
}

/// Writes a size with the largest unit that divides it.
pub(super) fn show_size(bytes: usize) -> String {
    show(bytes as u64, &SIZE_UNITS)
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().filter(|(name, factor)| !name.is_empty() && value.is_multiple_of(*factor) && value > 0);
    // Of units of the same size the first counts.
    match whole.rev().max_by_key(|(_, factor)| *factor) {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => value.to_string(),
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    parse_size(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// A section; one that is empty, because everything in it is commented out, is all defaults.
pub(super) fn section<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

pub(super) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    one_or_list(deserializer, "an address such as 127.0.0.1:8080, or a list of them", parse_address)
}

pub(super) fn origins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OriginPattern>, D::Error> {
    one_or_list(deserializer, "an origin such as https://example.com, or a list such as [same_host, null]", |text| {
        text.trim().parse()
    })
}

/// One, a list, or, as the environment has no lists, several separated by commas. A `null` in a list is the word: what
/// it means is up to `parse`.
fn one_or_list<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, D::Error> {
    struct OneOrList<T> {
        expected: &'static str,
        parse: fn(&str) -> Result<T, String>,
    }

    impl<'de, T> Visitor<'de> for OneOrList<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expected)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Err(E::custom(format!("no value is there: write {}", self.expected)))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            text.split(',').map(|one| (self.parse)(one).map_err(E::custom)).collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element::<Option<String>>()? {
                all.push((self.parse)(one.as_deref().unwrap_or("null")).map_err(A::Error::custom)?);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(OneOrList { expected, parse })
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    text.parse().map_err(|_| format!("`{text}` is not an address: write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080"))
}

impl<'de, T: FromStr> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let wrong = |_| D::Error::custom(format!("`{text}` is not possible: write auto or a whole number in range"));
        text.parse().map(Self::Value).map_err(wrong)
    }
}

impl<T: Display> Display for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Value(value) => value.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_duration(text: &str, ms: u64, shown: &str) {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
        assert_eq!(show_duration(Duration::from_millis(ms)), shown);
    }

    #[track_caller]
    fn check_size(text: &str, bytes: usize, shown: &str) {
        assert_eq!(parse_size(text), Ok(bytes));
        assert_eq!(show_size(bytes), shown);
    }

    #[test]
    fn durations() {
        check_duration("250ms", 250, "250ms");
        check_duration("25s", 25_000, "25s");
        check_duration("300s", 300_000, "5m");
        check_duration(" 1 h ", 3_600_000, "1h");
        check_duration("2d", 172_800_000, "2d");
        check_duration("0s", 0, "0s");
        for wrong in
            ["", "25", "s", "1.5s", "-1s", "1h30m", "1S", "1 s s", "99999999999999999999s", "9999999999999999h"]
        {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        check_size("4096", 4096, "4KiB");
        check_size("256B", 256, "256B");
        check_size("1MB", 1_000_000, "1MB");
        check_size("64KiB", 65_536, "64KiB");
        check_size("1 GiB", 1 << 30, "1GiB");
        check_size("7kB", 7000, "7KB");
        check_size("0", 0, "0");
        for wrong in ["", "B", "1.5MB", "-1", "1 mb", "1K", "99999999999999999999", "99999999999999GiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}

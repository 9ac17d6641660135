//! How values are written: numbers, durations, sizes, addresses, `auto`.
//! Law: a duration always names its unit, so that no number is ever taken for the wrong one.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::keys::Location;
use super::network::Network;
use super::node::{Ranged, Word};
use super::origin::OriginPattern;
use super::{Algorithm, Auto, Secret};

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

/// A number of bytes. Written `4096`, `256B`, `1MB` (1,000,000) or `64KiB` (65,536).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// Implements what a number needs to be a value.
macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Word for $number {
            fn form() -> String {
                "a whole number".to_owned()
            }

            fn parse(text: &str) -> Result<Self, String> {
                let wrong = |_| format!("`{text}` is not a whole number in range: write digits alone, without a unit");
                text.trim().parse().map_err(wrong)
            }

            fn shown(&self) -> Value {
                (*self).into()
            }
        }

        impl Ranged for $number {
            type Bound = Self;

            fn bound(&self) -> Option<Self> {
                Some(*self)
            }

            fn show(bound: &Self) -> String {
                bound.to_string()
            }
        }
    )+};
}

numbers!(u8, u16, u32, u64, usize);

impl Word for bool {
    fn form() -> String {
        "true | false".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => Err(format!("`{text}` is neither true nor false: write one of them")),
        }
    }

    fn shown(&self) -> Value {
        (*self).into()
    }
}

impl Word for String {
    fn form() -> String {
        "text".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn shown(&self) -> Value {
        self.as_str().into()
    }
}

impl Word for PathBuf {
    fn form() -> String {
        "the path of a file".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }

    fn shown(&self) -> Value {
        self.to_string_lossy().into()
    }
}

impl Word for Secret {
    fn form() -> String {
        "text that is never shown".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::new(text))
    }

    fn shown(&self) -> Value {
        SECRET_MASK.into()
    }
}

impl Word for Location {
    fn form() -> String {
        "text".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::new(text))
    }

    fn shown(&self) -> Value {
        self.shown().into()
    }
}

impl Word for Duration {
    fn form() -> String {
        "a duration such as 250ms, 25s, 5m, 1h".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        parse_duration(text)
    }

    fn shown(&self) -> Value {
        show_duration(*self).into()
    }
}

impl Ranged for Duration {
    type Bound = Self;

    fn bound(&self) -> Option<Self> {
        Some(*self)
    }

    fn show(bound: &Self) -> String {
        show_duration(*bound)
    }
}

impl Word for Size {
    fn form() -> String {
        "a size such as 4096, 64KiB, 1MB".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        parse_size(text).map(Self)
    }

    fn shown(&self) -> Value {
        show_size(self.0).into()
    }
}

impl Ranged for Size {
    type Bound = usize;

    fn bound(&self) -> Option<usize> {
        Some(self.0)
    }

    fn show(bound: &usize) -> String {
        show_size(*bound)
    }
}

impl Word for SocketAddr {
    fn form() -> String {
        "an address such as 127.0.0.1:8080 or [::1]:8080".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = |_| format!("`{text}` is not an address: write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080");
        text.parse().map_err(wrong)
    }

    fn shown(&self) -> Value {
        self.to_string().into()
    }
}

impl Word for Network {
    fn form() -> String {
        "an address, or a network such as 10.0.0.0/8".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.trim().parse()
    }

    fn shown(&self) -> Value {
        self.to_string().into()
    }
}

impl Word for OriginPattern {
    fn form() -> String {
        "same_host, null, * or an origin such as https://example.com, https://*.example.com".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.trim().parse()
    }

    fn shown(&self) -> Value {
        self.to_string().into()
    }
}

impl Word for Algorithm {
    fn form() -> String {
        "HS256/384/512, RS256/384/512, PS256/384/512, ES256/384, EdDSA".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| format!("`{text}` is no algorithm; write {}", <Self as Word>::form()))
    }

    fn shown(&self) -> Value {
        format!("{self:?}").into()
    }
}

impl<T: Word> Word for Auto<T> {
    fn form() -> String {
        format!("auto, or {}", T::form())
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let wrong = |_| format!("`{text}` is not possible: write auto or {} in range", T::form());
        T::parse(text).map(Self::Value).map_err(wrong)
    }

    fn shown(&self) -> Value {
        match self {
            Self::Auto => "auto".into(),
            Self::Value(value) => value.shown(),
        }
    }
}

impl<T: Ranged> Ranged for Auto<T> {
    type Bound = T::Bound;

    fn bound(&self) -> Option<T::Bound> {
        match self {
            Self::Auto => None,
            Self::Value(value) => value.bound(),
        }
    }

    fn show(bound: &T::Bound) -> String {
        T::show(bound)
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

/// What is shown in place of a secret.
pub(super) const SECRET_MASK: &str = "***";

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

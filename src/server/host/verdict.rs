//! How well something is, and numbers as people read them.

use serde::Serialize;

/// How well something is, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Nothing is wrong; worth knowing.
    Note,
    /// It works, slower or less evenly than it could.
    Warning,
    /// It could not be read, so nobody knows.
    Unknown,
    /// It will break.
    Bad,
}

impl Verdict {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Bad => "bad",
        }
    }
}

/// A number with its thousands apart.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of `unit`; bytes in the largest binary unit of which there is one at least.
pub(super) fn amount(number: u64, unit: &str) -> String {
    if number == u64::MAX {
        return "unlimited".to_owned();
    }
    if unit != "bytes" {
        let plural = [("entries", "entry"), ("addresses", "address")];
        let one = || plural.iter().find_map(|(many, one)| Some(format!("{}{one}", unit.strip_suffix(many)?)));
        let unit = if number == 1 { one().unwrap_or_else(|| unit.trim_end_matches('s').into()) } else { unit.into() };
        return format!("{} {unit}", thousands(number));
    }
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(size, _)| number >= *size) {
        Some(&(size, name)) => format!("{:.1} {name}", number as f64 / size as f64),
        None => format!("{number} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_048_576, "1,048,576")] {
            assert_eq!(thousands(number), text);
        }
        for (number, text) in [(1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (u64::MAX, "unlimited")] {
            assert_eq!(amount(number, "bytes"), text);
        }
        assert_eq!(amount(65_535, "connections"), "65,535 connections");
        for (unit, one) in
            [("shards", "1 shard"), ("entries", "1 entry"), ("listening addresses", "1 listening address")]
        {
            assert_eq!(amount(1, unit), one);
        }
    }

    #[test]
    fn the_worst_is_the_largest() {
        assert!(Verdict::Bad > Verdict::Unknown && Verdict::Unknown > Verdict::Warning && Verdict::Note > Verdict::Ok);
    }
}

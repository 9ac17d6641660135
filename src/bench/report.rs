//! What a run found: figures, latencies, and what was not as it must be.
//! Law: a run without findings has verified all it received; a figure has its unit in its name.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::counts::Count;
use super::crew::Crew;
use super::observe::Look;

/// Durations, to three digits, up to ten minutes.
#[derive(Clone, Debug)]
pub struct Durations(Histogram<u64>);

impl Default for Durations {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, MOST_NS, 3).expect("these bounds are legal"))
    }
}

impl Durations {
    /// One more, in nanoseconds.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Takes in all of another.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds are the same");
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The least duration that so large a part (0 to 1) of all does not exceed, in nanoseconds.
    pub fn quantile_ns(&self, part: f64) -> u64 {
        self.0.value_at_quantile(part)
    }
}

impl Serialize for Durations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.len())?;
        for (name, part) in QUANTILES {
            map.serialize_entry(&format!("{name}_us"), &(self.quantile_ns(part) as f64 / 1e3))?;
        }
        map.end()
    }
}

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Which run.
    pub scenario: &'static str,
    figures: Vec<(&'static str, f64)>,
    durations: Vec<(&'static str, Durations)>,
    /// What was not as it must be; none: all that came was verified.
    pub findings: Vec<String>,
}

impl Report {
    pub(super) fn new(scenario: &'static str) -> Self {
        Self { scenario, ..Self::default() }
    }

    /// Adds a figure; one that cannot be had here is left out.
    pub(super) fn figure(&mut self, name: &'static str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into().filter(|value| value.is_finite()) {
            self.figures.push((name, value));
        }
    }

    /// What the server spent between two looks, in all and for each of so many.
    pub(super) fn spent(&mut self, before: &Look, after: &Look, elapsed: Duration, (each, name): (f64, &'static str)) {
        let cpu = || Some(after.cpu?.checked_sub(before.cpu?)?.as_secs_f64());
        self.figure(name, cpu().map(|seconds| seconds * 1e9 / each));
        self.figure("server_cpu_percent_of_a_core", cpu().map(|seconds| seconds * 100.0 / elapsed.as_secs_f64()));
        self.figure("server_user_bytes", after.user_bytes.map(|bytes| bytes as f64));
    }

    pub(super) fn durations(&mut self, name: &'static str, durations: Durations) {
        if !durations.is_empty() {
            self.durations.push((name, durations));
        }
    }

    /// Adds a finding if there is something to find.
    pub(super) fn find(&mut self, count: u64, what: &str) {
        if count > 0 {
            self.findings.push(format!("{count} {what}"));
        }
    }

    /// Adds a finding if connections ended that nobody wanted to end.
    pub(super) fn find_ends<O: Send + 'static>(&mut self, crew: &Crew<'_, O>) {
        self.find(
            crew.sum(Count::Closed) + crew.sum(Count::Lost),
            &format!("connections ended by themselves{}", crew.ends()),
        );
    }

    /// Adds a finding if the server refused requests.
    pub(super) fn find_refusals<O: Send + 'static>(&mut self, crew: &Crew<'_, O>) {
        let (refused, refusals) = crew.refusals();
        self.find(refused, &refusals);
    }

    /// A figure by its name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(of, _)| *of == name).map(|(_, value)| *value)
    }

    /// The report as JSON.
    ///
    /// # Panics
    /// Never: it has nothing that JSON has not.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and text")
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("scenario", self.scenario)?;
        map.serialize_entry("figures", &Pairs(&self.figures))?;
        map.serialize_entry("latency", &Pairs(&self.durations))?;
        map.serialize_entry("findings", &self.findings)?;
        map.end()
    }
}

struct Pairs<'a, T>(&'a [(&'static str, T)]);

impl<T: Serialize> Serialize for Pairs<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.figures {
            writeln!(f, "{:<44} {:>16}", name.replace('_', " "), Grouped(*value))?;
        }
        for (name, durations) in &self.durations {
            write!(f, "{:<44} ", format!("{} µs", name.replace('_', " ")))?;
            for (quantile, part) in QUANTILES {
                write!(f, " {quantile} {}", Grouped(durations.quantile_ns(part) as f64 / 1e3))?;
            }
            writeln!(f)?;
        }
        match self.findings.as_slice() {
            [] => writeln!(f, "verified: all that came is what had to come"),
            findings => findings.iter().try_for_each(|finding| writeln!(f, "FOUND: {finding}")),
        }
    }
}

/// A number for people: thousands apart, and as many decimals as say something.
struct Grouped(f64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.0.abs() {
            whole if whole.fract() == 0.0 || whole >= 1e3 => 0,
            small if small >= 10.0 => 1,
            _ => 2,
        };
        let text = format!("{:.decimals$}", self.0);
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let mut grouped = String::new();
        for (at, digit) in whole.chars().enumerate() {
            if at > 0 && (whole.len() - at) % 3 == 0 && !grouped.ends_with('-') {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        if !fraction.is_empty() {
            grouped = format!("{grouped}.{fraction}");
        }
        f.pad(&grouped)
    }
}

const QUANTILES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
const MOST_NS: u64 = 600_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let check = |value: f64, text: &str| assert_eq!(Grouped(value).to_string(), text);
        check(0.0, "0");
        check(0.456, "0.46");
        check(12.34, "12.3");
        check(999.0, "999");
        check(1234567.8, "1,234,568");
        check(-1000.0, "-1,000");
    }

    #[test]
    fn a_report_is_text_and_json() {
        let mut report = Report::new("echo");
        report.figure("messages", 1000.0);
        report.figure("unknown", None);
        let mut durations = Durations::default();
        (1..=1000).for_each(|us| durations.record(us * 1000));
        report.durations("round_trip", durations);
        report.find(0, "ghosts");
        report.find(3, "messages were lost");
        let text = report.to_string();
        assert!(
            text.contains("1,000") && text.contains("FOUND: 3 messages were lost") && !text.contains("ghosts"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["figures"]["messages"], 1000.0);
        assert_eq!(json["figures"].as_object().unwrap().len(), 1);
        let p99 = json["latency"]["round_trip"]["p99_us"].as_f64().unwrap();
        assert!((989.0..=992.0).contains(&p99), "{p99}");
        assert_eq!(json["findings"][0], "3 messages were lost");
    }
}

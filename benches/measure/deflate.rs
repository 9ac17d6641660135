//! Compressed fan-out: what a delivery costs the server when its subscribers take it compressed, beside the same message plain.
//!
//! Law: both servers get the same messages, by turns. What one compression costs is the difference between two more servers,
//! each with one subscriber, where it does not drown in the deliveries.

use std::io;
use std::time::Duration;

use super::fanout::{FanoutLoad, Measured};
use super::json;
use super::server::Kind;
use super::table::{Table, median};

/// Prints what a delivery costs, one publish at a time and several on their way.
///
/// # Errors
/// A server failed.
pub fn compare(rounds: usize, seconds: f64, subscribers: usize, in_flight: &[u64]) -> io::Result<()> {
    let duration = Duration::from_secs_f64(seconds);
    let name = format!("server CPU ns a delivery of 1 KB of JSON to {subscribers} subscribers (median of rounds)");
    let mut table = Table::new(&name, &["plain", "compressed"]);
    for &in_flight in in_flight {
        let mut pairs = [Pair::start(subscribers, in_flight)?, Pair::start(1, 1)?];
        for _ in 0..rounds {
            for pair in &mut pairs {
                pair.measure(duration)?;
            }
        }
        let [many, one] = &pairs;
        table.row(&format!("{in_flight} in flight"), &many.medians(|m| m.cpu_ns), 0);
        let compression = one.compare(|plain, deflated| deflated - plain);
        let each = compression / subscribers as f64;
        table.row(
            "  × plain, the one compression apart",
            &[1.0, many.compare(|plain, deflated| (deflated - each) / plain)],
            3,
        );
        table.row("  × plain, with it", &[1.0, many.compare(|plain, deflated| deflated / plain)], 3);
        table.row("  bytes on the wire", &many.medians(|m| m.bytes), 0);
        table.row("  deliveries a second", &many.medians(|m| m.per_second), 0);
        table.row("a publish to a single subscriber", &one.medians(|m| m.cpu_ns), 0);
        table.row("  of which the compression", &[f64::NAN, compression], 0);
    }
    table.print()
}

/// Two servers, one with plain and one with compressed deliveries, and what was measured of each.
struct Pair([(FanoutLoad, Vec<Measured>); 2]);

impl Pair {
    fn start(subscribers: usize, in_flight: u64) -> io::Result<Self> {
        let load = |kind| FanoutLoad::start(kind, subscribers, in_flight, json::trades);
        Ok(Self([(load(Kind::Tidewheel)?, Vec::new()), (load(Kind::TidewheelDeflate)?, Vec::new())]))
    }

    fn measure(&mut self, duration: Duration) -> io::Result<()> {
        for (load, measured) in &mut self.0 {
            measured.push(load.measure(duration)?);
        }
        Ok(())
    }

    fn medians(&self, figure: fn(&Measured) -> f64) -> [f64; 2] {
        [0, 1].map(|of| median(self.0[of].1.iter().map(figure)))
    }

    /// Of the CPU times of the same round each: what disturbs a round disturbs both.
    fn compare(&self, both: impl Fn(f64, f64) -> f64) -> f64 {
        let [(_, plain), (_, deflated)] = &self.0;
        median(plain.iter().zip(deflated).map(|(plain, deflated)| both(plain.cpu_ns, deflated.cpu_ns)))
    }
}

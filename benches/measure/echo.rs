//! Echo: what a message costs a server that sends it back.
//!
//! Law: the servers take turns, so that what disturbs the machine disturbs all of them. On the wire a WebSocket message of
//! 64 bytes is 70 bytes in and 66 out; the bare servers get messages of 68 bytes, which are as many bytes in all.

use std::io;
use std::time::Duration;

use super::load::{EchoLoad, Measured};
use super::server::Kind;
use super::table::{Table, median};

/// Prints what a message costs each server, for some numbers of connections and messages in flight.
///
/// # Errors
/// A server failed.
pub fn compare(
    rounds: usize,
    seconds: f64,
    cases: &[(usize, u32)],
    payload_bytes: usize,
    servers: &[Kind],
) -> io::Result<()> {
    let duration = Duration::from_secs_f64(seconds);
    let labels: Vec<_> = servers.iter().map(|kind| kind.label()).collect();
    let name = format!("server CPU ns a message of {payload_bytes} B (median of rounds)");
    let mut table = Table::new(&name, &labels);
    for &(connections, in_flight) in cases {
        let mut loads = Vec::new();
        for &kind in servers {
            loads.push(EchoLoad::start(kind, connections, in_flight, payload_bytes)?);
        }
        let mut measured = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            for (load, measured) in loads.iter_mut().zip(&mut measured) {
                measured.push(load.measure(|_, elapsed| elapsed >= duration)?);
            }
        }
        let all = |figure: fn(&Measured) -> f64| -> Vec<f64> {
            measured.iter().map(|rounds| median(rounds.iter().map(figure))).collect()
        };
        let name = match in_flight {
            1 => format!("{connections} connections"),
            _ => format!("{connections} connections × {in_flight} in flight"),
        };
        table.row(&name, &all(cpu_ns), 0);
        // Of the same round each: what disturbs a round disturbs both.
        let ratios: Vec<f64> = measured
            .iter()
            .map(|rounds| median(rounds.iter().zip(&measured[0]).map(|(own, floor)| cpu_ns(own) / cpu_ns(floor))))
            .collect();
        table.row(&format!("  × {}", labels[0]), &ratios, 3);
        table.row("  messages a turn", &all(|m| m.messages as f64 / m.turns as f64), 1);
        table.row("  messages a second", &all(|m| m.messages as f64 / m.elapsed.as_secs_f64()), 0);
        table.row("  receives without a buffer ‰", &all(|m| m.starved as f64 * 1000.0 / m.messages as f64), 2);
    }
    table.print()
}

fn cpu_ns(measured: &Measured) -> f64 {
    measured.cpu.as_nanos() as f64 / measured.messages as f64
}

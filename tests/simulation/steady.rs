//! Rates over ten seconds of virtual time, within two percent, and on shards that share them.
//!
//! Who always asks for more than it may gets, of a bucket that was full, the burst and what the rate brings meanwhile:
//! never more than that, and no less than two percent short of ten seconds' worth. At one a second and a burst of one
//! that is ten or eleven.

use std::net::IpAddr;
use std::sync::Arc;

use tidewheel::app::ConnectionAttempts;
use tidewheel::config::AttemptRate;
use tidewheel::conn::RateLimits;
use tidewheel::fixed::Rate;
use tidewheel::io::sim::SimConfig;

use crate::stage::Stage;

const SECONDS: u64 = 10;
const KERNEL: SimConfig = SimConfig { table: 400, buffers: 64, buffer_size: 4096 };

/// What was admitted from the first time to the end of `took_ms`, which the last round may overrun: 150 newcomers a shard are 50 turns.
#[track_caller]
fn check(Rate { per_second, burst }: Rate, admitted: u64, took_ms: u64) {
    assert!((SECONDS * 1000..SECONDS * 1000 + 400).contains(&took_ms), "{took_ms} ms");
    let (per_second, burst) = (u64::from(per_second), u64::from(burst));
    let most = burst + per_second * took_ms / 1000;
    let least = burst + SECONDS * per_second * 98 / 100;
    assert!((least..=most).contains(&admitted), "{admitted} in {took_ms} ms at {per_second}/s, not {least} to {most}");
}

#[test]
fn attempts_of_one_address_on_four_shards() {
    for (per_second, burst, at_once) in [(1, 1, 4), (10, 5, 4), (1000, 600, 600)] {
        let config = AttemptRate { per_second, burst, ..AttemptRate::default() };
        let attempts = Arc::new(ConnectionAttempts::new(&config));
        let mut stage = Stage::on_kernel(KERNEL, 7, 4, 8, |settings| {
            settings.attempts = Some(attempts.clone());
            (settings.connections_max, settings.slots) = (1600, 400);
        });
        let address: IpAddr = "198.51.100.7".parse().unwrap();
        let begin_ms = stage.world.now().monotonic_ms();
        let (mut admitted, mut refused, mut took_ms) = (0, 0, 0);
        while took_ms < SECONDS * 1000 {
            let crowd: Vec<usize> = (0..at_once).map(|at| stage.newcomer_from(address, at % 4)).collect();
            stage.rest();
            for client in crowd {
                match stage.response(client) {
                    Some(101) => admitted += 1,
                    Some(429) => refused += 1,
                    other => panic!("answered {other:?}"),
                }
                stage.world.client_reset(stage.id(client));
            }
            took_ms = stage.world.now().monotonic_ms() - begin_ms;
        }
        check(Rate { per_second, burst }, admitted, took_ms);
        assert!(refused > 0, "it never asked for more than it may");
        let opened: Vec<u64> = stage.metrics.iter().map(|shard| shard.opened.get()).collect();
        assert!(opened.iter().all(|&opened| opened > 20), "not on every shard: {opened:?}");
        // Nobody else has spent anything.
        let other = stage.newcomer_from("198.51.100.8".parse().unwrap(), 0);
        stage.rest();
        assert_eq!(stage.response(other), Some(101));
    }
}

/// Refusals stay below those that close a connection, so this asks for little more than it may.
#[test]
fn messages_of_one_connection() {
    for (per_second, burst, asked_per_second) in [(1, 1, 15), (10, 5, 28), (1000, 200, 1018)] {
        let rate = Rate { per_second, burst };
        let mut stage = Stage::on_kernel(KERNEL, 7, 1, 8, |settings| {
            settings.rates = RateLimits { messages: Some(rate), ..RateLimits::default() };
        });
        let client = stage.client(0);
        let begin_ms = stage.world.now().monotonic_ms();
        let (mut asked, mut told, mut took_ms) = (0, String::new(), 0);
        while took_ms < SECONDS * 1000 {
            let due = u64::from(burst) + took_ms * asked_per_second / 1000;
            let pings = vec![r#"{"id":1,"type":"ping"}"#; (due - asked) as usize];
            asked = due;
            stage.send(client, &pings);
            stage.rest();
            told.push_str(&stage.told(client));
            took_ms = stage.world.now().monotonic_ms() - begin_ms;
        }
        let (answered, refused) = (told.matches("pong 1").count() as u64, told.matches("error 1").count() as u64);
        assert_eq!(answered + refused, asked, "every message is answered");
        assert!(refused > 0, "it never asked for more than it may");
        check(rate, answered, took_ms);
    }
}

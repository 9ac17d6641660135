//! When key sets are looked at: one task for each source, so that a slow one holds up no other.
//! Law: at most one look at a source within `auth.jwks_interval`, whatever tokens ask for; a source that fails is asked
//! less and less often, and never by all servers at the same moment.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::Running;
use super::{Place, Source};

/// Keeps the key sets of the configuration in force fresh until the runtime ends.
pub(in super::super) async fn keep(running: Arc<Running>) {
    let mut tended: Vec<(Arc<Source>, JoinHandle<()>)> = Vec::new();
    loop {
        let wanted = running.key_sources();
        tended.retain(|(source, task)| {
            let stays = wanted.iter().any(|wanted| Arc::ptr_eq(wanted, source));
            if !stays {
                task.abort();
            }
            stays
        });
        for source in wanted {
            if !tended.iter().any(|(other, _)| Arc::ptr_eq(other, &source)) {
                let task = tokio_uring::spawn(tend(source.clone(), running.clone()));
                tended.push((source, task));
            }
        }
        running.key_sources_changed().await;
    }
}

async fn tend(source: Arc<Source>, running: Arc<Running>) {
    let interval = source.terms.interval;
    let is_file = matches!(source.place, Place::File(_));
    if is_file {
        sleep(interval).await; // it has just been read
    }
    let mut failures = 0;
    loop {
        let looked_at = Instant::now();
        // What is asked for while it is fetched may not be in the answer.
        source.wish.lower();
        let outcome = source.look().await;
        if let Ok((_, true)) = outcome {
            running.take_up_keys();
        }
        failures = if outcome.is_ok() { 0 } else { failures + 1 };
        match outcome {
            _ if is_file => sleep(interval).await,
            Ok((fresh, _)) => {
                let early = async {
                    source.wish.wished().await;
                    sleep_until(looked_at + interval).await;
                };
                tokio::select! {
                    () = sleep(ahead(fresh, interval, dice())) => {}
                    () = early => {}
                }
            }
            Err(()) => sleep(back_off(interval, source.terms.lifetime, failures, dice())).await,
        }
    }
}

/// How long to wait before a set that is fresh for so long is fetched again: from seven to nine tenths of it.
fn ahead(fresh: Duration, interval: Duration, dice: f64) -> Duration {
    fresh.mul_f64(0.7 + 0.2 * dice).max(interval)
}

/// How long to wait after so many failures in a row: from one interval to two, and twice as long after each more.
fn back_off(interval: Duration, most: Duration, failures: u32, dice: f64) -> Duration {
    let doubled = interval.saturating_mul(1 << failures.clamp(1, 17));
    doubled.min(most.max(2 * interval)).mul_f64(0.5 + 0.5 * dice)
}

/// From 0 to 1.
fn dice() -> f64 {
    // Without random bytes there is no jitter, which is no reason to stop.
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits() {
        let seconds = Duration::from_secs;
        let ahead = |fresh, dice| ahead(seconds(fresh), seconds(10), dice);
        assert_eq!((ahead(100, 0.0), ahead(100, 1.0)), (seconds(70), seconds(90)));
        let check = |failures, dice, expected: f64| {
            let wait = back_off(seconds(10), seconds(300), failures, dice).as_secs_f64();
            assert!((wait - expected).abs() < 1e-6, "{failures}: {wait}");
        };
        check(1, 0.0, 10.0);
        check(1, 1.0, 20.0);
        check(2, 1.0, 40.0);
        check(4, 1.0, 160.0);
        check(5, 1.0, 300.0);
        check(u32::MAX, 0.0, 150.0);
    }

    /// `auth.jwks_interval` is the least time between two looks, whatever comes of them.
    #[test]
    fn no_wait_is_shorter_than_the_interval() {
        let interval = Duration::from_secs(10);
        for (dice, lifetime_s) in [(0.0, 1), (1.0, 1), (0.0, 10), (0.5, 15), (0.0, 300)] {
            let lifetime = Duration::from_secs(lifetime_s);
            for failures in 1..40 {
                assert!(back_off(interval, lifetime, failures, dice) >= interval, "{failures}, {dice}, {lifetime_s}");
            }
            assert!(ahead(lifetime.max(interval), interval, dice) >= interval, "{dice}, {lifetime_s}");
        }
    }
}

//! Rates over ten seconds of real time. The same in virtual time, where nothing is late, is in the simulation.
//!
//! Who always asks for more than it may gets at most the burst and what the rate brings. It gets two percent less at most,
//! unless this program was kept from asking for longer than the burst lasts; then the bucket ran over meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use super::raw::{self, Raw};
use super::server::Server;

const TIME: Duration = Duration::from_secs(10);

/// Asks again and again, with a pause in between; `ask` returns how much was granted.
#[track_caller]
fn check(what: &str, per_second: u32, burst: u32, pause: Duration, mut ask: impl FnMut() -> u64) {
    let begin = Instant::now();
    let (mut granted, mut last, mut longest) = (0, begin, Duration::ZERO);
    while last - begin < TIME {
        granted += ask();
        thread::sleep(pause);
        let now = Instant::now();
        (longest, last) = (longest.max(now - last), now);
    }
    let (rate, burst) = (f64::from(per_second), f64::from(burst));
    let most = burst + rate * begin.elapsed().as_secs_f64();
    assert!(granted as f64 <= most, "{what}: {granted}, more than {most}");
    let least = burst + rate * (last - begin - longest).as_secs_f64() - rate * TIME.as_secs_f64() * 0.02 - 1.0;
    let was_kept = longest.as_secs_f64() * rate > burst;
    assert!(was_kept || granted as f64 >= least, "{what}: {granted}, less than {least}");
}

fn attempts(per_second: u32, burst: u32, pause: Duration) {
    let limits = format!("limits: {{connection_attempts: {{per_second: {per_second}, burst: {burst}}}}}");
    let server = Server::build(4, &limits, |builder| builder);
    check(&format!("{per_second} attempts/s"), per_second, burst, pause, || {
        let mut raw: Raw = server.raw();
        raw.write(raw::request("/ws").as_bytes());
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 ") || head.starts_with("HTTP/1.1 429 "), "{head}");
        u64::from(head.starts_with("HTTP/1.1 101 "))
    });
    server.rest();
}

/// So few are refused that the connection lives: a little more than the rate is asked for, in all.
fn messages(per_second: u32, burst: u32, pause: Duration, surplus_per_second: u32) {
    let server =
        Server::start(&format!("limits: {{messages: {{per_second: {per_second}, burst: {burst}}}, bytes: null}}"));
    let mut raw = server.raw_open();
    let (begin, mut asked) = (Instant::now(), 0);
    check(&format!("{per_second} messages/s"), per_second, burst, pause, || {
        let due = f64::from(burst) + begin.elapsed().as_secs_f64() * f64::from(per_second + surplus_per_second);
        let count = due as u64 - asked;
        asked += count;
        raw.write(&raw::text(r#"{"type":"ping"}"#).repeat(count as usize));
        (0..count).filter(|_| raw.json()["type"] == "pong").count() as u64
    });
    drop(raw);
    server.rest();
}

#[test]
fn rates_hold_over_ten_seconds() {
    let ms = Duration::from_millis;
    thread::scope(|scope| {
        scope.spawn(|| attempts(1, 2, ms(100)));
        scope.spawn(|| attempts(10, 5, ms(30)));
        scope.spawn(|| messages(1, 2, ms(20), 14));
        scope.spawn(|| messages(10, 5, ms(10), 14));
        scope.spawn(|| messages(1000, 300, ms(5), 15));
    });
}

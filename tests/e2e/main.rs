//! The whole engine from outside: real sockets on 127.0.0.1, clients that behave and clients that do not.
//! Law: no test measures time. It waits for an event, and only a deadline that no healthy machine reaches ends the wait;
//! and every test leaves the engine as it was, which [`server::Server::rest`] looks at.

mod api;
mod api_bounds;
mod auth;
mod backpressure;
mod bad_input;
mod bench;
mod boundaries;
mod certificates;
mod churn;
mod client;
mod commands;
mod credentials;
mod deflate;
mod drain;
mod errands;
mod eviction;
mod farewell;
mod floods;
mod fragments;
mod fuzz;
mod handlers;
mod handshake;
mod http;
mod key_sets;
mod lifecycle;
mod limits;
mod live;
mod load;
mod matrix;
mod order;
mod origins;
mod policies;
mod ports;
mod process;
mod proxies;
mod python;
mod raw;
mod reload;
mod scrape;
mod secrets;
mod server;
mod sessions;
mod steady;
mod tls;
mod turnover;

use std::time::{Duration, Instant};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `is_so` says yes.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

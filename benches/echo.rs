//! What an echoed message costs a whole server in CPU, user and system: the engine, a bare TCP echo on its driver and one
//! on tokio-uring. `cargo run --release --example measure -- echo` measures the same in turns, which is fairer on a machine
//! that is not quiet.
//!
//! Law: each server is a process of its own on the first core, the clients are on the last and check every byte.

#[path = "measure/child.rs"]
#[allow(dead_code, reason = "its memory is of no interest here")]
mod child;
#[path = "measure/lanes.rs"]
mod lanes;
#[path = "measure/load.rs"]
#[allow(dead_code, reason = "CPU time alone is of interest here")]
mod load;
#[path = "measure/secure.rs"]
#[allow(dead_code, reason = "nobody asks what was agreed on")]
mod secure;
#[path = "measure/server.rs"]
#[allow(dead_code, reason = "nothing is compressed here")]
mod server;
#[path = "measure/tokio_tls.rs"]
mod tokio_tls;
#[path = "measure/websocket.rs"]
#[allow(dead_code, reason = "nobody asks or is pinged here")]
mod websocket;

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use tidewheel::io::affinity;

use load::EchoLoad;
use server::Kind;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("serve") {
        let kind = Kind::from_str(&arguments.next().unwrap_or_default(), false).map_err(io::Error::other)?;
        let core = arguments.next().and_then(|core| core.parse().ok()).unwrap_or_default();
        return server::serve(kind, core);
    }
    let cores = affinity::allowed_cores()?;
    child::CORE.get_or_init(|| cores[0]);
    affinity::pin(cores[cores.len() - 1])?;
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4));
    cpu(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// What does a message cost the server's core, with one and with sixteen messages in flight on each connection?
fn cpu(c: &mut Criterion) -> io::Result<()> {
    let mut group = c.benchmark_group("echo cpu");
    group.throughput(Throughput::Elements(1)).sampling_mode(SamplingMode::Flat);
    for (connections, in_flight) in [(64, 1), (1000, 1), (64, 16)] {
        for kind in [Kind::BareEcho, Kind::Tidewheel, Kind::TidewheelPoll, Kind::TokioUring] {
            let mut load = EchoLoad::start(kind, connections, in_flight, 64)?;
            let id = BenchmarkId::new(kind.label(), format!("{connections}x{in_flight}"));
            group.bench_function(id, |b| {
                b.iter_custom(|messages| {
                    let least = messages.max(MESSAGES_MIN);
                    let measured = load.measure(|came, _| came >= least).expect("every message comes back");
                    measured.cpu.mul_f64(messages as f64 / measured.messages as f64)
                });
            });
        }
    }
    group.finish();
    Ok(())
}

/// The kernel's account of a running thread is a tick old, which must not show.
const MESSAGES_MIN: u64 = 50_000;

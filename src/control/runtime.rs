//! What runs on the control thread, and the process's signals.
//! Law: the first SIGTERM or SIGINT drains, the second ends the process at once, whatever the first one is doing.

use std::io;
use std::process;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::exposition::Exposition;
use super::{ControlSettings, Running, api, drain, http, keys, turned_away};

/// Runs the control plane until `stop` resolves, which it does when its sender is dropped. `started` is told once
/// everything is listened to, or what went wrong.
pub(super) fn run(
    settings: ControlSettings,
    started: &mpsc::Sender<io::Result<Handle>>,
    mut stop: oneshot::Receiver<()>,
) {
    let runtime = match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => runtime,
        Err(error) => return report(started, Err(error)),
    };
    runtime.block_on(async move {
        match begin(settings) {
            Ok(()) => report(started, Ok(Handle::current())),
            Err(error) => return report(started, Err(error)),
        }
        // An error says that the sender is gone, which is the wish to stop.
        let _ = (&mut stop).await;
    });
    // Dropping the runtime ends its tasks and closes their sockets.
}

/// Whoever started the thread waits for this message, so it cannot be gone; if it panicked meanwhile, nobody misses it.
fn report(started: &mpsc::Sender<io::Result<Handle>>, outcome: io::Result<Handle>) {
    let _ = started.send(outcome);
}

fn begin(settings: ControlSettings) -> io::Result<()> {
    let ControlSettings { admin, metrics, holdings, phase, page, drains, running, signals, on_terminate } = settings;
    if signals {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio_uring::spawn(terminate_on_signal(terminate, interrupt, on_terminate));
        tokio_uring::spawn(reload_on_signal(signal(SignalKind::hangup())?, running.clone()));
    }
    tokio_uring::spawn(drain::log_progress(drains.clone()));
    tokio_uring::spawn(keys::keep(running.clone()));
    tokio_uring::spawn(turned_away::log(metrics.clone()));
    if let Some(listener) = admin {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (router, usage) = api::build(running.clone(), drains, metrics.clone());
        let exposition = Exposition::new(metrics, phase.clone(), holdings, running.clone(), usage);
        tokio_uring::spawn(http::serve(listener, exposition, (phase, running), page, router));
    }
    Ok(())
}

async fn terminate_on_signal(mut terminate: Signal, mut interrupt: Signal, on_terminate: Box<dyn Fn() + Send>) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let name = next().await;
    tracing::info!(signal = name, "a signal to end: a second one ends the process at once");
    on_terminate();
    let name = next().await;
    tracing::warn!(signal = name, "second signal: ending without finishing the drain");
    // The log's writer is a thread of its own and may be blocked for good: give it a moment, not a promise.
    thread::sleep(LOG_FLUSH);
    process::exit(1);
}

async fn reload_on_signal(mut hangup: Signal, running: Arc<Running>) {
    while hangup.recv().await.is_some() {
        // Which logs what came of it.
        let _ = running.reload_from_sources();
    }
}

/// How long the last log line of a forced exit may take to be written.
const LOG_FLUSH: Duration = Duration::from_millis(100);

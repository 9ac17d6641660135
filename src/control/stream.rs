//! Connections to the internal port, with the patience they are given.
//! Law: at most [`CONNECTIONS_MAX`] have a place. Where none is free, a newcomer gets that of whoever has kept the port
//! waiting longest: for the rest of a request, for room for an answer, or for the next request. Whoever does not go on in
//! time is cut off, so every place becomes free again whatever its holder does; whose request is being worked on keeps it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep};

/// The port's listener, and who has a place.
pub(super) struct BoundedListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// Those who have a place; perhaps some who have just left theirs.
    holders: Vec<(Arc<Holder>, AbortHandle)>,
    /// Events so far, by which holders are told apart.
    clock: Arc<AtomicU64>,
}

/// What is known of whoever has a place.
pub(super) struct Holder {
    /// Since when it has kept the port waiting; [`WORKED_ON`] while it does not.
    waits_since: AtomicU64,
    clock: Arc<AtomicU64>,
}

impl Holder {
    /// The port has a whole request of it, and works on that until the guard drops.
    pub(super) fn work(self: &Arc<Self>) -> Work {
        self.waits_since.store(WORKED_ON, Relaxed);
        Work(Arc::clone(self))
    }

    fn wait(&self) {
        self.waits_since.store(self.clock.fetch_add(1, Relaxed), Relaxed);
    }
}

/// A request that is being worked on.
pub(super) struct Work(Arc<Holder>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.wait();
    }
}

impl BoundedListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { listener, places, holders: Vec::new(), clock: Arc::default() }
    }

    /// The next connection, with a place.
    pub(super) async fn accept(&mut self) -> BoundedStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return BoundedStream::new(stream, self.place().await),
                // The newcomer's own fault, or descriptors have run out for now; the next one may fare better.
                Err(error) => {
                    tracing::warn!(%error, "internal port: accept failed");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Serves a connection.
    pub(super) async fn spawn(&mut self, serve: impl FnOnce(Arc<Holder>) -> Pin<Box<dyn Future<Output = ()> + Send>>) {
        let holder = Arc::new(Holder { waits_since: AtomicU64::default(), clock: self.clock.clone() });
        holder.wait();
        let task = tokio::spawn(serve(holder.clone()));
        self.holders.retain(|(_, task)| !task.is_finished());
        self.holders.push((holder, task.abort_handle()));
        // It is looked at before the next newcomer, so that whoever has asked is served before it could have to go.
        tokio::task::yield_now().await;
    }

    async fn place(&mut self) -> OwnedSemaphorePermit {
        if self.places.available_permits() == 0 {
            let since = |(holder, _): &(Arc<Holder>, AbortHandle)| holder.waits_since.load(Relaxed);
            let longest = (0..self.holders.len()).min_by_key(|&at| since(&self.holders[at]));
            if let Some(at) = longest.filter(|&at| since(&self.holders[at]) != WORKED_ON) {
                self.holders.swap_remove(at).1.abort();
            }
        }
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        place
    }
}

/// A connection that fails with `TimedOut` when its deadline passes, on whichever side it is then waiting.
pub(super) struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    /// Bytes received since the last answer began; 0 while the peer is idle.
    asked: usize,
    _place: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self { stream, deadline: Box::pin(sleep(REQUEST_TIMEOUT)), asked: 0, _place: place }
    }

    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_deadline(cx)?;
        let filled = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let received = buffer.filled().len() - filled;
        if self.asked == 0 && received > 0 {
            self.deadline.as_mut().reset(Instant::now() + REQUEST_TIMEOUT);
        }
        self.asked += received;
        if self.asked > REQUEST_BYTES_MAX {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_deadline(cx)?;
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        // Only the beginning of an answer grants time, or a peer that takes one byte at a time would stay for ever.
        if self.asked > 0 {
            self.asked = 0;
            self.deadline.as_mut().reset(Instant::now() + ANSWER_TIMEOUT);
        }
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Later than every event.
const WORKED_ON: u64 = u64::MAX;
/// Connections open at once, beside the one that waits for a place. A scraper, a prober and a few open pages need a dozen.
const CONNECTIONS_MAX: usize = 256;
/// From the connect, or from the first byte of a further request, until its answer begins.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// From the beginning of an answer until the next request begins; longer than the usual scrape interval.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);
/// Request line, headers and body, with what framing a body costs; its parts have bounds of their own.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

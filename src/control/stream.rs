//! Connections to the internal port, with the patience they are given.
//! Law: at most [`CONNECTIONS_MAX`] are open, newcomers wait in the kernel's backlog; whoever does not finish a request,
//! take an answer or ask again in time is cut off, so every place becomes free again whatever its holder does.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Accepts up to the bound.
pub(super) struct BoundedListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl BoundedListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => return (BoundedStream::new(stream, place), peer),
                // The newcomer's own fault, or descriptors have run out for now; the next one may fare better.
                Err(error) => {
                    tracing::warn!(%error, "internal port: accept failed");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
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

/// Connections open at once. A scraper, a prober and a few open pages need a dozen.
const CONNECTIONS_MAX: usize = 256;
/// From the connect, or from the first byte of a further request, until its answer begins.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// From the beginning of an answer until the next request begins; longer than the usual scrape interval.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);
/// Request line, headers and body, with what framing a body costs; its parts have bounds of their own.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

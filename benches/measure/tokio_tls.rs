//! What TLS is compared with: a WebSocket echo on tokio, tokio-rustls and tungstenite, one task a connection.
//!
//! Law: it has what the engine has: one thread, no Nagle, buffers of 4 KiB, two tickets that the client keeps, and a
//! close_notify at the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::secure::{CERTIFICATE, KEY};

/// Serves one listener until the process ends; `up` is told its address.
///
/// # Errors
/// It cannot listen, or has no certificate.
pub fn serve(listener: std::net::TcpListener, up: impl FnOnce(SocketAddr) -> io::Result<()>) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(config()?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        up(listener.local_addr()?)?;
        loop {
            let (socket, _) = listener.accept().await?;
            tokio::spawn(connection(acceptor.clone(), socket));
        }
    })
}

fn config() -> io::Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?.with_no_client_auth();
    let certificate = CertificateDer::from_pem_file(CERTIFICATE).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(KEY).map_err(io::Error::other)?;
    let mut config = builder.with_single_cert(vec![certificate], key).map_err(io::Error::other)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new().map_err(io::Error::other)?;
    config.send_tls13_tickets = 2;
    Ok(config)
}

async fn connection(acceptor: TlsAcceptor, socket: TcpStream) {
    let Ok(()) = socket.set_nodelay(true) else { return };
    // Boxed: what a handshake needs is no part of the task after it.
    let Ok(stream) = Box::pin(acceptor.accept(socket)).await else { return };
    let config = WebSocketConfig::default().read_buffer_size(BUFFER_BYTES).write_buffer_size(BUFFER_BYTES);
    let Ok(mut socket) = Box::pin(accept_async_with_config(stream, Some(config))).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        // What else there is has its answer already.
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
    let _ = socket.get_mut().shutdown().await; // the peer may have gone
}

/// As the engine's.
const BUFFER_BYTES: usize = 4096;

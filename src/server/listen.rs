//! The sockets that an engine listens on.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use crate::io::listener;

/// Listens on a port that is free or about to be: the kernel takes the rings of a killed process down, and their accepts
/// and listening sockets with them, some time after the process has ended.
fn listen_soon(address: SocketAddr, shards: usize, user_timeout: Duration) -> io::Result<Vec<TcpListener>> {
    for _ in 0..PORT_RETRIES {
        match listener::listen(address, shards, user_timeout) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => thread::sleep(PORT_RETRY_PAUSE),
            outcome => return outcome,
        }
    }
    listener::listen(address, shards, user_timeout)
}

/// One listening socket for each shard on each address: `[shard][address]`, and what the addresses are.
///
/// Whoever takes nothing for `outbound.max_age` is closed by the engine within twice that, and told so if it reads again; the
/// kernel gives up later, for those for whom nothing waits but what is being sent.
pub(super) fn listen(
    addresses: &[SocketAddr],
    shards: usize,
    max_age: Duration,
) -> io::Result<(Vec<Vec<TcpListener>>, Vec<SocketAddr>)> {
    let user_timeout = (2 * max_age).max(USER_TIMEOUT_MIN);
    let mut by_shard: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    let mut bound = Vec::new();
    for &address in addresses {
        let each = listen_soon(address, shards, user_timeout)?;
        bound.push(each[0].local_addr()?);
        by_shard.iter_mut().zip(each).for_each(|(own, listener)| own.push(listener));
    }
    Ok((by_shard, bound))
}

pub(super) fn bind_admin(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("admin.listen: cannot listen on {address}: {error}; another process may have this port"),
        )
    })
}

/// Shorter ones would take a peer for dead whose packets were lost a few times.
const USER_TIMEOUT_MIN: Duration = Duration::from_secs(30);
/// For two seconds in all: tens of milliseconds are usual, more is needed on a machine that has much else to do.
const PORT_RETRIES: u32 = 200;
const PORT_RETRY_PAUSE: Duration = Duration::from_millis(10);

//! Listening sockets: one a shard, all on the same port, and on nobody else's.
//!
//! Law: two engines never share a port in silence. SO_REUSEPORT would let them, so the first socket listens *without*
//! it, which the kernel grants to one process only, and joins the group afterwards. The decision is the kernel's own and
//! falls inside `listen(2)`, so there is no moment between a check and its use.
//!
//! Options set here are inherited by every accepted socket, which costs no call a connection.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Listens on `address` with one socket a shard. With port 0 the kernel picks a port once, for all of them. The kernel gives
/// up a peer that acknowledges nothing it was sent, or leaves no room for any of it, for `user_timeout`.
///
/// A restart is not hindered by connections of the former process (SO_REUSEADDR): neither by those in TIME_WAIT nor by
/// those the kernel still empties.
///
/// # Errors
/// Names the address. [`io::ErrorKind::AddrInUse`] when another socket listens there.
pub fn listen(address: SocketAddr, shards: usize, user_timeout: Duration) -> io::Result<Vec<TcpListener>> {
    let named = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "another process is listening on this port",
            io::ErrorKind::AddrNotAvailable => "this machine does not have this address",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => "the socket could not be set up",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {why} ({error})"))
    };
    let first = open(address, user_timeout).map_err(named)?;
    listen_on(&first, address).map_err(named)?;
    first.set_reuse_port(true).map_err(named)?;
    let first = TcpListener::from(first);
    let address = first.local_addr()?;

    let mut listeners = vec![first];
    for _ in 1..shards {
        let next = open(address, user_timeout).map_err(named)?;
        next.set_reuse_port(true).map_err(named)?;
        listen_on(&next, address).map_err(named)?;
        listeners.push(next.into());
    }
    Ok(listeners)
}

fn open(address: SocketAddr, user_timeout: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // A send carries all that is queued, so there is nothing for Nagle's algorithm to wait for.
    socket.set_tcp_nodelay(true)?;
    // What a peer does not take waits in this process, where it is bounded and counted.
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    Ok(socket)
}

fn listen_on(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)
}

/// Connections that wait for an accept, for each listening socket; the kernel caps it at net.core.somaxconn.
pub const BACKLOG: i32 = 65_535;
/// Bytes that may wait unsent in the kernel before a socket stops being writable.
pub const NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    const USER_TIMEOUT: Duration = Duration::from_secs(17);
    const ANY_PORT: &str = "127.0.0.1:0";

    fn listen_anywhere(shards: usize) -> (Vec<TcpListener>, SocketAddr) {
        let listeners = listen(ANY_PORT.parse().unwrap(), shards, USER_TIMEOUT).unwrap();
        let address = listeners[0].local_addr().unwrap();
        (listeners, address)
    }

    #[test]
    fn shards_share_one_port_and_the_kernel_spreads_connections() {
        let (listeners, address) = listen_anywhere(4);
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut accepted = 0;
        for listener in &listeners {
            assert_eq!(listener.local_addr().unwrap(), address);
            listener.set_nonblocking(true).unwrap();
            let here = std::iter::from_fn(|| listener.accept().ok()).count();
            assert!(here > 0, "one listener of four got none of 64 connections: the first is not in the group");
            accepted += here;
        }
        assert_eq!(accepted, clients.len());
    }

    #[test]
    fn a_second_engine_is_refused_and_told_which_port() {
        let (first, address) = listen_anywhere(2);
        let error = listen(address, 2, USER_TIMEOUT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let wildcard = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert_eq!(listen(wildcard, 1, USER_TIMEOUT).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        listen(address, 2, USER_TIMEOUT).unwrap();
    }

    #[test]
    fn of_many_that_start_at_once_one_wins() {
        for _ in 0..20 {
            let address = listen_anywhere(1).1;
            let barrier = std::sync::Barrier::new(4);
            let winners = std::thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    listen(address, 2, USER_TIMEOUT)
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                // All results live until the last attempt is over: a winner that left early would let another in.
                let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
                results.iter().filter(|result| result.is_ok()).count()
            });
            assert_eq!(winners, 1);
        }
    }

    #[test]
    fn time_wait_does_not_hinder_a_restart() {
        let (listeners, address) = listen_anywhere(1);
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, _) = listeners[0].accept().unwrap();
        server.write_all(b"bye").unwrap();
        // The side that closes first keeps TIME_WAIT.
        drop(server);
        let mut end = Vec::new();
        client.read_to_end(&mut end).unwrap();
        drop(client);
        drop(listeners);
        listen(address, 2, USER_TIMEOUT).unwrap();
    }

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let (listeners, address) = listen_anywhere(2);
        let _clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        for listener in &listeners {
            let socket = Socket::from(listener.accept().unwrap().0);
            assert!(socket.tcp_nodelay().unwrap());
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT_BYTES);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        }
    }

    /// A peer that does not read leaves no room; the kernel does not wait for it for ever.
    #[test]
    fn a_peer_without_room_is_given_up() {
        let listeners = listen(ANY_PORT.parse().unwrap(), 1, Duration::from_millis(200)).unwrap();
        let _client = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
        let (mut server, _) = listeners[0].accept().unwrap();
        let piece = vec![0; 1 << 20];
        let error = (0..1_000).find_map(|_| server.write_all(&piece).err()).expect("no room for a gigabyte");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}

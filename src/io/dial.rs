//! Sockets that this process connects: for a load generator, whose connections live in drivers as a server's do.
//!
//! Law: dialing does not wait. The socket comes back while the kernel shakes hands; a send on it goes out when that is over
//! and fails if the peer refuses.

#![allow(unsafe_code, reason = "one socket option that the library has no name for")]

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

/// Begins to connect to `to`; from the address `from`, if there is one, with a port that the kernel picks when it knows both
/// ends, so that each address has all ports for each peer.
///
/// # Errors
/// [`io::ErrorKind::AddrNotAvailable`]: this machine does not have `from`, or all ports of it to this peer are taken. Any
/// other one of `connect(2)`, if it is known at once.
pub fn dial(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // A send carries all that is queued, so there is nothing for Nagle's algorithm to wait for.
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = from {
        pick_port_late(&socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// IP_BIND_ADDRESS_NO_PORT (ip(7)), which is for IPv6 sockets too.
fn pick_port_late(socket: &Socket) -> io::Result<()> {
    let yes: libc::c_int = 1;
    let (level, name) = (libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT);
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `yes`, which the call reads.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const yes).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn connects_from_the_address_that_was_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        for from in [None, Some([127, 0, 0, 1]), Some([127, 3, 2, 1])] {
            let mut dialed = dial(from.map(IpAddr::from), to).unwrap();
            let (mut accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), IpAddr::from(from.unwrap_or([127, 0, 0, 1])));
            dialed.set_nonblocking(false).unwrap();
            dialed.write_all(b"hello").unwrap();
            let mut came = [0; 5];
            accepted.read_exact(&mut came).unwrap();
            assert_eq!(&came, b"hello");
        }
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let from = IpAddr::from([192, 0, 2, 1]);
        let error = dial(Some(from), listener.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn a_refusal_is_known_by_the_first_send_at_the_latest() {
        let to = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = dial(None, to).and_then(|mut socket| {
            socket.set_nonblocking(false)?;
            socket.write_all(b"hello")?;
            socket.read(&mut [0])
        });
        refused.unwrap_err();
    }
}

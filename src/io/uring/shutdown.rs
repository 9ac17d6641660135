//! The end of this side of a stream (FIN).
//! Law: an ordinary descriptor is in the process's table only from its completion to the end of that call.
//!
//! The kernel does a shutdown of the ring in a worker thread only, which takes the core from the shard for a time slice of
//! milliseconds; who is closed for an error costs everybody else that. So the socket gets an ordinary descriptor for a moment
//! (FIXED_FD_INSTALL, Linux 6.8), and the shard calls shutdown(2) itself. The worker does it where there is none.

use std::net::{Shutdown, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::opcode;
use io_uring::types::Fixed;

use super::Uring;
use super::complete::Yield;
use super::records::flag;
use crate::id::ConnKey;
use crate::io::token::{Op, Token};

impl Uring {
    /// Ends the stream of an open connection that has no send in flight.
    pub(super) fn end_stream(&mut self, conn: ConnKey) {
        if !self.features.fd_install || self.installing >= INSTALLS {
            return self.shut_down_by_worker(conn);
        }
        let Some(record) = self.records.get(conn) else { return };
        record.set(flag::INSTALL);
        self.installing += 1;
        let install = opcode::FixedFdInstall::new(Fixed(record.descriptor()), 0).build();
        // SAFETY: it names no memory.
        unsafe { self.ring.push(&install.user_data(Token::of_conn(Op::Install, conn).0)) };
    }

    fn shut_down_by_worker(&mut self, conn: ConnKey) {
        let Some(record) = self.records.get(conn) else { return };
        record.set(flag::SHUTDOWN);
        self.ring.counters.worker_shutdowns += 1;
        let shutdown = opcode::Shutdown::new(Fixed(record.descriptor()), libc::SHUT_WR).build();
        // SAFETY: a shutdown names no memory.
        unsafe { self.ring.push(&shutdown.user_data(Token::of_conn(Op::Shutdown, conn).0)) };
    }

    /// The socket has an ordinary descriptor, or the process has none left.
    pub(super) fn installed(&mut self, conn: ConnKey, result: i32) -> Yield {
        let descriptor = self.take_installed(result);
        let Some(record) = self.records.get(conn) else { return self.stale() };
        record.clear(flag::INSTALL);
        if !record.is(flag::CLOSING) {
            match descriptor {
                // It fails where the peer has gone, which a receive reports.
                Some(descriptor) => _ = TcpStream::from(descriptor).shutdown(Shutdown::Write),
                None => self.shut_down_by_worker(conn),
            }
        }
        self.close_if_over(conn);
        None
    }

    /// The descriptor that an [`Op::Install`] brought.
    pub(super) fn take_installed(&mut self, result: i32) -> Option<OwnedFd> {
        self.installing -= 1;
        // SAFETY: the kernel has just put it into the table for this request, and nobody else knows of it.
        (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) })
    }
}

/// Ordinary descriptors that are asked for at a time: what a driver takes of the process's RLIMIT_NOFILE for this.
const INSTALLS: u32 = 256;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;
    use crate::io::Io;
    use crate::io::uring::ReceiveMode;
    use crate::io::uring::complete::tests::{CONN, connected, next};

    /// Ends the stream after `change`; returns how many of its peer's streams a worker ended.
    fn ends(change: impl FnOnce(&mut Uring)) -> u64 {
        let (mut io, mut peer) = connected(ReceiveMode::Recv);
        change(&mut io);
        io.shutdown(CONN);
        assert!(next(&mut io).is_none(), "nothing for the shard");
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        assert!(io.records.get(CONN).unwrap().is_idle());
        io.counters().worker_shutdowns
    }

    #[test]
    fn a_worker_does_it_only_where_the_shard_cannot() {
        let is_there = |io: &Uring| io.features.fd_install;
        assert_eq!(ends(|_| {}), u64::from(!is_there(&connected(ReceiveMode::Recv).0)));
        assert_eq!(ends(|io| io.features.fd_install = false), 1, "an old kernel");
        assert_eq!(ends(|io| io.installing = INSTALLS), 1, "enough of them");
    }

    #[test]
    fn a_worker_does_it_where_the_process_has_no_descriptor_left() {
        let (mut io, mut peer) = connected(ReceiveMode::Recv);
        io.records.get(CONN).unwrap().set(flag::INSTALL);
        io.installing = 1;
        assert!(io.installed(CONN, -libc::EMFILE).is_none());
        assert!(next(&mut io).is_none());
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        assert_eq!((io.counters().worker_shutdowns, io.installing), (1, 0));
    }

    /// Otherwise the socket would stay open, with nobody behind it.
    #[test]
    fn a_driver_that_ends_closes_the_descriptors_that_it_was_given() {
        let (mut io, mut peer) = connected(ReceiveMode::Recv);
        io.shutdown(CONN);
        io.close(CONN);
        io.ring.enter(0, None, 0).unwrap();
        assert!(io.installing == 1 || !io.features.fd_install);
        drop(io);
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}

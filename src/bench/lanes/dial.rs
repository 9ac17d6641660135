//! How clients come: dialed when it is their time, and again when they were not let in.
//! Law: a client that is wanted dials until it is in or the run is given up; nobody is forgotten on the way.

use std::cmp::Reverse;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{End, Lane, Lanes, Stage, Wanted};
use crate::bench::counts::Count;
use crate::bench::wire::{self, WireError};
use crate::io::dial::dial;
use crate::io::{Io, Socket};

impl<C: Default> Lanes<C> {
    /// Has those dial whose time it is.
    pub(super) fn dial(&mut self) -> io::Result<()> {
        for _ in 0..DIALS_A_TURN {
            let Some(&Reverse(wanted)) = self.wanted.peek() else { return Ok(()) };
            if wanted.due_ns > self.now_ns || self.shaking() >= self.pace.handshakes_at_once {
                return Ok(());
            }
            if let Some(per_second) = self.pace.dials_per_second {
                if self.pace_ns > self.now_ns {
                    return Ok(());
                }
                self.pace_ns = self.pace_ns.max(self.now_ns.saturating_sub(PACE_SLACK_NS)) + (1e9 / per_second) as u64;
            }
            self.wanted.pop();
            let (from, to) = self.setup.ends(self.dialed);
            self.dialed += 1;
            let now_ns = self.io.clock_ns();
            match dial(from, to) {
                Ok(socket) => {
                    self.io.take(socket)?;
                    self.dialing.push_back((wanted, now_ns));
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.again(wanted.number, wanted.attempt, &End::Lost(error.kind()))?;
                }
                Err(error) => return Err(named(error, from, to)),
            }
        }
        Ok(())
    }

    /// A socket that was dialed is in the table: the client asks for the upgrade.
    pub(super) fn adopt(&mut self, socket: Socket) -> io::Result<()> {
        let (wanted, since_ns) = self.dialing.pop_front().expect("every socket was dialed");
        let Wanted { number, attempt, .. } = wanted;
        let lane = Lane {
            number,
            attempt,
            stage: Stage::Shaking,
            let_in: false,
            is_ready: false,
            sending: false,
            paused: false,
            pending: None,
            since_ns,
            tls: self.session()?,
            partial: None,
            end: None,
            client: C::default(),
        };
        let Ok(conn) = self.lanes.insert_with(|_| lane) else {
            self.io.refuse(socket);
            let due_ns = self.now_ns + backoff_ns(0);
            self.wanted.push(Reverse(Wanted { due_ns, ..wanted }));
            return Ok(());
        };
        self.io.adopt(socket, conn);
        self.io.receive(conn);
        self.shaking += 1;
        let setup = Arc::clone(&self.setup);
        let token = setup.credentials.token(number);
        self.write(conn, |out| {
            wire::request(out, &setup.host, &setup.path, super::frames::nonce(conn, since_ns), token.as_deref())
        });
        Ok(())
    }

    /// The table of descriptors is full: of connections that are on their way out, since there are enough tables.
    pub(super) fn no_place(&mut self) -> io::Result<()> {
        let Some((wanted, _)) = self.dialing.pop_front() else { return Ok(()) };
        self.again(wanted.number, wanted.attempt, &End::Lost(ErrorKind::StorageFull))
    }

    /// Has a client that was not let in come again.
    pub(super) fn again(&mut self, number: u32, attempt: u8, end: &End) -> io::Result<()> {
        if let End::Broken(error @ WireError::Tls(_)) = end {
            // Nor would it be next time.
            let remedy = "--ca names who has signed the server's certificate, --insecure takes any";
            return Err(io::Error::other(format!("client {number} was not let in: {error} ({remedy})")));
        }
        let (count, wait_ns, attempts) = match end {
            // All at once would be refused again. Who does as it is told has not failed.
            End::Refused { retry_after_s: Some(seconds), .. } => {
                let wait_ns = seconds.saturating_mul(1_000_000_000).saturating_add(self.io.random() % 1_000_000_000);
                (Count::RefusedUntil, wait_ns, attempt)
            }
            End::Refused { .. } => (Count::Refused, backoff_ns(attempt), attempt + 1),
            _ => (Count::NotConnected, backoff_ns(attempt), attempt + 1),
        };
        self.counts.add(count, 1);
        if attempts > ATTEMPTS_MAX {
            let why = match end {
                End::Refused { status, .. } => format!("HTTP status {status}"),
                End::Lost(kind) => kind.to_string(),
                End::Broken(error) => error.to_string(),
                other => format!("{other:?}"),
            };
            return Err(io::Error::other(format!("client {number} was not let in {attempt} times, at last: {why}")));
        }
        let due_ns = self.now_ns.saturating_add(wait_ns);
        self.wanted.push(Reverse(Wanted { due_ns, number, attempt: attempts }));
        Ok(())
    }
}

/// Names the ends of a connection that could not be dialed, and what to do about it.
fn named(error: io::Error, from: Option<IpAddr>, to: SocketAddr) -> io::Error {
    let from = from.map_or_else(|| "this machine".to_owned(), |from| from.to_string());
    let remedy = match error.kind() {
        ErrorKind::AddrNotAvailable => {
            "; the address is not this machine's, or all its ports to that server are taken: name more with --from, or \
             widen net.ipv4.ip_local_port_range"
        }
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot connect from {from} to {to}: {error}{remedy}"))
}

/// How long a client waits that was not let in and not told for how long.
fn backoff_ns(attempt: u8) -> u64 {
    (100_000_000 << attempt.min(6)).min(5_000_000_000)
}

/// How often a client dials that is not let in, until the run is given up.
const ATTEMPTS_MAX: u8 = 20;
/// Sockets that are made in one turn, so that those there are get theirs.
const DIALS_A_TURN: u32 = 64;
/// How far dials that have a rate catch up.
const PACE_SLACK_NS: u64 = 20_000_000;

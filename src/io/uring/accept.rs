//! How sockets come in: accepts that are always out, and sockets handed over by this process.
//!
//! Law: an accept writes the peer's address into a place of its own, which stays where it is until the accept has
//! completed. Accepts are single and many rather than one multishot, because a multishot accept does not tell the
//! address, and asking for it later would cost a descriptor and three calls a connection. Each accept that is out has a
//! place of the descriptor table kept for it, because the kernel drops a connection that it has accepted and finds no
//! place for; who comes when all places are taken waits in the listener's queue.

use std::cell::UnsafeCell;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};
use socket2::{SockAddr, SockAddrStorage, socklen_t};

use super::{Deferred, Uring};
use crate::io::recv_ring::RecvBuffer;
use crate::io::token::{Op, Token};
use crate::io::{ACCEPTS, Completion, Socket};

/// The listening sockets of a driver and the accepts on them.
pub(super) struct Acceptor {
    listeners: Vec<Listener>,
    /// Places of the descriptor table that sockets have or that are kept for accepts.
    taken: u32,
    /// Places that the descriptor table has.
    table: u32,
    /// The socket that was yielded last.
    last: Option<Newcomer>,
}

/// What is known of a socket that has just come in.
struct Newcomer {
    descriptor: u32,
    listener: usize,
    peer: Option<SocketAddr>,
}

struct Listener {
    /// `None` when it has been closed for good.
    socket: Option<TcpListener>,
    state: State,
    /// Accepts with the kernel, one bit each.
    out: u32,
    /// Where the kernel writes addresses, one place for each accept. Boxed: the places never move.
    places: Box<[UnsafeCell<Place>; ACCEPTS]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not accepting: not yet, or stopped by an error.
    Idle,
    Accepting,
    /// Accepting as soon as the descriptor table has a place.
    Full,
    /// Closes when the last accept is back.
    Stopping,
}

struct Place {
    address: SockAddrStorage,
    len: socklen_t,
}

impl Acceptor {
    pub(super) fn new(sockets: Vec<TcpListener>, table: u32) -> io::Result<Self> {
        let mut listeners = Vec::new();
        for socket in sockets {
            // O_NONBLOCK would make an accept fail rather than wait.
            socket.set_nonblocking(false)?;
            let place = || UnsafeCell::new(Place { address: SockAddrStorage::zeroed(), len: 0 });
            let places = Box::new(std::array::from_fn(|_| place()));
            listeners.push(Listener { socket: Some(socket), state: State::Idle, out: 0, places });
        }
        Ok(Self { listeners, taken: 0, table, last: None })
    }

    pub(super) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    pub(super) fn peer(&self, descriptor: u32) -> Option<SocketAddr> {
        self.newcomer(descriptor)?.peer
    }

    /// Which listener it came through; the first, if it did through none.
    pub(super) fn port(&self, descriptor: u32) -> usize {
        self.newcomer(descriptor).map_or(0, |newcomer| newcomer.listener)
    }

    fn newcomer(&self, descriptor: u32) -> Option<&Newcomer> {
        self.last.as_ref().filter(|last| last.descriptor == descriptor)
    }

    /// The sockets of listeners that are not to close. Accepts on them are still out.
    pub(super) fn take_sockets(&mut self) -> Vec<TcpListener> {
        let going_on = self.listeners.iter_mut().filter(|listener| listener.state != State::Stopping);
        going_on.filter_map(|listener| listener.socket.take()).collect()
    }

    /// Never frees the places: for a kernel that could not be made to let go of them.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.listeners));
    }
}

impl Uring {
    /// Has every accept of a listener out that the descriptor table has room for. Without any, accepting stops, which is
    /// told once, until a place is free.
    pub(super) fn arm_accepts(&mut self, listener: usize) {
        let entry = &mut self.acceptor.listeners[listener];
        if entry.socket.is_none() || entry.state == State::Stopping {
            return;
        }
        let was_full = entry.state == State::Full;
        let free = !entry.out;
        for place in (0..ACCEPTS).filter(|place| free & 1 << place != 0) {
            if self.acceptor.taken >= self.acceptor.table {
                break;
            }
            self.push_accept(listener, place);
        }
        let entry = &mut self.acceptor.listeners[listener];
        entry.state = if entry.out == 0 { State::Full } else { State::Accepting };
        if entry.state == State::Full && !was_full {
            self.deferred.push_back(Deferred::TableFull);
        }
    }

    /// A place of the descriptor table has come free: a socket was closed, or an accept came back without one.
    pub(super) fn place_is_free(&mut self) {
        self.acceptor.taken -= 1;
        for listener in 0..self.acceptor.listeners() {
            if self.acceptor.listeners[listener].state == State::Full {
                self.arm_accepts(listener);
            }
        }
    }

    /// Cancels the accepts of a listener, which stays open.
    pub(super) fn pause_listener(&mut self, listener: usize) {
        let entry = &mut self.acceptor.listeners[listener];
        if matches!(entry.state, State::Accepting | State::Full) {
            entry.state = State::Idle;
            self.cancel_accepts(listener);
        }
    }

    /// Cancels the accepts of a listener; the last one back closes it.
    pub(super) fn stop_listener(&mut self, listener: usize) {
        let entry = &mut self.acceptor.listeners[listener];
        entry.state = State::Stopping;
        if entry.out == 0 {
            entry.socket = None;
            return;
        }
        self.cancel_accepts(listener);
    }

    fn cancel_accepts(&mut self, listener: usize) {
        let Some(socket) = &self.acceptor.listeners[listener].socket else { return };
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(socket.as_raw_fd())).all())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Token::of_driver(Op::Forget, 0).0);
        // SAFETY: a cancel names no memory.
        unsafe { self.ring.push(&cancel) };
    }

    fn push_accept(&mut self, listener: usize, place: usize) {
        let entry = &mut self.acceptor.listeners[listener];
        let Some(socket) = &entry.socket else { return };
        let fd = Fd(socket.as_raw_fd());
        entry.out |= 1 << place;
        let cell: *mut Place = entry.places[place].get();
        // SAFETY: the place is not with the kernel (its bit was clear), so this thread alone uses it.
        let there = unsafe { &mut *cell };
        there.len = there.address.size_of();
        let (address, len) = ((&raw mut there.address).cast(), &raw mut there.len);
        let accept = opcode::Accept::new(fd, address, len)
            .file_index(Some(DestinationSlot::auto_target()))
            .build()
            .user_data(Token::of_driver(Op::Accept, (listener << 16 | place) as u32).0);
        self.holding += 1;
        self.acceptor.taken += 1;
        // SAFETY: the place is boxed and neither read nor written before this accept completed; `Drop for Uring` frees
        // it only when `holding` is 0.
        unsafe { self.ring.push(&accept) };
    }

    /// An accept is over.
    pub(super) fn accepted(&mut self, slot: u32, completion: &cqueue::Entry) -> Option<Completion<RecvBuffer>> {
        let (listener, place) = (slot as usize >> 16, slot as usize & 0xffff);
        self.holding -= 1;
        let entry = &mut self.acceptor.listeners[listener];
        entry.out &= !(1 << place);
        let result = completion.result();
        let mut yielded = None;
        if let Ok(descriptor) = u32::try_from(result) {
            let peer = entry.places[place].get_mut().peer();
            self.acceptor.last = Some(Newcomer { descriptor, listener, peer });
            yielded = Some(Completion::Accepted(Socket(descriptor)));
        } else if entry.state == State::Accepting && !is_gone_already(-result) {
            entry.state = State::Idle;
            yielded = Some(Completion::AcceptStopped(io::Error::from_raw_os_error(-result)));
            // The others would only take a connection out of the queue to drop it.
            self.cancel_accepts(listener);
        }
        if result < 0 {
            self.place_is_free();
        }
        let entry = &mut self.acceptor.listeners[listener];
        match entry.state {
            State::Accepting => self.arm_accepts(listener),
            State::Stopping if entry.out == 0 => entry.socket = None,
            State::Stopping | State::Idle | State::Full => {}
        }
        yielded
    }

    /// Moves a socket that this process connected itself into the driver. It arrives as [`Completion::Accepted`], or as
    /// [`Completion::AcceptStopped`] if the table is full; it must be blocking as far as O_NONBLOCK goes.
    ///
    /// # Errors
    /// The socket could not be made blocking.
    pub fn take(&mut self, socket: TcpStream) -> io::Result<()> {
        socket.set_nonblocking(false)?;
        let (index, descriptors) = self.arrivals.insert(socket.into());
        self.holding += 1;
        self.acceptor.taken += 1;
        let update = opcode::FilesUpdate::new(descriptors, 1).offset(ALLOCATE).build();
        // SAFETY: the kernel reads and writes the boxed number, which stays until this request has completed and is
        // dropped with the driver only when `holding` is 0.
        unsafe { self.ring.push(&update.user_data(Token::of_driver(Op::Take, index).0)) };
        Ok(())
    }

    /// A socket moved in, or did not.
    pub(super) fn taken(&mut self, index: u32, completion: &cqueue::Entry) -> Option<Completion<RecvBuffer>> {
        self.holding -= 1;
        let arrived = self.arrivals.remove(index)?;
        let result = completion.result();
        // The descriptor of the process closes here; the table's own keeps the socket open.
        Some(match u32::try_from(arrived.index()) {
            Ok(descriptor) if result > 0 => Completion::Accepted(Socket(descriptor)),
            _ => {
                self.place_is_free();
                Completion::AcceptStopped(io::Error::from_raw_os_error(if result < 0 { -result } else { libc::ENFILE }))
            }
        })
    }

    /// Closes a socket that nobody wants.
    pub(super) fn push_refuse(&mut self, descriptor: u32) {
        let close = opcode::Close::new(Fixed(descriptor)).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: a close names no memory.
        unsafe { self.ring.push(&close.user_data(Token::of_driver(Op::Forget, 0).0)) };
        // It is before any accept that is pushed from now on looks for one.
        self.place_is_free();
    }
}

impl Place {
    fn peer(&mut self) -> Option<SocketAddr> {
        let address = std::mem::replace(&mut self.address, SockAddrStorage::zeroed());
        // SAFETY: the kernel wrote an address of this length, or nothing and the storage is zeroed.
        unsafe { SockAddr::new(address, self.len) }.as_socket()
    }
}

/// Sockets on their way into the table.
#[derive(Default)]
pub(super) struct Arrivals(Vec<Option<Arrival>>);

struct Arrival {
    /// In: the process's descriptor; out: the index in the table. Boxed: the kernel writes it.
    descriptor: Box<UnsafeCell<RawFd>>,
    /// Keeps the process's descriptor open until the move is over.
    _socket: OwnedFd,
}

impl Arrival {
    fn index(mut self) -> RawFd {
        *self.descriptor.get_mut()
    }
}

impl Arrivals {
    fn insert(&mut self, socket: OwnedFd) -> (u32, *const RawFd) {
        let arrival = Arrival { descriptor: Box::new(UnsafeCell::new(socket.as_raw_fd())), _socket: socket };
        let pointer = arrival.descriptor.get().cast_const();
        let index = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        match self.0.get_mut(index) {
            Some(place) => *place = Some(arrival),
            None => self.0.push(Some(arrival)),
        }
        (index as u32, pointer)
    }

    fn remove(&mut self, index: u32) -> Option<Arrival> {
        self.0.get_mut(index as usize)?.take()
    }

    /// Never frees them: for a kernel that could not be made to let go.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.0));
    }
}

/// The connection failed before it was accepted, or the accept was cancelled: no reason to stop (accept(2), "Error
/// handling").
fn is_gone_already(errno: i32) -> bool {
    use libc::*;
    matches!(
        errno,
        ECONNABORTED
            | ECANCELED
            | EINTR
            | EPROTO
            | EPERM
            | ENETDOWN
            | ENOPROTOOPT
            | EHOSTDOWN
            | ENONET
            | EHOSTUNREACH
            | EOPNOTSUPP
            | ENETUNREACH
    )
}

/// IORING_FILE_INDEX_ALLOC: the kernel picks the place in the table.
const ALLOCATE: i32 = -1;

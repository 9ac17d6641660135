//! A driver that breaks at a moment of the harness's choice: the way to make a shard panic in the middle of anything that
//! touches it, a fan-out included.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::sim::{Buffer, Sim, World};
use tidewheel::io::{Completion, Doorbell, FrameKey, Io, Now, Palette, Socket, Wait};

use crate::handlers::ON_PURPOSE;

/// Counts a driver's calls down to the one that breaks it; breaks once.
#[derive(Clone, Debug, Default)]
pub struct Fuse(Rc<Cell<Option<usize>>>);

impl Fuse {
    /// The driver breaks after so many more calls; `None`: never.
    pub fn set(&self, calls: Option<usize>) {
        self.0.set(calls);
    }

    /// What the harness itself does with a driver breaks nothing.
    pub fn spare<T>(&self, act: impl FnOnce() -> T) -> T {
        let left = self.0.take();
        let outcome = act();
        self.0.set(left);
        outcome
    }

    fn blows(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.and_then(|left| left.checked_sub(1)));
        left == Some(0)
    }
}

/// A simulated driver with a fuse: a wait fails, every other call panics.
#[derive(Debug)]
pub struct Brittle {
    sim: Sim,
    fuse: Fuse,
}

impl Brittle {
    pub fn new(sim: Sim, fuse: &Fuse) -> Self {
        Self { sim, fuse: fuse.clone() }
    }

    /// A new driver in place of this one.
    pub fn restart(self, world: &World) -> Self {
        Self { sim: world.restart(self.sim), fuse: self.fuse }
    }

    fn sim(&mut self) -> &mut Sim {
        if self.fuse.blows() {
            panic!("a driver broke {ON_PURPOSE}");
        }
        &mut self.sim
    }
}

impl Io for Brittle {
    type Buffer = Buffer;

    fn wait(&mut self, wait: Wait) -> io::Result<Now> {
        if self.fuse.blows() { Err(io::Error::other(ON_PURPOSE)) } else { self.sim.wait(wait) }
    }

    fn slept_from_ns(&self) -> Option<u64> {
        self.sim.slept_from_ns()
    }

    fn clock_ns(&self) -> u64 {
        self.sim.clock_ns()
    }

    fn poll(&mut self) -> Option<Completion<Buffer>> {
        self.sim().poll()
    }

    fn accept(&mut self) {
        self.sim().accept();
    }

    fn pause_accepting(&mut self) {
        self.sim().pause_accepting();
    }

    fn stop_accepting(&mut self) {
        self.sim().stop_accepting();
    }

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        self.sim.peer(socket)
    }

    fn port(&self, socket: &Socket) -> usize {
        self.sim.port(socket)
    }

    fn adopt(&mut self, socket: Socket, conn: ConnKey) {
        self.sim().adopt(socket, conn);
    }

    fn refuse(&mut self, socket: Socket) {
        self.sim().refuse(socket);
    }

    fn receive(&mut self, conn: ConnKey) {
        self.sim().receive(conn);
    }

    fn pause(&mut self, conn: ConnKey) {
        self.sim().pause(conn);
    }

    fn send(&mut self, conn: ConnKey, frame: FrameKey, from: u32) {
        self.sim().send(conn, frame, from);
    }

    fn close(&mut self, conn: ConnKey) {
        self.sim().close(conn);
    }

    fn shutdown(&mut self, conn: ConnKey) {
        self.sim().shutdown(conn);
    }

    fn ring(&mut self, shard: ShardId) {
        self.sim().ring(shard);
    }

    fn announce_sleep(&mut self) {
        self.sim().announce_sleep();
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.sim.doorbell()
    }

    fn random(&mut self) -> u64 {
        self.sim().random()
    }

    fn palette(&mut self) -> &mut Palette {
        self.sim().palette()
    }
}

//! A driver for a shard on a thread that shuttle schedules: the simulated kernel, the engine's own bell, and a sleep that
//! lasts until the bell sounds, the kernel has something, or the time has come.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::bell::Bell;
use tidewheel::io::sim::{Buffer, Sim};
use tidewheel::io::{Completion, Doorbell, FrameKey, Io, Now, Palette, Socket, Wait};

use crate::stage::{self, count, deliver, sleep, wake, world};

/// The doorbells of all shards.
pub type Bells = Arc<[Arc<Ringer>]>;

/// One shard's doorbell. As in the engine, the bell says whether somebody has to be woken; what wakes him is the stage.
#[derive(Debug)]
pub struct Ringer {
    bell: Bell,
    shard: usize,
}

impl Ringer {
    pub fn new(shard: usize) -> Self {
        Self { bell: Bell::new().expect("a free descriptor"), shard }
    }
}

impl Doorbell for Ringer {
    fn ring(&self) {
        if self.bell.take_sleeper() {
            stage::ring(self.shard);
        }
    }
}

pub struct Driver {
    sim: Sim,
    bells: Bells,
    shard: usize,
    /// Threads of the clients that are connected here.
    clients: Vec<usize>,
    /// Shards whose sleep was taken; they are woken with the next wait.
    ringing: Vec<usize>,
    next: Option<Completion<Buffer>>,
}

impl Driver {
    pub fn new(sim: Sim, bells: Bells, shard: usize, clients: Vec<usize>) -> Self {
        Self { sim, bells, shard, clients, ringing: Vec::new(), next: None }
    }
}

impl Io for Driver {
    type Buffer = Buffer;

    fn wait(&mut self, wait: Wait) -> io::Result<Now> {
        self.ringing.drain(..).for_each(stage::ring);
        let now_ns = world().now().monotonic_ns;
        let until_ns = match wait {
            Wait::No => Some(now_ns),
            Wait::AtMost(duration) => Some(now_ns + u64::try_from(duration.as_nanos()).expect("not that long")),
            Wait::Forever => None,
        };
        loop {
            count("looks at the kernel");
            self.sim.wait(wait)?;
            deliver();
            self.clients.iter().for_each(|&client| wake(client));
            self.next = self.next.take().or_else(|| self.sim.poll());
            let now_ns = world().now().monotonic_ns;
            let rung = stage::was_rung(self.shard);
            if rung || self.next.is_some() || until_ns.is_some_and(|until_ns| until_ns <= now_ns) {
                break;
            }
            if world().asleep(ShardId(self.shard as u16)) {
                count("sleeps");
                sleep(self.shard, until_ns);
            }
        }
        self.bells[self.shard].bell.awake();
        Ok(world().now())
    }

    fn slept_from_ns(&self) -> Option<u64> {
        self.sim.slept_from_ns()
    }

    fn clock_ns(&self) -> u64 {
        self.sim.clock_ns()
    }

    fn poll(&mut self) -> Option<Completion<Buffer>> {
        self.next.take().or_else(|| self.sim.poll())
    }

    fn accept(&mut self) {
        self.sim.accept();
    }

    fn pause_accepting(&mut self) {
        self.sim.pause_accepting();
    }

    fn stop_accepting(&mut self) {
        self.sim.stop_accepting();
    }

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        self.sim.peer(socket)
    }

    fn adopt(&mut self, socket: Socket, conn: ConnKey) {
        self.sim.adopt(socket, conn);
    }

    fn refuse(&mut self, socket: Socket) {
        self.sim.refuse(socket);
    }

    fn receive(&mut self, conn: ConnKey) {
        self.sim.receive(conn);
    }

    fn pause(&mut self, conn: ConnKey) {
        self.sim.pause(conn);
    }

    fn send(&mut self, conn: ConnKey, frame: FrameKey, from: u32) {
        self.sim.send(conn, frame, from);
    }

    fn close(&mut self, conn: ConnKey) {
        self.sim.close(conn);
    }

    fn shutdown(&mut self, conn: ConnKey) {
        self.sim.shutdown(conn);
    }

    fn ring(&mut self, shard: ShardId) {
        if self.bells[shard.index()].bell.take_sleeper() {
            self.ringing.push(shard.index());
        }
    }

    fn announce_sleep(&mut self) {
        self.bells[self.shard].bell.announce_sleep();
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.bells[self.shard].clone()
    }

    fn random(&mut self) -> u64 {
        self.sim.random()
    }

    fn palette(&mut self) -> &mut Palette {
        self.sim.palette()
    }
}

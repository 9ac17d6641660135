//! A seeded simulation of the kernel: shards, clients and the network between them on one thread, in virtual time.
//! Law: a run is a function of its seed; [`World::trace`] is equal for equal runs.
//!
//! A harness makes a [`World`], a driver for each shard, and clients; then it runs the shards' turns in an order it
//! draws from the same seed. A shard's operations progress only while it waits, as in a ring with DEFER_TASKRUN.
//! [`Io::wait`] comes back empty-handed after a few steps, so that one sleeping shard does not hold up the others; a
//! harness that wants to see lost wake-ups skips the turn of a shard that is [asleep](World::asleep).

mod buffer;
mod conn;
mod dice;
mod faults;
mod kernel;
mod stream;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use buffer::Buffer;
pub use dice::Dice;
pub use faults::Faults;
pub use kernel::SimConfig;
pub use stream::ClientState;

use crate::id::{ConnKey, ShardId};
use crate::io::{Completion, Doorbell, FrameKey, Io, Now, Palette, Socket, Wait};
use conn::Surroundings;
use kernel::Kernel;
use stream::{SOCKET_BUFFERS, Stream};

/// Everything outside the shards. A handle: clones are the same world.
#[derive(Clone, Debug)]
pub struct World(Rc<RefCell<State>>);

/// Names a client of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(usize);

/// The driver of one simulated shard.
#[derive(Debug)]
pub struct Sim {
    world: World,
    shard: ShardId,
    palette: Palette,
    waited_from_ns: u64,
}

#[derive(Debug)]
struct State {
    dice: Dice,
    faults: Faults,
    now_ns: u64,
    /// Unix time less monotonic time.
    unix_offset_ms: u64,
    kernels: Vec<Kernel>,
    streams: Vec<Stream>,
    /// Streams that are not over.
    live: Vec<usize>,
    trace: u64,
    socket_buffers: &'static [usize],
}

impl World {
    /// A world in which everything that chance decides follows from `seed`.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self(Rc::new(RefCell::new(State {
            dice: Dice::new(seed),
            faults,
            now_ns: 0,
            unix_offset_ms: UNIX_START_MS,
            kernels: Vec::new(),
            streams: Vec::new(),
            live: Vec::new(),
            trace: seed,
            socket_buffers: &SOCKET_BUFFERS,
        })))
    }

    /// The driver of shard `shard`; shards are made in order, from 0. It listens at once, but accepts when asked.
    pub fn driver(&self, shard: ShardId, config: SimConfig) -> Sim {
        let kernels = &mut self.0.borrow_mut().kernels;
        assert_eq!(shard.index(), kernels.len(), "shards are made in order");
        kernels.push(Kernel::new(shard, config));
        Sim { world: self.clone(), shard, palette: Palette::default(), waited_from_ns: 0 }
    }

    /// A new driver in place of one whose shard broke: its connections end, and their clients count as
    /// [faulted](World::client_faulted); who waits to be accepted goes on waiting.
    pub fn restart(&self, old: Sim) -> Sim {
        let Sim { world, shard, .. } = old;
        {
            let State { kernels, streams, .. } = &mut *world.0.borrow_mut();
            kernels[shard.index()].restart(streams);
        }
        Sim { world, shard, palette: Palette::default(), waited_from_ns: 0 }
    }

    /// Changes what goes wrong from here on; a harness takes all faults away before it asks whether a run settles.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// Which sizes, in bytes, the socket buffers of those who connect from here on may have.
    pub fn set_socket_buffers(&self, bytes: &'static [usize]) {
        self.0.borrow_mut().socket_buffers = bytes;
    }

    /// Connects a client to one of the listeners that are open, by chance (SO_REUSEPORT).
    pub fn connect(&self) -> ClientId {
        let mut state = self.0.borrow_mut();
        let listening: Vec<usize> = (0..state.kernels.len()).filter(|&i| state.kernels[i].listens()).collect();
        let shard = (!listening.is_empty()).then(|| listening[state.dice.below(listening.len())]);
        state.connect(shard, CLIENT)
    }

    /// Connects a client to this shard's listener.
    pub fn connect_to(&self, shard: ShardId) -> ClientId {
        self.connect_from(CLIENT, shard)
    }

    /// The same, from this address.
    pub fn connect_from(&self, address: IpAddr, shard: ShardId) -> ClientId {
        let mut state = self.0.borrow_mut();
        let listens = state.kernels[shard.index()].listens();
        state.connect(listens.then_some(shard.index()), address)
    }

    /// Has the client come through another of the shard's listening sockets than the first, by their order.
    pub fn client_port(&self, client: ClientId, port: usize) {
        self.client(client, |stream| stream.port = port);
    }

    /// Sends bytes. The network takes them as the server's socket buffer has room; those of a connection that has
    /// ended go nowhere.
    pub fn client_send(&self, client: ClientId, bytes: &[u8]) {
        self.client(client, |stream| stream.client_send(bytes));
    }

    /// Bytes sent that the server's kernel has not taken yet.
    pub fn client_unsent(&self, client: ClientId) -> usize {
        self.client(client, |stream| stream.client_unsent())
    }

    /// Takes the bytes that have arrived since the last call.
    pub fn client_take(&self, client: ClientId) -> Vec<u8> {
        self.client(client, |stream| std::mem::take(&mut stream.inbox))
    }

    /// What the client knows of its connection.
    pub fn client_state(&self, client: ClientId) -> ClientState {
        self.client(client, |stream| stream.state)
    }

    /// Ends the client's sending side after what it has sent (FIN); it goes on receiving.
    pub fn client_shutdown(&self, client: ClientId) {
        self.client(client, Stream::client_shutdown);
    }

    /// Drops the connection (RST); what was not taken by the server's kernel is lost.
    pub fn client_reset(&self, client: ClientId) {
        self.client(client, Stream::client_reset);
    }

    /// Stops reading (the window closes), or reads again.
    pub fn client_stall(&self, client: ClientId, stalled: bool) {
        self.client(client, |stream| stream.client_stall(stalled));
    }

    /// Whether the network broke this client's connection, so that neither side is to blame for its end.
    pub fn client_faulted(&self, client: ClientId) -> bool {
        self.client(client, |stream| stream.faulted)
    }

    /// For how many milliseconds the shard had had something to send to this client at every moment when it closed the
    /// connection before all of it had left: the client, or its network, is that slow. 0 if it has not closed it, or had
    /// nothing more to send.
    pub fn client_backlog_ms(&self, client: ClientId) -> u64 {
        self.client(client, |stream| stream.backlog_ms)
    }

    /// A little time passes and some of what is on its way arrives. When nothing is on its way and every shard is
    /// asleep, time jumps to the next shard's waking, or by a second if none will wake by itself.
    pub fn step(&self) {
        self.0.borrow_mut().step();
    }

    /// Time passes and no shard gets to run (a stopped process, a suspended machine); the network goes on.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.0.borrow_mut();
        let until_ns = state.now_ns.saturating_add(nanos(duration));
        for _ in 0..ADVANCE_STEPS {
            if state.now_ns >= until_ns || !state.carry() {
                break;
            }
            state.now_ns += 1 + state.dice.below(STEP_MAX_NS) as u64;
        }
        state.now_ns = state.now_ns.max(until_ns);
    }

    /// The network carries all that there is room for, in next to no time, and no shard gets to run.
    pub fn settle(&self) {
        let mut state = self.0.borrow_mut();
        while state.carry() {
            state.now_ns += 1;
        }
    }

    /// The time every shard would be told.
    pub fn now(&self) -> Now {
        self.0.borrow().now()
    }

    /// Whether the shard sleeps in its last [`Io::wait`] and nothing would wake it now: it came back early only
    /// because the simulation has one thread, and a harness may leave out its turn.
    pub fn asleep(&self, shard: ShardId) -> bool {
        self.0.borrow().asleep(&self.0.borrow().kernels[shard.index()])
    }

    /// For how long nothing happens by itself, faults aside: no time at all while something is on its way or one of these
    /// shards is awake. A harness may let so much time pass in one stride.
    pub fn quiet_for(&self, shards: impl Iterator<Item = ShardId>) -> Duration {
        let state = self.0.borrow();
        if state.live.iter().any(|&i| state.streams[i].is_moving(state.now_ns)) {
            return Duration::ZERO;
        }
        let resumes = state.live.iter().filter_map(|&i| state.streams[i].resumes_ns());
        let wakes = shards.map(|shard| &state.kernels[shard.index()]).map(|kernel| match state.asleep(kernel) {
            true => kernel.wake_at_ns,
            false => state.now_ns,
        });
        let next_ns = wakes.chain(resumes).min().unwrap_or(u64::MAX);
        Duration::from_nanos(next_ns.saturating_sub(state.now_ns))
    }

    /// A number that equal runs have in common: made of every completion polled, and of the time it was polled at.
    pub fn trace(&self) -> u64 {
        self.0.borrow().trace
    }

    /// Whether nothing is left once every connection should be closed.
    ///
    /// # Errors
    /// Names every connection, socket, lent frame, receive buffer and completion that is.
    pub fn audit(&self) -> Result<(), String> {
        let state = self.0.borrow();
        let found: Vec<String> = state.kernels.iter().filter_map(|kernel| kernel.audit().err()).collect();
        if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
    }

    fn client<T>(&self, client: ClientId, act: impl FnOnce(&mut Stream) -> T) -> T {
        act(&mut self.0.borrow_mut().streams[client.0])
    }
}

impl Sim {
    fn kernel<T>(&mut self, act: impl FnOnce(&mut Kernel, &mut [Stream], &mut Palette) -> T) -> T {
        let state = &mut *self.world.0.borrow_mut();
        act(&mut state.kernels[self.shard.index()], &mut state.streams, &mut self.palette)
    }
}

impl Io for Sim {
    type Buffer = Buffer;

    fn wait(&mut self, wait: Wait) -> io::Result<Now> {
        let state = &mut *self.world.0.borrow_mut();
        let me = self.shard.index();
        for shard in std::mem::take(&mut state.kernels[me].ringing) {
            state.kernels[shard.index()].rung += 1;
        }
        // A shard's timeout counts from the time it was told last: its turn takes no virtual time, and an empty-handed
        // return does not make a sleep longer.
        let slept_from_ns = state.kernels[me].told_ns;
        self.waited_from_ns = slept_from_ns;
        let (until_ns, steps) = match wait {
            _ if state.kernels[me].has_ready() => (0, 1),
            Wait::No => (0, 1),
            Wait::AtMost(duration) => (slept_from_ns.saturating_add(nanos(duration)), 1 + state.dice.below(STEPS_MAX)),
            Wait::Forever => (u64::MAX, 1 + state.dice.below(STEPS_MAX)),
        };
        state.kernels[me].wake_at_ns = until_ns;
        for _ in 0..steps {
            state.step();
            let State { dice, faults, kernels, streams, .. } = state;
            kernels[me].work(&self.palette, &mut Surroundings { streams, dice, faults });
            if state.kernels[me].has_ready() || state.now_ns >= until_ns {
                state.kernels[me].wake_at_ns = 0;
                break;
            }
        }
        state.kernels[me].told_ns = state.now_ns;
        Ok(state.now())
    }

    /// A turn takes no virtual time, unless it is a slow one ([`Faults`]): all that passes is sleep.
    fn slept_from_ns(&self) -> Option<u64> {
        Some(self.waited_from_ns)
    }

    fn clock_ns(&self) -> u64 {
        let State { now_ns, dice, faults, .. } = &mut *self.world.0.borrow_mut();
        if dice.chance(faults.slow) {
            *now_ns += 1 + dice.below(SLOW_MAX_NS) as u64;
        }
        *now_ns
    }

    fn poll(&mut self) -> Option<Completion<Buffer>> {
        let completion = self.kernel(|kernel, _, palette| kernel.poll(palette))?;
        self.world.0.borrow_mut().record(self.shard, &completion);
        Some(completion)
    }

    fn accept(&mut self) {
        self.kernel(|kernel, _, _| kernel.accept());
    }

    fn pause_accepting(&mut self) {
        self.kernel(|kernel, _, _| kernel.pause_accepting());
    }

    fn stop_accepting(&mut self) {
        self.kernel(|kernel, streams, _| kernel.stop_accepting(streams));
    }

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        let state = self.world.0.borrow();
        let stream = state.kernels[self.shard.index()].stream_of(socket)?;
        Some(state.streams[stream].peer)
    }

    fn port(&self, socket: &Socket) -> usize {
        let state = self.world.0.borrow();
        state.kernels[self.shard.index()].stream_of(socket).map_or(0, |stream| state.streams[stream].port)
    }

    fn adopt(&mut self, socket: Socket, conn: ConnKey) {
        self.kernel(|kernel, _, _| kernel.adopt(socket, conn));
    }

    fn refuse(&mut self, socket: Socket) {
        self.kernel(|kernel, streams, _| kernel.refuse(socket, streams));
    }

    fn receive(&mut self, conn: ConnKey) {
        self.kernel(|kernel, _, _| kernel.receive(conn));
    }

    fn pause(&mut self, conn: ConnKey) {
        self.kernel(|kernel, _, _| kernel.pause(conn));
    }

    fn send(&mut self, conn: ConnKey, frame: FrameKey, from: u32) {
        self.kernel(|kernel, _, palette| kernel.send(conn, frame, from, palette.lend(frame)));
    }

    fn close(&mut self, conn: ConnKey) {
        self.kernel(|kernel, streams, _| kernel.close(conn, streams));
    }

    fn shutdown(&mut self, conn: ConnKey) {
        self.kernel(|kernel, streams, _| kernel.shutdown(conn, streams));
    }

    fn ring(&mut self, shard: ShardId) {
        let state = &mut *self.world.0.borrow_mut();
        assert!(shard.index() < state.kernels.len(), "{:?} rings {shard:?}, which does not exist", self.shard);
        state.kernels[self.shard.index()].ringing.push(shard);
    }

    /// A simulated shard is always rung: whether it sleeps is known only when its wait begins.
    fn announce_sleep(&mut self) {}

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.world.0.borrow().kernels[self.shard.index()].bell.clone()
    }

    fn random(&mut self) -> u64 {
        self.world.0.borrow_mut().dice.bits()
    }

    fn palette(&mut self) -> &mut Palette {
        &mut self.palette
    }
}

impl State {
    fn connect(&mut self, shard: Option<usize>, address: IpAddr) -> ClientId {
        let id = self.streams.len();
        let mut stream = Stream::new(SocketAddr::new(address, id as u16), self.socket_buffers, &mut self.dice);
        match shard {
            Some(shard) => {
                self.kernels[shard].connect(id);
                self.live.push(id);
            }
            None => stream.state = ClientState::Refused,
        }
        self.streams.push(stream);
        ClientId(id)
    }

    fn step(&mut self) {
        self.now_ns += 1 + self.dice.below(STEP_MAX_NS) as u64;
        if self.dice.chance(self.faults.clock_jump) {
            self.now_ns += self.dice.below(CLOCK_JUMP_MAX_NS) as u64;
        }
        if self.dice.chance(self.faults.unix_jump) {
            let jump_ms = self.dice.below(2 * UNIX_JUMP_MAX_MS) as u64;
            self.unix_offset_ms = (self.unix_offset_ms + jump_ms).saturating_sub(UNIX_JUMP_MAX_MS as u64);
        }
        let quiet = !self.carry();
        if quiet && self.kernels.iter().all(|kernel| self.asleep(kernel)) {
            let wakes = self.kernels.iter().map(|kernel| kernel.wake_at_ns).filter(|&at| at < u64::MAX);
            let resumes = self.live.iter().filter_map(|&i| self.streams[i].resumes_ns());
            let next_ns = wakes.chain(resumes).min().unwrap_or(self.now_ns + IDLE_JUMP_NS);
            self.now_ns = self.now_ns.max(next_ns);
        }
    }

    /// Moves what is on its way; false if nothing is.
    fn carry(&mut self) -> bool {
        let Self { dice, faults, streams, live, now_ns, .. } = self;
        let mut any = false;
        live.retain(|&i| {
            any |= streams[i].carry(*now_ns, dice, faults);
            !streams[i].is_over()
        });
        any
    }

    fn asleep(&self, kernel: &Kernel) -> bool {
        kernel.wake_at_ns > self.now_ns && !kernel.is_busy(&self.streams)
    }

    fn now(&self) -> Now {
        Now { monotonic_ns: self.now_ns, unix_ms: self.unix_offset_ms + self.now_ns / 1_000_000 }
    }

    fn record(&mut self, shard: ShardId, completion: &Completion<Buffer>) {
        let (kind, conn, detail) = match completion {
            Completion::Accepted(socket) => (0, None, u64::from(socket.0)),
            Completion::AcceptStopped(error) => (1, None, error.raw_os_error().unwrap_or(0) as u64),
            Completion::Received { conn, bytes, armed } => (2 + u64::from(*armed), Some(conn), bytes.len() as u64),
            Completion::ReceiveStopped { conn, starved } => (4, Some(conn), u64::from(*starved)),
            Completion::ReceiveEnded { conn, lost } => (5, Some(conn), u64::from(*lost == super::Lost::EndOfStream)),
            Completion::Sent { conn, sent: Ok(count) } => (6, Some(conn), u64::from(*count)),
            Completion::Sent { conn, sent: Err(_) } => (7, Some(conn), 0),
            Completion::Closed { conn } => (8, Some(conn), 0),
            Completion::Rang => (9, None, 0),
        };
        let conn = conn.map_or(0, |key| u64::from(key.slot) << 32 | u64::from(key.generation));
        for word in [u64::from(shard.0), kind, conn, detail, self.now_ns] {
            self.trace = dice::mix(self.trace ^ word);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Unix time when a world begins: 2026-01-01.
const UNIX_START_MS: u64 = 1_767_225_600_000;
/// Where clients connect from unless they say otherwise.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// Time that one step takes, at most: 200 µs.
const STEP_MAX_NS: usize = 200_000;
/// Steps of one wait, at most, before other shards get their turn.
const STEPS_MAX: usize = 4;
/// Steps in which the network moves while no shard runs, at most.
const ADVANCE_STEPS: usize = 1000;
/// Where time jumps when nothing is going to happen: one second on.
const IDLE_JUMP_NS: u64 = 1_000_000_000;
/// Jump of the monotonic clock, at most: two minutes.
const CLOCK_JUMP_MAX_NS: usize = 120_000_000_000;
/// For how long a slow turn stands still, at most: 2 ms.
const SLOW_MAX_NS: usize = 2_000_000;
/// Jump of Unix time either way, at most: an hour.
const UNIX_JUMP_MAX_MS: usize = 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard with one adopted connection, and its client.
    fn connected(table: usize, buffers: usize) -> (World, Sim, ClientId) {
        let world = World::new(1, Faults::default());
        let (sim, client) = adopted(&world, table, buffers);
        (world, sim, client)
    }

    fn adopted(world: &World, table: usize, buffers: usize) -> (Sim, ClientId) {
        let mut sim = world.driver(ShardId(0), SimConfig { table, buffers, buffer_size: 8 });
        let client = world.connect();
        sim.accept();
        let Completion::Accepted(socket) = next(&mut sim) else { panic!("nobody connected") };
        sim.adopt(socket, KEY);
        (sim, client)
    }

    fn next(sim: &mut Sim) -> Completion<Buffer> {
        for _ in 0..10_000 {
            if let Some(completion) = sim.poll() {
                return completion;
            }
            sim.wait(Wait::Forever).unwrap();
        }
        panic!("nothing completes")
    }

    #[test]
    #[should_panic(expected = "written or freed under a send")]
    fn a_write_under_a_send_is_caught() {
        let (_world, mut sim, _client) = connected(1, 1);
        let frame = sim.palette().open();
        sim.palette().append(frame, |out| out.extend_from_slice(b"hello")).unwrap();
        sim.send(KEY, frame, 0);
        // The palette gives no way to write a lent frame; pretend that it was returned too early.
        sim.palette().returned(frame);
        sim.palette().append(frame, |out| out[4] = b'!').unwrap();
        next(&mut sim);
    }

    #[test]
    fn a_close_with_bytes_unread_resets_the_client() {
        let (world, mut sim, client) = connected(1, 1);
        world.client_send(client, b"unread");
        world.advance(Duration::from_secs(1));
        sim.close(KEY);
        assert!(matches!(next(&mut sim), Completion::Closed { conn: KEY }));
        assert_eq!(world.client_state(client), ClientState::ServerClosed { clean: false });
        assert_eq!(world.audit(), Ok(()));
    }

    #[test]
    fn a_close_under_a_send_tells_for_how_long_there_was_something_to_send() {
        // Two frames, of which the client takes the first after three seconds and the second not in four.
        let check = |pauses: bool, takes_all: bool, expected: std::ops::Range<u64>| {
            let world = World::new(1, Faults::default());
            world.set_socket_buffers(&[1]);
            let (mut sim, client) = adopted(&world, 1, 1);
            let pass = |sim: &mut Sim, secs| {
                world.advance(Duration::from_secs(secs));
                sim.wait(Wait::No).unwrap();
            };
            let send = |sim: &mut Sim| {
                let frame = sim.palette().open();
                sim.palette().append(frame, |out| out.extend_from_slice(b"hello")).unwrap();
                sim.send(KEY, frame, 0);
            };
            world.client_stall(client, true);
            send(&mut sim);
            pass(&mut sim, 3);
            world.client_stall(client, false);
            assert!(matches!(next(&mut sim), Completion::Sent { sent: Ok(5), .. }));
            if pauses {
                sim.wait(Wait::No).unwrap();
            }
            send(&mut sim);
            if takes_all {
                assert!(matches!(next(&mut sim), Completion::Sent { sent: Ok(5), .. }));
            }
            world.client_stall(client, true);
            pass(&mut sim, 4);
            sim.close(KEY);
            let found = world.client_backlog_ms(client);
            assert!(expected.contains(&found), "pauses {pauses}, takes all {takes_all}: {found} ms");
        };
        check(false, false, 7_000..7_100);
        check(true, false, 4_000..4_100);
        check(false, true, 0..1);
    }

    #[test]
    fn receiving_starves_when_every_buffer_is_lent() {
        let (world, mut sim, client) = connected(1, 1);
        world.client_send(client, b"0123456789abcdef");
        world.advance(Duration::from_secs(1));
        sim.receive(KEY);
        let Completion::Received { bytes, armed: true, .. } = next(&mut sim) else { panic!("bytes were there") };
        assert!(matches!(next(&mut sim), Completion::ReceiveStopped { conn: KEY, starved: true }));
        assert!(world.audit().unwrap_err().contains("1 of 1 receive buffers did not come back"));
        drop(bytes);
        sim.receive(KEY);
        assert!(matches!(next(&mut sim), Completion::Received { .. }));
    }

    #[test]
    fn accepting_stops_when_the_table_is_full() {
        let (world, mut sim, first) = connected(1, 1);
        let second = world.connect();
        assert!(matches!(next(&mut sim), Completion::AcceptStopped(_)));
        world.advance(Duration::from_secs(1));
        assert_eq!(world.client_state(first), ClientState::Open);
        assert_eq!(world.client_state(second), ClientState::ServerClosed { clean: true });
        sim.stop_accepting();
        assert_eq!(world.client_state(world.connect()), ClientState::Refused);
    }

    #[test]
    fn time_jumps_only_when_every_shard_sleeps() {
        let world = World::new(1, Faults::default());
        let config = SimConfig { table: 1, buffers: 1, buffer_size: 8 };
        let (mut long, mut short) = (world.driver(ShardId(0), config), world.driver(ShardId(1), config));
        long.wait(Wait::AtMost(Duration::from_secs(60))).unwrap();
        assert!(world.now().monotonic_ms() < 10 && world.asleep(ShardId(0)) && !world.asleep(ShardId(1)));
        let now = short.wait(Wait::AtMost(Duration::from_secs(5))).unwrap();
        assert!((5000..5010).contains(&now.monotonic_ms()) && world.asleep(ShardId(0)), "{now:?}");
        short.ring(ShardId(0));
        short.wait(Wait::No).unwrap();
        assert!(!world.asleep(ShardId(0)));
        assert!(matches!(next(&mut long), Completion::Rang));
    }

    #[test]
    fn it_is_quiet_until_a_shard_wakes_or_bytes_come() {
        let (world, mut sim, client) = connected(1, 1);
        // Never asleep, so that time does not jump.
        let _other = world.driver(ShardId(1), SimConfig { table: 0, buffers: 0, buffer_size: 0 });
        let quiet = || world.quiet_for([ShardId(0)].into_iter());
        let mut fall_asleep = || {
            while sim.poll().is_some() || !world.asleep(ShardId(0)) {
                sim.wait(Wait::AtMost(Duration::from_secs(60))).unwrap();
            }
        };
        assert_eq!(quiet(), Duration::ZERO, "awake");
        fall_asleep();
        assert!((59..=60).contains(&quiet().as_secs()), "{:?}", quiet());
        world.client_send(client, b"ping");
        assert_eq!(quiet(), Duration::ZERO, "on its way");
        world.advance(Duration::from_millis(50));
        assert!(quiet() > Duration::from_secs(50), "nobody asked for it");
        sim.receive(KEY);
        assert_eq!(quiet(), Duration::ZERO, "the kernel has something to do");
    }

    #[test]
    fn a_sleep_that_is_interrupted_ends_when_it_should() {
        let world = World::new(1, Faults::default());
        let config = SimConfig { table: 1, buffers: 1, buffer_size: 8 };
        let (mut sleeper, mut other) = (world.driver(ShardId(0), config), world.driver(ShardId(1), config));
        let minute_ns = 60_000_000_000;
        let mut now_ns = 0;
        while now_ns < minute_ns {
            other.wait(Wait::AtMost(Duration::from_secs(7))).unwrap();
            let left = Duration::from_nanos(minute_ns - now_ns);
            now_ns = sleeper.wait(Wait::AtMost(left)).unwrap().monotonic_ns;
        }
        assert!(now_ns < minute_ns + 10_000_000, "{now_ns}");
    }

    #[test]
    fn a_stopped_process_finds_what_arrived_meanwhile() {
        let (world, mut sim, client) = connected(1, 1);
        sim.receive(KEY);
        sim.wait(Wait::No).unwrap();
        world.client_send(client, b"ping");
        world.advance(Duration::from_secs(300));
        assert!(world.now().monotonic_ms() >= 300_000);
        assert!(matches!(next(&mut sim), Completion::Received { .. }));
    }

    const KEY: ConnKey = ConnKey { slot: 0, generation: 1 };
}

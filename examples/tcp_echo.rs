//! The floor: a bare TCP echo on the driver, without WebSocket, and a client that loads it. What a whole server costs
//! a message beyond this is its own.
//!
//! ```text
//! tcp_echo serve --listen 127.0.0.1:9000 --mode recv --cpu 0       one run: ends when the last client has left
//! tcp_echo load  --connect 127.0.0.1:9000 --connections 1000 --cpu 1
//! ```
//! Both print one line: messages, CPU of the thread and calls of io_uring_enter for each message.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::bell::Bell;
use tidewheel::io::uring::{Counters, ReceiveMode, Uring, UringConfig};
use tidewheel::io::{Completion, FrameKey, Io, Wait, affinity, listener, probe};

#[derive(Parser)]
enum Command {
    /// Echoes what comes, until the last connection has left.
    Serve {
        #[arg(long)]
        listen: SocketAddr,
        #[command(flatten)]
        common: Common,
    },
    /// Sends one message on each connection, the next when it has come back.
    Load {
        #[arg(long)]
        connect: SocketAddr,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
struct Common {
    #[arg(long, value_enum, default_value_t = Mode::Recv)]
    mode: Mode,
    /// Core to pin the thread to.
    #[arg(long)]
    cpu: Option<usize>,
    /// Bytes of one message.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Size of a receive buffer.
    #[arg(long, default_value_t = 4096)]
    buffer: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Recv,
    Poll,
}

fn main() -> io::Result<()> {
    match Command::parse() {
        Command::Serve { listen, common } => {
            let listeners = listener::listen(listen, 1)?;
            let mut echo = Echo::new(driver(&common, listeners)?, common.size);
            echo.serve()
        }
        Command::Load { connect, connections, seconds, common } => {
            let mut io = driver(&common, Vec::new())?;
            for _ in 0..connections {
                let stream = TcpStream::connect(connect)?;
                stream.set_nodelay(true)?;
                io.take(stream)?;
            }
            Echo::new(io, common.size).load(connections, Duration::from_secs_f64(seconds))
        }
    }
}

fn driver(common: &Common, listeners: Vec<TcpListener>) -> io::Result<Uring> {
    if let Some(cpu) = common.cpu {
        affinity::pin(cpu)?;
    }
    let limit = probe::raise_descriptor_limit()?;
    Uring::new(UringConfig {
        table: limit.min(65_536) as u32,
        buffers: 4096,
        buffer_size: common.buffer,
        mode: match common.mode {
            Mode::Recv => ReceiveMode::Recv,
            Mode::Poll => ReceiveMode::Poll,
        },
        listeners,
        bells: Arc::from([Arc::new(Bell::new()?)]),
        shard: ShardId(0),
    })
}

/// Connections that send back what they receive, all that came meanwhile in one send.
struct Echo {
    io: Uring,
    conns: Vec<Conn>,
    free: Vec<u32>,
    /// Connections that have something to send and no send in flight.
    dirty: Vec<ConnKey>,
    size: usize,
    bytes: u64,
    /// What was spent before the first byte.
    start: Option<Spent>,
}

#[derive(Clone, Copy, Default)]
struct Conn {
    generation: u32,
    pending: Option<FrameKey>,
    sending: bool,
    closing: bool,
}

struct Spent {
    at: Instant,
    cpu_ns: u64,
    counters: Counters,
}

impl Spent {
    fn now(io: &Uring) -> io::Result<Self> {
        // The thread's time on a core, in ns.
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
        let cpu_ns = stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        Ok(Self { at: Instant::now(), cpu_ns, counters: io.counters().clone() })
    }
}

impl Echo {
    fn new(io: Uring, size: usize) -> Self {
        Self { io, conns: Vec::new(), free: Vec::new(), dirty: Vec::new(), size, bytes: 0, start: None }
    }

    fn serve(&mut self) -> io::Result<()> {
        self.io.accept();
        let mut end = None;
        loop {
            self.io.wait(Wait::Forever)?;
            while let Some(completion) = self.io.poll() {
                let left =
                    matches!(completion, Completion::ReceiveEnded { .. } | Completion::Sent { sent: Err(_), .. });
                if left && end.is_none() {
                    end = Some(Spent::now(&self.io)?);
                }
                self.react(completion)?;
            }
            self.flush();
            if self.free.len() == self.conns.len()
                && let (Some(start), Some(end)) = (&self.start, &end)
            {
                return self.report(start, end);
            }
        }
    }

    fn load(&mut self, connections: usize, duration: Duration) -> io::Result<()> {
        while self.conns.len() < connections {
            self.io.wait(Wait::Forever)?;
            while let Some(completion) = self.io.poll() {
                self.react(completion)?;
            }
        }
        self.start = Some(Spent::now(&self.io)?);
        let message = vec![b'x'; self.size];
        for slot in 0..connections as u32 {
            self.answer(ConnKey { slot, generation: 1 }, &message);
        }
        self.flush();
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.io.wait(Wait::AtMost(Duration::from_millis(100)))?;
            while let Some(completion) = self.io.poll() {
                self.react(completion)?;
            }
            self.flush();
        }
        let start = self.start.as_ref().expect("set above");
        self.report(start, &Spent::now(&self.io)?)
    }

    fn react(&mut self, completion: Completion<<Uring as Io>::Buffer>) -> io::Result<()> {
        match completion {
            Completion::Accepted(socket) => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.conns.push(Conn::default());
                    self.conns.len() as u32 - 1
                });
                let conn = &mut self.conns[slot as usize];
                *conn = Conn { generation: conn.generation + 1, ..Conn::default() };
                let key = ConnKey { slot, generation: conn.generation };
                self.io.adopt(socket, key);
                self.io.receive(key);
            }
            Completion::Received { conn, bytes, armed } => {
                if self.start.is_none() {
                    self.start = Some(Spent::now(&self.io)?);
                }
                self.bytes += bytes.len() as u64;
                self.answer(conn, &bytes);
                if !armed {
                    self.io.receive(conn);
                }
            }
            Completion::ReceiveStopped { conn, .. } => self.io.receive(conn),
            Completion::ReceiveEnded { conn, .. } => self.close(conn),
            Completion::Sent { conn, sent: Ok(_) } => {
                self.conns[conn.slot as usize].sending = false;
                self.dirty.push(conn);
            }
            Completion::Sent { conn, sent: Err(_) } => {
                self.conns[conn.slot as usize].sending = false;
                self.close(conn);
            }
            Completion::Closed { conn } => self.free.push(conn.slot),
            Completion::AcceptStopped(error) => return Err(error),
            Completion::Rang => {}
        }
        Ok(())
    }

    fn answer(&mut self, key: ConnKey, bytes: &[u8]) {
        let conn = &mut self.conns[key.slot as usize];
        if conn.closing {
            return;
        }
        let palette = self.io.palette();
        let frame = *conn.pending.get_or_insert_with(|| {
            if !conn.sending {
                self.dirty.push(key);
            }
            palette.open()
        });
        palette.append(frame).expect("nobody sends a pending frame").extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        for key in self.dirty.drain(..) {
            let conn = &mut self.conns[key.slot as usize];
            if conn.sending || conn.closing {
                continue;
            }
            if let Some(frame) = conn.pending.take() {
                conn.sending = true;
                self.io.send(key, frame, 0);
                self.io.palette().release(frame);
            }
        }
    }

    fn close(&mut self, key: ConnKey) {
        let conn = &mut self.conns[key.slot as usize];
        if !conn.closing {
            conn.closing = true;
            if let Some(frame) = conn.pending.take() {
                self.io.palette().release(frame);
            }
            self.io.close(key);
        }
    }

    fn report(&self, start: &Spent, end: &Spent) -> io::Result<()> {
        let messages = (self.bytes / self.size as u64).max(1);
        let each = |n: u64| n as f64 / messages as f64;
        let (from, to) = (&start.counters, &end.counters);
        writeln!(
            io::stdout(),
            "messages={messages} per_second={:.0} cpu_ns={:.0} enters={:.4} requests={:.3} completions={:.3} starved={} overflows={}",
            messages as f64 / (end.at - start.at).as_secs_f64(),
            each(end.cpu_ns - start.cpu_ns),
            each(to.enters - from.enters),
            each(to.submitted - from.submitted),
            each(to.completed - from.completed),
            to.starved,
            to.overflows,
        )
    }
}

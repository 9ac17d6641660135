//! Clients that behave while others attack: each publishes to a topic of its own, 80 times a second, and waits for the
//! message and the receipt.
//!
//! Law: a latency counts from when the publish was due, and one that was due while another was late is as late. An answer
//! that is not the expected one, or none within half a minute, is a failure. A publish that was on its way while a hypervisor
//! withheld a core says nothing of the server, and does not count.

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::attackers::token;
use super::websocket;

/// Publishes until standard input ends. For each line of it, says how many publishes there were since the last one that count,
/// and their latencies: the median, the 99th part and the longest, in microseconds.
///
/// # Errors
/// The server failed a client.
pub fn run(address: SocketAddr) -> io::Result<()> {
    let publishes: Arc<Mutex<Vec<Publish>>> = Arc::default();
    for number in 0..CLIENTS {
        let mut client = Client::connect(address, number)?;
        let publishes = publishes.clone();
        thread::spawn(move || {
            let mut due = Instant::now() + PERIOD * number / CLIENTS;
            loop {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if let Err(error) = client.publish() {
                    let _ = writeln!(io::stderr(), "a client that behaved was failed: {error}");
                    std::process::exit(1);
                }
                let mut publishes = publishes.lock().expect("nobody panics");
                // Those that were due meanwhile are not sent, which could be over the rate; they would have waited for as long.
                let answered = Instant::now();
                while due <= answered {
                    publishes.push(Publish { due, answered });
                    due += PERIOD;
                }
            }
        });
    }
    let thefts: Arc<Mutex<Vec<Instant>>> = Arc::default();
    thread::spawn({
        let thefts = thefts.clone();
        move || watch(&thefts)
    });
    writeln!(io::stdout(), "ready")?;
    for line in io::stdin().lock().lines() {
        line?;
        let taken = std::mem::take(&mut *publishes.lock().expect("nobody panics"));
        let thefts = std::mem::take(&mut *thefts.lock().expect("nobody panics"));
        let is_of_server = |publish: &&Publish| !thefts.iter().any(|theft| publish.overlaps(*theft));
        let mut taken: Vec<u32> = taken.iter().filter(is_of_server).map(Publish::latency_us).collect();
        taken.sort_unstable();
        let at = |part: usize| taken.get(taken.len() * part / 100).or(taken.last()).copied().unwrap_or_default();
        writeln!(io::stdout(), "{} {} {} {}", taken.len(), at(50), at(99), at(100))?;
    }
    Ok(())
}

struct Publish {
    due: Instant,
    answered: Instant,
}

impl Publish {
    fn latency_us(&self) -> u32 {
        (self.answered - self.due).as_micros() as u32
    }

    /// Whether it was on its way in the time that was found stolen at `theft`.
    fn overlaps(&self, theft: Instant) -> bool {
        self.due <= theft && theft <= self.answered + STOLEN_BEFORE
    }
}

/// Notes when a hypervisor was found to have withheld a core.
fn watch(thefts: &Mutex<Vec<Instant>>) {
    let mut before = stolen_ms().unwrap_or_default();
    loop {
        thread::sleep(WATCHED);
        let now = stolen_ms().unwrap_or_default();
        if now > before {
            thefts.lock().expect("nobody panics").push(Instant::now());
        }
        before = now;
    }
}

/// Milliseconds that the machine's cores were withheld so far (`steal` of proc(5), in ticks of 10 ms).
pub fn stolen_ms() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let ticks = text.split_whitespace().nth(8).and_then(|ticks| ticks.parse::<f64>().ok());
    ticks.map(|ticks| ticks * 10.0).ok_or_else(|| io::Error::other("/proc/stat names no stolen time"))
}

struct Client {
    socket: TcpStream,
    publish: Vec<u8>,
    received: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr, number: u32) -> io::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        websocket::shake_hands(&mut socket, "/ws")?;
        let token = token(&format!("neighbour-{number}"))?;
        let topic = format!("own.{number}");
        for ask in [
            format!(r#"{{"type":"authenticate","payload":{{"token":"{token}"}}}}"#),
            format!(r#"{{"type":"subscribe","payload":{{"topic":"{topic}"}}}}"#),
        ] {
            let answer = websocket::ask(&mut socket, &ask)?;
            if !answer.contains(r#""authenticated":true"#) && !answer.contains(r#""success":true"#) {
                return Err(io::Error::other(answer));
            }
        }
        let mut publish = Vec::new();
        let text = format!(r#"{{"type":"publish","payload":{{"topic":"{topic}","data":"{}"}}}}"#, "x".repeat(100));
        websocket::text_frame(&mut publish, text.as_bytes(), [5, 6, 7, 8]);
        Ok(Self { socket, publish, received: Vec::new() })
    }

    fn publish(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.publish)?;
        for expected in [r#""type":"message""#, r#""queued":1"#] {
            let said = self.next()?;
            if !said.contains(expected) {
                return Err(io::Error::other(said));
            }
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<String> {
        loop {
            if let Some((_, payload, end)) = websocket::split(&self.received) {
                let text = String::from_utf8_lossy(payload).into_owned();
                self.received.drain(..end);
                return Ok(text);
            }
            let mut piece = [0; 4096];
            match self.socket.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.extend_from_slice(&piece[..count]),
            }
        }
    }
}

const CLIENTS: u32 = 4;
/// How often stolen time is looked at, and for how long before it may have been taken: a tick.
const WATCHED: Duration = Duration::from_millis(4);
const STOLEN_BEFORE: Duration = Duration::from_millis(15);
/// Of each client: 80 a second, less than it may.
const PERIOD: Duration = Duration::from_micros(12_500);

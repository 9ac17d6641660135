//! A thousand attackers at full speed: what they cost clients that behave, how much memory the server needs for them, and
//! how soon they are gone.
//!
//! Law: the server has its default limits, none is raised, and a pace if that is asked for: attackers come from 127.1.0.0 and following, 20 from each
//! address, which is as much as one address may do at once; where the attack needs it each has a token of its own user.
//! The server has the first core to itself; attackers and clients that behave share the last one, in processes of their
//! own. So that what is measured is the server and not the line for that core, the clients that behave run with real-time
//! priority where that may be had (`chrt --fifo`; else the attackers are niced), and wake at once whatever attackers do;
//! what the attackers' system calls do for the server's side of a loopback connection is theirs as well. Latencies count
//! from when a publish was due.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;

use super::attackers::Attack;
use super::child::Server;
use super::neighbours::stolen_ms;
use super::server::Kind;
use super::table::Table;

/// Prints a line for each attack.
///
/// # Errors
/// The server failed a client that behaved, or ended.
pub fn compare(attacks: &[Attack], kind: Kind, connections: usize, most: Duration) -> io::Result<()> {
    let attacks = if attacks.is_empty() { Attack::value_variants() } else { attacks };
    let labels = [
        "p50 us quiet",
        "p99 us quiet",
        "p50 us attacked",
        "p99 us attacked",
        "p50 ratio",
        "p99 ratio",
        "samples",
        "server core %",
        "sent MB",
        "peak +MB",
        "bound MB",
        "gone after ms",
        "left",
        "samples again",
        "p50 us again",
        "p99 us again",
        "p99 ratio again",
        "server core % again",
        "stolen ms, quiet",
        "stolen ms",
        "stolen ms again",
        "ended again",
        "how they ended",
    ];
    let mut table = Table::new(&format!("{connections} attackers"), &labels);
    for &attack in attacks {
        let name = attack.to_possible_value().map(|name| name.get_name().to_owned()).unwrap_or_default();
        let row = match measure(attack, kind, connections, most) {
            Ok(row) => row,
            Err(error) => {
                table.row_with_words(&name, &labels.map(|_| f64::NAN)[1..], 0, &format!("failed: {error}"));
                continue;
            }
        };
        let bound = bound_bytes(attack) as f64 * connections as f64 / 1e6;
        let gone = if row.wave.left == 0 { row.wave.lasted_ms } else { f64::NAN };
        let figures = [
            row.quiet.p50,
            row.quiet.p99,
            row.wave.latency.p50,
            row.wave.latency.p99,
            row.wave.latency.p50 / row.quiet.p50,
            row.wave.latency.p99 / row.quiet.p99,
            row.wave.latency.count,
            row.wave.core_percent(),
            row.wave.sent_bytes as f64 / 1e6,
            row.peak_bytes as f64 / 1e6,
            bound,
            gone,
            row.wave.left as f64,
            row.again.latency.count,
            row.again.latency.p50,
            row.again.latency.p99,
            row.again.latency.p99 / row.quiet.p99,
            row.again.core_percent(),
            row.quiet.stolen_ms,
            row.wave.latency.stolen_ms,
            row.again.latency.stolen_ms,
            row.again.ended as f64,
        ];
        table.row_with_words(&name, &figures, 1, &row.wave.ends.join(", "));
        writeln!(io::stderr(), "{name}: {figures:.1?} {}", row.wave.ends.join(", "))?;
    }
    table.print()
}

/// What an attacker may make the server hold at most: its share of the bounds in the guide's page on threats.
fn bound_bytes(attack: Attack) -> usize {
    const CONNECTION: usize = 4096; // with what the kernel's completions and the allocator add
    const HEAD: usize = 2 * 16 * 1024;
    const MESSAGE: usize = 2 * 1_000_000;
    const QUEUE: usize = 1_000_000;
    const REPLIES: usize = 64 * 1024; // the one that reaches the bound, and what its buffer grew to
    const HELD: usize = 64 * 1024; // what was received and waits for its share, or for room
    CONNECTION
        + match attack {
            Attack::SlowHandshake | Attack::HeaderFlood => HEAD,
            Attack::NoAuth | Attack::Garbage | Attack::ResetStorm | Attack::UpgradeStorm => 0,
            Attack::TinyFragments | Attack::EmptyFragments => MESSAGE,
            Attack::ZipBomb | Attack::LegalZip => 128 * 1024,
            Attack::EmptyMessages | Attack::PingFlood | Attack::PublishFlood | Attack::ZeroWindow => {
                QUEUE + REPLIES + HELD
            }
        }
}

struct Row {
    quiet: Latency,
    wave: Wave,
    /// The same, with attackers that come again; of those that never end or only connect there is none.
    again: Wave,
    /// Beyond what it had before.
    peak_bytes: u64,
}

/// One wave of attackers.
struct Wave {
    latency: Latency,
    cpu: Duration,
    sent_bytes: u64,
    lasted_ms: f64,
    left: u64,
    ended: u64,
    ends: Vec<String>,
}

impl Wave {
    fn run(server: &mut Server, neighbours: &mut Helper, attackers: &mut Helper) -> io::Result<Self> {
        let since = Latency::begin(neighbours)?;
        let before = server.spent()?.cpu;
        attackers.say()?;
        let first = attackers.line()?;
        let latency = Latency::take(neighbours, since)?;
        let cpu = server.spent()?.cpu - before;
        let numbers: Vec<u64> = first.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [lasted_ms, left, sent_bytes] = numbers[..] else { return Err(io::Error::other(first)) };
        let (mut ends, mut ended) = (Vec::new(), 0);
        loop {
            let line = attackers.line()?;
            match line.split_once(' ') {
                Some((count, how)) => {
                    ended += count.parse::<u64>().map_err(io::Error::other)?;
                    ends.push(format!("{count} × {how}"));
                }
                None => break,
            }
        }
        if left > 0 {
            ends.push(format!("{left} × still there"));
        }
        Ok(Self { latency, cpu, sent_bytes, lasted_ms: lasted_ms as f64, left, ended, ends })
    }

    fn none() -> Self {
        let latency = Latency { count: f64::NAN, p50: f64::NAN, p99: f64::NAN, stolen_ms: f64::NAN };
        Self { latency, cpu: Duration::ZERO, sent_bytes: 0, lasted_ms: f64::NAN, left: 0, ended: 0, ends: Vec::new() }
    }

    fn core_percent(&self) -> f64 {
        self.cpu.as_secs_f64() * 100_000.0 / self.lasted_ms
    }
}

fn measure(attack: Attack, kind: Kind, connections: usize, most: Duration) -> io::Result<Row> {
    let mut server = Server::start(kind)?;
    let address = server.address();
    let mut neighbours = Helper::start(Priority::High, &["neighbours".into(), address.to_string()])?;
    thread::sleep(SETTLE);
    let since = Latency::begin(&mut neighbours)?;
    thread::sleep(QUIET);
    let quiet = Latency::take(&mut neighbours, since)?;
    let (_, before_bytes) = server.resident_bytes()?;

    let name = attack.to_possible_value().map(|name| name.get_name().to_owned()).unwrap_or_default();
    let arguments =
        ["attackers".into(), name, address.to_string(), connections.to_string(), most.as_secs().to_string()];
    let mut attackers = Helper::start(Priority::Low, &arguments)?;
    thread::sleep(REST);
    let wave = Wave::run(&mut server, &mut neighbours, &mut attackers)?;
    let (peak_bytes, _) = server.resident_bytes()?;
    let again = match wave.left == 0 && !attack.comes_again() {
        true => {
            thread::sleep(REST);
            Wave::run(&mut server, &mut neighbours, &mut attackers)?
        }
        false => Wave::none(),
    };
    Ok(Row { quiet, wave, again, peak_bytes: peak_bytes.saturating_sub(before_bytes) })
}

/// Of clients that behave, in microseconds.
struct Latency {
    count: f64,
    p50: f64,
    p99: f64,
    /// What a hypervisor took of the cores meanwhile. What was on its way then is left out of the latencies.
    stolen_ms: f64,
}

impl Latency {
    /// Of the time until now; `begin` begins it, and says how much had been stolen.
    fn take(neighbours: &mut Helper, stolen_before_ms: f64) -> io::Result<Self> {
        let stolen_ms = stolen_ms()? - stolen_before_ms;
        let [count, p50, p99, _] = ask(neighbours)?;
        Ok(Self { count, p50, p99, stolen_ms })
    }

    fn begin(neighbours: &mut Helper) -> io::Result<f64> {
        ask(neighbours)?;
        stolen_ms()
    }
}

fn ask(neighbours: &mut Helper) -> io::Result<[f64; 4]> {
    neighbours.say()?;
    let line = neighbours.line()?;
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().map_err(|_| io::Error::other(line))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Priority {
    High,
    Low,
}

/// This program once more, in a part of its own; killed when dropped.
struct Helper {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Helper {
    fn start(priority: Priority, arguments: &[String]) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        let is_real_time = Command::new("chrt").args(["--fifo", "1", "true"]).stderr(Stdio::null()).status();
        let is_real_time = is_real_time.is_ok_and(|status| status.success());
        let mut command = match priority {
            Priority::High if is_real_time => {
                let mut command = Command::new("chrt");
                command.args(["--fifo", "1"]).arg(program);
                command
            }
            Priority::Low if !is_real_time => {
                let mut command = Command::new("nice");
                command.args(["-n", "19"]).arg(program);
                command
            }
            _ => Command::new(program),
        };
        let mut process = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = process.stdin.take().expect("piped");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let mut helper = Self { process, stdin, stdout };
        match helper.line()?.as_str() {
            "ready" => Ok(helper),
            other => Err(io::Error::other(other.to_owned())),
        }
    }

    fn say(&mut self) -> io::Result<()> {
        writeln!(self.stdin)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line)? {
            0 => Err(io::Error::other("a part of the measurement has ended")),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have ended already
        let _ = self.process.wait();
    }
}

const SETTLE: Duration = Duration::from_millis(500);
/// After much work of both cores: a hypervisor that lends them for a while only has to be willing again.
const REST: Duration = Duration::from_secs(3);
const QUIET: Duration = Duration::from_secs(5);

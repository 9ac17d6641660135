//! `tidewheel drain`: asks a running server to end in order, and watches it if told to.
//! Law: 0 means that the drain has begun and, with `--wait`, that the server has gone; anything else says what to do.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tidewheel::config::{Flag, Secret};

use super::{Failure, Settings, output, parse_address, sources};

#[derive(Args)]
pub(super) struct Drain {
    /// The configuration file that the server was started with.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the server's internal port is.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    admin_listen: Option<SocketAddr>,
    /// Cut whoever is left after this time, such as 5s, instead of `drain.deadline`.
    #[arg(long, value_name = "DURATION")]
    deadline: Option<String>,
    /// Show how far it is until the server has gone.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Drain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { config, admin_listen, deadline, wait, settings } = self;
        let address = admin_listen.map(|address| Flag {
            typed: "--admin-listen".into(),
            key: "admin.listen".into(),
            value: address.to_string(),
        });
        let mut draft = sources(config, address.into_iter().chain(settings.flags()?).collect()).read();
        draft.config.auth.required = false; // whoever stops a server needs no key for its clients' tokens
        let admin = draft.finish()?.admin;
        let Some(key) = admin.key else {
            let how = "the server's admin.key is needed: give --config FILE, or the variable TIDEWHEEL_ADMIN_KEY. A server \
                       without one is drained by SIGTERM";
            return Err(Failure::Usage(how.into()));
        };
        if admin.listen.port() == 0 {
            let how =
                "admin.listen has port 0, so the server chose one: give --admin-listen ADDR, as its start printed it";
            return Err(Failure::Usage(how.into()));
        }
        let port = Port { address: reachable(admin.listen), key };

        let body = deadline.map_or(json!({}), |deadline| json!({ "deadline": deadline }));
        let progress = port.ask("POST", &body.to_string())?.map_err(|error| port.unreachable(&error))?;
        output::print(&format!("draining: {}\n", describe(&progress)))?;
        if wait { port.watch(&progress) } else { Ok(()) }
    }
}

/// An internal port, and what opens it.
struct Port {
    address: SocketAddr,
    key: Secret,
}

impl Port {
    /// Asks `/api/drain`. The inner error says that nobody answered.
    ///
    /// # Errors
    /// Somebody answered, and it was no success.
    fn ask(&self, method: &str, body: &str) -> Result<io::Result<Value>, Failure> {
        let answer = match self.exchange(method, body) {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        let Some((status, text)) = parse(&answer) else {
            return Err(Failure::Run(format!("{} is no internal port of tidewheel", self.address)));
        };
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let message = value["message"].as_str().unwrap_or(NOT_OURS);
        match status {
            200 => Ok(Ok(value)),
            400 => Err(Failure::Usage(message.to_owned())),
            401 => Err(Failure::Usage(format!("{} has another admin.key than this one", self.address))),
            _ => Err(Failure::Run(format!("{} answered {status}: {message}", self.address))),
        }
    }

    fn exchange(&self, method: &str, body: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = format!("{method} /api/drain HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        let _ = write!(request, "Authorization: Bearer {}\r\n", self.key.expose()); // a String takes everything
        let _ = write!(request, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        if answer.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Shows how far it is until nobody answers any more.
    fn watch(&self, begin: &Value) -> Result<(), Failure> {
        let deadline = Duration::from_millis(begin["deadline_in_ms"].as_u64().unwrap_or_default());
        let (start, mut shown) = (Instant::now(), describe(begin));
        loop {
            thread::sleep(PAUSE);
            match self.ask("GET", "")? {
                // Whoever looks after the server may have started it again by now.
                Ok(progress) if !is_drain(&progress) => {
                    return output::print("the server has ended, and another answers\n");
                }
                Ok(progress) => {
                    let now = describe(&progress);
                    if now != shown {
                        output::print(&format!("draining: {now}\n"))?;
                        shown = now;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return output::print("the server has ended\n"),
            }
            if start.elapsed() > deadline + PATIENCE {
                return Err(Failure::Run(format!("{} is still there after its deadline", self.address)));
            }
        }
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        Failure::Run(format!(
            "nobody answers at {}: {error}. Is the server running, and is this its admin.listen?",
            self.address
        ))
    }
}

/// Where a server that listens everywhere is reached from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Status and body.
fn parse(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?, body))
}

/// A server that drains has a deadline, until its end.
fn is_drain(progress: &Value) -> bool {
    progress["deadline_in_ms"].is_u64()
}

fn describe(progress: &Value) -> String {
    let count = |name: &str| progress[name].as_u64().unwrap_or_default();
    let seconds = count("deadline_in_ms").div_ceil(1000);
    format!(
        "{} connections left, {} closed cleanly, {} cut, {} bytes unsent, {seconds} s at most",
        count("connections_left"),
        count("closed_cleanly"),
        count("cut"),
        count("unsent_bytes"),
    )
}

/// How long the server may take to answer, and to end after its deadline.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// What a refusal says that is none of the API's.
const NOT_OURS: &str = "this is no internal port of tidewheel; is it the server's admin.listen?";

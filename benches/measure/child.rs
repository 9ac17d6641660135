//! A server's process as the load generator sees it: its address, its CPU time, its memory.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::version::TLS13;
use tidewheel::bench::observe::Process;

use super::secure::{Authority, Socket};
use super::server::Kind;

/// Where servers run. Set before the load generator pins itself, since what it starts could run nowhere else by itself.
pub static CORE: OnceLock<usize> = OnceLock::new();

/// A server in a process of its own; killed when dropped.
pub struct Server {
    pub kind: Kind,
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
    secure: Option<Secure>,
}

/// Of a server that speaks TLS.
pub struct Secure {
    /// Where it has its certificate from.
    pub authority: Authority,
    /// What clients offer.
    pub offer: Arc<ClientConfig>,
}

/// What a server has done so far.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Turns of its loop; 0 if it has none to count.
    pub turns: u64,
    /// Receives that found no free buffer.
    pub starved: u64,
}

impl Server {
    /// Starts this program once more, as a server.
    ///
    /// # Errors
    /// It did not come up.
    pub fn start(kind: Kind) -> io::Result<Self> {
        use clap::ValueEnum;
        let name = kind.to_possible_value().expect("every kind has a name");
        let mut command = Command::new(std::env::current_exe()?);
        let core = CORE.get().copied().unwrap_or_default().to_string();
        command.args(["serve", name.get_name(), &core]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let secure = match kind.is_secure() {
            true => {
                let authority = Authority::new()?;
                command.current_dir(authority.path());
                let offer = authority.offer(&TLS13, Resumption::disabled())?;
                Some(Secure { authority, offer })
            }
            false => None,
        };
        let mut process = command.spawn()?;
        let stdin = process.stdin.take().expect("piped");
        let mut stdout = BufReader::new(process.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let address = line.trim().parse().map_err(|_| io::Error::other(format!("{name:?} did not start")))?;
        Ok(Self { kind, process, stdin, stdout, address, secure })
    }

    /// A blocking connection. The kernel has ports for 28,000.
    ///
    /// # Errors
    /// The server did not accept it.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// The same, which speaks TLS if the server does.
    ///
    /// # Errors
    /// As above.
    pub fn open(&self) -> io::Result<Socket> {
        let tcp = self.connect()?;
        match &self.secure {
            None => Ok(tcp.into()),
            Some(secure) => Socket::secure(tcp, &secure.offer),
        }
    }

    /// Of a server that speaks TLS: its certificate, and what clients offer, which may be changed.
    pub fn secure(&mut self) -> Option<&mut Secure> {
        self.secure.as_mut()
    }

    /// What it has spent, for the difference of two.
    ///
    /// # Errors
    /// It has ended.
    pub fn spent(&mut self) -> io::Result<Spent> {
        let counts = self.counts()?;
        let cpu = Process(self.process.id()).cpu().ok_or_else(|| io::Error::other("it has no threads in /proc"))?;
        Ok(Spent { cpu, turns: counts[0], starved: counts[1] })
    }

    /// Deliveries dropped so far, for each cause.
    ///
    /// # Errors
    /// It has ended.
    pub fn dropped(&mut self) -> io::Result<Vec<u64>> {
        Ok(self.counts()?.split_off(2))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn counts(&mut self) -> io::Result<Vec<u64>> {
        writeln!(self.stdin)?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let counts: Vec<u64> = line.split_whitespace().map_while(|count| count.parse().ok()).collect();
        if counts.len() < 2 {
            return Err(io::Error::other(format!("{} has ended", self.kind.label())));
        }
        Ok(counts)
    }

    /// Its proportional set size in bytes: its own pages, and its share of those it has in common with others.
    ///
    /// # Errors
    /// It has ended.
    pub fn pss_bytes(&self) -> io::Result<u64> {
        let rollup = fs::read_to_string(self.proc("smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("smaps_rollup has no Pss"))
    }

    /// The most that was resident at a time since it started, and what is now, in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident_bytes(&self) -> io::Result<(u64, u64)> {
        let status = fs::read_to_string(self.proc("status"))?;
        let bytes = |name: &str| -> io::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no such line in the status"))
        };
        Ok((bytes("VmHWM:")?, bytes("VmRSS:")?))
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have ended already
        let _ = self.process.wait();
    }
}

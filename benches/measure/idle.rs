//! Idle connections: what each costs the server in memory.
//!
//! Law: every connection has shaken hands, authenticated and subscribed, and has been left alone for a while before the
//! second look; what the server had before the first connection is not counted. The kernel's memory is counted on the
//! whole machine, in the slabs that sockets and their requests come from.

use std::io;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tidewheel::bench::observe;
use tidewheel::config::Config;
use tidewheel::server::{Cost, IDLE_CONNECTION_BYTES, Part};

use super::child::Server;
use super::secure::Socket;
use super::server::{Kind, SECRET};
use super::table::Table;
use super::websocket;

#[derive(Serialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// Prints what an idle connection costs, in both ways of waiting for input.
///
/// # Errors
/// A server failed.
pub fn report(connections: usize) -> io::Result<()> {
    let servers = [Kind::TidewheelAuth, Kind::TidewheelAuthPoll];
    let name = format!("bytes for each of {connections} idle connections, authenticated, one subscription");
    let mut columns = Vec::new();
    for kind in servers {
        columns.push(measure(Server::start(kind)?, connections)?);
    }
    table(&name, &servers.map(Kind::label), &columns)?;
    parts()
}

/// Prints figures that were measured, a server each.
///
/// # Errors
/// Nobody reads it.
pub fn table(name: &str, labels: &[&str], columns: &[Column]) -> io::Result<()> {
    let mut table = Table::new(name, labels);
    let row = |figure: fn(&Column) -> f64| -> Vec<f64> { columns.iter().map(figure).collect() };
    table.row("user memory (PSS)", &row(|column| column.user), 0);
    table.row("kernel memory, both ends of the connection", &row(|column| column.kernel), 0);
    table.row("left of the user memory when all have gone", &row(|column| column.kept), 0);
    table.row("server CPU µs to connect, shake hands, authenticate and subscribe", &row(|column| column.open_us), 1);
    table.row("server CPU µs to close, all at once", &row(|column| column.close_us), 1);
    table.print()
}

/// What a connection costs a server.
pub struct Column {
    user: f64,
    kernel: f64,
    kept: f64,
    open_us: f64,
    close_us: f64,
}

/// Lets connections come, lie idle and go.
///
/// # Errors
/// The server failed.
pub fn measure(mut server: Server, connections: usize) -> io::Result<Column> {
    // One connection comes and goes first: what is allocated once is no connection's.
    drop(connect(&server, 0)?);
    thread::sleep(SETTLE);
    let before = Look::at(&mut server)?;
    let sockets = (0..connections).map(|index| connect(&server, index)).collect::<io::Result<Vec<_>>>()?;
    let opened = server.spent()?.cpu;
    thread::sleep(SETTLE);
    let full = Look::at(&mut server)?;
    drop(sockets);
    thread::sleep(SETTLE);
    let after = Look::at(&mut server)?;
    let each = |bytes: u64, before: u64| (bytes as f64 - before as f64) / connections as f64;
    let each_us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / connections as f64;
    Ok(Column {
        user: each(full.user_bytes, before.user_bytes),
        kernel: each(full.kernel_bytes, before.kernel_bytes),
        kept: each(after.user_bytes, before.user_bytes),
        open_us: each_us(opened - before.cpu),
        close_us: each_us(after.cpu - full.cpu),
    })
}

struct Look {
    user_bytes: u64,
    kernel_bytes: u64,
    cpu: Duration,
}

impl Look {
    fn at(server: &mut Server) -> io::Result<Self> {
        let kernel_bytes = observe::Look::at(None).kernel_bytes.unwrap_or(0);
        Ok(Self { user_bytes: server.pss_bytes()?, kernel_bytes, cpu: server.spent()?.cpu })
    }
}

fn connect(server: &Server, index: usize) -> io::Result<Socket> {
    let mut socket = server.open()?;
    websocket::shake_hands(&mut socket, "/ws")?;
    if server.kind == Kind::TokioTls {
        return match websocket::ask(&mut socket, "there it is")? {
            back if back == "there it is" => Ok(socket),
            other => Err(io::Error::other(other)),
        };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let claims = Claims { sub: format!("user-{}", 10_000 + index), exp: now.as_secs() + 3600 };
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).map_err(io::Error::other)?;
    let asks = [
        format!(r#"{{"type":"authenticate","payload":{{"token":"{token}"}}}}"#),
        format!(r#"{{"type":"subscribe","payload":{{"topic":"topic.{}"}}}}"#, index % TOPICS),
    ];
    for ask in asks {
        let answer = websocket::ask(&mut socket, &ask)?;
        if !answer.contains(r#""authenticated":true"#) && !answer.contains(r#""success":true"#) {
            return Err(io::Error::other(answer));
        }
    }
    Ok(socket)
}

/// Where the user memory goes: the memory contract.
fn parts() -> io::Result<()> {
    let config = Config::parse("auth: {required: false}").map_err(io::Error::other)?;
    let mut table = Table::new("of which, by the sizes of the structures", &["bytes"]);
    for Part { what, bytes } in Cost::idle_user_parts(&config) {
        table.row(what, &[bytes as f64], 0);
    }
    table.row("together", &[IDLE_CONNECTION_BYTES as f64], 0);
    table.print()
}

const TOPICS: usize = 200;
const SETTLE: Duration = Duration::from_secs(2);

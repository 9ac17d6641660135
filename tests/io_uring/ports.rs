//! A port belongs to one process at a time, and is free the moment that process is gone.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use tidewheel::io::listener::listen;

use crate::server::ANY_PORT;

#[test]
fn a_port_belongs_to_one_process_and_comes_back_when_it_is_killed() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ports::the_other_process", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address: SocketAddr =
        lines.find_map(|line| line.unwrap().strip_prefix(LISTENING)?.parse().ok()).expect("the child listens");

    let error = listen(address, 2, super::USER_TIMEOUT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    let mut client = TcpStream::connect(address).unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let listeners = listen(address, 2, super::USER_TIMEOUT).expect("a restart after a kill has nothing to wait for");
    drop((client, listeners));
}

/// Greets whoever connects and keeps them, until killed.
#[test]
#[ignore = "the child of the test above"]
fn the_other_process() {
    let listeners = listen(ANY_PORT.parse().unwrap(), 2, super::USER_TIMEOUT).unwrap();
    let address = listeners[0].local_addr().unwrap();
    let mut out = std::io::stdout().lock();
    // On a line of its own, whatever the harness has begun.
    write!(out, "\n{LISTENING}{address}\n").unwrap();
    out.flush().unwrap();
    std::thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| {
                let mut kept = Vec::new();
                while let Ok((mut client, _)) = listener.accept() {
                    client.write_all(b"hello").unwrap();
                    kept.push(client);
                }
            });
        }
    });
}

const LISTENING: &str = "listening on ";

//! One port belongs to one engine, and who comes second is told which port it is.

use std::net::TcpListener;

use tidewheel::{Config, Engine};

use super::server::{Server, config};

#[test]
fn a_second_engine_in_the_process() {
    let server = Server::start("");
    let mut second = config(2, "");
    second.listen = vec![server.address];
    refused(second, &server.address.to_string());
    server.connect().quiet();
    server.rest();
}

#[test]
fn a_port_that_another_program_has() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let mut taken = config(1, "");
    taken.listen = vec![address];
    refused(taken, &address.to_string());
    // One of two is enough, and the admin's port is one too.
    let mut one_of_two = config(1, "");
    one_of_two.listen.push(address);
    refused(one_of_two, &address.to_string());
    let mut admin = config(1, "");
    admin.admin.listen = address;
    refused(admin, &address.to_string());
    drop(other);
    let mut free = config(2, "");
    free.listen = vec![address];
    let engine = Engine::builder(free).start().unwrap();
    assert_eq!(engine.addresses(), [address]);
    engine.handle().drain();
    engine.wait();
}

#[track_caller]
fn refused(config: Config, port: &str) {
    match Engine::builder(config).start() {
        Ok(_) => panic!("started on a port that is taken"),
        Err(error) => assert!(error.to_string().contains(port), "{error} does not name {port}"),
    }
}

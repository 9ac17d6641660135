//! The driver on the real kernel, over real sockets on the loopback: every promise of the contract in `io/mod.rs`, in
//! both ways of waiting for input.

mod bells;
mod ports;
mod server;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use server::{ANY_PORT, BOTH, Server, pattern};
use tidewheel::id::ConnKey;
use tidewheel::io::uring::ReceiveMode;
use tidewheel::io::{Completion, Io, Lost, SharedFrame, Wait};

/// Long enough for every test.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn messages_of_every_size_around_the_buffers_come_back_intact() {
    const BUFFER: usize = 256;
    let mut sizes: Vec<usize> = vec![1, 2, 100];
    for k in [1, 2, 3, 8, 64] {
        sizes.extend((k * BUFFER - 16)..=(k * BUFFER + 16));
    }
    sizes.push(3 << 20);
    for mode in BOTH {
        let mut server = Server::sized(mode, 8, 16, BUFFER as u32);
        let (mut client, conn) = server.pair();
        let mut writer = client.try_clone().unwrap();
        std::thread::scope(|scope| {
            let sizes = &sizes;
            scope.spawn(move || {
                for size in sizes {
                    let sent = pattern(*size);
                    let mut received = vec![0; *size];
                    std::thread::scope(|scope| {
                        scope.spawn(|| writer.write_all(&sent).unwrap());
                        client.read_exact(&mut received).unwrap();
                    });
                    assert!(received == sent, "{mode:?}: {size} bytes came back changed");
                }
            });
            for size in sizes {
                let bytes = server.collect(conn, *size);
                server.send(conn, &bytes);
                let sent = server.next();
                assert!(matches!(sent, Completion::Sent { sent: Ok(n), .. } if n as usize == *size), "{sent:?}");
            }
        });
        assert_eq!(server.io.palette().live(), 0);
    }
}

#[test]
fn a_send_starts_where_it_is_told() {
    let mut server = Server::new(ReceiveMode::Recv);
    let (mut client, conn) = server.pair();
    let frame = server.io.palette().share(SharedFrame::new(b"0123456789".to_vec()), 1);
    server.io.send(conn, frame, 4);
    assert!(matches!(server.next(), Completion::Sent { sent: Ok(6), .. }));
    let mut got = [0; 6];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"456789");
}

#[test]
fn a_newcomer_has_an_address_and_can_be_refused() {
    let mut server = Server::new(ReceiveMode::Recv);
    let client = server.connect();
    let Completion::Accepted(socket) = server.next() else { panic!("no newcomer") };
    assert_eq!(server.io.peer(&socket), Some(client.local_addr().unwrap()));
    server.io.refuse(socket);
    server.io.wait(Wait::No).unwrap();
    assert_eq!((&client).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn closing_while_receiving_gives_the_peer_an_end_and_closed_last() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (mut client, conn) = server.pair();
        client.write_all(b"hi").unwrap();
        assert_eq!(server.collect(conn, 2), b"hi");
        server.close(conn);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn closing_while_idle_or_in_the_turn_that_armed_works() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let client = server.connect();
        let conn = server.admit();
        assert_eq!(server.close(conn).len(), 0);
        assert_eq!((&client).read(&mut [0; 1]).unwrap(), 0);

        let client = server.connect();
        let conn = server.admit();
        server.io.receive(conn);
        server.send(conn, b"bye");
        server.close(conn);
        let mut got = Vec::new();
        (&client).read_to_end(&mut got).unwrap();
        assert_eq!(got, b"bye", "requests run in the order they were made");
        assert_eq!(server.io.palette().live(), 0);
    }
}

#[test]
fn closing_with_a_send_that_cannot_end_gives_the_frame_back() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (client, conn) = server.pair();
        server.send(conn, &vec![7; 32 << 20]);
        assert!(server.stray().is_none(), "the peer does not read, so the send cannot end");
        assert_eq!(server.io.palette().live(), 1);
        let before = server.close(conn);
        let sent = before.iter().filter(|completion| matches!(completion, Completion::Sent { .. })).count();
        assert_eq!((sent, server.io.palette().live()), (1, 0), "{before:?}");
        drop(client);
    }
}

#[test]
fn a_slow_reader_gets_every_byte() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (mut client, conn) = server.pair();
        let message = pattern(8 << 20);
        server.send(conn, &message);
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 8 << 20];
            for part in got.chunks_mut(1 << 20) {
                client.read_exact(part).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
            got
        });
        assert!(matches!(server.next(), Completion::Sent { sent: Ok(8_388_608), .. }));
        assert!(reader.join().unwrap() == message);
    }
}

#[test]
fn without_a_free_buffer_receiving_stops_and_goes_on_later() {
    for mode in BOTH {
        let mut server = Server::sized(mode, 8, 2, 64);
        let (mut client, conn) = server.pair();
        let message = pattern(1000);
        client.write_all(&message).unwrap();
        let mut got = Vec::new();
        let mut held = Vec::new();
        let mut starved = 0;
        while got.len() < message.len() {
            match server.next() {
                Completion::Received { bytes, armed, .. } => {
                    got.extend_from_slice(&bytes);
                    held.push(bytes);
                    if !armed {
                        server.io.receive(conn);
                    }
                }
                Completion::ReceiveStopped { starved: true, .. } => {
                    starved += 1;
                    assert_eq!(held.len(), 2, "both buffers are lent");
                    held.clear();
                    server.io.wait(Wait::No).unwrap();
                    server.io.receive(conn);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(got == message && starved >= 7, "{mode:?}: {starved} times");
        assert_eq!(server.io.counters().starved, starved);
    }
}

#[test]
fn a_full_table_stops_accepting_until_a_place_is_free() {
    let mut server = Server::sized(ReceiveMode::Recv, 2, 4, 64);
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let (first, second) = (server.admit(), server.admit());
    let error = match server.next() {
        Completion::AcceptStopped(error) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
    assert!(server.stray().is_none(), "told once");
    let enters = server.io.counters().enters;
    clients.push(server.connect());
    assert!(server.stray().is_none(), "nobody accepts");
    assert!(server.io.counters().enters - enters < 20, "an error must not be spun on");

    // Who came meanwhile had only to wait, in the order in which they came.
    let mut last = first;
    for client in &mut clients[2..] {
        server.io.close(last);
        while !matches!(server.next(), Completion::Closed { conn } if conn == last) {}
        last = server.admit();
        assert!(matches!(server.next(), Completion::AcceptStopped(_)), "full again");
        server.io.receive(last);
        client.write_all(b"in").unwrap();
        assert_eq!(server.collect(last, 2), b"in");
    }
    server.close(second);
}

#[test]
fn stop_accepting_closes_the_listener_and_keeps_connections() {
    let mut server = Server::new(ReceiveMode::Recv);
    let (mut client, conn) = server.pair();
    server.io.stop_accepting();
    assert!(server.stray().is_none());
    assert_eq!(TcpStream::connect(server.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    server.io.accept();
    server.io.wait(Wait::No).unwrap();
    assert!(TcpStream::connect(server.address).is_err(), "for good");
    client.write_all(b"still").unwrap();
    assert_eq!(server.collect(conn, 5), b"still");
}

#[test]
fn pause_holds_bytes_back_and_receive_brings_them_in_order() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (mut client, conn) = server.pair();
        client.write_all(b"one").unwrap();
        assert_eq!(server.collect(conn, 3), b"one");
        server.io.pause(conn);
        server.io.pause(conn);
        assert!(matches!(server.next(), Completion::ReceiveStopped { starved: false, .. }), "{mode:?}");
        client.write_all(&pattern(5000)).unwrap();
        assert!(server.stray().is_none(), "{mode:?}: paused");
        server.io.receive(conn);
        assert!(server.collect(conn, 5000) == pattern(5000), "{mode:?}");
    }
}

#[test]
fn a_pause_that_meets_bytes_loses_none() {
    let message = pattern(300);
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (mut client, conn) = server.pair();
        for round in 0..100 {
            client.write_all(&message).unwrap();
            if round % 2 == 0 {
                server.io.wait(Wait::No).unwrap();
            }
            server.io.pause(conn);
            let mut got = Vec::new();
            loop {
                match server.next() {
                    Completion::Received { bytes, armed, .. } => {
                        got.extend_from_slice(&bytes);
                        if !armed {
                            break;
                        }
                    }
                    Completion::ReceiveStopped { starved: false, .. } => break,
                    other => panic!("{mode:?}: {other:?}"),
                }
            }
            server.io.receive(conn);
            got.extend(server.collect(conn, message.len() - got.len()));
            assert!(got == message, "{mode:?}, round {round}");
        }
        server.io.pause(conn);
        assert!(
            matches!(server.next(), Completion::ReceiveStopped { starved: false, .. }),
            "{mode:?}: one answer each"
        );
        assert!(server.stray().is_none());
    }
}

#[test]
fn data_and_end_that_come_together_are_both_noticed() {
    for mode in BOTH {
        for len in [1, 1024, 1025, 2048, 10_000] {
            let mut server = Server::new(mode);
            let client = server.connect();
            let conn = server.admit();
            // All of it waits in the socket before anybody asks.
            (&client).write_all(&pattern(len)).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            server.io.receive(conn);
            assert!(server.collect(conn, len) == pattern(len));
            let end = server.next();
            assert!(
                matches!(end, Completion::ReceiveEnded { lost: Lost::EndOfStream, .. }),
                "{mode:?}, {len} bytes: {end:?}"
            );
            server.close(conn);
        }
    }
}

/// The kernel's task work runs only inside `wait`, so all of this makes one wake-up of an armed receive.
#[test]
fn an_end_that_comes_with_data_while_armed_is_noticed() {
    for mode in BOTH {
        for (how, len) in [("end", 10), ("end", 3000), ("reset", 10), ("reset", 3000)] {
            let mut server = Server::new(mode);
            let (client, conn) = server.pair();
            server.io.wait(Wait::No).unwrap();
            (&client).write_all(&pattern(len)).unwrap();
            if how == "reset" {
                socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(client);
            std::thread::sleep(Duration::from_millis(5));
            assert!(server.collect(conn, len) == pattern(len));
            let end = server.next();
            let lost = match how {
                "end" => Lost::EndOfStream,
                _ => Lost::Broken(ErrorKind::ConnectionReset),
            };
            assert!(
                matches!(end, Completion::ReceiveEnded { lost: this, .. } if this == lost),
                "{mode:?}, {len} bytes, {how}: {end:?}"
            );
        }
    }
}

/// The same as a race: peers leave at any moment of the driver's turn.
#[test]
fn every_peer_that_leaves_is_noticed() {
    const PEERS: usize = 2000;
    const LAST: &[u8] = b"the last of them";
    for mode in BOTH {
        let mut server = Server::new(mode);
        let address = server.address;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for i in 0..PEERS {
                    let mut client = TcpStream::connect(address).unwrap();
                    client.write_all(&pattern(i % 40)).unwrap();
                    if i % 3 == 0 {
                        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                    if i % 7 != 0 {
                        // Lets the driver run into the end from different sides.
                        std::thread::sleep(Duration::from_micros((i % 5) as u64 * 20));
                    }
                    let _ = client.write_all(&pattern(i % 50));
                }
                // Whoever is accepted at all is accepted before this one; a peer that resets early enough never is.
                TcpStream::connect(address).unwrap().write_all(LAST).unwrap();
            });
            let mut ended = 0_u32;
            let mut generation = 0_u32;
            let mut is_last_here = false;
            while !is_last_here || ended < generation {
                match server.next() {
                    Completion::Accepted(socket) => {
                        generation += 1;
                        let conn = ConnKey { slot: generation, generation };
                        server.io.adopt(socket, conn);
                        server.io.receive(conn);
                    }
                    Completion::Received { conn, armed, bytes } => {
                        is_last_here |= &*bytes == LAST;
                        if !armed {
                            server.io.receive(conn);
                        }
                    }
                    Completion::ReceiveStopped { conn, .. } => server.io.receive(conn),
                    Completion::ReceiveEnded { conn, .. } => {
                        server.io.close(conn);
                    }
                    Completion::Closed { .. } => ended += 1,
                    Completion::AcceptStopped(_) => server.io.accept(),
                    _ => {}
                }
            }
        });
    }
}

#[test]
fn a_reset_is_a_broken_connection() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (client, conn) = server.pair();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        server.io.wait(Wait::No).unwrap();
        drop(client);
        let end = server.next();
        assert!(
            matches!(end, Completion::ReceiveEnded { lost: Lost::Broken(ErrorKind::ConnectionReset), .. }),
            "{mode:?}: {end:?}"
        );
        server.send(conn, b"x");
        let sent = server.next();
        assert!(matches!(sent, Completion::Sent { sent: Err(ErrorKind::BrokenPipe), .. }), "{mode:?}: {sent:?}");
        server.close(conn);
    }
}

#[test]
fn shutdown_ends_one_direction_after_what_was_sent() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (mut client, conn) = server.pair();
        let message = pattern(4 << 20);
        server.send(conn, &message);
        server.io.shutdown(conn);
        let reader = std::thread::spawn({
            let mut client = client.try_clone().unwrap();
            move || {
                let mut all = Vec::new();
                client.read_to_end(&mut all).unwrap();
                all
            }
        });
        assert!(matches!(server.next(), Completion::Sent { .. }));
        while !reader.is_finished() {
            server.io.wait(Wait::AtMost(Duration::from_millis(1))).unwrap();
            assert!(server.io.poll().is_none(), "{mode:?}");
        }
        assert!(reader.join().unwrap() == message);
        client.write_all(b"and back").unwrap();
        assert_eq!(server.collect(conn, 8), b"and back");
        server.close(conn);
        let is_by_worker = !server.io.features().fd_install;
        assert_eq!(server.io.counters().worker_shutdowns, u64::from(is_by_worker), "{mode:?}");
    }
}

#[test]
fn a_slot_is_used_again_without_a_trace_of_its_former_connection() {
    for mode in BOTH {
        let mut server = Server::sized(mode, 4, 8, 256);
        for generation in 1..200 {
            let mut client = server.connect();
            let Completion::Accepted(socket) = server.next() else { panic!("no newcomer") };
            let conn = ConnKey { slot: 7, generation };
            server.io.adopt(socket, conn);
            server.io.receive(conn);
            let hello = generation.to_be_bytes();
            client.write_all(&hello).unwrap();
            assert_eq!(server.collect(conn, 4), hello);
            // Bytes that nobody will read, on their way while it closes.
            client.write_all(&pattern(2000)).unwrap();
            server.io.close(conn);
            loop {
                match server.next() {
                    Completion::Closed { conn: closed } => break assert_eq!(closed, conn),
                    Completion::Received { conn: from, .. } | Completion::ReceiveStopped { conn: from, .. } => {
                        assert_eq!(from, conn);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(server.io.counters().stale, 0, "a slot is freed after its last completion, so nothing is stale");
    }
}

#[test]
fn more_requests_in_a_turn_than_the_queue_holds_all_arrive() {
    const CLIENTS: usize = 400;
    for mode in BOTH {
        let mut server = Server::sized(mode, 512, 512, 64);
        let mut pairs: Vec<_> = (0..CLIENTS).map(|_| server.pair()).collect();
        for (i, (_, conn)) in pairs.iter().enumerate() {
            server.send(*conn, &(i as u32).to_be_bytes());
        }
        assert!(server.io.counters().full_queues > 0, "the test is too small");
        server.io.wait(Wait::No).unwrap();
        for (i, (client, _)) in pairs.iter_mut().enumerate() {
            let mut got = [0; 4];
            client.read_exact(&mut got).unwrap();
            assert_eq!(u32::from_be_bytes(got), i as u32);
        }
        // Closes are two linked requests each; a link must not be torn apart by a full queue.
        for (_, conn) in &pairs {
            server.io.close(*conn);
        }
        let mut closed = HashSet::new();
        while closed.len() < CLIENTS {
            if let Completion::Closed { conn } = server.next() {
                assert!(closed.insert(conn), "twice");
            }
        }
        for (client, _) in &mut pairs {
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        }
    }
}

/// The kernel makes as many completions as it likes in one wait: none is lost, and each stream stays in order.
#[test]
fn thousands_of_completions_at_once_all_arrive() {
    const CLIENTS: usize = 500;
    const BYTES: usize = 64 * 30;
    for mode in BOTH {
        let mut server = Server::sized(mode, 600, 16_384, 64);
        let mut pairs: Vec<_> = (0..CLIENTS).map(|_| server.pair()).collect();
        let byte = |client: usize, at: usize| (client * 7 + at * 31) as u8;
        for (number, (client, _)) in pairs.iter_mut().enumerate() {
            let bytes: Vec<u8> = (0..BYTES).map(|at| byte(number, at)).collect();
            client.write_all(&bytes).unwrap();
        }
        let mut got = vec![0; CLIENTS];
        let mut most_at_once = 0;
        while got.iter().any(|&bytes| bytes < BYTES) {
            server.io.wait(Wait::No).unwrap(); // as a shard with work left over, which sees most at once
            let (mut at_once, mut rearm) = (0, Vec::new());
            while let Some(completion) = server.io.poll() {
                at_once += 1;
                match completion {
                    Completion::Received { conn, bytes, armed } => {
                        let (client, from) = (conn.slot as usize, got[conn.slot as usize]);
                        assert!(bytes.iter().enumerate().all(|(at, &got)| got == byte(client, from + at)), "{client}");
                        got[client] += bytes.len();
                        rearm.extend((!armed).then_some(conn));
                    }
                    Completion::ReceiveStopped { conn, .. } => rearm.push(conn),
                    other => panic!("{other:?}"),
                }
            }
            most_at_once = most_at_once.max(at_once);
            rearm.into_iter().for_each(|conn| server.io.receive(conn));
        }
        assert!(mode == ReceiveMode::Poll || most_at_once >= 1_000, "the test is too small: {most_at_once} at once");
    }
}

#[test]
fn a_socket_of_this_process_can_be_taken_in() {
    let listener = TcpListener::bind(ANY_PORT).unwrap();
    let mut server = Server::new(ReceiveMode::Recv);
    server.io.take(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let conn = server.admit();
    server.io.receive(conn);
    peer.write_all(b"hello").unwrap();
    assert_eq!(server.collect(conn, 5), b"hello");
    server.close(conn);
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn dropping_a_driver_in_the_middle_of_everything_ends_its_connections() {
    for mode in BOTH {
        let mut server = Server::new(mode);
        let (idle, _) = server.pair();
        (&idle).write_all(b"unread").unwrap();
        let lent = match server.next() {
            Completion::Received { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        };
        let (full, conn) = server.pair();
        server.send(conn, &pattern(16 << 20));
        server.io.wait(Wait::No).unwrap();
        let start = Instant::now();
        drop(server);
        assert!(start.elapsed() < Duration::from_millis(500), "the kernel did not let go");
        assert_eq!(&lent[..], b"unread", "a lent buffer outlives its driver");
        assert_eq!((&idle).read(&mut [0; 1]).unwrap(), 0);
        let mut rest = Vec::new();
        let _ = (&full).read_to_end(&mut rest);
        assert!(pattern(16 << 20).starts_with(&rest), "what had left is unchanged");
    }
}

#[test]
fn wait_keeps_its_time() {
    let mut server = Server::new(ReceiveMode::Recv);
    let first = server.io.wait(Wait::No).unwrap();
    let start = Instant::now();
    let second = server.io.wait(Wait::AtMost(Duration::from_millis(30))).unwrap();
    let slept = start.elapsed();
    assert!(slept >= Duration::from_millis(29) && slept < Duration::from_secs(2), "{slept:?}");
    let told = Duration::from_nanos(second.monotonic_ns - first.monotonic_ns);
    assert!(told >= Duration::from_millis(29), "{told:?}");
}

/// Whoever polls finds what comes meanwhile without a sleep, whoever else comes in the middle of the sleep is found too, and a wait
/// ends in time either way.
#[test]
fn busy_polling_finds_what_comes_and_keeps_its_time() {
    for mode in BOTH {
        let mut server = Server::polling(mode, Duration::from_secs(1));
        let mut client = server.connect();
        let conn = server.admit();
        server.io.receive(conn);
        server.io.wait(Wait::No).unwrap();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            client.write_all(b"hello").unwrap();
            client
        });
        let before = server.io.busy_polls();
        while !matches!(server.next(), Completion::Received { .. }) {}
        let (polls, hits) = server.io.busy_polls();
        assert!(polls > before.0 && hits > before.1, "{mode:?}: {before:?}, then {polls} polls and {hits} hits");
        drop(sender.join().unwrap());
        while server.stray().is_some() {}
        let start = Instant::now();
        server.io.wait(Wait::AtMost(Duration::from_millis(30))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(29), "{mode:?}");
    }
}

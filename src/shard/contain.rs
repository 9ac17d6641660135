//! A panic that ends one connection.
//!
//! Law: what runs in [`contain`] can reach nothing that the shard keeps, other than to read it, unless the caller throws
//! that away when it panicked. Code that changes what connections share (topics, queues, the wheel, the palette) is never
//! run in it: a panic there ends the shard, which starts again with nothing of the old one (see `restart.rs`).

use crate::conn::{Farewell, Notice, Phase, Then};
use crate::contain::contain;
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, PanicSite};
use crate::ws;

use super::Shard;

impl<I: Io> Shard<I> {
    /// Reads what a connection sent, in code that can reach nothing else; `None` if it panicked, and the connection ends.
    pub(super) fn contain_in<T>(&mut self, key: ConnKey, act: impl FnOnce(&Self) -> T) -> Option<T> {
        match contain(|| act(self)) {
            Ok(value) => Some(value),
            Err(panic) => {
                self.fail(key, &panic);
                None
            }
        }
    }

    /// Handling a connection's own bytes panicked: it ends, and nothing more of it is looked at.
    pub(super) fn fail(&mut self, key: ConnKey, panic: &str) {
        self.metrics.panics[PanicSite::Connection as usize].add(1);
        let Some(conn) = self.conns.get(key) else { return };
        let (session, shakes_hands) = (self.session_id(key), matches!(conn.phase, Phase::Handshake { .. }));
        tracing::error!(%session, panic, "handling a connection panicked; it is closed");
        if shakes_hands {
            let write = |out: &mut Vec<u8>| ws::refuse(out, 500, "the server failed to handle the request", &[]);
            return self.refuse(key, write, CloseReason::Internal);
        }
        let notice = Some(Notice { reason: INTERNAL.into(), retry_after_ms: Some(0) });
        let farewell = Farewell { notice, code: Some(1011), text: INTERNAL.into(), then: Then::Linger };
        self.break_off(key, CloseReason::Internal, farewell);
    }
}

/// The reason that a client is told when the server's own handling failed.
pub(super) const INTERNAL: &str = "internal";

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::Config;
    use crate::app::Router;
    use crate::id::ShardId;
    use crate::io::sim::{ClientState, Faults, Sim, SimConfig, World};
    use crate::pubsub::Bus;
    use crate::shard::{Settings, Shared};

    /// A shard with one client, which has sent `request`.
    fn shard_with_client(request: &[u8]) -> (World, Shard<Sim>, crate::io::sim::ClientId) {
        let world = World::new(1, Faults::default());
        let shared = Arc::new(Shared::new(Router::default(), Bus::new(1), Arc::default()));
        let settings = Settings { auth_required: false, ..Settings::new(&Config::default(), 9, 9) };
        let io = world.driver(ShardId(0), SimConfig { table: 9, buffers: 9, buffer_size: 999 });
        // A driver that never sleeps, so that time does not jump to deadlines.
        let _ = world.driver(ShardId(1), SimConfig { table: 0, buffers: 0, buffer_size: 0 });
        let (metrics, inbox) = (Arc::default(), Arc::default());
        let mut shard = Shard::new(ShardId(0), io, Arc::new(settings), shared, metrics, inbox, world.now());
        shard.open();
        let client = world.connect_to(ShardId(0));
        world.client_send(client, request);
        turn(&world, &mut shard);
        (world, shard, client)
    }

    fn turn(world: &World, shard: &mut Shard<Sim>) {
        for _ in 0..700 {
            shard.turn().unwrap();
            world.advance(Duration::from_millis(1));
        }
    }

    /// The only connection fails; what its client gets, and how the stream ends.
    #[track_caller]
    fn check(request: &[u8], expected: &[u8]) {
        let (world, mut shard, client) = shard_with_client(request);
        let before = world.client_take(client).len();
        let key = shard.conns.keys().next().unwrap();
        assert_eq!(shard.contain_in(key, |_| -> () { panic!("on purpose") }), None);
        turn(&world, &mut shard);
        let told = world.client_take(client);
        let has = |what: &[u8]| told.windows(what.len()).any(|part| part == what);
        assert!(before == 0 || has(b"disconnect"), "{}", String::from_utf8_lossy(&told));
        assert!(has(expected), "{}", String::from_utf8_lossy(&told));
        world.client_shutdown(client);
        turn(&world, &mut shard);
        assert_eq!(world.client_state(client), ClientState::ServerClosed { clean: true });
        assert_eq!(shard.metrics.panics[PanicSite::Connection as usize].get(), 1);
        assert_eq!(shard.metrics.closed[CloseReason::Internal as usize].get(), 1);
        assert!(shard.leftovers().iter().all(|(_, left)| *left == 0), "{:?}", shard.leftovers());
    }

    #[test]
    fn a_connection_whose_handling_panicked_is_told_and_closed() {
        let upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        check(upgrade, b"\x88\x0a\x03\xf3internal");
        check(&upgrade[..20], b"HTTP/1.1 500 Internal Server Error\r\n");
    }
}

//! A shard whose port speaks TLS, and clients that shake hands with it, or say what is no TLS, or are changed on the way.
//! Law: a client whose bytes arrive as they were sent is understood and understands; whatever else comes ends its own
//! connection, and nothing is left of it.

use std::time::Duration;

use tidewheel::io::sim::{Dice, Faults, SimConfig};
use tidewheel::metrics::{CloseReason, TlsHandshake};

use crate::script::Script;
use crate::secure::{self, Link};
use crate::stage::Stage;
use crate::wire;

/// What is said on the port, and how it arrives.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let (seed, faults) = (u64::from(script.byte()), script.byte());
    let kernel = SimConfig { table: 8, buffers: 4, buffer_size: [64, 512, 4096, 20_000][script.below(4)] };
    let mut stage = Stage::on_kernel(kernel, seed, 1, 2, |settings| {
        (settings.tls, settings.plain_ports) = (Some(secure::terms()), 0);
        settings.handshake_timeout_ms = 2_000;
        settings.messages.message_bytes_max = 40_000;
    });
    if faults & 1 != 0 {
        stage.world.set_faults(Faults::swarm(&mut Dice::new(u64::from(faults))));
    }
    let mut clients: Vec<Client> = Vec::new();
    while !script.is_over() {
        let client = script.byte();
        match script.below(8) {
            0 if clients.len() < CLIENTS_MAX => {
                let id = stage.newcomer(0);
                let link = (client & 3 != 0).then(|| Link::new(&mut Dice::new(u64::from(client))));
                clients.push(Client { id, link, is_true: true });
            }
            1 => stage.tick(),
            2 => stage.world.advance(Duration::from_millis([1, 30, 3_000][script.below(3)])),
            _ if clients.is_empty() => {}
            kind => {
                let count = clients.len();
                clients[usize::from(client) % count].act(&stage, kind, &mut script);
            }
        }
    }
    end(stage, clients);
}

struct Client {
    id: usize,
    /// Without it says what it likes in the clear.
    link: Option<Link>,
    /// What it says arrives as it was sent.
    is_true: bool,
}

impl Client {
    fn act(&mut self, stage: &Stage, kind: usize, script: &mut Script<'_>) {
        let (world, id) = (&stage.world, stage.id(self.id));
        let plain = match script.below(4) {
            0 => wire::request("/echo").into_bytes(),
            1 => vec![0x82; 100 * usize::from(script.byte())],
            _ => script.piece().to_vec(),
        };
        let Some(link) = &mut self.link else { return world.client_send(id, &plain) };
        let mut said = match kind {
            3 => {
                self.is_true = false;
                return world.client_reset(id);
            }
            4 => {
                // In the middle of a handshake that is no way to end it.
                self.is_true &= !link.is_handshaking();
                link.bye()
            }
            5 => {
                link.refresh(); // many without a word in between are too many
                link.say(if plain.is_empty() { b" " } else { &plain })
            }
            _ => link.say(&plain),
        };
        if kind == 6 && !said.is_empty() {
            self.is_true = false;
            match script.below(3) {
                0 => said.truncate(script.byte().into()),
                1 => drop(said.splice(..0, script.piece().iter().copied())),
                _ => {
                    let at = usize::from(script.word()) % said.len();
                    said[at] ^= 1 << script.below(8);
                }
            }
        }
        world.client_send(id, &said);
        if self.is_true {
            link.take(world, id, true);
        }
    }
}

/// All go, and nothing is left.
fn end(mut stage: Stage, mut clients: Vec<Client>) {
    let is_quiet = clients.iter().all(|client| client.is_true && client.link.is_some());
    stage.world.set_faults(Faults::default());
    stage.rest();
    for client in clients.iter_mut().filter(|client| client.is_true) {
        let id = stage.id(client.id);
        client.link.iter_mut().for_each(|link| drop(link.take(&stage.world, id, false)));
    }
    let failed = stage.metrics[0].tls_handshakes[TlsHandshake::Failed as usize].get();
    assert!(!is_quiet || failed == 0, "{failed} handshakes failed of clients that speak TLS");
    clients.iter().for_each(|client| stage.world.client_reset(stage.id(client.id)));
    stage.pass(20_000);
    let left: Vec<_> = stage.shards[0].leftovers().into_iter().filter(|&(_, count)| count > 0).collect();
    assert!(left.is_empty(), "leftovers: {left:?}");
    stage.world.audit().unwrap_or_else(|left| panic!("{left}"));
    assert_eq!(stage.metrics[0].closed[CloseReason::Internal as usize].get(), 0);
    assert_eq!(stage.metrics[0].tls_connections.get(), 0);
}

const CLIENTS_MAX: usize = 6;

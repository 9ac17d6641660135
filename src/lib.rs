//! Tidewheel: a WebSocket connection engine for Linux on io_uring.
//!
//! # The map
//! Imports point down only; `tests/tidy.rs` holds every line of this page that can be checked.
//!
//! | layer | module | its one job |
//! |---|---|---|
//! | L0 vocabulary | [`id`], [`topic`], [`config`], [`metrics`], [`fixed`], [`sync`], [`contain`] | names, numbers and bounded structures; no domain logic |
//! | L1 bytes | [`ws`] | RFC 6455 as a value: bytes in, events out; knows no socket and no clock |
//! | L1 kernel | [`io`] | the ring: the only unsafe code and the only syscalls; knows no WebSocket |
//! | L1 both | [`tls`] | a driver on top of a driver: records to bytes and back |
//! | L2 | [`conn`] | one connection: its fields, its laws, its outbound queue, its deadlines |
//! | L3 | [`pubsub`] | topics, fan-out, the bus between shards |
//! | L4 | [`app`] | envelope, authentication, commands, handlers |
//! | L5 | [`shard`] | the loop: [`shard::Shard::turn`] is the order of work on one page |
//! | L6 | [`control`] | signals, admin HTTP, metrics text, the page |
//! | top | [`server`] | pins shards, wires bus and control plane, drains in order; [`server::host`]: what the machine has |
//! | top | [`mod@bench`] | the other side of the wire: many clients that verify what they get |
//!
//! # Laws
//! 1. Nothing above `io/` makes a syscall or holds `unsafe`.
//! 2. No lock and no await on the data path.
//! 3. Every queue, cache and map has a bound; what happens at the bound has a name, a metric and a test.
//! 4. Time is an argument: one clock read a turn, and one more before the thread sleeps.
//! 5. A slot is freed only after the kernel's last completion for it.
//! 6. A peer's mistake is an error with a close code, never a panic.
//!
//! # Deliberately absent
//! No task, no boxed future and no buffer for an idle connection; no global connection map (a session id carries its
//! address); no lock order to know, since no thread holds two locks.
//!
//! # Reading order
//! [`shard::Shard::turn`], then [`conn::Conn`], [`io::Io`], [`ws::Decoder`], [`pubsub`].

// Modules in suggested reading order, top layer last.
pub mod app;
pub mod bench;
pub mod config;
pub mod conn;
pub mod contain;
pub mod control;
pub mod fixed;
pub mod guide;
pub mod id;
pub mod io;
pub mod metrics;
pub mod pubsub;
pub mod server;

pub mod shard;
pub mod sync;
pub mod tls;
pub mod topic;
pub mod ws;

pub use app::context::{Sending, Sent};
pub use app::{Context, HandlerError, IntoReply, MessageHandler, OutgoingMessage, PublishOptions};
pub use config::Config;
pub use control::{CheckTokenError, Target, TopicEntry};
pub use pubsub::Delivery;
pub use server::{Engine, EngineBuilder, EngineHandle, StartError};
pub use shard::errands::{Disconnect, Reached, TopicQuery};

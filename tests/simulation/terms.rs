//! The words that clients, their composer and the harness share.

use std::collections::BTreeSet;

use tidewheel::io::sim::Dice;

use crate::ledger::{Ledger, Step};

/// Topics there are; one more stands for broadcasts.
pub const TOPICS: [&str; 4] = ["a", "b.c", "d", "e.f.g"];
pub const BROADCAST: usize = TOPICS.len();

/// What the run allows, as far as clients must know it.
#[derive(Debug)]
pub struct Rules {
    pub subscriptions_max: usize,
    pub errors_max: usize,
    pub message_bytes_max: usize,
    pub header_bytes_max: usize,
    pub topic_length_max: usize,
    /// Everyone must authenticate.
    pub auth: bool,
    /// Idle and ping timeouts are on.
    pub timers: bool,
    /// A newcomer may find no place.
    pub tight: bool,
    /// There may be so many handshakes at once that a newcomer is refused unheard.
    pub hurried: bool,
    /// The network breaks connections, or time jumps.
    pub rough: bool,
    /// How long what is queued and the last words of a close may take to leave, in milliseconds.
    pub close_timeout_ms: u64,
    /// Shards break.
    pub brittle: bool,
    /// An operator is at work: settings change, sessions are sent to, subscribed and closed.
    pub operated: bool,
    /// There is a port with TLS beside the other.
    pub tls: bool,
    /// Queues are so large that nobody is a slow consumer.
    pub roomy: bool,
    /// How probable it is that a client that could publish does.
    pub publishing: f64,
    /// How probable it is, each time, that a client leaves or stops reading.
    pub unrest: f64,
}

impl Rules {
    /// Whether a client does not publish, though it could.
    pub fn is_silent(&self, dice: &mut Dice) -> bool {
        self.publishing < 1.0 && !dice.chance(self.publishing)
    }
}

/// What a canary does to what a client has read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tamper {
    LoseMessage,
    RepeatMessage,
    SwapMessages,
    LoseReply,
    RepeatReply,
    LieInReceipt,
    ExpectOneMore,
}

/// What all clients share.
#[derive(Debug)]
pub struct Scene {
    pub step: Step,
    pub rules: Rules,
    pub ledger: Ledger,
    pub drained_at: Step,
    pub tamper: Option<Tamper>,
}

/// A request's name: none, a number or a text, all from a number that is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    None,
    Number(u64),
    Text(u64),
}

/// What a request must be answered with.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    Pong,
    Subscribed {
        topic: usize,
        period: usize,
    },
    Unsubscribed {
        topic: usize,
        period: usize,
    },
    Again {
        topic: usize,
    },
    Listing(BTreeSet<&'static str>),
    Published(usize),
    Error(&'static str),
    Authenticated,
    NotAuthenticated,
    /// Of handlers. Each may be refused when too many wait.
    Done,
    Bye,
    Sum(u64),
    Said {
        times: u32,
    },
    Posted(usize),
    Joined {
        topic: usize,
        period: usize,
    },
    Left {
        topic: usize,
        period: usize,
    },
    Fails(&'static str),
}

impl Want {
    pub fn is_of_handler(&self) -> bool {
        use Want::*;
        matches!(self, Done | Bye | Sum(_) | Said { .. } | Posted(_) | Joined { .. } | Left { .. } | Fails(_))
    }
}

/// Where a client stands with a topic, by what it has asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Membership {
    Out,
    In(usize),
    Leaving(usize),
    /// Asked for through a handler, whose reply is not there yet.
    Unsure(usize),
}

/// What a client has to show where everyone must authenticate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token {
    Good,
    /// Allows [`ALLOWED`] only.
    Narrow,
    /// Expires soon.
    Short,
    Bad,
    None,
}

/// Topics that a narrow token allows.
pub const ALLOWED: [bool; TOPICS.len()] = [true, true, false, false];

/// What the client connected for.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    Native,
    Echo,
    /// A request that is answered with this status.
    Bad(u16),
    /// A request that never ends.
    Unfinished,
}

/// How the client itself ends, once it has said so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Leaving {
    Close(u16),
    Fin,
    Mistake(u16),
    Reset,
    /// By a handler or a bad token: the server closes with this code.
    Asked(u16),
}

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// As the client wanted, with everything that was owed.
    Wanted,
    /// The server parted, with a code.
    Parted(u16),
    /// Without a last word, for a reason that excuses it.
    Cut,
    /// Never became a WebSocket.
    Refused,
}

//! One connection: everything the engine knows of it.
//!
//! Laws: an idle connection holds no buffer (`intake` and the queue are empty, unless its messages refer to each
//! other); only a connection in
//! [`Phase::Open`] is a member of a topic; `phase` goes forward only; [`CloseReason`] is decided once.

mod greeting;
mod history;
mod identity;
mod lossy;
mod outbound;
pub mod permissions;
mod rate_limiter;
mod session;
mod subscriptions;
mod unflushed;

pub use greeting::{GREETING_BYTES, Greeting, Seat};
pub use history::{Event, Note};
pub use identity::{Identity, UserId, UserText, UuidText};
pub use outbound::{Aged, BACKLOG_BYTES, Enqueued, Gather, Outbound, OutboundLimits, SendPart};
pub use rate_limiter::{ConnectionRateLimiter, OverRate, RateLimits};
pub use session::{Flow, HistoryLimits, SESSION_BYTES, Session, Shown, Totals, Traffic};
pub use subscriptions::Subscriptions;
pub use unflushed::{FlushLine, FlushMarks, Unflushed};

use crate::fixed::SlotMap;
use crate::id::{MessageId, ReceiptIndex};
use crate::metrics::CloseReason;
use crate::ws::Decoder;
use crate::ws::deflate::{Agreement, Inflater};

/// The connections of one shard.
pub type ConnPool = SlotMap<Conn>;

/// Milliseconds on the shard's clock, wrapping after 49 days; only differences mean something.
pub type Ms = u32;

/// How far a connection is on its way from a socket to nothing.
#[derive(Debug)]
pub enum Phase {
    /// The HTTP request is arriving.
    Handshake(Box<Greeting>),
    /// WebSocket, speaking the native JSON or echoing.
    Open,
    /// It will close, but replies are still owed (receipts from other shards, parked handlers).
    Settling(Box<Farewell>, LateBytes),
    /// Our close frame is queued or sent; the peer's is awaited until the close deadline.
    Closing(LateBytes),
    /// What is queued still leaves, then the socket closes; or lingers, if the peer may still be sending.
    Finishing {
        /// Whether closing at once could destroy what was sent: input that is still on its way makes the kernel reset.
        linger: bool,
        /// What has come meanwhile.
        late: LateBytes,
    },
    /// Everything has left and our side of the stream has ended; input is discarded until the peer ends its side.
    Lingering(LateBytes),
    /// Closed towards the kernel; only completions are awaited.
    Gone,
}

/// Bytes that have come since a connection began to be closed, or to be told why it never was open: what is read of them has a
/// bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LateBytes(u32);

/// The last words to a connection, once nothing is owed to it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// The message `disconnect`, where the server begins.
    pub notice: Option<Notice>,
    /// Close code on the wire; `None` sends no close frame (the peer's stream has ended, or it never was a WebSocket).
    pub code: Option<u16>,
    /// Reason text on the wire, at most 123 bytes.
    pub text: String,
    /// What is awaited after it.
    pub then: Then,
}

/// What a client is told in words before it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Text for people.
    pub reason: String,
    /// After how many milliseconds the client should connect again; `None`: it should not.
    pub retry_after_ms: Option<u64>,
}

/// What follows the last words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The peer's close frame is awaited.
    Await,
    /// The peer has said its last: the socket closes.
    Close,
    /// The peer may go on sending what nobody looks at: the socket closes after it has had time to read.
    Linger,
}

/// What the connection's input has left behind; nothing while the connection is quiet.
#[derive(Debug, Default)]
pub struct Intake {
    /// The WebSocket decoder: the message so far, if it is incomplete.
    pub decoder: Decoder,
    /// What has been spent of its rates.
    pub rates: ConnectionRateLimiter,
    /// What the messages so far have left for the next one to refer to, from the first compressed one on, where that was
    /// agreed.
    pub inflater: Option<Box<Inflater>>,
    /// What was received and may not be acted on yet; reading is paused meanwhile, or will be if more comes.
    pub held: Option<Box<Held>>,
}

/// Size of an [`Intake`], without what it points to.
pub const INTAKE_BYTES: usize = size_of::<Intake>();

impl Intake {
    /// Whether nothing is in it but what has been spent of the rates.
    pub fn holds_nothing(&self) -> bool {
        self.decoder.is_idle() && self.inflater.is_none() && self.held.is_none()
    }
}

/// What was received and has to wait.
#[derive(Debug, Default)]
pub struct Held {
    /// The request that waits; what follows it waits behind it.
    pub request: Option<Deferred>,
    /// Bytes that are not decoded yet, beginning at `from`.
    pub bytes: Vec<u8>,
    /// How many of `bytes` are done with.
    pub from: usize,
    /// What it waits for.
    pub waits_for: WaitsFor,
}

/// What held bytes wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitsFor {
    /// The connection's own queue, handlers or acks.
    #[default]
    Itself,
    /// In line with other connections: its next share of a turn.
    Share,
    /// In line with other connections: room for its publish.
    Room,
}

impl Held {
    /// Bytes of memory that a client has made wait.
    pub fn waiting_bytes(&self) -> usize {
        let data = match &self.request {
            Some(Deferred::Publish { data, .. }) => data.len(),
            _ => 0,
        };
        self.bytes.len() + data
    }
}

/// A request that was understood and cannot be carried out yet.
#[derive(Debug)]
#[expect(missing_docs, reason = "the members of the request")]
pub enum Deferred {
    /// It came behind unanswered publishes: its ack waits behind theirs, and no message of the topic may overtake it.
    Subscribe { id: Option<MessageId>, topic: Box<str> },
    /// There is no room for a publish on its way, or others have waited longer for some.
    Publish { id: Option<MessageId>, topic: Box<str>, data: Box<[u8]>, of: Option<Box<str>>, exclude_self: bool },
}

/// What became of the last ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    /// Its pong has come, or there was none yet.
    Answered,
    /// It is out, and nothing has arrived since.
    Awaited,
    /// Something has arrived, and not its pong: the peer is there.
    Heard,
}

/// Whether more will be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiving {
    /// As it comes, or not while something is held.
    Armed,
    /// On the shard's list of connections to start reading from again.
    Rearming,
    /// Nothing more.
    Ended,
}

/// What the connection's messages mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// JSON envelopes to commands and handlers.
    Native,
    /// Every message comes back as it is.
    Echo,
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Where it is on its way.
    pub phase: Phase,
    /// An incomplete message, and what it has spent of its rates; nothing if it has been quiet.
    pub intake: Option<Box<Intake>>,
    /// What waits to be sent and what is being sent.
    pub outbound: Outbound,
    /// Who it is, once authenticated.
    pub identity: Option<Identity>,
    /// Its topics.
    pub subscriptions: Subscriptions,
    /// When it entered the present phase's first deadline: accepted, upgraded, or began to close.
    pub since: Ms,
    /// When a message last passed in either direction, or the peer sent a ping.
    pub active: Ms,
    /// When bytes last arrived.
    pub heard: Ms,
    /// When the last ping was queued.
    pub pinged: Ms,
    /// What it has received and sent, as far as its session has not taken that over.
    pub traffic: Traffic,
    /// The newest entry of its chain of unanswered publish receipts.
    pub receipts: Option<ReceiptIndex>,
    /// Handler futures parked for it.
    pub parked: u8,
    /// Errors answered so far.
    pub errors: u16,
    /// Why it ends, once that is decided.
    pub reason: Option<CloseReason>,
    /// What its messages mean.
    pub endpoint: Endpoint,
    /// What was agreed about compression.
    pub deflate: Option<Agreement>,
    /// In which of the shard's lines it stands to be flushed.
    pub unflushed: FlushMarks,
    /// What became of the last ping.
    pub ping: Ping,
    /// `token_expiring` has been sent for the present token.
    pub expiry_announced: bool,
    /// Whether more will be received.
    pub receiving: Receiving,
    /// A published frame was refused by its queue: it gets no other, and is parted from at the end of the turn.
    pub slow: bool,
}

/// What a connection costs in the pool; printed with the memory budget.
pub const CONN_BYTES: usize = size_of::<Conn>();
const _: () = assert!(CONN_BYTES <= 144, "the memory budget of an idle connection");

impl Conn {
    /// A connection whose handshake begins.
    pub fn new(now: Ms, greeting: Greeting) -> Self {
        Self {
            phase: Phase::Handshake(Box::new(greeting)),
            intake: None,
            outbound: Outbound::default(),
            identity: None,
            subscriptions: Subscriptions::default(),
            since: now,
            active: now,
            heard: now,
            pinged: now,
            traffic: Traffic::default(),
            receipts: None,
            parked: 0,
            errors: 0,
            reason: None,
            endpoint: Endpoint::Native,
            deflate: None,
            unflushed: FlushMarks::default(),
            ping: Ping::Answered,
            expiry_announced: false,
            receiving: Receiving::Armed,
            slow: false,
        }
    }

    /// Whether messages are read and answered.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether what comes is still looked at, for its close frame at least.
    pub fn is_listened_to(&self) -> bool {
        !matches!(self.phase, Phase::Finishing { .. } | Phase::Lingering(_) | Phase::Gone)
    }

    /// Bytes that have come since it began to be closed, or to be told why it never was open.
    pub fn late_bytes(&self) -> u32 {
        match self.phase {
            Phase::Settling(_, LateBytes(late))
            | Phase::Closing(LateBytes(late))
            | Phase::Finishing { late: LateBytes(late), .. }
            | Phase::Lingering(LateBytes(late)) => late,
            Phase::Handshake(_) | Phase::Open | Phase::Gone => 0,
        }
    }

    /// Bytes have come; they count if it is being closed.
    pub fn count_late(&mut self, bytes: usize) {
        if let Phase::Settling(_, LateBytes(late))
        | Phase::Closing(LateBytes(late))
        | Phase::Finishing { late: LateBytes(late), .. }
        | Phase::Lingering(LateBytes(late)) = &mut self.phase
        {
            *late = late.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }

    /// The window of its compressed messages in bits; 0 if it gets none.
    #[inline]
    pub fn window_bits(&self) -> u8 {
        self.deflate.map_or(0, Agreement::window_bits)
    }

    /// Whether nothing more will be received.
    pub fn receive_ended(&self) -> bool {
        self.receiving == Receiving::Ended
    }

    /// Bytes received that wait: for what holds them up, or for the rest of their message.
    pub fn inbound_bytes(&self) -> usize {
        self.intake.as_ref().map_or(0, |intake| {
            intake.decoder.held_bytes() + intake.held.as_ref().map_or(0, |held| held.waiting_bytes())
        })
    }

    /// What was received and has to wait.
    #[inline]
    pub fn held(&self) -> Option<&Held> {
        self.intake.as_ref()?.held.as_deref()
    }

    /// The same, to change it.
    pub fn held_mut(&mut self) -> Option<&mut Held> {
        self.intake.as_mut()?.held.as_deref_mut()
    }

    /// The same, to begin it if nothing waits yet.
    pub fn hold(&mut self) -> &mut Held {
        self.intake.get_or_insert_default().held.get_or_insert_default()
    }

    /// Nothing waits any more; returns what did.
    pub fn take_held(&mut self) -> Option<Box<Held>> {
        let intake = self.intake.as_mut()?;
        let held = intake.held.take();
        if intake.holds_nothing() && intake.rates.is_new() {
            self.intake = None;
        }
        held
    }

    /// Whether replies are still owed to it.
    pub fn owes(&self) -> bool {
        self.receipts.is_some() || self.parked > 0
    }
}

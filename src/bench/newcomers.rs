//! Clients that come: as fast as they can and go again, or all at once after all were dropped.
//! Law: who is refused comes again, as often as it takes, and every refusal is counted by whether it said when.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Setup;
use super::counts::Count;
use super::crew::{CONNECT, Crew, Progress};
use super::lanes::{Lanes, Part};
use super::native::{self, Said};
use super::observe::Look;
use super::report::{Durations, Report};
use crate::id::ConnKey;
use crate::ws::Opcode;

/// What is asked of the server.
#[derive(Clone, Debug)]
pub enum Newcomers {
    /// Clients come, and go as soon as they are served, and come again.
    Connect {
        /// How long.
        time: Duration,
        /// Topic that each subscribes to, if any.
        topic: Option<String>,
    },
    /// All drop their connections at once, and come again at once.
    Storm {
        /// Topic that each subscribes to, if any.
        topic: Option<String>,
    },
}

const COME_AND_GO: u32 = 1;
const STORM: u32 = 2;
const END: u32 = 3;

/// Runs it.
///
/// # Errors
/// The server does not let the clients in, this machine lacks something, or nothing happens for too long.
pub fn run(setup: Setup, newcomers: Newcomers, watch: &dyn Fn(Progress)) -> io::Result<Report> {
    let setup = Arc::new(setup);
    let (Newcomers::Connect { topic, .. } | Newcomers::Storm { topic }) = &newcomers;
    let topic: Option<Arc<str>> = topic.as_deref().map(Arc::from);
    let mut crew = Crew::start(&setup, watch, |_| NewcomersPart {
        topic: topic.clone(),
        stage: None,
        storm_ns: 0,
        durations: Durations::default(),
    })?;
    let all = u64::from(setup.connections);
    crew.until("connecting", all, |crew| crew.sum(Count::Ready))?;
    let (name, each) = match &newcomers {
        Newcomers::Connect { .. } => ("connect", "server_cpu_ns_per_connection"),
        Newcomers::Storm { .. } => ("storm", "server_cpu_ns_per_reconnect"),
    };
    let mut report = Report::new(name);
    report.figure("connections", all as f64);
    match newcomers {
        Newcomers::Connect { time, .. } => {
            crew.go(COME_AND_GO)?;
            crew.for_a_while("warming up", WARM_UP)?;
            let (before, start, ready) = (Look::at(setup.process), Instant::now(), crew.sum(Count::Ready));
            crew.for_a_while("measuring", time)?;
            let (ready, elapsed) = ((crew.sum(Count::Ready) - ready) as f64, start.elapsed());
            report.figure("served", ready);
            report.figure("served_per_second", ready / elapsed.as_secs_f64());
            report.spent(&before, &Look::at(setup.process), elapsed, (ready, each));
        }
        Newcomers::Storm { .. } => {
            let (before, start, ready) = (Look::at(setup.process), Instant::now(), crew.sum(Count::Ready));
            crew.go(STORM)?;
            let back = crew.until("coming back", all, |crew| crew.sum(Count::Ready) - ready);
            let elapsed = start.elapsed();
            let served = (crew.sum(Count::Ready) - ready) as f64;
            report.figure("back", served);
            report.figure("seconds_until_all_were_back", elapsed.as_secs_f64());
            report.figure("back_per_second", served / elapsed.as_secs_f64());
            report.spent(&before, &Look::at(setup.process), elapsed, (served, each));
            report.findings.extend(back.err().map(|error| error.to_string()));
        }
    }
    crew.go(END)?;
    report.figure("refused_with_retry_after", crew.sum(Count::RefusedUntil) as f64);
    report.figure("attempts_that_did_not_connect", crew.sum(Count::NotConnected) as f64);
    report.find(crew.sum(Count::Refused), "refusals did not say when to come back");
    report.find_refusals(&crew);
    report.find(crew.sum(Count::Wrong), "answers were not what had to come");
    report.find_ends(&crew);
    let mut durations = Durations::default();
    crew.finish()?.iter().for_each(|own| durations.merge(own));
    report.durations(if name == "storm" { "since_the_storm" } else { "connect_until_ready" }, durations);
    Ok(report)
}

struct NewcomersPart {
    topic: Option<Arc<str>>,
    stage: Option<u32>,
    /// When all were dropped.
    storm_ns: u64,
    durations: Durations,
}

impl NewcomersPart {
    /// A client is ready so long after it dialed.
    fn ready(&mut self, lanes: &mut Lanes<()>, conn: ConnKey, took_ns: u64) {
        match self.stage {
            Some(CONNECT) => {}
            Some(STORM) => self.durations.record(lanes.clock_ns().saturating_sub(self.storm_ns)),
            _ => self.durations.record(took_ns),
        }
        if self.stage == Some(COME_AND_GO) {
            lanes.leave(conn);
        }
    }
}

impl Part for NewcomersPart {
    type Client = ();
    type Outcome = Durations;

    fn opened(&mut self, lanes: &mut Lanes<()>, conn: ConnKey) {
        if let Some(took_ns) = native::join(lanes, conn, self.topic.as_deref()) {
            self.ready(lanes, conn, took_ns);
        }
    }

    fn message(&mut self, lanes: &mut Lanes<()>, conn: ConnKey, _: Opcode, payload: &[u8]) {
        match native::said(payload, None) {
            Said::Ack(_) => {
                if let Some(took_ns) = lanes.ready(conn) {
                    self.ready(lanes, conn, took_ns);
                }
            }
            Said::Other => {}
            Said::Refused(why) => lanes.counts().add_refused(why),
            Said::Message(_) | Said::Changed => lanes.counts().add(Count::Wrong, 1),
        }
    }

    fn ended(&mut self, lanes: &mut Lanes<()>, number: u32, _: bool) {
        if self.stage != Some(END) {
            lanes.want(number, lanes.now_ns());
        }
    }

    fn turn(&mut self, lanes: &mut Lanes<()>, stage: u32) -> Option<u64> {
        let before = self.stage.replace(stage);
        if before != Some(stage) {
            match stage {
                COME_AND_GO => lanes.conns().into_iter().for_each(|conn| lanes.leave(conn)),
                STORM => {
                    self.storm_ns = lanes.clock_ns();
                    lanes.conns().into_iter().for_each(|conn| lanes.drop_it(conn));
                }
                _ => {}
            }
        }
        None
    }

    fn finish(self) -> Durations {
        self.durations
    }
}

const WARM_UP: Duration = Duration::from_secs(1);

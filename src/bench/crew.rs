//! The threads of a run, and what they are at.
//! Law: all threads are in one stage or on their way to it; whoever waits for them ends with an error when one of them does,
//! or when nothing has changed for as long as the run's patience lasts.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Setup;
use super::counts::{self, Count, Counts};
use super::lanes::{Lanes, Pace, Part};
use crate::io::{Wait, affinity, probe};
use crate::sync::{AtomicU32, Ordering};

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What it is at.
    pub what: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// Of how much.
    pub total: u64,
}

/// The first stage of every run: clients come.
pub(super) const CONNECT: u32 = 0;
/// The end of the run.
const OVER: u32 = u32::MAX;

/// Which clients are one thread's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) thread: u32,
    pub(super) threads: u32,
    pub(super) connections: u32,
}

impl Share {
    /// The clients' numbers.
    fn numbers(self) -> impl Iterator<Item = u32> {
        (self.thread..self.connections).step_by(self.threads as usize)
    }

    /// A thread's part of something.
    pub(super) fn of(self, whole: f64) -> f64 {
        whole / f64::from(self.threads)
    }
}

/// The threads of a run.
pub(super) struct Crew<'a, O> {
    stage: Arc<AtomicU32>,
    counts: Vec<Arc<Counts>>,
    threads: Vec<JoinHandle<io::Result<O>>>,
    patience: Duration,
    watch: &'a dyn Fn(Progress),
}

impl<'a, O: Send + 'static> Crew<'a, O> {
    /// Starts the threads, in the stage [`CONNECT`]; `make` makes what each of them does.
    ///
    /// # Errors
    /// A thread or a ring could not be made.
    pub(super) fn start<P: Part<Outcome = O> + 'static>(
        setup: &Arc<Setup>,
        watch: &'a dyn Fn(Progress),
        make: impl Fn(Share) -> P,
    ) -> io::Result<Self> {
        let descriptors = u32::try_from(probe::raise_descriptor_limit()?.min(1 << 20)).unwrap_or(1 << 20);
        // Some are on their way out while others come.
        let table = descriptors.saturating_sub(TABLE_SPARE).max(1);
        let needed = setup.connections.div_ceil(table);
        let threads = match setup.threads {
            0 => needed.max(affinity::allowed_cores()?.len() as u32).min(setup.connections.max(1)),
            threads if threads < needed => {
                return Err(io::Error::other(format!(
                    "{threads} threads with tables of {table} descriptors (ulimit -Hn) are too few for {} connections: \
                     {needed} are needed",
                    setup.connections
                )));
            }
            threads => threads,
        };
        let mut crew = Self {
            stage: Arc::new(AtomicU32::new(CONNECT)),
            counts: Vec::new(),
            threads: Vec::new(),
            patience: setup.patience,
            watch,
        };
        let pace = Pace {
            handshakes_at_once: setup.handshakes_at_once.div_ceil(threads),
            dials_per_second: setup.dials_per_second.map(|rate| rate / f64::from(threads)),
        };
        for thread in 0..threads {
            let share = Share { thread, threads, connections: setup.connections };
            let part = make(share);
            let counts = Arc::new(Counts::default());
            crew.counts.push(Arc::clone(&counts));
            let (setup, stage) = (Arc::clone(setup), Arc::clone(&crew.stage));
            let run = move || {
                let mut lanes = Lanes::new(setup, counts, pace, descriptors)?;
                share.numbers().for_each(|number| lanes.want(number, 0));
                run(part, lanes, &stage)
            };
            crew.threads.push(thread::Builder::new().name(format!("bench-{thread}")).spawn(run)?);
        }
        Ok(crew)
    }

    /// Has all threads go on to a stage; they are in it when this returns.
    ///
    /// # Errors
    /// A thread has ended, or one does not get there.
    pub(super) fn go(&mut self, stage: u32) -> io::Result<()> {
        self.stage.store(stage, Ordering::Release);
        let is_there = |counts: &&Arc<Counts>| counts.stage.load(Ordering::Acquire) == stage;
        self.until("all threads", self.counts.len() as u64, |crew| crew.counts.iter().filter(is_there).count() as u64)
    }

    /// How many, of all threads.
    pub(super) fn sum(&self, count: Count) -> u64 {
        counts::sum(&self.counts, count)
    }

    /// Waits until `done` says `total`.
    ///
    /// # Errors
    /// A thread has ended, or nothing has changed for too long.
    pub(super) fn until(&mut self, what: &'static str, total: u64, done: impl Fn(&Self) -> u64) -> io::Result<()> {
        let (mut before, mut since) = (u64::MAX, Instant::now());
        loop {
            let now = done(self);
            (self.watch)(Progress { what, done: now.min(total), total });
            if now >= total {
                return Ok(());
            }
            self.check()?;
            if now != before {
                (before, since) = (now, Instant::now());
            } else if since.elapsed() > self.patience {
                let (mut why, patience) = (self.ends(), self.patience);
                if let (refused @ 1.., refusals) = self.refusals() {
                    why += &format!("; {refused} {refusals}");
                }
                return Err(io::Error::other(format!(
                    "{what}: {now} of {total}, and nothing more in {patience:?}{why}"
                )));
            }
            thread::sleep(if since.elapsed() < LOOK { LOOK / 20 } else { LOOK });
        }
    }

    /// Lets the run go on for a while.
    ///
    /// # Errors
    /// A thread has ended.
    pub(super) fn for_a_while(&mut self, what: &'static str, time: Duration) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            (self.watch)(Progress { what, done: start.elapsed().as_millis() as u64, total: time.as_millis() as u64 });
            self.check()?;
            thread::sleep(LOOK.min(time - start.elapsed().min(time)));
        }
        Ok(())
    }

    /// Ends the run.
    ///
    /// # Errors
    /// A thread has ended with one.
    pub(super) fn finish(mut self) -> io::Result<Vec<O>> {
        self.stage.store(OVER, Ordering::Release);
        std::mem::take(&mut self.threads).into_iter().map(joined).collect()
    }

    /// What became of connections that ended by themselves, for whoever wonders.
    pub(super) fn ends(&self) -> String {
        let counted =
            [(Count::Closed, "closed by the server"), (Count::Lost, "broken"), (Count::NotConnected, "not connected")];
        let counted = counted.map(|(count, what)| (self.sum(count), what));
        let mut text: String =
            counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("; {count} {what}")).collect();
        if let Some(first) = self.counts.iter().find_map(|counts| counts.first_end.lock().clone()) {
            text += &format!("; one of them: {first}");
        }
        text
    }

    /// How many requests the server refused, and why one of them, in its words.
    pub(super) fn refusals(&self) -> (u64, String) {
        let first = self.counts.iter().find_map(|counts| counts.first_refusal.lock().clone());
        (self.sum(Count::Errors), format!("requests were refused; one of them: {}", first.unwrap_or_default()))
    }

    fn check(&mut self) -> io::Result<()> {
        let Some(ended) = self.threads.iter().position(JoinHandle::is_finished) else { return Ok(()) };
        joined(self.threads.swap_remove(ended))?;
        Err(io::Error::other("a thread has ended before the run"))
    }
}

impl<O> Drop for Crew<'_, O> {
    fn drop(&mut self) {
        self.stage.store(OVER, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // the run has failed already
        }
    }
}

fn joined<O>(thread: JoinHandle<io::Result<O>>) -> io::Result<O> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
}

fn run<P: Part>(mut part: P, mut lanes: Lanes<P::Client>, stage: &AtomicU32) -> io::Result<P::Outcome> {
    loop {
        let stage = stage.load(Ordering::Acquire);
        if stage == OVER {
            return Ok(part.finish());
        }
        let due_ns = part.turn(&mut lanes, stage);
        lanes.counts().stage.store(stage, Ordering::Release);
        let now_ns = lanes.clock_ns();
        let due_ns = due_ns.into_iter().chain(lanes.next_dial_ns()).min().unwrap_or(u64::MAX);
        let wait = match Duration::from_nanos(due_ns.saturating_sub(now_ns)).min(LOOK) {
            Duration::ZERO => Wait::No,
            time => Wait::AtMost(time),
        };
        lanes.turn(&mut part, wait)?;
    }
}

/// Between two looks at the stage, or at the threads.
const LOOK: Duration = Duration::from_millis(20);
/// Descriptors of a table that are not for connections.
const TABLE_SPARE: u32 = 128;

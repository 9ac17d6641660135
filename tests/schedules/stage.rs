//! What the threads of one schedule have in common besides the engine: the network, the time, and who sleeps.
//! Law: a thread sleeps until it is woken or its time has come, and time passes in jumps only when all sleep; so whoever
//! is slept on is found when nobody has anything to wait for, or only for what is far away.
//!
//! All of it belongs to the one thread of the operating system on which shuttle runs a schedule, and no step of it is one
//! at which shuttle switches; so a look at it and what follows from that are one step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use shuttle::rand::{RngCore, thread_rng};
use shuttle::thread::{self, Thread};
use tidewheel::io::sim::{Sim, World};

use crate::engine::PUBLISHERS;

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
    static SEEN: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

pub struct Stage {
    pub world: World,
    /// Drivers that wait for their threads.
    pub drivers: Vec<Option<Sim>>,
    /// Who sleeps, and until when.
    asleep: Vec<Option<Sleep>>,
    /// Shards that were rung.
    rung: Vec<bool>,
    has_ended: Vec<bool>,
    /// How many publishes each publisher has sent.
    pub sent: [u64; PUBLISHERS],
    /// Publishers whose receipts are all in.
    pub published: usize,
    /// Newcomers that were let in, and those that had to go.
    pub came: usize,
    pub evicted: usize,
    /// Threads that run beside the others, and never sleep.
    aside: usize,
}

struct Sleep {
    thread: Thread,
    until_ns: Option<u64>,
}

impl Stage {
    /// Sets the stage for so many shards, whose threads come first, and all threads together.
    pub fn set(world: World, drivers: Vec<Sim>, threads: usize) {
        let shards = drivers.len();
        let stage = Self {
            world,
            drivers: drivers.into_iter().map(Some).collect(),
            asleep: (0..threads).map(|_| None).collect(),
            rung: vec![false; shards],
            has_ended: vec![false; threads],
            sent: [0; PUBLISHERS],
            published: 0,
            came: 0,
            evicted: 0,
            aside: 0,
        };
        STAGE.set(Some(stage));
    }
}

/// Looks at the stage. Not across a step that shuttle may switch at.
pub fn stage<T>(act: impl FnOnce(&mut Stage) -> T) -> T {
    STAGE.with_borrow_mut(|stage| act(stage.as_mut().expect("the stage is set")))
}

pub fn world() -> World {
    stage(|stage| stage.world.clone())
}

/// Lets the network deliver what is on its way.
pub fn deliver() {
    world().settle();
}

/// Wakes a thread that sleeps.
pub fn wake(who: usize) {
    let sleep = stage(|stage| stage.asleep[who].take());
    if let Some(sleep) = sleep {
        sleep.thread.unpark();
    }
}

/// A doorbell sounds.
pub fn ring(shard: usize) {
    stage(|stage| stage.rung[shard] = true);
    wake(shard);
}

/// Whether it did since the last call.
pub fn was_rung(shard: usize) -> bool {
    stage(|stage| std::mem::take(&mut stage.rung[shard]))
}

/// Sleeps until woken, or until the time has come.
pub fn sleep(who: usize, until_ns: Option<u64>) {
    let thread = thread::current();
    stage(|stage| stage.asleep[who] = Some(Sleep { thread, until_ns }));
    pass_time();
    while stage(|stage| stage.asleep[who].is_some()) {
        thread::park();
    }
}

/// A thread ends.
pub fn end(who: usize) {
    stage(|stage| stage.has_ended[who] = true);
    pass_time();
}

/// Runs something on a thread of its own, soon or when the others have had time to go to sleep.
pub fn aside(run: impl FnOnce() + Send + 'static) {
    stage(|stage| stage.aside += 1);
    thread::spawn(move || {
        (0..thread_rng().next_u32() % STEPS_ASIDE_MAX).for_each(|_| thread::yield_now());
        run();
        stage(|stage| stage.aside -= 1);
        pass_time();
    });
}

/// Waits for what another thread answers.
pub fn wait_for<T>(who: usize, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Sleeper(who)));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => sleep(who, None), // nobody else has run since
        }
    }
}

struct Sleeper(usize);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        wake(self.0);
    }
}

/// If all sleep, time passes to when the first wants to be woken.
fn pass_time() {
    let next = stage(|stage| {
        let Stage { asleep, has_ended, aside, .. } = stage;
        let all_sleep = asleep.iter().zip(&*has_ended).all(|(sleep, ended)| *ended || sleep.is_some());
        let until = |who: usize| asleep[who].as_ref().and_then(|sleep| Some((sleep.until_ns?, who)));
        let all_ended = has_ended.iter().all(|&ended| ended);
        (all_sleep && !all_ended && *aside == 0).then(|| (0..asleep.len()).filter_map(until).min())
    });
    let Some(next) = next else { return };
    let now_ns = world().now().monotonic_ns;
    match next {
        Some((until_ns, who)) if until_ns <= END_NS => {
            count("jumps of time");
            world().advance(Duration::from_nanos(until_ns.saturating_sub(now_ns)));
            wake(who);
        }
        _ => {
            let asleep = stage(|stage| stage.asleep.iter().map(Option::is_some).collect::<Vec<_>>());
            panic!(
                "at {now_ns} ns everybody who is left sleeps, and nothing will wake them soon: {asleep:?}, next {next:?}"
            );
        }
    }
}

/// Notes that something happened, for [`seen`].
pub fn count(what: &'static str) {
    count_many(what, 1);
}

pub fn count_many(what: &'static str, times: u64) {
    SEEN.with_borrow_mut(|seen| *seen.entry(what).or_default() += times);
}

/// How often what happened in all schedules.
pub fn seen() -> String {
    SEEN.with_borrow(|seen| format!("{seen:?}"))
}

const STEPS_ASIDE_MAX: u32 = 300;
/// Whatever happens in a schedule has happened by then; nothing waits for a connection's own timers, or for a drain's deadline.
const END_NS: u64 = 5_000_000_000;

//! Handler futures that are waiting.
//!
//! Law: each parked future has a slot, and each slot has one waker for all futures it ever holds, which is in the ready
//! queue at most once; so the queue has room for every slot and a wake is never lost. A wake that was meant for an
//! earlier future of the slot is spurious and harmless.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use ahash::RandomState;

use crate::app::envelope::MessageId;
use crate::app::handler::{HandlerFuture, Outcome};
use crate::contain::{contain, drop_quietly};
use crate::fixed::TimerWheel;
use crate::id::ConnKey;
use crate::io::Doorbell;
use crate::sync::{ArrayQueue, AtomicBool, Ordering};

/// How a handler ended.
pub enum Ended {
    /// It returned.
    Returned(Outcome),
    /// It panicked; what with.
    Panicked(String),
    /// It was still waiting at its deadline.
    Overdue,
}

/// A handler that has ended, and whose request it was.
pub struct Done {
    /// The connection that asked.
    pub conn: ConnKey,
    /// The id of the request.
    pub id: Option<MessageId>,
    /// When the handler was called, in nanoseconds.
    pub called_ns: u64,
    /// How it ended.
    pub ended: Ended,
}

struct Task {
    future: HandlerFuture,
    conn: ConnKey,
    id: Option<MessageId>,
    called_ns: u64,
}

struct Slot {
    task: Option<Task>,
    /// Its neighbours among the parked futures of the same connection; `None` while it is not parked.
    links: Option<Links>,
    waker: Waker,
    state: Arc<SlotWaker>,
}

#[derive(Clone, Copy)]
struct Links {
    newer: Option<u32>,
    older: Option<u32>,
}

struct SlotWaker {
    index: u32,
    /// In the ready queue.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

struct Ready {
    queue: ArrayQueue<u32>,
    doorbell: Arc<dyn Doorbell>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let full = self.ready.queue.push(self.index).is_err();
            debug_assert!(!full, "a slot is queued at most once");
            self.ready.doorbell.ring();
        }
    }
}

/// The parked futures of one shard.
pub struct Executor {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The newest parked future of each connection that has some.
    newest: HashMap<ConnKey, u32, RandomState>,
    ready: Arc<Ready>,
    /// By slot: when its future is given up.
    deadlines: TimerWheel,
    bound: usize,
    /// Slots that were looked at for connections that had gone.
    #[cfg(test)]
    looked_at: usize,
}

impl Executor {
    /// Room for `bound` futures (≥ 1), from `now_ms` on.
    pub fn new(bound: usize, doorbell: Arc<dyn Doorbell>, now_ms: u64) -> Self {
        let bound = bound.max(1);
        let ready = Arc::new(Ready { queue: ArrayQueue::new(bound), doorbell });
        let deadlines = TimerWheel::new(bound as u32, DEADLINE_TICK_MS, now_ms);
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            newest: HashMap::default(),
            ready,
            deadlines,
            bound,
            #[cfg(test)]
            looked_at: 0,
        }
    }

    /// Futures parked.
    pub fn parked(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another future has room.
    pub fn has_room(&self) -> bool {
        self.parked() < self.bound
    }

    /// Whether a parked future was woken.
    pub fn has_ready(&self) -> bool {
        !self.ready.queue.is_empty()
    }

    /// Polls a new future once; if it is pending, it parks, until `deadline_ms` at most. The caller has asked
    /// [`Executor::has_room`].
    pub fn start(
        &mut self,
        conn: ConnKey,
        id: Option<MessageId>,
        called_ns: u64,
        future: HandlerFuture,
        deadline_ms: Option<u64>,
    ) -> Option<Done> {
        debug_assert!(self.has_room());
        let index = self.free.pop().unwrap_or_else(|| self.add_slot());
        self.slots[index as usize].task = Some(Task { future, conn, id, called_ns });
        let done = self.poll(index);
        if done.is_none() {
            self.link(index, conn);
            if let Some(deadline_ms) = deadline_ms {
                self.deadlines.schedule(index, deadline_ms);
            }
        }
        done
    }

    /// The next slot whose future was woken, out of those that were when `left` was counted.
    pub fn next_ready(&self, left: &mut usize) -> Option<u32> {
        *left = left.checked_sub(1)?;
        let index = self.ready.queue.pop()?;
        // Only here, where it has left the queue, and before the poll: a wake from now on queues it again.
        self.slots[index as usize].state.queued.swap(false, Ordering::AcqRel);
        Some(index)
    }

    /// How many slots are woken now; futures that wake themselves at once wait for the next turn.
    pub fn ready(&self) -> usize {
        self.ready.queue.len()
    }

    /// Polls the future of a slot, if it still has one.
    pub fn poll(&mut self, index: u32) -> Option<Done> {
        let slot = &mut self.slots[index as usize];
        let task = slot.task.as_mut()?;
        let mut context = Context::from_waker(&slot.waker);
        let polled = contain(|| task.future.as_mut().poll(&mut context));
        let ended = match polled {
            Ok(Poll::Pending) => return None,
            Ok(Poll::Ready(outcome)) => Ended::Returned(outcome),
            Err(panic) => Ended::Panicked(panic),
        };
        self.take(index, ended)
    }

    /// When the first parked future is given up.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.next_deadline_ms()
    }

    /// Drops a future whose deadline has come.
    pub fn give_up_one(&mut self, now_ms: u64) -> Option<Done> {
        let index = self.deadlines.pop_expired(now_ms)?;
        self.take(index, Ended::Overdue)
    }

    /// Drops the futures of a connection that has gone.
    pub fn cancel(&mut self, conn: ConnKey) {
        while let Some(&index) = self.newest.get(&conn) {
            #[cfg(test)]
            {
                self.looked_at += 1;
            }
            let Some(Task { future, .. }) = self.slots[index as usize].task.take() else { return };
            self.unlink(index, conn);
            self.free.push(index);
            self.deadlines.cancel(index);
            drop_quietly(future);
        }
    }

    fn link(&mut self, index: u32, conn: ConnKey) {
        let older = self.newest.insert(conn, index);
        self.slots[index as usize].links = Some(Links { newer: None, older });
        if let Some(links) = older.and_then(|older| self.slots[older as usize].links.as_mut()) {
            links.newer = Some(index);
        }
    }

    fn unlink(&mut self, index: u32, conn: ConnKey) {
        let Some(Links { newer, older }) = self.slots[index as usize].links.take() else { return };
        if let Some(links) = older.and_then(|older| self.slots[older as usize].links.as_mut()) {
            links.newer = newer;
        }
        match (newer, older) {
            (Some(newer), _) => self.slots[newer as usize].links.iter_mut().for_each(|links| links.older = older),
            (None, Some(older)) => drop(self.newest.insert(conn, older)),
            (None, None) => drop(self.newest.remove(&conn)),
        }
    }

    /// Takes a future out of its slot, which is free again before the future drops.
    fn take(&mut self, index: u32, ended: Ended) -> Option<Done> {
        let Task { conn, id, called_ns, future } = self.slots[index as usize].task.take()?;
        self.unlink(index, conn);
        self.free.push(index);
        self.deadlines.cancel(index);
        drop_quietly(future);
        Some(Done { conn, id, called_ns, ended })
    }

    fn add_slot(&mut self) -> u32 {
        let index = self.slots.len() as u32;
        let state = Arc::new(SlotWaker { index, queued: AtomicBool::new(false), ready: self.ready.clone() });
        self.slots.push(Slot { task: None, links: None, waker: state.clone().into(), state });
        index
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.slots.drain(..).filter_map(|slot| slot.task).for_each(|task| drop_quietly(task.future));
    }
}

/// Deadlines are kept to the millisecond.
const DEADLINE_TICK_MS: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::OutgoingMessage;
    use std::cell::RefCell;
    use std::rc::Rc;

    struct Silent;

    impl Doorbell for Silent {
        fn ring(&self) {}
    }

    const CONN: ConnKey = ConnKey { slot: 0, generation: 1 };

    /// A future that leaves its waker on a list and ends when it is polled for the second time.
    fn second_poll_ends(wakers: &Rc<RefCell<Vec<Waker>>>) -> HandlerFuture {
        let wakers = wakers.clone();
        let mut polls = 0;
        Box::pin(std::future::poll_fn(move |context| {
            wakers.borrow_mut().push(context.waker().clone());
            polls += 1;
            if polls == 2 { Poll::Ready(Ok(OutgoingMessage::new("done", &()).unwrap())) } else { Poll::Pending }
        }))
    }

    fn poll_all(executor: &mut Executor) -> usize {
        let mut left = executor.ready();
        let mut done = 0;
        while let Some(index) = executor.next_ready(&mut left) {
            done += usize::from(executor.poll(index).is_some());
        }
        done
    }

    #[test]
    fn a_slot_that_is_used_again_while_a_stale_wake_of_it_is_queued_loses_nobody_a_wake() {
        let mut executor = Executor::new(2, Arc::new(Silent), 0);
        let wakers = Rc::default();
        assert!(executor.start(CONN, None, 0, second_poll_ends(&wakers), None).is_none());
        wakers.borrow()[0].wake_by_ref();
        executor.cancel(CONN);
        for _ in 0..2 {
            assert!(executor.has_room());
            assert!(executor.start(CONN, None, 0, second_poll_ends(&wakers), None).is_none());
        }
        wakers.borrow().iter().for_each(Waker::wake_by_ref);
        assert_eq!(poll_all(&mut executor), 2, "both were woken");
        assert_eq!((executor.parked(), executor.has_ready()), (0, false));
    }

    #[test]
    fn a_connection_that_goes_is_looked_for_among_its_own_futures_only() {
        const CONNS: u32 = 1_000;
        let conn = |slot| ConnKey { slot, generation: 1 };
        let mut executor = Executor::new(3 * CONNS as usize, Arc::new(Silent), 0);
        let wakers = Rc::default();
        // Each has three; of some one ends before they go, the first, the middle or the last.
        for _ in 0..3 {
            for slot in 0..CONNS {
                assert!(executor.start(conn(slot), None, 0, second_poll_ends(&wakers), None).is_none());
            }
        }
        for slot in 0..CONNS {
            if slot % 4 < 3 {
                wakers.borrow()[(slot + slot % 4 * CONNS) as usize].wake_by_ref();
            }
        }
        assert_eq!(poll_all(&mut executor), 750);
        let mut left = executor.parked();
        for slot in (0..CONNS).rev() {
            executor.cancel(conn(slot));
            left -= if slot % 4 < 3 { 2 } else { 3 };
            assert_eq!(executor.parked(), left);
        }
        assert_eq!((left, executor.looked_at), (0, 2_250));
        // Nobody finds what is no longer there.
        assert!(executor.start(conn(0), None, 0, second_poll_ends(&wakers), None).is_none());
        executor.cancel(conn(1));
        assert_eq!(executor.parked(), 1);
        executor.cancel(conn(0));
        assert_eq!((executor.parked(), executor.slots.len()), (0, 3 * CONNS as usize));
    }

    #[test]
    fn a_future_is_given_up_at_its_deadline_and_not_before() {
        let mut executor = Executor::new(3, Arc::new(Silent), 0);
        let wakers = Rc::default();
        for deadline_ms in [None, Some(1_000), Some(1_000)] {
            assert!(executor.start(CONN, None, 0, second_poll_ends(&wakers), deadline_ms).is_none());
        }
        wakers.borrow()[1].wake_by_ref();
        assert_eq!(poll_all(&mut executor), 1, "in time");
        assert!(executor.next_deadline_ms().is_some_and(|deadline_ms| deadline_ms <= 1_000));
        assert!(executor.give_up_one(999).is_none());
        assert!(matches!(executor.give_up_one(1_000), Some(Done { ended: Ended::Overdue, .. })));
        assert!(executor.give_up_one(u64::MAX).is_none(), "the first has no deadline");
        assert_eq!((executor.parked(), executor.next_deadline_ms()), (1, None));
        assert!(executor.start(CONN, None, 0, second_poll_ends(&wakers), Some(2_000)).is_none());
        executor.cancel(CONN);
        assert_eq!((executor.parked(), executor.next_deadline_ms()), (0, None), "a deadline goes with its future");
    }
}

//! Handler futures that are waiting.
//!
//! Law: each parked future has a slot, and each slot has one waker for all futures it ever holds, which is in the ready
//! queue at most once; so the queue has room for every slot and a wake is never lost. A wake that was meant for an
//! earlier future of the slot is spurious and harmless.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::ArrayQueue;

use crate::app::envelope::MessageId;
use crate::app::handler::{HandlerFuture, Outcome};
use crate::contain::{contain, drop_quietly};
use crate::fixed::TimerWheel;
use crate::id::ConnKey;
use crate::io::Doorbell;

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
    waker: Waker,
    state: Arc<SlotWaker>,
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
    ready: Arc<Ready>,
    /// By slot: when its future is given up.
    deadlines: TimerWheel,
    bound: usize,
}

impl Executor {
    /// Room for `bound` futures (≥ 1), from `now_ms` on.
    pub fn new(bound: usize, doorbell: Arc<dyn Doorbell>, now_ms: u64) -> Self {
        let bound = bound.max(1);
        let ready = Arc::new(Ready { queue: ArrayQueue::new(bound), doorbell });
        let deadlines = TimerWheel::new(bound as u32, DEADLINE_TICK_MS, now_ms);
        Self { slots: Vec::new(), free: Vec::new(), ready, deadlines, bound }
    }

    /// Futures parked.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another future has room.
    pub fn has_room(&self) -> bool {
        self.len() < self.bound
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
        if let (None, Some(deadline_ms)) = (&done, deadline_ms) {
            self.deadlines.schedule(index, deadline_ms);
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
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.task.as_ref().is_some_and(|task| task.conn == conn) {
                let task = slot.task.take().expect("seen just now");
                self.free.push(index as u32);
                self.deadlines.cancel(index as u32);
                drop_quietly(task.future);
            }
        }
    }

    /// Takes a future out of its slot, which is free again before the future drops.
    fn take(&mut self, index: u32, ended: Ended) -> Option<Done> {
        let Task { conn, id, called_ns, future } = self.slots[index as usize].task.take()?;
        self.free.push(index);
        self.deadlines.cancel(index);
        drop_quietly(future);
        Some(Done { conn, id, called_ns, ended })
    }

    fn add_slot(&mut self) -> u32 {
        let index = self.slots.len() as u32;
        let state = Arc::new(SlotWaker { index, queued: AtomicBool::new(false), ready: self.ready.clone() });
        self.slots.push(Slot { task: None, waker: state.clone().into(), state });
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
        assert_eq!((executor.len(), executor.has_ready()), (0, false));
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
        assert_eq!((executor.len(), executor.next_deadline_ms()), (1, None));
        assert!(executor.start(CONN, None, 0, second_poll_ends(&wakers), Some(2_000)).is_none());
        executor.cancel(CONN);
        assert_eq!((executor.len(), executor.next_deadline_ms()), (0, None), "a deadline goes with its future");
    }
}

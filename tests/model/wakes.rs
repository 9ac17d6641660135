//! Handlers that wait: a wake from another thread is never lost, however many come at once.

use std::sync::Arc;
use std::task::Poll;

use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use loom::thread;
use tidewheel::OutgoingMessage;
use tidewheel::shard::executor::Executor;

use crate::{Sleeper, conn, explore};

/// A future that needs two things, which two threads bring. It reads them relaxed: what orders them is the wake.
#[test]
fn a_wake_is_never_lost() {
    explore("a_wake_is_never_lost", 2, || {
        let sleeper = Arc::new(Sleeper::default());
        let mut executor = Executor::new(1, sleeper.clone(), 0);
        let brought = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let (tell, waker) = std::sync::mpsc::channel();
        let future = {
            let brought = brought.clone();
            std::future::poll_fn(move |context| {
                let _ = tell.send(context.waker().clone());
                if brought.iter().all(|one| one.load(Relaxed)) {
                    Poll::Ready(OutgoingMessage::new("done", &()).map_err(Into::into))
                } else {
                    Poll::Pending
                }
            })
        };
        assert!(executor.start(conn(0), None, 0, Box::pin(future), None).is_none(), "nothing was brought");
        let waker = waker.recv().expect("it was polled");
        let bringers = [0, 1].map(|at| {
            let (brought, waker) = (brought.clone(), waker.clone());
            thread::spawn(move || {
                brought[at].store(true, Relaxed);
                waker.wake();
            })
        });
        let mut is_done = false;
        while !is_done {
            sleeper.nap(|| executor.has_ready());
            let mut left = executor.ready();
            while let Some(index) = executor.next_ready(&mut left) {
                is_done |= executor.poll(index).is_some();
            }
        }
        bringers.into_iter().for_each(|bringer| bringer.join().unwrap());
        assert_eq!(executor.parked(), 0);
    });
}

//! The end of a driver, with whatever is in flight.
//!
//! Law: no memory that a request names is freed while the kernel may use it. Dropping the ring's descriptor is not
//! enough: the kernel cancels in its own time then, and a [`Bell`](crate::io::bell::Bell) keeps the ring open anyway. So
//! all requests are cancelled and their completions read first; what does not come back in time is leaked. Ordinary descriptors
//! that were asked for are closed.

use std::time::{Duration, Instant};

use io_uring::types::CancelBuilder;
use io_uring::{opcode, squeue};

use super::{Uring, has_more};
use crate::io::token::{Op, Token};

impl Drop for Uring {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while (self.holding > 0 || self.installing > 0) && Instant::now() < deadline {
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            let cancel = cancel.flags(squeue::Flags::SKIP_SUCCESS).user_data(Token::of_driver(Op::Forget, 0).0);
            // SAFETY: a cancel names no memory.
            unsafe { self.ring.push(&cancel) };
            if self.ring.enter(1, Some(TICK), 0).is_err() {
                break;
            }
            while let Some(completion) = self.ring.next() {
                match Token(completion.user_data()).op() {
                    Some(Op::Accept | Op::Take | Op::Receive | Op::Send) if !has_more(&completion) => {
                        self.holding = self.holding.saturating_sub(1);
                    }
                    Some(Op::Install) => drop(self.take_installed(completion.result())),
                    _ => {}
                }
            }
        }
        if self.holding > 0 {
            std::mem::forget(std::mem::take(&mut self.palette));
            self.buffers.leak();
            self.acceptor.leak();
            self.arrivals.leak();
        }
        // The group's pages are given up here, and every socket of the table is closed. An error means that there is
        // no ring any more that could hold either.
        let _ = self.ring.submitter().unregister_buf_ring(crate::io::recv_ring::GROUP);
        let _ = self.ring.submitter().unregister_files();
    }
}

/// How long a kernel may take to let go. Cancelled network requests come back at once; this is for a broken one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is asked again meanwhile.
const TICK: Duration = Duration::from_millis(10);

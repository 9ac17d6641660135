//! Requests that change something: done to the end, and done once for each idempotency key.
//! Law: what was begun goes on when its caller has gone or given up, so a key's first answer is never lost to a retry;
//! a key whose request was refused is free again, since nothing was done. Bound: [`KEYS_MAX`] keys and
//! [`ANSWER_BYTES_MAX`] bytes of answers, for [`WINDOW`]; at the bound the oldest answer is forgotten early and
//! counted, and a newcomer is refused if every key is still under way.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::PATIENCE;
use super::error::{ApiError, Code};
use crate::control::http::json_text;

/// The caller's name for a request: the same key again within five minutes gives the first answer again.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, pattern = "^[!-~]{1,128}$", min_length = 1, max_length = 128)]
pub(super) struct IdempotencyKey(Box<str>);

impl TryFrom<String> for IdempotencyKey {
    type Error = &'static str;

    fn try_from(key: String) -> Result<Self, Self::Error> {
        match (1..=128).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(key.into())),
            false => Err("`idempotency_key` must be 1 to 128 printable ASCII characters without spaces"),
        }
    }
}

/// The JSON text of a success.
type Answer = Bytes;
type Outcome = Result<Answer, ApiError>;

/// What was answered to whom.
#[derive(Debug, Default)]
pub(super) struct Once {
    keys: Mutex<Keys>,
    pub(super) counts: Counts,
}

/// How often keys mattered.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// A first answer was given again.
    pub(super) replayed: AtomicU64,
    /// A key came with another request than its first.
    pub(super) conflicts: AtomicU64,
    /// An answer was forgotten before its time.
    pub(super) forgotten: AtomicU64,
}

#[derive(Debug, Default)]
struct Keys {
    begun: HashMap<Box<str>, Begun>,
    /// Those that have been answered, oldest first.
    answered: VecDeque<Answered>,
    answer_bytes: usize,
}

#[derive(Debug)]
struct Answered {
    since: Instant,
    key: Box<str>,
    bytes: usize,
}

#[derive(Debug)]
struct Begun {
    fingerprint: u64,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// A success, and whether it is that of an earlier request.
#[derive(Debug)]
pub(super) struct Given {
    answer: Answer,
    again: bool,
}

impl IntoResponse for Given {
    fn into_response(self) -> Response {
        let mut response = json_text(self.answer);
        if self.again {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

impl Once {
    /// Does `work`, unless a request of this key did so already; `fingerprint` tells requests apart.
    ///
    /// # Errors
    /// What `work` said, another request's key, too many of them, or no answer within [`PATIENCE`].
    pub(super) async fn run<T, W>(
        self: &Arc<Self>,
        key: Option<IdempotencyKey>,
        fingerprint: u64,
        work: W,
    ) -> Result<Given, ApiError>
    where
        T: Serialize + Send,
        W: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let work = async move { work.await.and_then(|done| written(&done)) };
        let (mut outcome, again) = self.begin(key, fingerprint, work)?;
        let outcome = match timeout(PATIENCE, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone(),
            // The task that did it panicked.
            Ok(Err(_)) => Some(Err(ApiError::new(Code::InternalError, "the request failed"))),
            Err(_) => None,
        };
        let late = || Err(ApiError::new(Code::Timeout, "the engine does not answer; this may still be done"));
        Ok(Given { answer: outcome.unwrap_or_else(late)?, again })
    }

    fn begin(
        self: &Arc<Self>,
        key: Option<IdempotencyKey>,
        fingerprint: u64,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> Result<(watch::Receiver<Option<Outcome>>, bool), ApiError> {
        let (tell, outcome) = watch::channel(None);
        let Some(IdempotencyKey(key)) = key else {
            tokio::spawn(async move { tell.send(Some(work.await)) });
            return Ok((outcome, false));
        };
        let mut keys = self.keys.lock();
        keys.forget_old(Instant::now(), &self.counts);
        match keys.begun.get(&key) {
            Some(begun) if begun.fingerprint == fingerprint => {
                self.counts.replayed.fetch_add(1, Relaxed);
                return Ok((begun.outcome.clone(), true));
            }
            Some(_) => {
                self.counts.conflicts.fetch_add(1, Relaxed);
                let what = "this idempotency key was used for another request; a retry has the same bytes";
                return Err(ApiError::new(Code::Conflict, what));
            }
            None if keys.begun.len() >= KEYS_MAX => {
                return Err(ApiError::new(Code::LimitExceeded, "too many idempotency keys are under way"));
            }
            None => {}
        }
        keys.begun.insert(key.clone(), Begun { fingerprint, outcome: outcome.clone() });
        let ticket = Ticket { once: Arc::clone(self), key: Some(key) };
        tokio::spawn(async move {
            let outcome = work.await;
            ticket.settle(&outcome);
            tell.send(Some(outcome))
        });
        Ok((outcome, false))
    }
}

/// A key under way. Dropped without an answer, it is free again.
struct Ticket {
    once: Arc<Once>,
    key: Option<Box<str>>,
}

impl Ticket {
    fn settle(mut self, outcome: &Outcome) {
        if let Ok(answer) = outcome
            && let Some(key) = self.key.take()
        {
            let mut keys = self.once.keys.lock();
            keys.answer_bytes += answer.len();
            keys.answered.push_back(Answered { since: Instant::now(), key, bytes: answer.len() });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.once.keys.lock().begun.remove(&key);
        }
    }
}

impl Keys {
    /// Makes room for one key more.
    fn forget_old(&mut self, now: Instant, counts: &Counts) {
        while let Some(oldest) = self.answered.front() {
            let is_old = now.duration_since(oldest.since) >= WINDOW;
            let is_over = self.begun.len() >= KEYS_MAX || self.answer_bytes > ANSWER_BYTES_MAX;
            if !is_old && !is_over {
                return;
            }
            counts.forgotten.fetch_add(u64::from(!is_old), Relaxed);
            self.answer_bytes -= oldest.bytes;
            self.begun.remove(&oldest.key);
            self.answered.pop_front();
        }
    }
}

fn written(done: &impl Serialize) -> Outcome {
    let text = serde_json::to_vec(done);
    text.map(Bytes::from).map_err(|error| ApiError::new(Code::InternalError, error.to_string()))
}

/// Idempotency keys remembered.
const KEYS_MAX: usize = 10_000;
/// Bytes of the answers remembered.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a first answer is given again.
const WINDOW: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    /// `keys` keys that were answered so long ago with so many bytes each, and `under_way` that were not; how many stay
    /// when one more comes, and how many of the others are forgotten early.
    #[track_caller]
    fn check(keys: usize, under_way: usize, seconds: u64, bytes: usize, stay: usize, forgotten: u64) {
        let (mut all, counts, since) = (Keys::default(), Counts::default(), Instant::now());
        for number in 0..keys + under_way {
            let key: Box<str> = number.to_string().into();
            let begun = Begun { fingerprint: 0, outcome: watch::channel(None).1 };
            all.begun.insert(key.clone(), begun);
            if number >= under_way {
                all.answered.push_back(Answered { since, key, bytes });
                all.answer_bytes += bytes;
            }
        }
        all.forget_old(since + Duration::from_secs(seconds), &counts);
        assert_eq!((all.begun.len(), counts.forgotten.load(Relaxed)), (stay, forgotten));
        assert_eq!(all.answer_bytes, all.answered.len() * bytes);
    }

    #[test]
    fn bounds() {
        check(9_999, 0, 299, 10, 9_999, 0);
        check(10_000, 0, 299, 10, 9_999, 1);
        check(10_000, 0, 300, 10, 0, 0);
        check(5_000, 5_000, 0, 10, 9_999, 1);
        check(0, 10_000, 300, 0, 10_000, 0);
        check(16, 0, 0, 1 << 20, 16, 0);
        check(17, 0, 0, 1 << 20, 16, 1);
    }

    #[test]
    fn when_all_keys_are_under_way_newcomers_are_refused() {
        let once = Arc::<Once>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let begin = |key: String| {
            once.begin(Some(IdempotencyKey(key.into())), 0, std::future::pending()).map(|(_, again)| again)
        };
        (0..KEYS_MAX).for_each(|number| assert_eq!(begin(number.to_string()), Ok(false)));
        assert_eq!(begin("0".into()), Ok(true));
        assert_eq!(begin("another".into()).unwrap_err().code, Code::LimitExceeded);
    }

    /// A request that is given up, or that panics, leaves its key free.
    #[test]
    fn a_key_without_an_answer_is_free_again() {
        let once = Arc::<Once>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let run = |outcome: fn() -> Result<u32, ApiError>| {
            let key = Some(IdempotencyKey("k".into()));
            runtime.block_on(once.run(key, 0, async move { outcome() })).map(|given| given.again).map_err(|e| e.code)
        };
        assert_eq!(run(|| Err(ApiError::invalid("no"))), Err(Code::InvalidMessage));
        assert_eq!(run(|| panic!("on purpose")), Err(Code::InternalError));
        assert_eq!(run(|| Ok(1)), Ok(false));
        assert_eq!(run(|| Ok(2)), Ok(true));
    }
}

//! The handlers of the simulated engine: prompt ones, ones that wait until the harness lets them go on, ones that fail.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tidewheel::app::Router;
use tidewheel::metrics::ErrorCode;
use tidewheel::{Context, Delivery, HandlerError, OutgoingMessage};
use tokio::sync::oneshot;

/// Handlers that wait; the harness lets them go.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<Vec<oneshot::Sender<()>>>>);

impl Waiting {
    fn enter(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().unwrap().push(sender);
        receiver
    }

    /// How many wait, those whose connection has gone included.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Lets one go on: by a message, or by the end of its channel.
    pub fn release(&self, index: usize, by_message: bool) {
        let sender = self.0.lock().unwrap().swap_remove(index);
        if by_message {
            let _ = sender.send(()); // its connection may have gone
        }
    }
}

/// What a deliberate panic says.
pub const ON_PURPOSE: &str = "on purpose";

#[derive(Deserialize)]
struct Nothing {}
#[derive(Deserialize)]
struct Add {
    a: u64,
    b: u64,
}
#[derive(Serialize)]
struct Sum {
    sum: u64,
}
#[derive(Deserialize)]
struct Post {
    topic: String,
    data: Data,
}
#[derive(Deserialize, Serialize)]
struct Data {
    n: usize,
    pad: String,
}
#[derive(Deserialize)]
struct Topic {
    topic: String,
}
#[derive(Deserialize)]
struct Say {
    times: u32,
}
#[derive(Deserialize)]
struct Bye {
    code: u16,
}

/// Every handler, each of which a client knows how to ask for.
pub fn router(waiting: &Waiting) -> Router {
    let mut router = Router::default();
    let add = async |_: Context, add: Add| Ok(("sum", Sum { sum: add.a + add.b }));
    router.add_fn("add", add).unwrap();
    let gate = waiting.clone();
    let wait = async move |_: Context, _: Nothing| {
        let _ = gate.enter().await; // either way of being let go will do
        Ok(())
    };
    router.add_fn("wait", wait).unwrap();
    let panic = async |_: Context, add: Add| if add.a <= add.b { panic!("{ON_PURPOSE}") } else { Ok(()) };
    router.add_fn("panic", panic).unwrap();
    let gate = waiting.clone();
    let panic_later = async move |_: Context, add: Add| {
        let _ = gate.enter().await; // as above
        if add.a <= add.b { panic!("{ON_PURPOSE}") } else { Ok(()) }
    };
    router.add_fn("panic_later", panic_later).unwrap();
    let fail = async |_: Context, _: Nothing| Err::<(), _>(HandlerError::new(ErrorCode::NotFound, "no such thing"));
    router.add_fn("fail", fail).unwrap();
    let post = async |context: Context, post: Post| match context.publish(&post.topic, &post.data).await {
        Ok(Delivery { matched, queued, dropped }) => Ok(("posted", Delivery { matched, queued, dropped })),
        Err(refused) => Err(HandlerError::new(refused.code, refused.message)),
    };
    router.add_fn("post", post).unwrap();
    let join = async |context: Context, join: Topic| {
        context.subscribe(&join.topic).await.map_err(|refused| HandlerError::new(refused.code, refused.message))
    };
    router.add_fn("join", join).unwrap();
    let leave = async |context: Context, leave: Topic| {
        context.unsubscribe(&leave.topic).await.map_err(|refused| HandlerError::new(refused.code, refused.message))
    };
    router.add_fn("leave", leave).unwrap();
    let say = async |context: Context, say: Say| {
        for number in 0..say.times {
            context.send(OutgoingMessage::new("said", &number)?);
        }
        Ok(())
    };
    router.add_fn("say", say).unwrap();
    let bye = async |context: Context, bye: Bye| {
        context.close(bye.code, "good bye");
        Ok(())
    };
    router.add_fn("bye", bye).unwrap();
    router
}

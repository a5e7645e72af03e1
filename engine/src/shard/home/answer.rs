//! Where the answer to a publication goes.

use std::cell::RefCell;
use std::rc::Rc;

use ringfeed_protocol::ChannelName;
use tokio::sync::oneshot;

use super::Deliver;
use crate::message::{Delivery, Origin, Published};

/// Who published something.
#[derive(Debug)]
pub(in crate::shard) enum Asker {
    /// Somebody who wants no answer.
    Nobody,
    /// A session.
    Session(Origin),
    /// The control thread: the place in its list, and the list.
    Batch(u32, Rc<Batch>),
}

/// The answers to a batch of publications. They are sent when the last of them is there.
#[derive(Debug)]
pub(in crate::shard) struct Batch {
    answers: RefCell<Vec<(u32, Published)>>,
    reply: RefCell<Option<oneshot::Sender<Vec<(u32, Published)>>>>,
}

impl Batch {
    pub(in crate::shard) fn new(reply: oneshot::Sender<Vec<(u32, Published)>>) -> Rc<Batch> {
        Rc::new(Batch { answers: RefCell::default(), reply: RefCell::new(Some(reply)) })
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            // A caller that has gone away does not undo its publications.
            let _ = reply.send(self.answers.take());
        }
    }
}

impl Asker {
    pub(super) fn answer(self, channel: &ChannelName, published: Published, deliver: Deliver) {
        match self {
            Asker::Nobody => {}
            Asker::Batch(place, batch) => batch.answers.borrow_mut().push((place, published)),
            Asker::Session(origin) => {
                let shard = origin.shard;
                let answer = match published {
                    Ok(position) => {
                        Delivery::Published { origin, channel: channel.clone(), position }
                    }
                    Err(refused) => Delivery::Refused { origin, attempt: None, refused },
                };
                deliver(shard, answer);
            }
        }
    }
}

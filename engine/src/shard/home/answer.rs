//! Where the answer to a publication goes.

use std::cell::RefCell;
use std::rc::Rc;

use ringfeed_protocol::{ChannelName, Refused};
use tokio::sync::oneshot;

use super::Deliver;
use crate::message::{By, Delivery, Origin, Published, Receipt};

/// Who published something.
#[derive(Debug)]
pub(in crate::shard) struct Publisher {
    /// Who is answered.
    pub(in crate::shard) asker: Asker,
    /// Who it is.
    pub(in crate::shard) by: By,
}

/// Who wants an answer to a publication.
#[derive(Debug)]
pub(in crate::shard) enum Asker {
    /// Nobody does.
    Nobody,
    /// Another node, which has published it, too.
    Shared,
    /// A session.
    Session(Origin),
    /// The control thread: the place in its list, and the list.
    Batch(u32, Rc<Batch>),
}

/// Each with its place in the list of the control thread.
type Answers = Vec<(u32, Published)>;

/// The answers to a batch of publications. They are sent when the last of them is there; where one never
/// comes, because the shard has ended, none is.
#[derive(Debug)]
pub(in crate::shard) struct Batch {
    count: usize,
    answers: RefCell<Answers>,
    reply: RefCell<Option<oneshot::Sender<Answers>>>,
}

impl Batch {
    /// For so many publications.
    pub(in crate::shard) fn new(count: usize, reply: oneshot::Sender<Answers>) -> Rc<Batch> {
        let answers = RefCell::new(Vec::with_capacity(count));
        Rc::new(Batch { count, answers, reply: RefCell::new(Some(reply)) })
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let complete = self.answers.borrow().len() == self.count;
        if let Some(reply) = self.reply.take().filter(|_| complete) {
            // A caller that has gone away does not undo its publications.
            let _ = reply.send(self.answers.take());
        }
    }
}

impl Asker {
    /// Answers whoever wanted to publish something that is refused.
    pub(in crate::shard) fn refuse(self, channel: &ChannelName, why: Refused, deliver: Deliver) {
        self.answer(channel, Err(why), deliver);
    }

    /// Answers whoever published.
    pub(in crate::shard) fn answer(
        self,
        channel: &ChannelName,
        published: Published,
        deliver: Deliver,
    ) {
        match self {
            Asker::Nobody | Asker::Shared => {}
            Asker::Batch(place, batch) => batch.answers.borrow_mut().push((place, published)),
            Asker::Session(origin) => {
                let shard = origin.shard;
                let answer = match published {
                    Ok(Receipt { position, ack, subscribers, duplicate }) => {
                        let channel = channel.clone();
                        Delivery::Published {
                            origin,
                            channel,
                            position,
                            ack,
                            subscribers,
                            duplicate,
                        }
                    }
                    Err(refused) => Delivery::Refused { origin, attempt: None, refused },
                };
                deliver(shard, answer);
            }
        }
    }
}

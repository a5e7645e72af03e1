//! Whose turn it is: questions about one user are asked one after the other, those about different users at once.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use ringfeed_protocol::UserId;
use tokio::sync::oneshot;

use crate::ids::ConnectionId;
use crate::message::Caller;

/// Whom a question is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// A user, over all connections.
    User(UserId),
    /// A connection of nobody in particular.
    Connection(ConnectionId),
}

impl Subject {
    pub(super) fn of(caller: &Caller) -> Subject {
        match &caller.identity.user {
            Some(user) => Subject::User(user.clone()),
            None => Subject::Connection(caller.connection),
        }
    }
}

/// The questions about each subject, as long as there are any. Their number is bounded by whoever lets questions in.
#[derive(Debug, Default)]
pub(super) struct Order {
    queues: RefCell<HashMap<Subject, Queue>>,
}

#[derive(Debug)]
struct Queue {
    /// Number of the turn that has come.
    current: u64,
    /// Number of the next turn that is taken.
    next: u64,
    /// In the order of their numbers.
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
    /// Turns that count against what one subject may have.
    counted: u32,
}

/// A place in a queue; it is left when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    order: Rc<Order>,
    subject: Subject,
    number: u64,
    comes: Option<oneshot::Receiver<()>>,
    counted: bool,
}

impl Order {
    /// Takes the next place. What was taken before comes before it.
    pub(super) fn turn(self: &Rc<Self>, subject: Subject) -> Turn {
        self.take(subject, false)
    }

    /// The same where its subject has less than so many that were taken like this; else none.
    pub(super) fn turn_within(self: &Rc<Self>, subject: Subject, most: u32) -> Option<Turn> {
        let counted = self.queues.borrow().get(&subject).map_or(0, |queue| queue.counted);
        (counted < most).then(|| self.take(subject, true))
    }

    fn take(self: &Rc<Self>, subject: Subject, counted: bool) -> Turn {
        let mut queues = self.queues.borrow_mut();
        let count = u32::from(counted);
        let (number, comes) = match queues.entry(subject.clone()) {
            Entry::Vacant(place) => {
                let waiting = VecDeque::new();
                place.insert(Queue { current: 0, next: 1, waiting, counted: count });
                (0, None)
            }
            Entry::Occupied(mut place) => {
                let queue = place.get_mut();
                queue.counted += count;
                let number = queue.next;
                queue.next += 1;
                let (sender, comes) = oneshot::channel();
                queue.waiting.push_back((number, sender));
                (number, Some(comes))
            }
        };
        Turn { order: self.clone(), subject, number, comes, counted }
    }

    /// Subjects about which something is asked.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.queues.borrow().len()
    }
}

impl Turn {
    /// Returns when it has come.
    pub(super) async fn comes(&mut self) {
        if let Some(comes) = &mut self.comes {
            // The sender is kept until then.
            let _ = comes.await;
            self.comes = None;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queues = self.order.queues.borrow_mut();
        let Some(queue) = queues.get_mut(&self.subject) else { return };
        queue.counted -= u32::from(self.counted);
        if queue.current != self.number {
            if let Ok(at) = queue.waiting.binary_search_by_key(&self.number, |(n, _)| *n) {
                queue.waiting.remove(at);
            }
            return;
        }
        match queue.waiting.pop_front() {
            Some((number, sender)) => {
                queue.current = number;
                // Whoever has it and hears nothing is being dropped, and passes it on then.
                let _ = sender.send(());
            }
            None => {
                queues.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;
    use futures_util::FutureExt as _;

    fn subject(number: u64) -> Subject {
        Subject::Connection(ConnectionId { shard: ShardId(0), number })
    }

    fn has_come(turn: &mut Turn) -> bool {
        turn.comes().now_or_never().is_some()
    }

    #[test]
    fn turns_of_one_come_one_after_the_other_and_those_of_others_at_once() {
        let order = Rc::new(Order::default());
        let [mut a, mut b, mut c] = [(); 3].map(|()| order.turn(subject(1)));
        assert!(has_come(&mut a) && !has_come(&mut b) && !has_come(&mut c));
        assert!(has_come(&mut order.turn(subject(2))));
        drop(a);
        assert!(has_come(&mut b) && !has_come(&mut c));
        drop(b);
        assert!(has_come(&mut c));
        drop(c);
        assert_eq!(order.len(), 0);
    }

    #[test]
    fn one_has_so_many_and_ends_are_not_counted() {
        let order = Rc::new(Order::default());
        let within = |subject| order.turn_within(subject, 2);
        let end = order.turn(subject(1));
        let [a, b] = [(); 2].map(|()| within(subject(1)).unwrap());
        assert!(within(subject(1)).is_none() && within(subject(2)).is_some());
        let later = order.turn(subject(1));
        drop(end);
        assert!(within(subject(1)).is_none());
        drop(b);
        let c = within(subject(1)).unwrap();
        assert!(within(subject(1)).is_none());
        drop((a, c, later));
        assert_eq!(order.len(), 0);
    }

    #[test]
    fn who_leaves_the_queue_holds_up_nobody() {
        let order = Rc::new(Order::default());
        let [a, b, mut c, d] = [(); 4].map(|()| order.turn(subject(1)));
        drop(b);
        drop(a);
        assert!(has_come(&mut c));
        // Its turn comes, and it is dropped before it hears of it.
        drop(c);
        let mut e = order.turn(subject(1));
        assert!(!has_come(&mut e));
        drop(d);
        assert!(has_come(&mut e));
        drop(e);
        assert_eq!(order.len(), 0);
    }
}

//! The connections of one port, and who leaves where there are too many.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::control::figures::PortFigures;

/// The connections that are served.
#[derive(Debug)]
pub(super) struct Table {
    seats: RefCell<HashMap<u64, Rc<Seat>>>,
    next_id: Cell<u64>,
    most: usize,
    /// Told when one has left.
    left: Notify,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) id: u64,
    /// Since when it has no request; `None` while it has one.
    waiting_since: Cell<Option<Instant>>,
    /// Whether it ever had a request that was not refused.
    pub(super) served: Cell<bool>,
    /// Told when somebody else needs its place.
    pub(super) leave: Notify,
}

impl Table {
    /// For so many.
    pub(super) fn new(most: usize) -> Table {
        let (seats, next_id, left) = (RefCell::default(), Cell::new(0), Notify::new());
        Table { seats, next_id, most, left }
    }

    fn len(&self) -> usize {
        self.seats.borrow().len()
    }

    /// The connection has ended.
    pub(super) fn remove(&self, id: u64, figures: &PortFigures) {
        self.seats.borrow_mut().remove(&id);
        figures.connections.set(self.len() as u64);
        self.left.notify_one();
    }

    /// Waits until nobody is left.
    pub(super) async fn emptied(&self) {
        while self.len() > 0 {
            self.left.notified().await;
        }
    }

    /// A place for one more. If there is none, the connection that has waited longest without a
    /// request leaves, those first that never had one; `None` if all have one.
    pub(super) fn admit(&self, figures: &PortFigures) -> Option<Rc<Seat>> {
        let mut seats = self.seats.borrow_mut();
        if seats.len() >= self.most {
            let waiting = seats.values().filter_map(|seat| {
                let since = seat.waiting_since.get()?;
                Some((seat.served.get(), since, seat.id))
            });
            let (_, _, id) = waiting.min()?;
            if let Some(seat) = seats.remove(&id) {
                seat.leave.notify_one();
                figures.connections_pushed_out.add(1);
            }
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        let seat = Rc::new(Seat {
            id,
            waiting_since: Cell::new(Some(Instant::now())),
            served: Cell::new(false),
            leave: Notify::new(),
        });
        seats.insert(id, seat.clone());
        figures.connections.set(seats.len() as u64);
        Some(seat)
    }
}

/// A request under way on a connection.
pub(super) struct Busy(pub(super) Rc<Seat>);

impl Busy {
    /// Until it is dropped.
    pub(super) fn new(seat: &Rc<Seat>) -> Busy {
        seat.waiting_since.set(None);
        Busy(seat.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.waiting_since.set(Some(Instant::now()));
    }
}
